"""COMP: remove whole blocks first, then neurons that the others can stand in for, and let the others do so.

A neuron is worth what the feed-forward layer's output loses without it once all other neurons were scaled anew to make
up for it: its share of the output, discounted by how nearly the others can say the same (a condition number).

Paper: Xu et al., "COMP: Hybrid-granularity pruning of large language models", arXiv:2501.15255.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunekit.api import (
    Context,
    Gram,
    Method,
    Narrowable,
    Needs,
    PrunePlan,
    allotted,
    candidates,
    influences,
    keep_largest,
    narrow,
    plan_narrowing,
    smallest,
)
from prunekit.api import neurons as find_neurons
from prunekit.width import least_squares
from prunekit.width.least_squares import Problem
from prunekit.width.walk import Target

Score = Literal["condition", "refit", "sensitivity", "wanda", "fluctuation", "magnitude", "random"]
LARGEST_MASK = 10.0  # beyond it a neuron speaks for others that it knows too little of (Kwon et al. 2022)


class COMP(Method):
    """Remove blocks, then neurons, and refit what reads the neurons; forward passes only, one block in memory."""

    name: ClassVar[str] = "comp"
    paper: ClassVar[str] = "Xu et al. 2025, arXiv:2501.15255"
    needs: ClassVar[Needs] = Needs(calibration=True, blocks=True, widths=True)

    layer_share: float = Field(default=0.25, ge=0, le=1, description="Part of the ratio removed as whole blocks.")
    score: Score = Field(default="condition", description="What a neuron is worth.")
    recover: Literal["weights", "mask", "none"] = Field(
        default="weights",
        description="What makes up for removed neurons: new output weights, one scalar for every neuron, or nothing.",
    )
    target: Target | Literal["auto"] = Field(
        default="auto",
        description="What is to be had again: the output of the layer, of the dense layer, or the dense hidden states "
        "(stream); auto is stream for weights where whole blocks are removed, else layer.",
    )
    damping: float = Field(default=0.01, gt=0, description="Pull towards the old weights, times the mean diagonal.")
    mask_variance: float = Field(default=0.1, gt=0, description="Variance of the masks beyond which damping is raised.")

    def plan(self, ctx: Context) -> PrunePlan:
        found, count = find_neurons(ctx), int(self.layer_share * ctx.ratio * len(ctx.model.blocks) + 1e-9)
        free = candidates(ctx, count) if count else []
        found.gone(ctx.ratio, free[:count])  # what cannot be is found out before the text is read
        influence = influences(ctx)
        removed = smallest({index: influence[index] for index in free}, count)
        kept = {block.index: influence[block.index] for block in ctx.model.kept if block.index not in removed}
        shares = allotted(ctx, found) or (None if ctx.layout == "uniform" else losses(kept))
        widths = found.widths(found.gone(ctx.ratio, removed), kept, shares)
        return plan_narrowing(ctx, self.name, found, widths, removed, {"importance": influence, "order": removed})

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        automatic: Target = "stream" if self.recover == "weights" and plan.removed_blocks() else "layer"
        for place in narrow(ctx, plan, Gram, automatic if self.target == "auto" else self.target):
            keep, weight = self._leave(place, ctx)
            place.leave(keep, weight)

    def _leave(self, place: Narrowable[Gram], ctx: Context) -> tuple[Tensor, Tensor | None]:
        """The neurons of one layer that stay, and the weight (outputs, neurons) that then reads them."""
        arguments = (place.inputs.total, place.weight, place.missing, self.damping)
        gone = place.ffn.units - place.units
        if self.score in ("condition", "refit"):
            problem = (Problem.masks if self.score == "condition" else Problem.weights)(*arguments)
            keep, _, level = problem.remove(gone)
            if level > 1.01 * problem.level:
                ctx.note(f"{place.block.path}: damping had to be raised {level / problem.level:.0e} times")
        else:
            keep = keep_largest(self._scores(place, ctx), place.units)
        if self.recover == "none":
            return keep, None
        if self.recover == "weights":
            return keep, Problem.weights(*arguments).solve(keep)[0].T
        return keep, place.weight * self._masks(Problem.masks(*arguments), keep, place, ctx)

    def _masks(self, problem: Problem, keep: Tensor, place: Narrowable[Gram], ctx: Context) -> Tensor:
        """One scalar per neuron (neurons,), damped until their variance and size are within bounds."""
        while True:
            masks, _ = problem.solve(keep)
            inside = (
                masks[keep.to(masks.device)].var(correction=0) <= self.mask_variance
                and masks.abs().max() <= LARGEST_MASK
            )
            if inside or problem.damping > 1e6:
                break
            problem = problem.damped(10 * problem.damping)
        if problem.damping != self.damping:
            bound = f"for masks of a variance within {self.mask_variance:g} and of a size within {LARGEST_MASK:g}"
            ctx.note(f"{place.block.path}: damping {problem.damping:g} {bound}")
        return masks[:, 0].to(place.weight)

    def _scores(self, place: Narrowable[Gram], ctx: Context) -> Tensor:
        """Scores (neurons,) of the measures that do not solve for the others."""
        if self.score == "random":
            seed = ctx.generator.initial_seed() + place.block.index
            return torch.rand(place.ffn.units, generator=torch.Generator().manual_seed(seed)).to(ctx.device)
        if self.score == "magnitude":
            return place.magnitudes()
        measures: dict[str, Callable[..., Tensor]] = {
            "sensitivity": least_squares.sensitivity,
            "wanda": least_squares.wanda,
            "fluctuation": least_squares.fluctuation,
        }
        return measures[self.score](place.inputs, place.weight)


def losses(influence: dict[int, float]) -> dict[int, float]:
    """How many neurons blocks lose, relative to each other: from 0.5 for the most important to 1.5 for the least."""
    low, high = min(influence.values()), max(influence.values())
    return {index: 1.5 - (value - low) / ((high - low) or 1.0) for index, value in influence.items()}
