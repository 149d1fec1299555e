"""How much sparsity each linear gets: the uniform allocator, and the checks that every budget must pass."""

import math
from typing import ClassVar

from prunekit.contract import Allocator, Budget, Context
from prunekit.errors import PrunekitError, UsageError
from prunekit.sparsity import mean_sparsity


class Uniform(Allocator):
    """Give every linear the same sparsity."""

    name: ClassVar[str] = "uniform"
    paper: ClassVar[str] = "none; the baseline of every allocation paper"
    uniform: ClassVar[bool] = True

    def allocate(self, ctx: Context, sparsity: float) -> Budget:
        return dict.fromkeys(ctx.model.linears(), sparsity)


def check_budget(ctx: Context, budget: Budget, target: float, allocator: str) -> None:
    """Raise an error unless the budget covers every linear with a sparsity in [0, 1) and meets the target.

    Raises UsageError for a fixed N:M pattern with unequal sparsities, PrunekitError when the allocator broke its
    contract.
    """
    if budget.keys() != ctx.model.linears().keys():
        raise PrunekitError(f"allocator {allocator} did not give a sparsity to every linear")
    if bad := [path for path, value in budget.items() if not 0 <= value < 1]:
        raise PrunekitError(f"allocator {allocator} gave {bad[0]} a sparsity of {budget[bad[0]]}; expected [0, 1)")
    mean = mean_sparsity(ctx.model, budget)
    if not math.isclose(mean, target, abs_tol=1e-6):
        raise PrunekitError(f"allocator {allocator} gave a mean sparsity of {mean:.6f}; expected {target:.6f}")
    if ctx.pattern.group and len({round(value, 9) for value in budget.values()}) > 1:
        raise UsageError(
            f"pattern {ctx.pattern} fixes one sparsity for all linears, and allocator {allocator} gives unequal ones",
            hint="use --pattern unstructured, or --allocator uniform",
        )
