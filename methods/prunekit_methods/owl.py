"""OWL: prune the blocks with more outlying weights less, where an outlier is a Wanda score far above the block's mean.

Paper: Yin et al., "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High
Sparsity", ICML 2024, arXiv:2310.05175.
"""

from typing import ClassVar

from pydantic import Field

from prunekit.api import Allocator, Budget, Context, Needs, block_sizes, budget_of_blocks, settle, shift
from prunekit.weights.outliers import less_for_more, outlier_ratios


class OWL(Allocator):
    """Give less sparsity to the blocks with more outliers among their Wanda scores."""

    name: ClassVar[str] = "owl"
    paper: ClassVar[str] = "Yin et al. 2024, arXiv:2310.05175"
    needs: ClassVar[Needs] = Needs(calibration=True)

    threshold: float = Field(default=5.0, gt=0, description="M: an outlier is above so many times the block's mean.")
    spread: float = Field(
        default=0.08, ge=0, le=0.5, description="Lambda: sparsities of the blocks span twice this, in all."
    )

    def allocate(self, ctx: Context, sparsity: float) -> Budget:
        found = outlier_ratios(ctx, self.threshold)
        ctx.evidence["outlier_ratio"] = found
        sizes = block_sizes(ctx)
        wanted = shift(less_for_more(found, sizes, self.spread), sizes, sparsity)
        return budget_of_blocks(ctx, settle(wanted, sizes, sparsity), sparsity)
