"""How far a model's predictions are from the baseline's on the same tokens: KL divergence, and the same first choice.

    KL(p || q) = sum over the vocabulary of p (ln p - ln q)        p: the baseline, q: the model

Perplexity looks at one token of the vocabulary, these look at all of them, so they see damage that it does not. Both
are means over the tokens that perplexity predicts. The windows go through the blocks of both models, and wait there as
hidden states; logits exist of one batch at a time, of both models side by side.
"""

import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from prunekit.blockwise import stream
from prunekit.blockwise.loss import CHUNK, exp_or_inf, mean_loss
from prunekit.evaluate import rows
from prunekit.evaluate.perplexity import Windows
from prunekit.model.prunable import PrunableModel
from prunekit.progress import Progress, Silent


class Agreement:
    """Sums over the predicted tokens that were seen so far."""

    def __init__(self) -> None:
        self.kl, self.same, self.tokens = 0.0, 0, 0

    def watch(self, dense: Iterable[Tensor], model: Iterable[Tensor]) -> Iterator[Tensor]:
        """The model's logits in batches (b, w, vocabulary), handed on once they are compared with the baseline's."""
        for ours, theirs in zip(model, dense, strict=True):
            for mine, other in zip(ours[:, :-1], theirs[:, :-1], strict=True):
                kl, same = divergence(other, mine)
                self.kl, self.same, self.tokens = self.kl + kl, self.same + same, self.tokens + len(mine)
            yield ours


def divergence(dense: Tensor, model: Tensor) -> tuple[float, int]:
    """KL(dense || model) in nats summed over positions, and in how many both have the same first choice.

    Logits are (positions, vocabulary), of any dtype and on any device. Computed in float32, summed in float64, a
    bounded number of positions at a time. A position where one of them has no number never agrees.
    """
    rows_at_once = max(1, CHUNK // dense.shape[-1])
    total, same = 0.0, 0
    for a, b in zip(dense.split(rows_at_once), model.split(rows_at_once), strict=True):
        first, second = a.float(), b.to(a.device).float()
        p, q = first.log_softmax(-1), second.log_softmax(-1)
        terms = torch.where(p == -torch.inf, 0.0, p.exp() * (p - q))  # 0 ln 0 is 0
        total += terms.double().sum().item()
        numbers = ~(first.isnan().any(-1) | second.isnan().any(-1))
        same += int(((first.argmax(-1) == second.argmax(-1)) & numbers).sum())
    return total, same


class Baseline:
    """The dense model's hidden states behind its last block, from which its logits are computed for every model."""

    @torch.no_grad()
    def __init__(
        self, model: PrunableModel, windows: Windows, progress: Progress | None = None, offload: Path | None = None
    ) -> None:
        self.windows = windows
        self.vocabulary = model.config.get_text_config().vocab_size
        progress = progress or Silent()
        progress.stage("perplexity", len(model.kept))
        self.stream = stream.passed(model, windows.ids, offload=offload, progress=progress)

    @torch.no_grad()
    def logits(self) -> Iterator[Tensor]:
        """The dense model's logits in batches (b, w, vocabulary)."""
        yield from self.stream.logits()

    def measure(self) -> rows.Perplexity:
        """The dense model's own perplexity."""
        return figure(self.windows, exp_or_inf(mean_loss(self.logits(), self.windows.ids)))

    def comparable(self, model: PrunableModel, windows: Windows) -> bool:
        """Whether a model reads the same tokens and chooses from as many."""
        same = model.config.get_text_config().vocab_size == self.vocabulary
        return same and windows.same_tokens(self.windows)


def measure(
    model: PrunableModel,
    windows: Windows,
    baseline: Baseline | None = None,
    progress: Progress | None = None,
    offload: Path | None = None,
) -> rows.Perplexity:
    """The perplexity of a model on windows and, where the baseline can be compared with it, how far they are apart."""
    if baseline is None or not baseline.comparable(model, windows):
        return figure(windows, windows.measure(model, progress, offload).value)
    progress = progress or Silent()
    progress.stage("perplexity", len(model.kept))
    found = Agreement()
    try:
        with torch.no_grad():
            logits = stream.logits(model, windows.ids, offload=offload, progress=progress)
            value = exp_or_inf(mean_loss(found.watch(baseline.logits(), logits), windows.ids))
    finally:
        if offload is not None:
            shutil.rmtree(offload, ignore_errors=True)
    kl = rows.plain(found.kl / found.tokens if found.kl > 0 or math.isnan(found.kl) else 0.0)  # below 0 by rounding
    return figure(windows, value, kl=kl, agreement=found.same / found.tokens)


def figure(
    windows: Windows, value: float, kl: rows.Number | None = None, agreement: float | None = None
) -> rows.Perplexity:
    """A perplexity with all that it depends on."""
    return rows.Perplexity(
        value=rows.plain(value), kl=kl, agreement=agreement, sha256=windows.sha256, **windows.described
    )
