"""`prunekit.load`: a folder that prunekit wrote, in whatever layout, as a transformers model."""

from os import PathLike
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from prunekit.checkpoint import Checkpoint
from prunekit.layer_code import is_ours


def load(path: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """The model of a local folder; `options` go to `AutoModelForCausalLM.from_pretrained`.

    The model file of a folder in layout per-layer runs without `trust_remote_code` when it is, to the letter, what
    prunekit writes; any other code still needs it. Raises InputError for a folder that is no model.
    """
    checkpoint = Checkpoint.open(Path(path))
    options.setdefault("trust_remote_code", is_ours(checkpoint.folder, checkpoint.config))
    return AutoModelForCausalLM.from_pretrained(checkpoint.folder, **options)
