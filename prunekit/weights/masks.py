"""Keep masks from scores, the plan that every weight method shares, and sparsity as it is measured.

A keep mask is boolean and True survives. A score is a saliency: small means remove first.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from prunekit.contract import Budget, Context
from prunekit.errors import InputError, UnsupportedError, UsageError
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import find_other_matrices
from prunekit.plan import Pattern, PrunePlan
from prunekit.weights.actions import Sparsify
from prunekit.weights.budgets import round_to_counts


def plan_sparsity(ctx: Context, method: str) -> PrunePlan:
    """One action per linear, from the budget; raises UnsupportedError for matrices that no weight method reaches."""
    if ctx.budget is None:
        raise RuntimeError(f"{method} needs a budget")
    for index, block in enumerate(ctx.model.blocks):
        matrices = find_other_matrices(ctx.model.stack[index], block.path)
        if others := [name for name in matrices if name in ctx.model.selection]:
            shapes = {name: ctx.model.skeleton.get_parameter(name).shape for name in others}
            largest = max(shapes, key=lambda name: shapes[name].numel())
            found = f"{largest} {tuple(shapes[largest])} is not a plain linear"
            raise UnsupportedError(f"{found}; {method} prunes Linear and Conv1D weights only")
    check_groups(ctx.model, ctx.pattern)
    if ctx.pattern.group and ctx.pattern.kept is None:
        return PrunePlan(method=method, ratio=ctx.ratio, actions=tuple(_mixed(ctx, ctx.budget, ctx.pattern.group)))
    actions = [
        Sparsify(linear=path, sparsity=sparsity, pattern=str(ctx.pattern)) for path, sparsity in ctx.budget.items()
    ]
    return PrunePlan(method=method, ratio=ctx.ratio, actions=tuple(actions))


def _mixed(ctx: Context, budget: Budget, group: int) -> list[Sparsify]:
    """One action per linear, each with an N:M pattern of its own, and a note of what the rounding costs."""
    linears = ctx.model.linears()
    sizes = [linears[path].parameters for path in budget]
    counts = round_to_counts(list(budget.values()), sizes, ctx.ratio, group)
    rounded = {path: count / group for path, count in zip(budget, counts, strict=True)}
    mean, furthest = mean_sparsity(ctx.model, rounded), max(abs(rounded[path] - budget[path]) for path in budget)
    ctx.note(
        f"pattern *:{group}: the mean sparsity is {mean:.6f} where {ctx.ratio:.6f} was asked for; "
        f"rounding moved a linear by up to {furthest:.4f}"
    )
    patterns = [f"{group - count}:{group}" if count else "unstructured" for count in counts]
    return [
        Sparsify(linear=path, sparsity=rounded[path], pattern=pattern)
        for path, pattern in zip(budget, patterns, strict=True)
    ]


def check_groups(model: PrunableModel, pattern: Pattern) -> None:
    """Raise UsageError when the inputs of a linear do not divide into the pattern's groups."""
    for path, linear in model.linears().items():
        if pattern.group and linear.shape[1] % pattern.group:
            raise UsageError(
                f"{path} has {linear.shape[1]} inputs, which pattern {pattern} cannot divide into groups",
                hint=f"choose a group size that divides {linear.shape[1]}, or --pattern unstructured",
            )


def check_plan(model: PrunableModel, plan: PrunePlan) -> None:
    """Raise InputError unless the plan, which a person may have edited, gives each linear one action it can take."""
    linears, actions = model.linears(), plan.sparsify()
    if len(actions) < len(plan.actions):
        other = next(action for action in plan.actions if action.place not in actions)
        raise InputError(f"the plan wants {other.kind} for {other.place}; {plan.method} only zeroes weights of linears")
    if unknown := next((path for path in actions if path not in linears), None):
        raise InputError(f"the plan names {unknown}, which is not a linear of this model")
    if left_out := next((path for path in linears if path not in actions), None):
        raise InputError(f"the plan has no action for {left_out}", hint="a sparsity of 0 leaves a linear as it is")
    for path, action in actions.items():
        pattern = Pattern.parse(action.pattern)
        if pattern.sparsity is not None and not math.isclose(pattern.sparsity, action.sparsity, abs_tol=1e-6):
            given = f"the plan gives {path} a sparsity of {action.sparsity:g}"
            raise InputError(
                f"{given}, and pattern {pattern} means {pattern.sparsity:g}", hint="set its pattern to unstructured"
            )
        if pattern.group and linears[path].shape[1] % pattern.group:
            raise InputError(f"{path} has {linears[path].shape[1]} inputs, which {pattern} cannot divide into groups")


def keep_per_row(scores: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Keep mask (outputs, inputs) that drops the smallest scores of every row (Wanda, section 3), or of N:M groups.

    Unstructured: `int(inputs * sparsity)` weights per row; ties go to the lower column.
    """
    if pattern.group is not None:
        return keep_per_group(scores, pattern)
    count = int(scores.shape[1] * sparsity)
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    keep = scores > kth_smallest(scores, count)
    kept = keep.view(torch.uint8).sum(dim=1, dtype=torch.int32)  # twice as fast as counting booleans
    tied = kept != scores.shape[1] - count
    if tied.any():
        keep[tied] = _keep_all_but_first(scores[tied], count)
    return keep


def _keep_all_but_first(scores: Tensor, count: int) -> Tensor:
    """Keep mask that drops the `count` smallest along the last dimension; ties drop the earlier one."""
    dropped = scores.argsort(dim=-1, stable=True)[..., :count]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(-1, dropped, False)


def keep_per_group(scores: Tensor, pattern: Pattern) -> Tensor:
    """Keep mask that leaves the N largest of every M consecutive scores of a row; ties drop the lower column."""
    if pattern.group is None or pattern.kept is None:
        raise RuntimeError("an unstructured pattern has no groups")
    groups = scores.reshape(scores.shape[0], -1, pattern.group)
    return _keep_all_but_first(groups, pattern.group - pattern.kept).reshape(scores.shape)


def keep_above_threshold(scores: Tensor, sparsity: float) -> Tensor:
    """Keep mask that drops every score of the matrix up to the one of rank `int(numel * sparsity)`, that one too.

    Of the scores that equal that one, as many stay as the count demands, the last ones: in bfloat16 many weights tie.
    """
    if sparsity == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    flat, count = scores.flatten(), int(scores.numel() * sparsity) + 1
    threshold = kth_smallest(flat, count)
    keep = flat > threshold
    surplus = len(flat) - int(keep.count_nonzero()) - count
    if surplus:
        keep[(flat == threshold).nonzero()[-surplus:, 0]] = True
    return keep.view_as(scores)


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest value, counted from 1, along the last dimension, which becomes 1 long."""
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.kthvalue(k, dim=-1, keepdim=True).values
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy's is many times faster than torch's
        parts = np.array_split(values.numpy(), torch.get_num_threads()) if values.dim() > 1 else [values.numpy()]
        found = pool.map(lambda part: np.partition(part, k - 1, axis=-1)[..., k - 1 : k], parts)
        return torch.from_numpy(np.concatenate(list(found)))


def measure_sparsity(model: PrunableModel) -> dict[str, float]:
    """Linear path -> fraction of its stored weights that are zero, read block by block."""
    measured: dict[str, float] = {}
    for block in model.kept:
        names = {f"{linear.path}.weight": linear.path for linear in block.linears}
        measured |= {names[name]: zero_fraction(weight) for name, weight in model.read(names).items()}
    return measured


def zero_fraction(tensor: Tensor) -> float:
    """The fraction of a tensor's elements that are exactly zero."""
    return 1 - int(tensor.count_nonzero()) / max(1, tensor.numel())


def mean_sparsity(model: PrunableModel, per_linear: Mapping[str, float]) -> float:
    """Mean over linears of a sparsity, weighted by parameters."""
    linears = model.linears()
    total = sum(linears[path].parameters for path in per_linear)
    return sum(linears[path].parameters * sparsity for path, sparsity in per_linear.items()) / max(1, total)
