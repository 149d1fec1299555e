"""AlphaPruning: prune the better trained layers less, by the tails of the spectra of their weights; no data is needed.

Paper: Lu et al., "AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of Large
Language Models", NeurIPS 2024, arXiv:2410.10912.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from prunekit.api import (
    Allocator,
    Budget,
    Context,
    block_sizes,
    budget_of_blocks,
    complete,
    metrics,
    per_block,
    settle,
    sketch,
    spectra,
    spread,
)
from prunekit.spectra.power_law import LowerBound, Metric


class AlphaPruning(Allocator):
    """Give less sparsity to the blocks whose weights have heavier-tailed spectra."""

    name: ClassVar[str] = "alphapruning"
    paper: ClassVar[str] = "Lu et al. 2024, arXiv:2410.10912"

    epsilon: float = Field(
        default=0.2, ge=0, le=1, description="Sparsities lie between 1 - epsilon and 1 + epsilon times a common factor."
    )
    metric: Metric = Field(
        default="alpha_peak", description="What is measured of a spectrum; the larger it is, the more is pruned."
    )
    mapping: Literal["block", "matrix", "mixed"] = Field(
        default="block",
        description="One sparsity per block, per matrix, or per block and within it again per matrix.",
    )
    lower_bound: LowerBound = Field(
        default="released", description="Where alpha_peak's tail may begin: as in the authors' code, or as they meant."
    )
    windows: int = Field(
        default=0, ge=0, le=50, description="With 15, spectra are those of 15 x 15 square sub-matrices, as in FARMS."
    )

    def allocate(self, ctx: Context, sparsity: float) -> Budget:
        found = list(spectra(ctx.model, windows=self.windows, progress=ctx.progress))
        values, remarks = metrics(found, self.metric, self.lower_bound)
        for remark in remarks:
            ctx.note(remark)
        means = per_block(ctx, values)
        ctx.evidence |= {self.metric: means, "spectra": sketch(found)}
        if self.mapping == "matrix":
            return complete(ctx, self._within(ctx, values, sparsity), sparsity)
        levels = self._share(means, block_sizes(ctx), sparsity)
        if self.mapping == "block":
            return budget_of_blocks(ctx, levels, sparsity)
        mixed: dict[str, float] = {}
        for block, level in zip(ctx.model.kept, levels, strict=True):
            mixed |= self._within(ctx, {linear.path: values[linear.path] for linear in block.linears}, level)
        return complete(ctx, mixed, sparsity)

    def _within(self, ctx: Context, values: Mapping[str, float], target: float) -> dict[str, float]:
        """Share a target among some linears."""
        linears = ctx.model.linears()
        sizes = [linears[path].parameters for path in values]
        return dict(zip(values, self._share(list(values.values()), sizes, target), strict=True))

    def _share(self, values: list[float], sizes: list[int], target: float) -> list[float]:
        return settle(spread(values, sizes, target, self.epsilon), sizes, target) if values else []
