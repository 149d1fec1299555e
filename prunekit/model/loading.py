"""Models and tokenizers from a name or a folder; `prunekit.load` is `load`."""

from os import PathLike
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.hub import locate
from prunekit.model.modeling_file import is_ours
from prunekit.model.prunable import PrunableModel

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


def load(path: str | PathLike[str], **options: Any) -> PreTrainedModel:
    """The model of a local folder; `options` go to `AutoModelForCausalLM.from_pretrained`.

    The model file of a folder in layout per-layer runs without `trust_remote_code` when it is, to the letter, what
    prunekit writes; any other code still needs it. Raises InputError for a folder that is no model.
    """
    checkpoint = Checkpoint.open(Path(path))
    options.setdefault("trust_remote_code", is_ours(checkpoint.folder, checkpoint.config))
    return AutoModelForCausalLM.from_pretrained(checkpoint.folder, **options)


def open_model(
    spec: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    trust_remote_code: bool = False,
) -> tuple[PrunableModel, PreTrainedTokenizerBase | None]:
    """A model without its weights, and its tokenizer when the folder has one."""
    checkpoint = Checkpoint.open(locate(spec, offline=offline))
    model = PrunableModel.open(checkpoint, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    return model, load_tokenizer(checkpoint, trust_remote_code)


def load_tokenizer(checkpoint: Checkpoint, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model folder, or None when it has none."""
    if not any((checkpoint.folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers fail in as many ways as there are families
        raise InputError(f"the tokenizer of {checkpoint.folder} does not load: {error}") from error
