from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit import testing as checks
from prunekit.blockwise import stream
from prunekit.blockwise.loss import mean_loss
from prunekit.blockwise.stream import logits
from prunekit.contract import carry_out
from prunekit.recipe.registry import load
from prunekit.weights import sensitivity
from prunekit.weights.sensitivity import Score, Sensitivity, Trial
from prunekit_methods.uniform import Uniform

pytestmark = pytest.mark.slow

Make = Callable[..., Path]


def sensitivity_of(folder: Path, score: Score) -> Sensitivity:
    ctx = checks.open_context(folder, load("measured", "allocator")(), ids=None)
    assert ctx.calibration is not None
    ctx.batch_size = 2
    return Sensitivity(ctx, ctx.calibration, score)


def real_loss(folder: Path, method: str, budget: dict[str, float], target: Path) -> float:
    """Of the model that the method itself makes."""
    ctx = checks.open_context(folder, load(method)(), target)
    ctx.budget, ctx.calibration, ctx.batch_size = budget, checks.token_ids(ctx.model), 2
    method_ = load(method)()
    carry_out(method_, ctx, method_.plan(ctx))
    return mean_loss(logits(ctx.model, ctx.calibration), ctx.calibration)


def uneven(lab: Sensitivity) -> dict[str, float]:
    return {path: 0.3 + 0.1 * int(path.split(".")[2]) for path in lab.ctx.model.linears()}


@pytest.mark.parametrize("score", ["magnitude", "wanda", "sparsegpt"])
def test_the_loss_of_a_budget_is_that_of_the_model_which_the_method_makes(
    score: Score, tiny_llama: Make, tmp_path: Path
) -> None:
    folder = tiny_llama()
    lab = sensitivity_of(folder, score)
    expected = real_loss(folder, score, uneven(lab), tmp_path / "out")
    assert lab.loss(uneven(lab)) == pytest.approx(expected, rel=1e-6)
    assert lab.loss(Uniform().allocate(lab.ctx, 0.3)) != pytest.approx(expected, rel=1e-5)


def trials(lab: Sensitivity, *sparsities: float) -> list[Trial]:
    blocks = [(block.index, tuple(linear.path for linear in block.linears)) for block in lab.ctx.model.kept]
    return [Trial(index, linears, value) for index, linears in blocks for value in sparsities]


def test_a_trial_of_what_is_already_so_changes_nothing(tiny_llama: Make) -> None:
    lab = sensitivity_of(tiny_llama(), "wanda")
    budget = Uniform().allocate(lab.ctx, 0.5)
    assert lab.losses(trials(lab, 0.5), budget) == pytest.approx([lab.loss(budget)] * 4, rel=1e-6)


@pytest.mark.parametrize("score", ["magnitude", "wanda", "sparsegpt"])
def test_a_trial_gives_the_loss_of_the_model_with_that_block_pruned_so(score: Score, tiny_llama: Make) -> None:
    lab = sensitivity_of(tiny_llama(), score)
    budget = Uniform().allocate(lab.ctx, 0.5)
    wanted = trials(lab, 0.2, 0.9)
    found = dict(zip(wanted, lab.losses(wanted, budget), strict=True))
    last = [trial for trial in wanted if trial.block == 3]
    for trial in last:  # after the last block no other adapts to it, so this is exactly a budget
        changed = {**budget, **dict.fromkeys(trial.linears, trial.sparsity)}
        assert found[trial] == pytest.approx(lab.loss(changed), rel=1e-6)
    assert len(set(found.values())) == 8


def test_groups_of_batches_give_the_same_where_no_statistics_are_needed(
    tiny_llama: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = sensitivity_of(tiny_llama(), "magnitude")
    budget, wanted = Uniform().allocate(lab.ctx, 0.5), trials(lab, 0.3, 0.7)
    together = lab.losses(wanted, budget)
    monkeypatch.setattr(stream, "WAITING_BYTES", 1)
    assert lab.losses(wanted, budget) == pytest.approx(together, rel=1e-6)


def test_trials_that_do_not_fit_together_are_measured_in_lots_with_the_same_statistics(
    tiny_llama: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = sensitivity_of(tiny_llama(), "wanda")
    budget, wanted = Uniform().allocate(lab.ctx, 0.5), trials(lab, 0.2, 0.3, 0.7)
    together, once = lab.losses(wanted, budget), lab.forwards
    monkeypatch.setattr(sensitivity, "LOT", 1)
    monkeypatch.setattr(stream, "WAITING_BYTES", 6 * 3 * 2 * lab.ids.shape[1] * 32 * 4)  # 3 batches, float32
    assert lab.losses(wanted, budget) == pytest.approx(together, rel=1e-6)
    assert lab.forwards == 2 * once + 2 * 2 * 4  # 12 trials in lots of 5, each with two passes over 4 blocks


def test_the_work_is_counted_in_blocks(tiny_llama: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = sensitivity_of(tiny_llama(), "wanda")
    budget, runs = Uniform().allocate(lab.ctx, 0.5), 0
    plain = stream.Stream.run

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal runs
        runs += 1
        return plain(*arguments)

    monkeypatch.setattr(stream.Stream, "run", counted)
    lab.losses(trials(lab, 0.3, 0.7), budget)
    # 3 batches: the stream, the branches, and the runs that feed the statistics, which end before the block does
    assert lab.forwards == 2 * 4 + 2 * (4 + 3 + 2 + 1)
    assert runs <= 3 * lab.forwards + 2


def test_the_model_is_left_as_it_was(tiny_llama: Make) -> None:
    lab = sensitivity_of(tiny_llama(), "sparsegpt")
    before = checks.weights(lab.ctx.model)
    lab.losses(trials(lab, 0.9), Uniform().allocate(lab.ctx, 0.5))
    after = checks.weights(lab.ctx.model)
    assert all(checks.same_bytes(before[name], after[name]) for name in before)


def test_removed_blocks_are_not_run(tiny_llama: Make) -> None:
    lab = sensitivity_of(tiny_llama(), "wanda")
    lab.ctx.model = lab.ctx.model.without({1})
    lab.losses(trials(lab, 0.9), Uniform().allocate(lab.ctx, 0.5))
    assert lab.forwards == 2 * 3 + 3 + 2 + 1
