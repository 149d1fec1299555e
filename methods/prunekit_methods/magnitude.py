"""Magnitude: zero the smallest weights of each linear; no data is needed.

Paper: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015, arXiv:1506.02626.
"""

from typing import ClassVar

from torch import Tensor

from prunekit.api import (
    Context,
    Method,
    Needs,
    Pattern,
    PrunePlan,
    keep_above_threshold,
    keep_per_group,
    plan_sparsity,
    walk,
)


class Magnitude(Method):
    """Zero the smallest absolute weights of each linear."""

    name: ClassVar[str] = "magnitude"
    paper: ClassVar[str] = "Han et al. 2015, arXiv:1506.02626"
    needs: ClassVar[Needs] = Needs(budget=True)

    def plan(self, ctx: Context) -> PrunePlan:
        return plan_sparsity(ctx, self.name)

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        actions = plan.sparsify()
        for visit in walk(ctx):
            for linear in visit.linears:
                action = actions[linear.path]
                keep = keep_mask(linear.weight, action.sparsity, Pattern.parse(action.pattern))
                linear.write(linear.weight.masked_fill(~keep, 0))


def keep_mask(weight: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Keep mask (outputs, inputs): the threshold is one for the whole matrix, or one per N:M group."""
    if pattern.group is not None:
        return keep_per_group(weight.abs(), pattern)
    return keep_above_threshold(weight.abs(), sparsity)
