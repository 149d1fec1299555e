"""The middle of repeated measurements, how far they spread, and where the true median lies.

Timings have long tails and no known distribution, so everything rests on their order.
"""

from collections.abc import Sequence
from math import comb
from statistics import median, quantiles

from prunekit.evaluate.rows import Rate

CONFIDENCE = 0.95
FEWEST = 6  # values whose smallest and largest enclose the median with that confidence


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The narrowest interval between two order statistics, as far from either end, that covers the true median.

    Each value is below the median with probability 1/2, so with k values left out at both ends the interval misses it
    with probability 2 * P(Binomial(n, 1/2) <= k - 1). None when even the smallest and the largest are not enough.
    """
    ordered, count = sorted(values), len(values)
    outside, left_out = 2 / 2**count if count else 2.0, 0
    if outside > 1 - confidence:
        return None
    while outside + 2 * comb(count, left_out + 1) / 2**count <= 1 - confidence:
        left_out += 1
        outside += 2 * comb(count, left_out) / 2**count
    return ordered[left_out], ordered[count - 1 - left_out]


def rate(values: Sequence[float], dense: Sequence[float] | None = None) -> Rate:
    """Median and quartiles of a model's values; with the baseline's of the same rounds, the median of the ratios."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    if dense is None:
        return Rate(value=median(values), low=low, high=high)
    ratios = [mine / other for mine, other in zip(values, dense, strict=True)]
    interval = median_interval(ratios) or (None, None)
    return Rate(
        value=median(values),
        low=low,
        high=high,
        ratio=median(ratios),
        ratio_low=interval[0],
        ratio_high=interval[1],
    )
