"""The language-model loss of logits that come in batches, computed a bounded number of positions at a time."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prunekit.errors import PrunekitError

CHUNK = 2**24  # logits that are looked at together: 64 MiB in float32


def mean_loss(logits: Iterable[Tensor], ids: Tensor) -> float:
    """Mean cross entropy in nats of windows (n, w), from logits in batches (b, w, vocabulary), in order.

    Losses are computed in float32 and summed in float64.
    """
    total, done = 0.0, 0
    for batch in logits:
        total += summed_loss(batch, ids[done : done + len(batch)])
        done += len(batch)
    if done != len(ids):
        raise PrunekitError(f"logits came for {done} windows; expected {len(ids)}")
    return total / (ids.shape[0] * (ids.shape[1] - 1))


def summed_loss(logits: Tensor, ids: Tensor) -> float:
    """Cross entropy of windows (b, w), summed over their w - 1 predicted tokens, from logits (b, w, vocabulary)."""
    rows = zip(logits, ids, strict=True)
    return sum(_loss(row[:-1], target[1:].to(row.device)) for row, target in rows)


def loss_and_slope(logits: Tensor, ids: Tensor) -> tuple[float, Tensor]:
    """The summed loss of windows (b, w), and its gradient in their logits (b, w, vocabulary).

    Autograd would keep several tensors of that size; here the result is the only one.
    """
    total, slope = 0.0, torch.zeros_like(logits)
    rows = max(1, CHUNK // logits.shape[-1])
    for row, target, out in zip(logits, ids, slope, strict=True):
        parts = (part.split(rows) for part in (row[:-1], target[1:, None].to(row.device), out[:-1]))
        for a, b, part in zip(*parts, strict=True):
            shares = a.float().log_softmax(-1)  # (t, vocabulary)
            total -= shares.gather(1, b).double().sum().item()
            part.copy_(shares.exp_().scatter_add_(1, b, -torch.ones_like(b, dtype=shares.dtype)))
    return total, slope


def exp_or_inf(loss: float) -> float:
    """The exponential of a loss; infinity when that is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _loss(logits: Tensor, target: Tensor) -> float:
    rows = max(1, CHUNK // logits.shape[-1])  # logits (t, vocabulary), target (t,)
    chunks = zip(logits.split(rows), target.split(rows), strict=True)
    return sum(cross_entropy(a.float(), b, reduction="none").double().sum().item() for a, b in chunks)
