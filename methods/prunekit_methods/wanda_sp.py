"""Wanda-sp: cut the neurons that a feed-forward layer's output weights read most quietly.

Paper: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", arXiv:2312.11983 (its
baseline, after Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695).
"""

from typing import ClassVar

from prunekit.api import (
    Context,
    Method,
    Moments,
    Needs,
    PrunePlan,
    allotted,
    keep_largest,
    narrow,
    neurons,
    plan_narrowing,
)
from prunekit.width.least_squares import wanda


class WandaSP(Method):
    """Cut the neurons of smallest mean |weight| x input norm; nothing makes up for them."""

    name: ClassVar[str] = "wanda-sp"
    paper: ClassVar[str] = "An et al. 2024, arXiv:2312.11983"
    needs: ClassVar[Needs] = Needs(calibration=True, widths=True)

    def plan(self, ctx: Context) -> PrunePlan:
        found = neurons(ctx)
        widths = found.widths(found.gone(ctx.ratio), found.ffns, allotted(ctx, found))
        return plan_narrowing(ctx, self.name, found, widths)

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        for place in narrow(ctx, plan, Moments):
            place.leave(keep_largest(wanda(place.inputs, place.weight), place.units))
