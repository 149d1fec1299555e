"""Measured: prune the blocks least whose pruning costs most loss, as measured when each alone loses more or less.

Paper: none; ours. Sensitivity curves in the place of a proxy, as in He et al., AMC, ECCV 2018, arXiv:1802.03494, and
many others; what is ours is that they are measured inside the pruned model, and that every step is measured as a whole.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from prunekit.allocation import block_sizes, budget_of_blocks, per_block
from prunekit.budgets import MOST, cheapest, settle, shift, smoothed, spread
from prunekit.contract import Allocator, Budget, Context, Needs
from prunekit.harm import SCORES, Laboratory, Score, Trial
from prunekit.outliers import less_for_more, outlier_ratios
from prunekit.spectra import metrics, spectra
from prunekit.walk import calibration_of

STEPS = (0.5, 1.0)  # of the way to what the curves promise; harms do not add, so the best is measured
EPSILON, THRESHOLD, SPREAD = 0.2, 5.0, 0.08  # of AlphaPruning's and OWL's allocations, from which it may begin

Levels = list[float]  # one sparsity per block that is left


class Measured(Allocator):
    """Give each block the sparsity at which the measured losses are smallest in sum."""

    name: ClassVar[str] = "measured"
    paper: ClassVar[str] = "none; ours"
    needs: ClassVar[Needs] = Needs(calibration=True)

    score: Literal["auto", "magnitude", "wanda", "sparsegpt"] = Field(
        default="auto",
        description="By what weights go while it measures; auto is the method that runs, or wanda for any other.",
    )
    samples: int = Field(default=32, ge=1, description="Calibration sequences to measure on, the first ones.")
    rounds: int = Field(default=3, ge=1, le=8, description="How often curves are measured, around the best so far.")
    reach: float = Field(
        default=0.15, gt=0, lt=1, description="How far from it, up and down, in the first round; then half as far."
    )
    points: int = Field(default=1, ge=1, le=4, description="Sparsities that are tried of each block on either side.")

    def allocate(self, ctx: Context, sparsity: float) -> Budget:
        lab = Laboratory(ctx, calibration_of(ctx)[: self.samples], self.score_for(ctx.method))
        starts = dict(beginnings(ctx, sparsity))
        ctx.progress.stage("measuring allocations", len(starts) + self.rounds * (1 + len(STEPS)))
        tried = {name: self._try(lab, levels, sparsity) for name, levels in starts.items()}
        name = min(tried, key=lambda name: tried[name])
        uniform, best, levels = tried["uniform"], tried[name], starts[name]
        for number in range(self.rounds):
            best, levels = self._round(lab, best, levels, sparsity, self.reach / 2**number)
        ctx.note(
            f"measured: loss {uniform:.4f} with uniform, {tried[name]:.4f} with {name}, {best:.4f} at the end, "
            f"pruned by {lab.score}; {lab.passes:.0f} forward passes over {len(lab.ids)} sequences"
        )
        return budget_of_blocks(ctx, levels, sparsity)

    def score_for(self, method: str) -> Score:
        """By what weights go while it measures."""
        if self.score != "auto":
            return self.score
        known: dict[str, Score] = {score: score for score in SCORES}
        return known.get(method, "wanda")

    def _round(
        self, lab: Laboratory, best: float, levels: Levels, sparsity: float, reach: float
    ) -> tuple[float, Levels]:
        """Measure a curve per block around the best allocation so far, and go where they point if that is better."""
        sizes = block_sizes(lab.ctx)
        curves = [smoothed(curve) for curve in self._curves(lab, best, levels, sparsity, reach)]
        goal = cheapest(curves, sizes, sparsity)
        ways = [[now + step * (then - now) for now, then in zip(levels, goal, strict=True)] for step in STEPS]
        tried = [(self._try(lab, way, sparsity), way) for way in (settle(way, sizes, sparsity) for way in ways)]
        return min([(best, levels), *tried])

    def _curves(
        self, lab: Laboratory, best: float, levels: Levels, sparsity: float, reach: float
    ) -> list[dict[float, float]]:
        """One curve per block that is left: its sparsity -> the loss, all others being as they are."""
        steps = [side * number / self.points for number in range(1, self.points + 1) for side in (-1, 1)]
        trials: dict[Trial, int] = {}
        for place, (block, level) in enumerate(zip(lab.ctx.model.kept, levels, strict=True)):
            linears = tuple(linear.path for linear in block.linears)
            around = {min(MOST, max(0.0, level + step * reach)) for step in steps} - {level}
            trials |= {Trial(block.index, linears, value): place for value in sorted(around) if linears}
        curves = [{level: best} for level in levels]
        losses = lab.losses(list(trials), budget_of_blocks(lab.ctx, levels, sparsity))
        for (trial, place), loss in zip(trials.items(), losses, strict=True):
            curves[place][trial.sparsity] = loss
        lab.ctx.progress.step(f"{len(trials)} trials within {reach:g}")
        return curves

    @staticmethod
    def _try(lab: Laboratory, levels: Levels, sparsity: float) -> float:
        loss = lab.loss(budget_of_blocks(lab.ctx, levels, sparsity))
        lab.ctx.progress.step(f"loss {loss:.4f}")
        return loss


def beginnings(ctx: Context, sparsity: float) -> Iterator[tuple[str, Levels]]:
    """Allocations to begin with, by name: the same for all blocks, AlphaPruning's, and OWL's."""
    sizes = block_sizes(ctx)
    yield "uniform", [sparsity] * len(sizes)
    exponents, _ = metrics(list(spectra(ctx.model)), "alpha_peak")
    yield "alphapruning", settle(spread(per_block(ctx, exponents), sizes, sparsity, EPSILON), sizes, sparsity)
    fewer = less_for_more(outlier_ratios(ctx, THRESHOLD), SPREAD)
    yield "owl", settle(shift(fewer, sizes, sparsity), sizes, sparsity)
