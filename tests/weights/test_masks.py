from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import families
from prunekit.contract import Context
from prunekit.errors import InputError, UnsupportedError, UsageError
from prunekit.export.staging import Staging
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.plan import Pattern, PrunePlan
from prunekit.weights.masks import (
    check_plan,
    keep_above_threshold,
    keep_per_group,
    keep_per_row,
    kth_smallest,
    mean_sparsity,
    measure_sparsity,
    plan_sparsity,
    zero_fraction,
)
from prunekit_methods.uniform import Uniform

FREE = Pattern()
SCORES = torch.rand(7, 24, generator=torch.Generator().manual_seed(0))
TIED = SCORES.mul(5).round()


def sorted_mask(scores: Tensor, count: int) -> Tensor:
    """The keep mask by sorting each row with Python."""
    keep = torch.ones_like(scores, dtype=torch.bool)
    for row, values in enumerate(scores.tolist()):
        for column in sorted(range(len(values)), key=lambda column: values[column])[:count]:
            keep[row, column] = False
    return keep


@pytest.mark.parametrize("scores", [SCORES, TIED, torch.zeros(3, 24), SCORES.bfloat16()])
@pytest.mark.parametrize("sparsity", [0, 0.01, 0.29, 0.5, 0.75, 0.99])
def test_every_row_loses_its_smallest_scores_and_ties_go_to_the_lower_column(scores: Tensor, sparsity: float) -> None:
    keep = keep_per_row(scores, sparsity, FREE)

    assert torch.equal(keep, sorted_mask(scores, int(24 * sparsity)))
    assert set((~keep).sum(dim=1).tolist()) == {int(24 * sparsity)}


@pytest.mark.parametrize("scores", [SCORES, TIED, torch.ones(3, 24)])
@pytest.mark.parametrize("text", ["2:4", "1:4", "4:8", "3:8", "1:2", "23:24"])
def test_every_group_keeps_its_n_largest_scores(scores: Tensor, text: str) -> None:
    pattern = Pattern.parse(text)
    assert pattern.kept is not None and pattern.group is not None

    keep = keep_per_group(scores, pattern)

    groups = scores.reshape(-1, pattern.group)
    assert torch.equal(keep.reshape(-1, pattern.group), sorted_mask(groups, pattern.group - pattern.kept))
    assert torch.equal(keep_per_row(scores, 0.1, pattern), keep)
    assert set(keep.reshape(-1, pattern.group).sum(dim=1).tolist()) == {pattern.kept}


@pytest.mark.parametrize("scores", [SCORES, SCORES.T, SCORES.bfloat16().float()])
@pytest.mark.parametrize("sparsity", [0.01, 0.5, 0.99])
def test_the_matrix_threshold_is_the_score_of_that_rank_and_drops_it_too(scores: Tensor, sparsity: float) -> None:
    threshold = sorted(scores.flatten().tolist())[int(scores.numel() * sparsity)]

    assert torch.equal(keep_above_threshold(scores, sparsity), scores > threshold)


def test_no_sparsity_keeps_everything() -> None:
    assert keep_above_threshold(torch.zeros(2, 3), 0).all()
    assert keep_per_row(torch.zeros(2, 3), 0, FREE).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_kth_smallest_value_counts_from_one(dtype: torch.dtype) -> None:
    values = torch.tensor([[3.0, 1.0, 2.0], [9.0, 9.0, 7.0]], dtype=dtype)

    assert kth_smallest(values, 1).tolist() == [[1], [7]]
    assert kth_smallest(values, 3).tolist() == [[3], [9]]
    assert kth_smallest(values.flatten(), 4).tolist() == [7]
    assert values.tolist() == [[3, 1, 2], [9, 9, 7]]


def test_zero_fraction_counts_exact_zeros() -> None:
    assert zero_fraction(torch.tensor([0.0, -0.0, 1e-30, 2.0])) == 0.5
    assert zero_fraction(torch.empty(0)) == 1


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return context(tmp_path)


def context(tmp_path: Path, family: str = "llama", **options: Any) -> Context:
    model = PrunableModel.open(Checkpoint.open(families.save(family, tmp_path / family)), device="cpu")
    made = Context(model=model, ratio=0.5, probe=torch.zeros(1, 4, dtype=torch.int64), **options)
    made.budget = Uniform().allocate(made, 0.5)
    return made


def test_sparsity_is_measured_per_linear_on_what_is_stored_with_the_edits_of_a_run(
    ctx: Context, tmp_path: Path
) -> None:
    model = ctx.model
    assert set(measure_sparsity(model).values()) == {0}

    model = model.with_edits(Staging.open(tmp_path / "out", {}).edits)
    with model.block(2) as module:
        module.get_parameter("mlp.up_proj.weight").data[:16] = 0
        model.commit(2)

    measured = measure_sparsity(model)
    assert measured.pop("model.layers.2.mlp.up_proj") == 0.25
    assert len(measured) == 27 and set(measured.values()) == {0}


def test_the_mean_sparsity_is_weighted_by_parameters(ctx: Context) -> None:
    wide, narrow = "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.k_proj"  # 2048 and 512 weights

    assert mean_sparsity(ctx.model, {wide: 0.5, narrow: 1.0}) == pytest.approx((0.5 * 2048 + 512) / 2560)


def test_the_plan_has_one_action_per_linear_in_order_of_the_model(ctx: Context) -> None:
    plan = plan_sparsity(ctx, "wanda")

    assert list(plan.sparsify()) == list(ctx.model.linears())
    assert {action.sparsity for action in plan.actions} == {0.5}
    assert (plan.method, plan.ratio) == ("wanda", 0.5)
    check_plan(ctx.model, plan)


def test_a_plan_without_a_budget_is_a_mistake_of_the_pipeline(ctx: Context) -> None:
    ctx.budget = None

    with pytest.raises(RuntimeError, match="wanda needs a budget"):
        plan_sparsity(ctx, "wanda")


def test_a_pattern_whose_groups_do_not_divide_the_inputs_is_refused_by_linear(ctx: Context) -> None:
    ctx.pattern = Pattern.parse("2:7")

    with pytest.raises(UsageError, match="q_proj has 32 inputs, which pattern 2:7 cannot divide") as caught:
        plan_sparsity(ctx, "wanda")

    assert caught.value.exit_code == 2


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_fused_experts_are_refused_by_name_with_their_shape(family: str, tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedError, match=r"layers\.0\.mlp\.experts\.\w+ \(4, \d+, \d+\) is not a plain linear"
    ) as caught:
        plan_sparsity(context(tmp_path, family), "wanda")

    assert "wanda prunes Linear and Conv1D weights only" in caught.value.message
    assert caught.value.exit_code == 3


def changed(plan: PrunePlan, index: int, **changes: object) -> PrunePlan:
    actions = list(plan.actions)
    actions[index] = actions[index].model_copy(update=changes)
    return plan.model_copy(update={"actions": tuple(actions)})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"linear": "model.layers.9.mlp.up_proj"}, r"names model\.layers\.9\.mlp\.up_proj, which is not a linear"),
        ({"pattern": "2:4", "sparsity": 0.25}, "a sparsity of 0.25, and pattern 2:4 means 0.5"),
        ({"pattern": "5:10"}, "q_proj has 32 inputs, which 5:10 cannot divide"),
    ],
)
def test_an_edited_plan_that_does_not_suit_the_model_is_refused(
    ctx: Context, changes: dict[str, object], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        check_plan(ctx.model, changed(plan_sparsity(ctx, "wanda"), 0, **changes))


def test_an_edited_plan_may_spare_a_linear_but_not_forget_it(ctx: Context) -> None:
    plan = plan_sparsity(ctx, "wanda")

    check_plan(ctx.model, changed(plan, 3, sparsity=0.0))
    with pytest.raises(InputError, match=r"no action for model\.layers\.0\.self_attn\.q_proj") as caught:
        check_plan(ctx.model, plan.model_copy(update={"actions": plan.actions[1:]}))
    assert caught.value.hint == "a sparsity of 0 leaves a linear as it is"
