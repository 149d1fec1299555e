"""Which neurons of a feed-forward layer to leave out, and how the others make up for them.

The layer that reads the neurons is y = W x with W (outputs, n); X (tokens, n) is what calibration saw of them. Two
least squares problems are solved, both in float64 and both from the Gram matrix H = X^T X:

    masks     min over m of  || sum_i m_i x_i w_i - T ||^2 + lambda || m - 1 ||^2      Gram matrix G = H o (W^T W)
    weights   min over W' of || X W'^T - T ||^2 + lambda || W' - W ||^2                Gram matrix H

T (tokens, outputs) is what the layer should give: what it gave with all its neurons, or whatever repairs the hidden
states behind it; only what is `missing` from the former is needed, X^T (T - X W^T), in which a bias cancels. lambda is
a fraction `damping` of the mean diagonal. With P the inverse of the damped Gram matrix, leaving out neuron j and
solving again costs exactly m_j^2 / P_jj, or |w_j|^2 / P_jj; P then loses a rank. For masks at their start this is the
squared condition-number score of the method's page. A solve holds four float64 matrices of the size of H at once.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from prunekit.blockwise.statistics import Moments

CHUNK = 64  # neurons between two updates of the whole inverse: their columns stay in a CPU's cache


@dataclass(frozen=True)
class Problem:
    """One least squares problem: min over v of v^T G v - 2 v^T g + lambda |v - start|^2, column by column.

    `gram` (n, n), `goal` and `start` (n, k), all float64; k = 1 for masks, or the number of outputs for weights.
    """

    gram: Tensor
    goal: Tensor
    start: Tensor
    damping: float

    @classmethod
    def masks(cls, gram: Tensor, weight: Tensor, missing: Tensor | None, damping: float) -> Self:
        """One scalar for every neuron; `missing` (n, outputs) is what is asked for beyond what the layer gives."""
        wide = exact(weight)
        found = (wide.T @ wide).mul_(exact(gram))
        wanted = found.sum(dim=1)
        if missing is not None:
            wanted += (exact(missing) * wide.T).sum(dim=1)
        return cls(found, wanted[:, None], torch.ones_like(wanted)[:, None], damping)

    @classmethod
    def weights(cls, gram: Tensor, weight: Tensor, missing: Tensor | None, damping: float) -> Self:
        """The whole weight of the layer, as W^T (n, outputs)."""
        found, start = exact(gram), exact(weight).T.contiguous()
        goal = found @ start
        return cls(found, goal if missing is None else goal.add_(exact(missing)), start, damping)

    @property
    def level(self) -> float:
        """The lambda that is asked for; what `solve` and `remove` answer is larger where that is not enough."""
        mean = float(self.gram.diagonal().mean())
        return self.damping * mean if mean > 0 else 1.0

    def damped(self, damping: float) -> Self:
        """The same problem with another pull towards the start."""
        return replace(self, damping=damping)

    def inverse(self) -> tuple[Tensor, float]:
        """(G + lambda I)^-1, and lambda."""
        factor, level = self._factor(self.gram.clone())
        return torch.cholesky_inverse(factor), level

    def solve(self, keep: Tensor) -> tuple[Tensor, float]:
        """The solution (n, k) with zeros where `keep` (n,) is False, and lambda."""
        keep = keep.to(self.gram.device)
        gram = self.gram[keep][:, keep]
        rest = self.goal[keep] - gram @ self.start[keep]
        factor, level = self._factor(gram)
        found = torch.zeros_like(self.start)
        found[keep] = self.start[keep] + torch.cholesky_solve(rest, factor)
        return found, level

    def remove(self, count: int) -> tuple[Tensor, Tensor, float]:
        """Leave out `count` neurons greedily: keep mask (n,), solution (n, k) and lambda."""
        rest = self.goal - self.gram @ self.start
        p, level = self.inverse()
        value = self.start + p @ rest
        return *remove_greedily(p, value, count), level

    def _factor(self, gram: Tensor) -> tuple[Tensor, float]:
        """Cholesky factor of a matrix, which is damped; lambda is raised tenfold until it is positive definite."""
        mean = float(self.gram.diagonal().mean())
        level, added = self.level, 0.0
        while True:
            gram.diagonal().add_(level - added)
            factor, failed = torch.linalg.cholesky_ex(gram)
            if not failed:
                return factor, level
            level, added = max(10 * level, 1e-12 * mean), level


def exact(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where a device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def remove_greedily(p: Tensor, value: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leave out `count` neurons, each time the one whose absence costs least after all others were solved again.

    `p` (n, n) is the inverse, overwritten; `value` (n, k) the solution with all neurons: masks with k = 1, or the rows
    of W^T. Returns the keep mask (n,) and the solution (n, k) of those that stay, with zeros where none does. The exact
    greedy order; the inverse is updated in chunks, with one product of rank CHUNK each (OBS, Hassibi and Stork 1993).
    """
    keep = torch.ones(len(p), dtype=torch.bool, device=p.device)
    for start in range(0, count, CHUNK):
        _remove_chunk(p, value, keep, min(CHUNK, count - start))
    return keep, value


def _remove_chunk(p: Tensor, value: Tensor, keep: Tensor, count: int) -> None:
    """One chunk: the columns of p that are needed are made as they are needed, p and value are updated at the end."""
    columns = p.new_zeros(len(p), count)  # of the down-dates: P_now = P - columns columns^T
    shares = value.new_zeros(count, value.shape[1])  # value_now = value - columns shares
    left, cost = p.diagonal().clone(), value.square().sum(dim=1)
    for step in range(count):
        score = (cost / left).masked_fill(~keep, math.inf)
        j = int(score.argmin())
        done = columns[:, :step]
        column = (p[:, j] - done @ columns[j, :step]) / left[j].sqrt()
        share = (value[j] - columns[j, :step] @ shares[:step]) / left[j].sqrt()
        cost += column.square() * share.square().sum() - 2 * column * (value @ share - done @ (shares[:step] @ share))
        left -= column.square()
        columns[:, step], shares[step], keep[j] = column, share, False
        cost.clamp_(min=0)
        left = torch.where(keep, left.clamp_min(torch.finfo(p.dtype).tiny), 1)
    p.addmm_(columns, columns.T, alpha=-1)
    value.addmm_(columns, shares, alpha=-1)
    value[~keep] = 0


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Keep mask (n,) of the `count` largest scores; of equal scores the earlier is removed."""
    keep = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    keep[scores.argsort(stable=True)[len(scores) - count :]] = True
    return keep


def sensitivity(inputs: Moments, weight: Tensor) -> Tensor:
    """|x_i| |w_i|, (n,): how much of the layer's output a neuron makes, alone (COMP's condition number at m = 1)."""
    return inputs.squares.sqrt() * weight.float().norm(dim=0)


def wanda(inputs: Moments, weight: Tensor) -> Tensor:
    """Mean over outputs of |W_oi| |x_i|, (n,): Wanda's score of a weight, averaged over a column (Wanda-sp of FLAP)."""
    return inputs.squares.sqrt() * weight.float().abs().mean(dim=0)


def fluctuation(inputs: Moments, weight: Tensor) -> Tensor:
    """Var(x_i) |w_i|^2, (n,): how far a neuron is from a constant, which a bias could stand in for (FLAP, WIFV)."""
    return inputs.variance * weight.float().square().sum(dim=0)
