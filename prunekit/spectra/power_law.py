"""What the spectrum of a weight says of it: the exponent of its tail, and norms and ranks for comparison.

Papers: Lu et al., "AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of Large
Language Models", NeurIPS 2024, arXiv:2410.10912; Martin et al., "Predicting trends in the quality of state-of-the-art
neural networks without access to training or testing data", 2021 (WeightWatcher).
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Metric = Literal["alpha_peak", "alpha_mid", "alpha_ks", "stable_rank", "entropy", "spectral_norm", "log_norm"]
METRICS: tuple[Metric, ...] = get_args(Metric)
LowerBound = Literal["released", "linear"]
CHUNK = 2**20  # distances that are looked at together: 8 MiB in float64, several times
STRIDE = 16  # of the eigenvalues that a first look takes; the best tail is then looked for among few
ROUNDING = 1e-12
BINS = 100  # of the histogram whose fullest bin is the peak
STEEPEST = 1e5  # an exponent above it is that of a tail whose eigenvalues are all the same, or of a single one
FLAT = 1e-5  # ln of the largest over the smallest eigenvalue, below which all are equal up to rounding


def measure(values: Tensor, metric: Metric, lower_bound: LowerBound = "released") -> float:
    """A metric of eigenvalues (n,), float64 and ascending; zeros are left out. 0 where it is not defined.

    An exponent is not defined for fewer than two eigenvalues, nor where all are equal up to rounding.
    """
    values = values[values > 0]
    if len(values) == 0:
        return 0.0
    if metric in PLAIN:
        return float(PLAIN[metric](values))
    if len(values) < 2 or (values[-1] / values[0]).log() < FLAT:
        return 0.0
    found = alpha_peak(values, lower_bound) if metric == "alpha_peak" else EXPONENTS[metric](values)
    return found if found < STEEPEST else 0.0


def alpha_peak(values: Tensor, lower_bound: LowerBound = "released") -> float:
    """The exponent of the tail that fits best among those that begin near the peak of the histogram (AlphaPruning).

    They begin between 0.95 and 1.5 times the peak x, the left edge of the fullest of BINS equal bins of log10 of the
    eigenvalues. The released code compares log10(0.95 x), and not 0.95 x, with the eigenvalues: `released`, on which
    all published figures rest. `linear` is what was meant.
    """
    logs = values.log10()
    low, high = logs[0].item(), logs[-1].item()
    fullest = int(logs.histc(BINS, min=low, max=high).argmax())
    peak = 10 ** (low + (high - low) * fullest / BINS)
    bound = math.log10(0.95 * peak) if lower_bound == "released" else 0.95 * peak
    first = int(torch.searchsorted(values, bound))
    return best_tail(values, first, int(torch.searchsorted(values, 1.5 * peak, right=True)))


def alpha_mid(values: Tensor) -> float:
    """The exponent of the tail that begins at the median."""
    return hill(values)[len(values) // 2].item()


def alpha_ks(values: Tensor) -> float:
    """The exponent of the tail that fits best among all."""
    return best_tail(values, 0, len(values))


def best_tail(values: Tensor, first: int, stop: int) -> float:
    """The exponent of the best of the tails that begin at `first` to `stop` - 1, the first of equals; 0 without any."""
    stop = min(stop, len(values) - 1)  # one eigenvalue is not a tail
    if first >= stop:
        return 0.0
    exponents, places = hill(values), torch.arange(first, stop)
    at_least = distances(values, exponents, places, STRIDE)
    likely = places[at_least.argmin()][None]
    places = places[at_least <= distances(values, exponents, likely) + ROUNDING]  # the others cannot be better
    return exponents[places[distances(values, exponents, places).argmin()]].item()


def hill(values: Tensor) -> Tensor:
    """Hill's estimate for the tail that begins at each of the eigenvalues (n,), itself included.

    alpha_i = 1 + n_i / sum_{j >= i} ln(x_j / x_i), where n_i counts the eigenvalues from i on.
    """
    logs = values.log()
    counts = torch.arange(len(values), 0, -1, dtype=values.dtype)
    sums = logs.flip(0).cumsum(0).flip(0) - counts * logs
    return 1 + counts / sums.clamp(min=torch.finfo(values.dtype).tiny)


def distances(values: Tensor, exponents: Tensor, places: Tensor, stride: int = 1) -> Tensor:
    """How far each tail is from a power law: max_{j >= i} |1 - (x_j / x_i)^(1 - alpha_i) - (j - i) / n_i|.

    `places` (k,) are the i, ascending; `exponents` (n,) hold alpha_i for every i. With a stride, only every so many
    j are looked at, so that the result is at most the distance. CHUNK numbers are held at once.
    """
    logs, found = values.log(), []
    for part in places.split(max(1, CHUNK * stride // len(values))):
        columns = torch.arange(int(part[0]), len(values), stride)
        begins = part[:, None]
        model = (logs[columns] - logs[begins]).mul_(1 - exponents[begins]).clamp_(max=0).exp_()
        empirical = (columns - begins).to(values.dtype).div_(len(values) - begins)
        found.append(model.neg_().add_(1).sub_(empirical).abs_().mul_(columns >= begins).amax(dim=1))
    return torch.cat(found)


def stable_rank(values: Tensor) -> Tensor:
    """The squared Frobenius norm over the squared spectral norm."""
    return values.sum() / values[-1]


def entropy(values: Tensor) -> Tensor:
    """The entropy of the eigenvalues as shares of their sum, over the largest that it could be; from 0 to 1."""
    shares = values / values.sum()
    return -(shares * shares.log()).sum() / math.log(max(2, len(values)))


def spectral_norm(values: Tensor) -> Tensor:
    """The largest eigenvalue: the square of the spectral norm, as in WeightWatcher and the authors' code."""
    return values[-1]


def log_norm(values: Tensor) -> Tensor:
    """log10 of the sum of the eigenvalues, which is the squared Frobenius norm."""
    return values.sum().log10()


EXPONENTS: dict[str, Callable[[Tensor], float]] = {"alpha_mid": alpha_mid, "alpha_ks": alpha_ks}
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "stable_rank": stable_rank,
    "entropy": entropy,
    "spectral_norm": spectral_norm,
    "log_norm": log_norm,
}
