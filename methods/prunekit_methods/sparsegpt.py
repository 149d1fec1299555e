"""SparseGPT: zero weights one column at a time and let the columns that follow make up for the error.

Paper: Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023,
arXiv:2301.00774.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from prunekit.api import Context, Hessian, Method, Needs, Pattern, PrunePlan, UnsupportedError, plan_sparsity, walk
from prunekit.weights.obs import inverse_factor, prune

MOST_DAMPENING = 1.0  # of the mean diagonal: beyond it the Hessian no longer says anything


class SparseGPT(Method):
    """Zero weights column by column and update the rest by the inverse Hessian of the layer's error."""

    name: ClassVar[str] = "sparsegpt"
    paper: ClassVar[str] = "Frantar and Alistarh 2023, arXiv:2301.00774"
    needs: ClassVar[Needs] = Needs(calibration=True, budget=True)

    dampening: float = Field(
        default=0.01, gt=0, le=1, description="Added to the Hessian's diagonal, as a fraction of its mean."
    )
    block_size: int = Field(
        default=128, ge=1, le=4096, description="Columns that compete with each other and are updated at once."
    )
    true_sequential: bool = Field(
        default=False, description="Measure each group of linears after those before it in the block are pruned."
    )

    def plan(self, ctx: Context) -> PrunePlan:
        return plan_sparsity(ctx, self.name)

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        actions = plan.sparsify()
        for visit in walk(ctx, Hessian, sequential=self.true_sequential):
            factors: dict[int, Tensor] = {}  # linears that read the same input share one factor
            for linear in visit.linears:
                hessian, action = visit.statistics[linear.path], actions[linear.path]
                if action.sparsity == 0:
                    continue
                if id(hessian) not in factors:
                    factors[id(hessian)] = self.factorise(ctx, linear.path, hessian.matrix)
                factor, pattern = factors[id(hessian)], Pattern.parse(action.pattern)
                weight = linear.weight.float().masked_fill(hessian.total.diagonal() == 0, 0)
                linear.write(prune(weight, factor, action.sparsity, pattern, self.block_size))

    def factorise(self, ctx: Context, path: str, hessian: Tensor) -> Tensor:
        """Upper-triangular U with U^T U = H'^-1; while that fails, dampening is doubled, which is noted."""
        dampening = self.dampening
        while dampening <= MOST_DAMPENING:
            factor = inverse_factor(hessian, dampening)
            if factor is not None:
                return factor
            dampening *= 2
            ctx.note(f"{path}: the Hessian is not positive definite, dampening raised to {dampening:g}")
        hint = "calibrate on more or other text (--samples, --calib)"
        raise UnsupportedError(f"{path}: the Hessian cannot be inverted", hint=hint)
