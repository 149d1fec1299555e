"""Models and tokenizers from a name or a folder; `prunekit.load` is `load`."""

from dataclasses import dataclass
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
    prunekit writes; any other code still needs it. Raises InputError for a folder that is not a model.
    """
    checkpoint = Checkpoint.open(Path(path))
    options.setdefault("trust_remote_code", is_ours(checkpoint.folder, checkpoint.config))
    return AutoModelForCausalLM.from_pretrained(checkpoint.folder, **options)


@dataclass(frozen=True)
class Opening:
    """How models are opened: where and in which dtype they compute, and what is allowed meanwhile."""

    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False
    trust_remote_code: bool = False

    def model(self, folder: Path) -> PrunableModel:
        """The model of a folder, without its weights."""
        return self.of(Checkpoint.open(folder))

    def of(self, checkpoint: Checkpoint) -> PrunableModel:
        """The model of a checkpoint, without its weights."""
        return PrunableModel.open(
            checkpoint, device=self.device, dtype=self.dtype, trust_remote_code=self.trust_remote_code
        )

    def checkpoint(self, spec: str) -> Checkpoint:
        """The files of a model named as `locate` takes it."""
        return Checkpoint.open(locate(spec, offline=self.offline))

    def tokenizer(self, checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
        """The tokenizer of a model folder, or None if it has none."""
        return load_tokenizer(checkpoint, self.trust_remote_code)


def load_tokenizer(checkpoint: Checkpoint, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model folder, or None when it has none."""
    if not any((checkpoint.folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers fail in as many ways as there are families
        raise InputError(f"the tokenizer of {checkpoint.folder} does not load: {error}") from error
