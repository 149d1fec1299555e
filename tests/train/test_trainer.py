"""Training with fading blocks: what the pieces compute, and that an interrupted run ends like an uninterrupted one."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunekit.errors import ResourceError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.train.fading import Fade, fade
from prunekit.train.state import STATE
from prunekit.train.trainer import Look, Objective, Trainer, set_aside
from training_runs import SCHEDULE, Stop, Stopper, adapted, same, trainer, weights

pytestmark = pytest.mark.slow

Model = Callable[..., Path]


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [replace(SCHEDULE, updates=100, warmup=0.1).rate_at(update) for update in range(100)]
    assert rates.index(max(rates)) == 9
    assert rates[0] < rates[5] < rates[9] > rates[50] > rates[99] > 0


def test_recomputing_on_the_way_back_changes_no_bit(tiny_llama: Model) -> None:
    folder = tiny_llama()
    plain, again = trainer(folder), trainer(folder, recompute=True)
    plain.run()
    again.run()
    assert same(weights(plain), weights(again))


def test_training_ends_with_the_state_of_the_best_held_out_loss(tiny_llama: Model) -> None:
    run = trainer(tiny_llama())
    dense = weights(run)
    run.run()
    assert [look.update for look in run.history] == [0, 2, 4, 6]
    assert run.best is min(run.history, key=lambda look: look.judged)
    assert run.held_out_loss(gate=0.0) == pytest.approx(run.best.loss, rel=1e-6)
    assert not same(dense, weights(run)), "nothing was trained"


def test_training_that_only_hurts_leaves_the_model_as_it_was(tiny_llama: Model) -> None:
    run = trainer(tiny_llama(), schedule=replace(SCHEDULE, rate=10.0))
    dense = weights(run)
    run.run()
    assert run.best is run.history[0] and run.best.judged < run.history[-1].judged
    assert same(dense, weights(run))


@pytest.mark.parametrize("make", [trainer, adapted])
@pytest.mark.parametrize("at", [2, 3, 5])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    at: int, make: Callable[..., Trainer], tiny_llama: Model, tmp_path: Path
) -> None:
    folder = tiny_llama()
    whole = make(folder)
    whole.run()
    with pytest.raises(Stop):
        make(folder, folder=tmp_path / "state", progress=Stopper(at)).run()
    resumed = make(folder, folder=tmp_path / "state")
    resumed.run()
    assert same(weights(whole), weights(resumed))
    assert resumed.history == whole.history
    assert [path.name for path in (tmp_path / "state").iterdir()] == [STATE]


def test_a_student_with_adapters_is_as_good_a_teacher_as_a_second_model(tiny_llama: Model) -> None:
    folder = tiny_llama()
    alone, taught = adapted(folder), adapted(folder)
    taught.teacher = PrunableModel.open(Checkpoint.open(folder), device="cpu").load(torch.float32)
    dense = weights(alone)
    for run in (alone, taught):
        run.run()
    assert same(weights(alone), weights(taught)) and alone.history == taught.history
    changed = {name for name, tensor in weights(alone).items() if not torch.equal(tensor, dense[name])}
    assert changed == alone.trained.keys()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_best_state(tiny_llama: Model) -> None:
    notes: list[str] = []

    class Listener:
        def stage(self, title: str, total: int) -> None: ...
        def step(self, text: str = "") -> None: ...
        def note(self, text: str) -> None:
            notes.append(text)

    run = trainer(tiny_llama(), progress=Listener())
    dense, course = weights(run), run.course
    run.course = lambda update: dict.fromkeys(course(0), Fade(math.nan)) if update == 1 else course(update)
    run.run()
    assert run.update == 1 and same(dense, weights(run))
    assert notes == ["update 1: the loss is nan; the best state so far is kept"]


@pytest.mark.parametrize("seed", [0, 2**62])
def test_every_epoch_shows_every_sequence_once_in_an_order_of_its_own(seed: int, tiny_llama: Model) -> None:
    run = trainer(tiny_llama(), seed=seed)
    epochs = []
    for epoch in range(2):
        rows = []
        for place in range(3):
            run.update = 3 * epoch + place
            rows += run._rows().tolist()
        epochs.append(rows)
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(run.ids.tolist())
    assert epochs[0] != epochs[1]
    assert json.dumps(epochs[0]) != json.dumps(run.ids.tolist())


def test_a_block_that_is_out_from_the_beginning_is_not_moved_and_does_not_stop_a_checkpoint(
    tiny_llama: Model, tmp_path: Path
) -> None:
    folder, gone = tiny_llama(), {"course": lambda _: {1: Fade(0.0)}}
    whole = trainer(folder, **gone)
    dense = weights(whole)
    whole.run()
    with pytest.raises(Stop):
        trainer(folder, folder=tmp_path / "state", progress=Stopper(3), **gone).run()
    resumed = trainer(folder, folder=tmp_path / "state", **gone)
    resumed.run()
    assert same(weights(whole), weights(resumed))
    assert all(torch.equal(dense[name], part) for name, part in weights(resumed).items() if ".layers.1." in name)


def test_the_loss_is_the_formula(tiny_llama: Model) -> None:
    """Text, logits and hidden states of the dense model, each with its weight, computed by transformers alone."""
    run = trainer(tiny_llama(), objective=Objective(distil=0.3, match=5.0), course=lambda _: {1: Fade(0.0)})
    ids, student, teacher = run.ids[:2], run.student, run.teacher
    assert teacher is not None
    with torch.no_grad():
        for part in student.parameters():  # else the blocks before the gap would agree
            part.add_(0.01 * torch.randn(part.shape, generator=torch.Generator().manual_seed(part.numel())))
        with run._fading() as blocks:
            fade(blocks, run.course(0))
            found = run._loss(ids, blocks).item()
        dense = teacher(ids, output_hidden_states=True, use_cache=False)
        student.model.layers = nn.ModuleList(block for index, block in enumerate(student.model.layers) if index != 1)
        student.config.num_hidden_layers = len(student.model.layers)
        states: list[Tensor] = []
        for block in student.model.layers:
            block.register_forward_hook(lambda _, __, output: states.append(output))
        logits = student(ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        text = nn.functional.nll_loss(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
        wanted = dense.logits[:, :-1].log_softmax(-1)
        kl = (wanted.exp() * (wanted - logits)).sum(-1).mean().item()
        kept = [dense.hidden_states[1], dense.hidden_states[3], *_after(teacher, ids, 3)]
    apart = [((h - d).square().sum(-1) / d.square().sum(-1)).mean().item() for h, d in zip(states, kept, strict=True)]
    assert found == pytest.approx(0.7 * text + 0.3 * kl + 5 * sum(apart) / len(apart), rel=1e-5)
    assert min(text, kl, *apart) > 1e-6


def _after(model: Any, ids: Tensor, block: int) -> list[Tensor]:
    """What leaves a block; transformers lists the last one only after the final norm."""
    states: list[Tensor] = []
    with model.model.layers[block].register_forward_hook(lambda _, __, output: states.append(output)):
        model(ids, use_cache=False)
    return states


@pytest.mark.parametrize("make", [trainer, adapted])
def test_matching_hidden_states_survives_recomputing_and_stopping(
    make: Callable[..., Trainer], tiny_llama: Model, tmp_path: Path
) -> None:
    folder, given = tiny_llama(), {"objective": Objective(distil=0.5, match=5.0)}
    whole, again = make(folder, **given), make(folder, recompute=True, **given)
    whole.run()
    again.run()
    with pytest.raises(Stop):
        make(folder, folder=tmp_path / "state", progress=Stopper(3), **given).run()
    resumed = make(folder, folder=tmp_path / "state", **given)
    resumed.run()
    assert same(weights(whole), weights(again)) and same(weights(whole), weights(resumed))


@pytest.mark.parametrize(("count", "part", "held"), [(10, 0.1, 1), (10, 0.96, 9), (2, 0.1, 1), (1, 0.5, 1)])
def test_what_is_held_out_is_not_trained_on_unless_there_is_only_one_sequence(
    count: int, part: float, held: int
) -> None:
    text, held_out = set_aside(torch.arange(count)[:, None], part)
    assert len(held_out) == held and len(text) == max(1, count - held)
    assert not set(text.flatten().tolist()) & set(held_out.flatten().tolist()) or count == 1


def test_a_state_that_is_no_number_gives_way_to_one_that_is(tiny_llama: Model) -> None:
    run = trainer(tiny_llama())
    looks = iter([math.nan, 3.0, 4.0, math.nan])
    run._held_out = lambda blocks, gate: Look(run.update, judged := next(looks), judged)  # type: ignore[method-assign]
    run.run()
    assert run.best == Look(2, 3.0, 3.0)


def test_a_full_disk_is_said_to_be_full(tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prunekit.train.state.save_file", full)
    with pytest.raises(ResourceError, match="full"):
        trainer(tiny_llama(), folder=tmp_path / "state").run()
