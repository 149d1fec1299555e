"""Perplexity by the protocols of the pruning papers, which differ in their window and are not comparable.

    ppl = exp( mean over windows of the mean cross entropy of positions 1 .. w-1 )

The text is joined and tokenised once and cut into floor(N / w) windows of w tokens that do not overlap; the
rest is dropped. Every window starts without context: its first token is given, not predicted.
"""

import hashlib
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunekit import cache
from prunekit.blockwise import stream
from prunekit.blockwise.loss import exp_or_inf, mean_loss
from prunekit.errors import InputError, UnsupportedError, UsageError
from prunekit.model.prunable import PrunableModel
from prunekit.progress import Progress, Silent
from prunekit.text.calibration import check_vocabulary, encode, max_positions, tokenizer_identity
from prunekit.text.sources import Text, load_text

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


COLUMN = "--ppl-column"


@dataclass(frozen=True)
class Protocol:
    """A way to cut a text: windows of the model's maximum, of at most `window` tokens when that is given."""

    name: str
    window: int | None

    def window_for(self, positions: int | None) -> int:
        """Tokens in a window for a model of so many positions; raises UnsupportedError without any bound."""
        bounds = [bound for bound in (self.window, positions) if bound]
        if not bounds:
            raise UnsupportedError(
                f"protocol {self.name} takes the model's maximum as its window, and the config states none",
                hint="--protocol sparsegpt uses windows of 2048 tokens",
            )
        return min(bounds)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (Protocol("sparsegpt", 2048), Protocol("wanda", None), Protocol("llm-pruner", 128))
}


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and all that it depends on; `tokens` counts those that were predicted."""

    value: float
    set: str
    revision: str | None
    split: str
    protocol: str
    join: str
    window: int
    windows: int
    tokens: int

    def record(self) -> dict[str, Any]:
        """As JSON: a value that is not a number stays visible as "nan" or "inf"."""
        return asdict(self) | {"value": self.value if math.isfinite(self.value) else str(self.value)}

    @classmethod
    def read(cls, record: dict[str, Any]) -> "Perplexity":
        """What `record` gave."""
        known: dict[str, Any] = record | {"value": float(record["value"])}
        return cls(**known)


@dataclass(frozen=True)
class Windows:
    """A text cut by a protocol: token ids (n, w), and where they come from."""

    ids: Tensor
    set: str
    revision: str | None
    split: str
    protocol: str
    join: str

    @property
    def sha256(self) -> str:
        """Identity of the token ids and of the way they are cut."""
        return hashlib.sha256(f"{tuple(self.ids.shape)}\n".encode() + self.ids.numpy().tobytes()).hexdigest()

    @property
    def described(self) -> dict[str, Any]:
        """All that a perplexity on these windows depends on beside the model."""
        count, window = self.ids.shape
        return {
            "set": self.set,
            "revision": self.revision,
            "split": self.split,
            "protocol": self.protocol,
            "join": self.join,
            "window": window,
            "windows": count,
            "tokens": count * (window - 1),
        }

    def same_tokens(self, other: "Windows") -> bool:
        """Whether perplexities on both are comparable: they are on the same tokens, cut in the same way."""
        return torch.equal(self.ids, other.ids)

    def measure(
        self,
        model: PrunableModel,
        progress: Progress | None = None,
        offload: Path | None = None,
        title: str = "perplexity",
    ) -> Perplexity:
        """The perplexity of a model on these windows; see `perplexity`."""
        return Perplexity(perplexity(model, self.ids, progress, offload, title), **self.described)


def cut(
    text: Text,
    config: "PretrainedConfig",
    tokenizer: "PreTrainedTokenizerBase",
    protocol: Protocol,
    limit: int | None = None,
) -> Windows:
    """The first `limit` windows of a text for a model of that config; raises InputError when it fills none."""
    ids = _cached_windows(text, tokenizer, protocol, max_positions(config), limit)
    return Windows(ids, text.source, text.revision, text.split, protocol.name, text.separator)


def read_text(
    set_name: str, *, column: str | None = None, offline: bool = False, progress: Progress | None = None
) -> Text:
    """The text of a named set or a file; raises InputError when it cannot be had."""
    try:
        return load_text(set_name, split="evaluation", column=column, offline=offline, progress=progress)
    except InputError as error:  # files are read as for calibration, where the option has another name
        hint = error.hint and error.hint.replace("--calib-column", COLUMN)
        raise InputError(error.message, hint=hint) from error


def _cached_windows(
    text: Text,
    tokenizer: "PreTrainedTokenizerBase",
    protocol: Protocol,
    positions: int | None,
    limit: int | None,
) -> Tensor:
    """`windows`, remembered: the same text is measured before and after pruning, and for every method."""
    asked = {"window": protocol.window_for(positions), "limit": limit, "bound": text.max_windows}
    identity = {"text": text.identity(), "join": text.separator, "tokenizer": tokenizer_identity(tokenizer)}
    entry = cache.entry("evaluation", version=1, **asked, **identity)
    if found := cache.read(entry):
        return found[0]
    ids = windows(text, tokenizer, protocol, positions, limit)
    cache.write(entry, ids)
    return ids


def find_protocol(name: str) -> Protocol:
    """The protocol of that name; raises UsageError listing them all."""
    if name not in PROTOCOLS:
        raise UsageError(
            f"no protocol is called {name!r}; expected one of: {', '.join(PROTOCOLS)}",
            hint="--protocol sparsegpt is the one of most pruning papers",
        )
    return PROTOCOLS[name]


def windows(
    text: Text,
    tokenizer: "PreTrainedTokenizerBase",
    protocol: Protocol,
    max_positions: int | None,
    limit: int | None = None,
) -> Tensor:
    """The text as token ids (n, w), the first `limit` windows; raises InputError when it fills none."""
    if limit is not None and limit < 1:
        raise UsageError(f"{limit} windows; expected at least 1")
    window = protocol.window_for(max_positions)
    ids = encode(tokenizer, text.joined())
    whole = len(ids) // window
    if whole == 0:
        raise InputError(
            f"{text.source} has {len(ids)} tokens; expected at least {window} for one window",
            hint="give more text, or measure with shorter windows: --protocol llm-pruner",
        )
    count = min(bound for bound in (whole, text.max_windows, limit) if bound is not None)
    return torch.tensor(ids[: count * window], dtype=torch.int64).view(count, window)


@torch.no_grad()
def perplexity(
    model: PrunableModel,
    ids: Tensor,
    progress: Progress | None = None,
    offload: Path | None = None,
    title: str = "perplexity",
) -> float:
    """Perplexity of windows (n, w), one block of the model in memory at a time; NaN and infinity are answers.

    With `offload`, hidden states wait in files of that folder, which is removed afterwards. Raises InputError for a
    token id outside the model's vocabulary.
    """
    check_vocabulary(ids, model.config.get_text_config().vocab_size)
    progress = progress or Silent()
    progress.stage(title, len(model.kept))
    try:
        return exp_or_inf(mean_loss(stream.logits(model, ids, offload=offload, progress=progress), ids))
    finally:
        if offload is not None:
            shutil.rmtree(offload, ignore_errors=True)
