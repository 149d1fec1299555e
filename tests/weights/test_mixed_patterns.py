"""`*:M`: every linear has an N:M of its own, by the budget."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from prunekit import testing as checks
from prunekit.contract import Context, carry_out
from prunekit.errors import UsageError
from prunekit.plan import Pattern
from prunekit.recipe.recipe import Recipe
from prunekit.recipe.registry import load
from prunekit.weights.actions import Sparsify
from prunekit.weights.allocation import check_budget
from prunekit.weights.masks import mean_sparsity

Make = Callable[..., Path]


def test_a_pattern_with_an_open_n_implies_no_sparsity_and_needs_a_ratio() -> None:
    pattern = Pattern.parse("*:8")
    assert (pattern.kept, pattern.group, pattern.sparsity, str(pattern)) == (None, 8, None, "*:8")
    with pytest.raises(UsageError, match="no ratio"):
        _ = Recipe(method="wanda", pattern="*:8").sparsity
    assert Recipe(method="wanda", pattern="*:8", ratio=0.7).sparsity == 0.7
    with pytest.raises(UsageError, match="one weight"):
        Pattern.parse("*:1")


def test_the_pattern_of_a_linear_says_its_n() -> None:
    with pytest.raises(ValidationError, match="does not say how many weights"):
        Sparsify(linear="x", sparsity=0.5, pattern="*:8")


@pytest.fixture
def ctx(tiny_llama: Make, tmp_path: Path) -> Context:
    folder = tiny_llama(intermediate_size=64)
    found = checks.open_context(folder, load("wanda")(), tmp_path / "out", ratio=0.7, pattern="*:8")
    found.budget = load("alphapruning", "allocator")(epsilon=0.3, mapping="mixed").allocate(found, 0.7)
    check_budget(found, found.budget, 0.7, "alphapruning")
    return found


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_what_is_pruned_follows_each_linears_own_pattern_and_meets_the_ratio_but_for_the_rounding(
    name: str, ctx: Context
) -> None:
    method = load(name)()
    plan = method.plan(ctx)
    patterns = {action.pattern for action in plan.sparsify().values()}
    assert len(patterns) > 1 and all(text.endswith(":8") for text in patterns)
    carry_out(method, ctx, plan)
    for path, action in plan.sparsify().items():
        weight = ctx.model.read([f"{path}.weight"])[f"{path}.weight"]
        zeros = (weight.reshape(-1, 8) == 0).sum(dim=1)
        kept = Pattern.parse(action.pattern).kept or 8
        assert set(zeros.tolist()) == {8 - kept}
    planned = {path: action.sparsity for path, action in plan.sparsify().items()}
    largest = max(linear.parameters for linear in ctx.model.linears().values())
    total = sum(linear.parameters for linear in ctx.model.linears().values())
    assert abs(mean_sparsity(ctx.model, planned) - 0.7) <= largest / total / 16 + 1e-9
    assert f"the mean sparsity is {mean_sparsity(ctx.model, planned):.6f}" in ctx.notes[-1]


def test_a_linear_that_loses_nothing_needs_no_pattern(ctx: Context) -> None:
    assert ctx.budget is not None
    spared = next(iter(ctx.budget))
    ctx.budget, ctx.ratio = {path: 0.5 if path != spared else 0.0 for path in ctx.budget}, 0.4
    action = load("wanda")().plan(ctx).sparsify()[spared]
    assert (action.sparsity, action.pattern) == (0.0, "unstructured")
