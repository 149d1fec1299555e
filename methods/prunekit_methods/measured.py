"""Measured: prune the weights least whose pruning costs most loss, as measured when each alone loses more or less.

Paper: none; ours. Sensitivity curves in the place of a proxy, as in He et al., AMC, ECCV 2018, arXiv:1802.03494, and
many others; what is ours is that they are measured inside the pruned model, and that every step is measured as a whole.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field

from prunekit.api import (
    Allocator,
    Budget,
    Context,
    Linear,
    Needs,
    block_sizes,
    calibration_of,
    cheapest,
    complete,
    metrics,
    per_block,
    settle,
    shift,
    sketch,
    spectra,
    spread,
)
from prunekit.weights.budgets import MOST, smoothed
from prunekit.weights.outliers import less_for_more, outlier_ratios
from prunekit.weights.sensitivity import SCORES, Score, Sensitivity, Trial

STEPS = (0.5, 1.0)  # of the way to what the curves promise; losses do not add, so the best is measured
EPSILON, THRESHOLD, SPREAD = 0.2, 5.0, 0.08  # of AlphaPruning's and OWL's allocations, from which it may begin

Levels = list[float]  # one sparsity per place


class Measured(Allocator):
    """Give each linear, or block, the sparsity at which the measured losses are smallest in sum."""

    name: ClassVar[str] = "measured"
    paper: ClassVar[str] = "none; ours"
    needs: ClassVar[Needs] = Needs(calibration=True)

    score: Literal["auto", "magnitude", "wanda", "sparsegpt"] = Field(
        default="auto",
        description="Score by which weights are zeroed meanwhile; auto is that of the method, or wanda for any other.",
    )
    samples: int = Field(default=32, ge=1, description="Calibration sequences to measure on, the first ones.")
    rounds: int = Field(default=3, ge=1, le=8, description="How often curves are measured, around the best so far.")
    reach: float = Field(
        default=0.15, gt=0, lt=1, description="How far from it, up and down, in the first round; then half as far."
    )
    points: int = Field(default=1, ge=1, le=4, description="Sparsities that are tried of each place on either side.")
    mapping: Literal["matrix", "block"] = Field(
        default="matrix", description="A curve and a sparsity for each matrix, or for each block, which is cheaper."
    )

    def allocate(self, ctx: Context, sparsity: float) -> Budget:
        lab = Sensitivity(ctx, calibration_of(ctx)[: self.samples], self.score_for(ctx.method))
        starts = dict(beginnings(ctx, sparsity))
        ctx.progress.stage("measuring allocations", len(starts) + self.rounds * (1 + len(STEPS)))
        search = Search(lab, sparsity, self.points, [block.linears for block in ctx.model.kept])
        tried = {name: search.go(levels) for name, levels in starts.items()}
        if self.mapping == "matrix":
            search.split()
        for number in range(self.rounds):
            search.step(self.reach / 2**number)
        self._tell(lab, tried, search.best)
        return search.budget(search.levels)

    def score_for(self, method: str) -> Score:
        """By which score weights are zeroed while it measures."""
        if self.score != "auto":
            return self.score
        known: dict[str, Score] = {score: score for score in SCORES}
        return known.get(method, "wanda")

    def _tell(self, lab: Sensitivity, tried: dict[str, float], best: float) -> None:
        """Leave the losses as evidence, and say what they were and what it took."""
        name = min(tried, key=lambda name: tried[name])
        lab.ctx.evidence["losses"] = tried | {self.name: best}
        lab.ctx.note(
            f"measured: loss {tried['uniform']:.4f} with uniform, {tried[name]:.4f} with {name}, {best:.4f} at the "
            f"end, pruned by {lab.score}; {lab.passes:.0f} forward passes over {len(lab.ids)} sequences"
        )


@dataclass
class Search:
    """The best allocation so far, its loss, and how to find a better one.

    `places` are groups of linears that get one sparsity; `points` says how many are tried of each on either side.
    """

    lab: Sensitivity
    sparsity: float
    points: int
    places: list[tuple[Linear, ...]]
    best: float = field(default=math.inf, init=False)
    levels: Levels = field(default_factory=Levels, init=False)

    @property
    def sizes(self) -> list[int]:
        """Number of weights in each place."""
        return [sum(linear.parameters for linear in place) for place in self.places]

    def budget(self, levels: Levels) -> Budget:
        """The budget that gives each place its level."""
        found = {linear.path: s for place, s in zip(self.places, levels, strict=True) for linear in place}
        return complete(self.lab.ctx, found, self.sparsity)

    def go(self, levels: Levels) -> float:
        """Measure an allocation, and go there if no better one is known; its loss."""
        found = self.lab.loss(self.budget(levels))
        self.lab.ctx.progress.step(f"loss {found:.4f}")
        if not self.levels or found < self.best:
            self.best, self.levels = found, levels
        return found

    def split(self) -> None:
        """Let every linear be a place of its own."""
        self.levels = [level for place, level in zip(self.places, self.levels, strict=True) for _ in place]
        self.places = [(linear,) for place in self.places for linear in place]

    def step(self, reach: float) -> None:
        """Measure a curve per place around the best allocation, and go where they point if that is better."""
        if self.best == math.inf:  # the model is ruined, and nothing points anywhere
            return
        curves = [smoothed(curve) for curve in self._curves(reach)]
        goal = cheapest(curves, self.sizes, self.sparsity)
        ways = [[now + step * (then - now) for now, then in zip(self.levels, goal, strict=True)] for step in STEPS]
        for way in ways:
            self.go(settle(way, self.sizes, self.sparsity))

    def _curves(self, reach: float) -> list[dict[float, float]]:
        """One curve per place: its sparsity -> the loss, all others being as they are."""
        steps = [side * number / self.points for number in range(1, self.points + 1) for side in (-1, 1)]
        trials: dict[Trial, int] = {}
        owner = {linear.path: block.index for block in self.lab.ctx.model.kept for linear in block.linears}
        for number, (place, level) in enumerate(zip(self.places, self.levels, strict=True)):
            around = {min(MOST, max(0.0, level + step * reach)) for step in steps} - {level}
            linears = tuple(linear.path for linear in place)
            trials |= {Trial(owner[linears[0]], linears, value): number for value in sorted(around) if linears}
        curves = [{level: self.best} for level in self.levels]
        losses = self.lab.losses(list(trials), self.budget(self.levels))
        for (trial, number), loss in zip(trials.items(), losses, strict=True):
            if loss < math.inf:
                curves[number][trial.sparsity] = loss
        self.lab.ctx.progress.step(f"{len(trials)} trials within {reach:g}")
        return curves


def beginnings(ctx: Context, sparsity: float) -> Iterator[tuple[str, Levels]]:
    """Allocations to begin with, by name: the same for all blocks, AlphaPruning's, and OWL's."""
    sizes = block_sizes(ctx)
    yield "uniform", [sparsity] * len(sizes)
    found = list(spectra(ctx.model))
    exponents, _ = metrics(found, "alpha_peak")
    means = per_block(ctx, exponents)
    ctx.evidence |= {"alpha_peak": means, "spectra": sketch(found)}
    yield "alphapruning", settle(spread(means, sizes, sparsity, EPSILON), sizes, sparsity)
    ratios = outlier_ratios(ctx, THRESHOLD)
    ctx.evidence["outlier_ratio"] = ratios
    yield "owl", settle(shift(less_for_more(ratios, sizes, SPREAD), sizes, sparsity), sizes, sparsity)
