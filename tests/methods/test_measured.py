import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prunekit import testing as checks
from prunekit.contract import Budget, Context
from prunekit.weights.allocation import budget_of_blocks, check_budget
from prunekit.weights.sensitivity import Sensitivity, Trial, or_inf
from prunekit_methods import measured
from prunekit_methods.measured import Measured, beginnings

pytestmark = pytest.mark.slow

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))


def context(folder: Path, ratio: float = 0.6) -> Context:
    return checks.open_context(folder, Measured(), ratio=ratio)


class Parabolas(Sensitivity):
    """A model whose harms add: a linear's is the square of its sparsity, times its weights and what they are worth."""

    worth = (1.0, 2.0, 1.5, 3.0)  # of the blocks
    first = 1.0  # how many times more the first linear of each block is worth

    def loss(self, budget: Budget) -> float:
        return sum(
            worth * (self.first if linear is block.linears[0] else 1) * linear.parameters * budget[linear.path] ** 2
            for worth, block in zip(self.worth, self.ctx.model.blocks, strict=True)
            for linear in block.linears
        )

    def losses(self, trials: Sequence[Trial], budget: Budget) -> list[float]:
        return [self.loss({**budget, **dict.fromkeys(trial.linears, trial.sparsity)}) for trial in trials]


class Unequal(Parabolas):
    """The first linear of each block is worth more than the others."""

    first = 2.0


@pytest.mark.parametrize(("mapping", "rounds"), [("block", 4), ("matrix", 6)])
def test_where_harms_add_the_optimum_is_found(
    tiny_llama: Make, monkeypatch: pytest.MonkeyPatch, mapping: Any, rounds: int
) -> None:
    model = Parabolas if mapping == "block" else Unequal
    monkeypatch.setattr(measured, "Sensitivity", model)
    ctx = context(tiny_llama())
    budget = Measured(rounds=rounds, mapping=mapping).allocate(ctx, 0.4)
    check_budget(ctx, budget, 0.4, "measured")
    places = [
        (linear, 1 / (worth * (model.first if linear is block.linears[0] else 1)))
        for worth, block in zip(model.worth, ctx.model.blocks, strict=True)
        for linear in block.linears
    ]
    total = sum(linear.parameters * share for linear, share in places)
    target = 0.4 * sum(linear.parameters for linear, _ in places)
    for linear, share in places:
        assert budget[linear.path] == pytest.approx(target * share / total, abs=0.03), linear.path


def test_only_by_block_are_all_linears_of_a_block_alike(tiny_llama: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for mapping, alike in (("block", True), ("matrix", False)):
        ctx = context(tiny_llama())
        monkeypatch.setattr(measured, "Sensitivity", Unequal)
        budget = Measured(rounds=1, mapping=mapping).allocate(ctx, 0.6)
        check_budget(ctx, budget, 0.6, "measured")
        kinds = [len({budget[linear.path] for linear in block.linears}) for block in ctx.model.blocks]
        assert (set(kinds) == {1}) == alike, mapping


def test_the_losses_it_chose_by_are_left_as_evidence(tiny_llama: Make) -> None:
    ctx = context(tiny_llama())
    budget = Measured(rounds=1).allocate(ctx, 0.6)
    assert ctx.calibration is not None
    losses = ctx.evidence["losses"]
    assert losses.keys() == {"uniform", "alphapruning", "owl", "measured"}
    assert losses["measured"] == pytest.approx(Sensitivity(ctx, ctx.calibration, "wanda").loss(budget), rel=1e-6)
    assert len(ctx.evidence["alpha_peak"]) == len(ctx.evidence["outlier_ratio"]) == 4


def test_what_is_found_is_measured_to_be_no_worse_than_uniform_alphapruning_and_owl(tiny_llama: Make) -> None:
    ctx = context(tiny_llama())
    budget = Measured(rounds=1).allocate(ctx, 0.6)
    assert ctx.calibration is not None
    lab = Sensitivity(ctx, ctx.calibration, "wanda")
    begun = {name: lab.loss(budget_of_blocks(ctx, levels, 0.6)) for name, levels in beginnings(ctx, 0.6)}
    assert begun.keys() == {"uniform", "alphapruning", "owl"}
    assert lab.loss(budget) <= min(begun.values())


@pytest.mark.parametrize(("mapping", "places"), [("block", 1), ("matrix", 7)])
def test_the_passes_are_bounded_as_the_page_says_and_told(tiny_llama: Make, mapping: Any, places: int) -> None:
    ctx = context(tiny_llama())
    Measured(rounds=2, points=2, samples=2, mapping=mapping).allocate(ctx, 0.6)
    depth, rounds, points = 4, 2, 2
    most = 2 * 3 + rounds * (2 + places * points * (depth + 1) + 2 * 2)
    assert f"{most} forward passes over 2 sequences" in ctx.notes[0]


@pytest.mark.parametrize(
    ("option", "method", "score"),
    [
        ("auto", "wanda", "wanda"),
        ("auto", "sparsegpt", "sparsegpt"),
        ("auto", "magnitude", "magnitude"),
        ("auto", "somebody-elses", "wanda"),
        ("wanda", "sparsegpt", "wanda"),
    ],
)
def test_harm_is_measured_by_the_score_of_the_method_that_runs(option: Any, method: str, score: str) -> None:
    assert Measured(score=option).score_for(method) == score


def test_removed_blocks_take_no_part_and_get_the_target(tiny_llama: Make) -> None:
    ctx = context(tiny_llama())
    ctx.model = ctx.model.without({0})
    budget = Measured(rounds=1).allocate(ctx, 0.6)
    check_budget(ctx, budget, 0.6, "measured")
    assert {value for path, value in budget.items() if ".layers.0." in path} == {0.6}


class Ruined(Parabolas):
    """The uniform allocation, and every trial at more than 0.5, gives no number."""

    def loss(self, budget: Budget) -> float:
        return or_inf(math.nan) if len(set(budget.values())) == 1 else super().loss(budget)

    def losses(self, trials: Sequence[Trial], budget: Budget) -> list[float]:
        found = zip(trials, super().losses(trials, budget), strict=True)
        return [math.inf if trial.sparsity > 0.5 else loss for trial, loss in found]


def test_a_loss_that_is_no_number_is_worse_than_any_and_bends_no_curve(
    tiny_llama: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "Sensitivity", Ruined)
    ctx = context(tiny_llama())
    budget = Measured(rounds=2, mapping="block").allocate(ctx, 0.4)
    check_budget(ctx, budget, 0.4, "measured")
    losses = ctx.evidence["losses"]
    assert losses["uniform"] == math.inf and losses["measured"] < min(losses["owl"], losses["alphapruning"])
