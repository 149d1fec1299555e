"""How much sparsity each linear gets: means per block, complete budgets, and the checks that every budget must pass."""

import math
from collections.abc import Mapping, Sequence

from prunekit.contract import Budget, Context
from prunekit.errors import PrunekitError, UsageError
from prunekit.plan import Pattern
from prunekit.weights.masks import mean_sparsity


def block_sizes(ctx: Context) -> list[int]:
    """Number of weights in the linears of each block that is left."""
    return [sum(linear.parameters for linear in block.linears) for block in ctx.model.kept]


def per_block(ctx: Context, values: Mapping[str, float]) -> list[float]:
    """The mean over the linears of each block that is left of a number per linear; 0 for a block without linears."""
    linears = [[values[linear.path] for linear in block.linears] for block in ctx.model.kept]
    return [sum(found) / max(1, len(found)) for found in linears]


def budget_of_blocks(ctx: Context, sparsities: Sequence[float], target: float) -> Budget:
    """A budget that gives every linear of a block that is left the block's sparsity."""
    blocks = zip(ctx.model.kept, sparsities, strict=True)
    return complete(ctx, {linear.path: value for block, value in blocks for linear in block.linears}, target)


def complete(ctx: Context, sparsities: Mapping[str, float], target: float) -> Budget:
    """A budget for all linears, in order: those of removed blocks, which nobody prunes, get the target."""
    return {path: sparsities.get(path, target) for path in ctx.model.linears()}


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
    if len({round(value, 9) for value in budget.values()}) > 1:
        refuse_unequal(ctx.pattern, allocator)


def refuse_unequal(pattern: Pattern, allocator: str) -> None:
    """Raise UsageError when a pattern leaves no room for what an allocator does."""
    if pattern.kept:
        raise UsageError(
            f"pattern {pattern} fixes one sparsity for all linears, and allocator {allocator} gives unequal ones",
            hint=f"use --pattern unstructured, --pattern *:{pattern.group}, or --allocator uniform",
        )
