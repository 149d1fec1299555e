"""FLAP: cut the neurons that fluctuate least around their mean, wherever in the model they are.

Paper: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", arXiv:2312.11983.
"""

from typing import ClassVar

import torch
from torch import Tensor

from prunekit.api import (
    Context,
    Method,
    Moments,
    Narrowable,
    Needs,
    Neurons,
    PrunePlan,
    allotted,
    keep_largest,
    narrow,
    neurons,
    plan_narrowing,
    statistics_of_dense,
)
from prunekit.width.least_squares import fluctuation
from prunekit.width.neurons import matrix

NO_BIAS = "the mean output of the removed neurons is lost: {} has no bias to hold it, and none is added"


class FLAP(Method):
    """Cut the neurons of smallest variance x squared weight norm, and let a bias stand in for their mean."""

    name: ClassVar[str] = "flap"
    paper: ClassVar[str] = "An et al. 2024, arXiv:2312.11983"
    needs: ClassVar[Needs] = Needs(calibration=True, widths=True)

    def plan(self, ctx: Context) -> PrunePlan:
        found = neurons(ctx)
        gone = found.gone(ctx.ratio)
        shares = allotted(ctx, found) or (None if ctx.layout == "uniform" else lost(self._scores(ctx, found), gone))
        return plan_narrowing(ctx, self.name, found, found.widths(gone, found.ffns, shares))

    def _scores(self, ctx: Context, found: Neurons) -> dict[int, Tensor]:
        """Block -> standardised scores of its neurons in the dense model."""
        scores: dict[int, Tensor] = {}
        ctx.progress.stage("fluctuation", len(found.ffns))
        for index, inputs, reader in statistics_of_dense(ctx, found.ffns, Moments):
            scores[index] = standardised(fluctuation(inputs, matrix(reader)))
            ctx.progress.step(ctx.model.blocks[index].path)
        return scores

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        for place in narrow(ctx, plan, Moments, dense=True):
            keep = keep_largest(fluctuation(place.inputs, place.weight), place.units)
            if not stand_in(place, keep):
                ctx.note(NO_BIAS.format(place.ffn.reader))
            place.leave(keep)


def standardised(scores: Tensor) -> Tensor:
    """Scores (neurons,) with mean 0 and standard deviation 1, so that blocks can be compared."""
    return (scores - scores.mean()) / scores.std().clamp_min(torch.finfo(scores.dtype).tiny)


def lost(scores: dict[int, Tensor], gone: float) -> dict[int, float]:
    """How many neurons each block loses when the `gone` smallest scores of the whole model are removed."""
    every = torch.cat(list(scores.values()))
    threshold = every.sort().values[min(len(every) - 1, round(gone))]
    return {index: float((score < threshold).sum()) for index, score in scores.items()}


def stand_in(place: Narrowable[Moments], keep: Tensor) -> bool:
    """Add the mean output of the removed neurons to the bias of the linear that reads them; False without one."""
    bias = getattr(place.reader, "bias", None)
    if bias is None:
        return False
    bias.data += (place.weight[:, ~keep].float() @ place.inputs.means[~keep]).to(bias.dtype)
    return True
