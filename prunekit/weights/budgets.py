"""How one target is shared out over places of different size: pure functions of numbers, for linears as for blocks.

`sizes` counts the weights of each place, and every result has the mean that was asked for, weighted by them.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

MOST = 0.99  # of a place that may be removed: what is left must still carry information


def spread(metrics: Sequence[float], sizes: Sequence[int], target: float, epsilon: float) -> list[float]:
    """AlphaPruning's sparsities: linear in the metric, from 1 - epsilon to 1 + epsilon times a common factor.

        r_i = (q_i - min q) / (max q - min q) * 2 epsilon + 1 - epsilon
        phi_i = eta r_i,   eta = target * sum_i d_i / sum_i d_i r_i

    They can exceed 1, or fall below 0 when epsilon exceeds 1; `settle` mends that (arXiv:2410.10912, section 3.3).
    """
    known = [q for q, size in zip(metrics, sizes, strict=True) if size]
    low, high = min(known), max(known)
    width = high - low
    shares = [1 - epsilon + 2 * epsilon * ((q - low) / width if width > 0 else 0.5) for q in metrics]
    weighted = math.fsum(d * r for d, r in zip(sizes, shares, strict=True))
    eta = target * sum(sizes) / weighted if weighted else 0.0
    return [eta * share for share in shares]


def settle(wanted: Sequence[float], sizes: Sequence[int], target: float, most: float = MOST) -> list[float]:
    """The wanted sparsities times one factor, clipped to [0, most], so that the mean is the target.

    Those that are not clipped thus keep their proportions, and share what the others cannot take. What is wanted may
    have any mean; a target above `most` raises `most` to it.
    """
    most, due = max(most, target), target * sum(sizes)
    found = [max(value, 0.0) for value in wanted]
    for _ in range(len(found) + 1):  # each time but the first and the last, at least one more is full
        missing = due - math.fsum(d * s for d, s in zip(sizes, found, strict=True))
        free = {index for index, value in enumerate(found) if 0 < value != most and sizes[index]}
        if not free:
            break
        factor = 1 + missing / math.fsum(sizes[index] * found[index] for index in free)
        found = [min(most, value * factor) if index in free else value for index, value in enumerate(found)]
    missing = due - math.fsum(d * s for d, s in zip(sizes, found, strict=True))
    empty = sum(size for size, value in zip(sizes, found, strict=True) if value == 0)
    if missing > 1e-12 * due and empty:  # all that may still lose have nothing yet: they share alike
        return [missing / empty if value == 0 else value for value in found]
    return found


def shift(wanted: Sequence[float], sizes: Sequence[int], target: float) -> list[float]:
    """The wanted sparsities with one number added to all, so that the mean is the target."""
    off = target - math.fsum(d * s for d, s in zip(sizes, wanted, strict=True)) / sum(sizes)
    return [value + off for value in wanted]


def round_to_counts(wanted: Sequence[float], sizes: Sequence[int], target: float, group: int) -> list[int]:
    """How many of every `group` weights are zeroed in each place, as near to the wanted sparsities as they can be.

    All are rounded down; then, from the largest remainder on, each takes one more where that brings the mean nearer to
    the target. At least one weight of a group stays.
    """
    exact = [value * group for value in wanted]
    counts = [min(group - 1, math.floor(value + 1e-9)) for value in exact]
    missing = target * group * sum(sizes) - sum(d * n for d, n in zip(sizes, counts, strict=True))
    for index in sorted(range(len(exact)), key=lambda index: counts[index] - exact[index]):
        if counts[index] < group - 1 and abs(missing - sizes[index]) < abs(missing):
            counts[index] += 1
            missing -= sizes[index]
    return counts


def share_bits(alphas: Sequence[float], sizes: Sequence[int], mean: float, span: float = 1.0) -> list[int]:
    """Bits per weight for each place, more where the exponent is lower, with the mean that was asked for.

    AlphaPruning's reading for mixed precision, which ranks the places: linear in the rank, from `mean` + `span` down to
    `mean` - `span`, then all moved alike to meet the mean, and rounded by largest remainder. None gets fewer than one.
    """
    ranks = [sum(other < alpha for other in alphas) + sum(other == alpha for other in alphas) / 2 for alpha in alphas]
    wanted = shift([mean + span * (1 - 2 * rank / len(alphas)) for rank in ranks], sizes, mean)
    return [max(1, n) for n in round_to_counts([max(1.0, bits) / 32 for bits in wanted], sizes, mean / 32, 32)]


def cheapest(curves: Sequence[Mapping[float, float]], sizes: Sequence[int], target: float) -> list[float]:
    """The sparsities of least total loss, from one curve per place: sparsity -> loss, at the same sparsities or not.

    Each curve is made convex (the lower hull of its points) and read as straight between its points. Then the pieces
    are taken by what they cost per weight, the cheapest first, until the target is met, which is the exact optimum.
    """
    hulls = [_lower_hull(sorted(curve.items())) for curve in curves]
    pieces = sorted(
        ((after[1] - before[1]) / (size * (after[0] - before[0])), before[0], place, after[0])
        for place, (hull, size) in enumerate(zip(hulls, sizes, strict=True))
        if size
        for before, after in pairwise(hull)
    )
    found = [hull[0][0] for hull in hulls]
    left = target * sum(sizes) - math.fsum(d * s for d, s in zip(sizes, found, strict=True))
    for _, start, place, stop in pieces:
        step = min(stop - start, max(0.0, left) / sizes[place])
        found[place] += step
        left -= step * sizes[place]
    return found


def smoothed(curve: Mapping[float, float], points: int = 33) -> dict[float, float]:
    """The parabola of least squares through some points of a curve, at many sparsities between the first and the last.

    Between points a curve read as straight has no reason to move a little; a parabola has.
    """
    if len(curve) < 3:
        return dict(curve)
    x, y = (np.array(part) for part in zip(*sorted(curve.items()), strict=True))
    parabola = np.polynomial.Polynomial.fit(x, y, deg=2)
    fine = np.linspace(x[0], x[-1], points)
    return dict(zip(fine.tolist(), parabola(fine).tolist(), strict=True))


def _lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of a curve, by x, that lie on its lower convex hull."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (y - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return hull
