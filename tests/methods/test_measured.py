from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import contract_checks as checks
from prunekit.allocation import budget_of_blocks, check_budget
from prunekit.contract import Budget, Context
from prunekit.harm import Laboratory, Trial
from prunekit_methods import measured
from prunekit_methods.measured import Measured, beginnings

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))


def context(folder: Path, ratio: float = 0.6) -> Context:
    return checks.open_context(folder, Measured(), ratio=ratio)


class Parabolas(Laboratory):
    """A model whose harms add, and are the squares of the blocks' sparsities times what each block is worth."""

    worth = (1.0, 2.0, 1.5, 3.0)

    def loss(self, budget: Budget) -> float:
        levels = [budget[block.linears[0].path] for block in self.ctx.model.blocks]
        return sum(c * s**2 for c, s in zip(self.worth, levels, strict=True))

    def losses(self, trials: Sequence[Trial], budget: Budget) -> list[float]:
        return [self.loss({**budget, **dict.fromkeys(trial.linears, trial.sparsity)}) for trial in trials]


def test_where_harms_add_the_optimum_is_found(tiny_llama: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "Laboratory", Parabolas)
    ctx = context(tiny_llama())
    budget = Measured(rounds=4).allocate(ctx, 0.4)
    check_budget(ctx, budget, 0.4, "measured")
    shares = [1 / worth for worth in Parabolas.worth]
    best = [0.4 * 4 * share / sum(shares) for share in shares]
    assert [budget[block.linears[0].path] for block in ctx.model.blocks] == pytest.approx(best, abs=0.02)


def test_what_is_found_is_measured_to_be_no_worse_than_uniform_alphapruning_and_owl(tiny_llama: Make) -> None:
    ctx = context(tiny_llama())
    budget = Measured().allocate(ctx, 0.6)
    assert ctx.calibration is not None
    lab = Laboratory(ctx, ctx.calibration, "wanda")
    begun = {name: lab.loss(budget_of_blocks(ctx, levels, 0.6)) for name, levels in beginnings(ctx, 0.6)}
    assert begun.keys() == {"uniform", "alphapruning", "owl"}
    assert lab.loss(budget) <= min(begun.values())


def test_the_passes_are_bounded_as_the_page_says_and_told(tiny_llama: Make) -> None:
    ctx = context(tiny_llama())
    Measured(rounds=2, points=2, samples=4).allocate(ctx, 0.6)
    depth, rounds, points = 4, 2, 2
    most = 2 * 3 + rounds * (2 + points * (depth + 1) + 2 * 2)
    assert f"{most} forward passes over 4 sequences" in ctx.notes[0]


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
    ctx.model.removed = frozenset({0})
    budget = Measured(rounds=1).allocate(ctx, 0.6)
    check_budget(ctx, budget, 0.6, "measured")
    assert {value for path, value in budget.items() if ".layers.0." in path} == {0.6}
