"""Wanda: zero the weights whose magnitude times input norm is smallest within each output row; no weight is updated.

Paper: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, arXiv:2306.11695.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from prunekit.api import Context, InputNorm, Method, Needs, Pattern, PrunePlan, keep_per_row, plan_sparsity, walk

TOLERANCE = 1e-3  # of the variant's bisection, in sparsity and in alpha, as in the authors' code
NOTABLE = 1e-2  # a miss of the planned sparsity that the user is told of


class Wanda(Method):
    """Zero the smallest |weight| x input norm in each output row."""

    name: ClassVar[str] = "wanda"
    paper: ClassVar[str] = "Sun et al. 2024, arXiv:2306.11695"
    needs: ClassVar[Needs] = Needs(calibration=True, budget=True)

    variant: bool = Field(
        default=False,
        description="Drop per row the scores that make up a fraction of its sum, one searched for the sparsity.",
    )

    def plan(self, ctx: Context) -> PrunePlan:
        return plan_sparsity(ctx, self.name)

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        actions = plan.sparsify()
        for visit in walk(ctx, InputNorm):
            for linear in visit.linears:
                action = actions[linear.path]
                saliency = scores(linear.weight, visit.statistics[linear.path].norms)
                keep = self.keep_mask(saliency, action.sparsity, Pattern.parse(action.pattern))
                if self.variant and abs(_sparsity(keep) - action.sparsity) > NOTABLE:
                    ctx.note(f"the variant's search misses the planned sparsity {action.sparsity:g} in some linears")
                linear.weight.masked_fill_(keep.logical_not_(), 0)

    def keep_mask(self, saliency: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
        """Keep mask (outputs, inputs) for the scores of one linear."""
        if self.variant and pattern.group is None and sparsity > 0:
            return keep_variant(saliency, sparsity)
        return keep_per_row(saliency, sparsity, pattern)


def scores(weight: Tensor, norms: Tensor) -> Tensor:
    """S = |W| * ||X||_2 (section 3, equation 1): weight (outputs, inputs), norms (inputs,), float32."""
    return weight.float().abs() * norms


def keep_variant(saliency: Tensor, sparsity: float) -> Tensor:
    """Keep mask whose rows each drop their smallest scores up to a fraction alpha of the row's sum.

    As the authors' `use_variant`: alpha is bisected in [0, 0.8] from 0.4 until the matrix has the wanted sparsity
    within 0.001, or alpha is known within 0.001. Of Gaussian weights, alpha = 0.8 drops about 94 %.
    """
    ordered = saliency.sort(dim=1, stable=True).values
    cumulative = ordered.cumsum(dim=1)
    low, high, alpha = 0.0, 0.8, 0.4
    keep = _keep_tail(saliency, ordered, cumulative, alpha)
    while abs(_sparsity(keep) - sparsity) > TOLERANCE and high - low >= TOLERANCE:
        low, high = (low, alpha) if _sparsity(keep) > sparsity else (alpha, high)
        alpha = (low + high) / 2
        keep = _keep_tail(saliency, ordered, cumulative, alpha)
    return keep


def _keep_tail(saliency: Tensor, ordered: Tensor, cumulative: Tensor, alpha: float) -> Tensor:
    """Drop from each row the scores up to the largest whose cumulative sum stays within alpha of the row's sum."""
    within = (cumulative <= alpha * cumulative[:, -1:]).sum(dim=1, keepdim=True)
    threshold = ordered.gather(1, (within - 1).clamp(min=0))
    return (saliency > threshold) | (within == 0)


def _sparsity(keep: Tensor) -> float:
    return 1 - keep.float().mean().item()
