"""Uniform: every linear loses the same fraction of its weights.

Paper: none; the baseline of every allocation paper.
"""

from typing import ClassVar

from prunekit.api import Allocator, Budget, Context


class Uniform(Allocator):
    """Give every linear the same sparsity."""

    name: ClassVar[str] = "uniform"
    paper: ClassVar[str] = "none; the baseline of every allocation paper"
    uniform: ClassVar[bool] = True

    def allocate(self, ctx: Context, sparsity: float) -> Budget:
        return dict.fromkeys(ctx.model.linears(), sparsity)
