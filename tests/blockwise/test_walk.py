"""The order of things in a walk: what is in memory, what statistics see, what is written, how it is taken up again."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import families
from prunekit.blockwise.statistics import Hessian, InputNorm, Statistics
from prunekit.blockwise.stream import default_batch_size, logits, split
from prunekit.blockwise.walk import Visit, walk
from prunekit.contract import Context
from prunekit.errors import ResourceError, UnsupportedError
from prunekit.export.staging import Staging
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel

IDS = torch.randint(0, 320, (5, 20), generator=torch.Generator().manual_seed(7))
PROBE = torch.randint(0, 320, (1, 16), generator=torch.Generator().manual_seed(8))
Begin = Callable[..., Context]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """`begin("run", family="llama", **context)` is the context of a run into `run`; a second call takes it up again."""

    def make(run: str = "out", *, family: str = "llama", dtype: str = "float32", **options: Any) -> Context:
        source = tmp_path / f"{family}-{dtype}"
        if not source.exists():
            families.save(family, source, dtype=dtype)
        model = PrunableModel.open(Checkpoint.open(source), device="cpu")
        model = model.with_edits(Staging.open(tmp_path / run, {}).edits)
        values = {"calibration": IDS, "probe": PROBE, "batch_size": 2} | options
        return Context(model=model, ratio=0.5, **values)

    return make


def halve(visit: Visit[Any]) -> None:
    """Zero every second input of every linear."""
    for linear in visit.linears:
        keep = torch.arange(linear.weight.shape[1]) % 2 == 0
        linear.write(linear.weight * keep)


def halve_all(ctx: Context, statistics: type[Statistics] | None = InputNorm, **options: bool) -> None:
    for visit in walk(ctx, statistics, **options):
        halve(visit)


def staged(ctx: Context) -> dict[str, bytes]:
    assert ctx.model.edits is not None
    folder = ctx.model.edits.folder
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def plain_inputs(ctx: Context, index: int, *, edited: int) -> dict[str, Tensor]:
    """Inputs of the linears of one block in a plain model whose first `edited` blocks are halved, by path."""
    model = AutoModelForCausalLM.from_pretrained(ctx.model.checkpoint.folder, dtype=torch.float32).eval()
    heard: dict[str, Tensor] = {}
    for block in ctx.model.blocks:
        for linear in block.linears:
            module = model.get_submodule(linear.path)
            if block.index < edited:
                module.weight.data[:, 1::2] = 0
            if block.index == index:
                module.register_forward_hook(lambda _, args, __, path=linear.path: heard.update({path: args[0]}))
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    return heard


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_statistics_are_those_of_the_unpruned_block_fed_by_pruned_ones(begin: Begin, batch_size: int) -> None:
    ctx = begin(batch_size=batch_size)

    for visit in walk(ctx, InputNorm):
        inputs = plain_inputs(ctx, visit.block.index, edited=visit.block.index)
        assert set(visit.statistics) == set(inputs) == {linear.path for linear in visit.linears}
        for path, x in inputs.items():
            expected = x.square().sum(dim=1).mean(dim=0).sqrt()
            torch.testing.assert_close(visit.statistics[path].norms, expected, rtol=1e-4, atol=1e-5)
        halve(visit)


def test_linears_that_read_the_same_input_share_their_statistics(begin: Begin) -> None:
    for visit in walk(begin(), Hessian):
        found = {path.rpartition(".")[2]: statistics for path, statistics in visit.statistics.items()}
        assert found["q_proj"] is found["k_proj"] is found["v_proj"]
        assert found["gate_proj"] is found["up_proj"]
        assert len({id(statistics) for statistics in found.values()}) == 4


def test_a_sequential_walk_visits_group_by_group_and_each_sees_the_groups_before_it_pruned(begin: Begin) -> None:
    ctx, seen = begin(), []

    for visit in walk(ctx, InputNorm, sequential=True):
        names = [linear.path.rpartition(".")[2] for linear in visit.linears]
        seen.append(names)
        if visit.block.index == 1 and names == ["down_proj"]:
            path = visit.linears[0].path
            unpruned = plain_inputs(ctx, 1, edited=1)[path].square().sum(dim=1).mean(dim=0).sqrt()
            assert not torch.allclose(visit.statistics[path].norms, unpruned, rtol=1e-2)
        halve(visit)

    assert seen == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]] * 4


def test_one_block_is_in_memory_at_a_time_and_none_after_the_walk(begin: Begin) -> None:
    ctx = begin()
    model = ctx.model

    def resident() -> set[str]:
        return {name for name, parameter in model.skeleton.named_parameters() if not parameter.is_meta}

    for visit in walk(ctx, InputNorm):
        assert resident() == set(model.block_tensors(visit.block.index))
    assert not resident()


def test_a_linear_is_seen_as_outputs_by_inputs_and_written_the_way_it_is_stored(begin: Begin) -> None:
    ctx = begin(family="gpt2")
    path = "transformer.h.1.attn.c_attn"

    for visit in walk(ctx):
        for linear in visit.linears:
            assert tuple(linear.weight.shape) == linear.linear.shape
            if linear.path == path:
                linear.write(torch.arange(96.0)[:, None].expand(96, 32))

    stored = ctx.model.read([f"{path}.weight"])[f"{path}.weight"]
    assert stored.shape == (32, 96)
    assert torch.equal(stored[5], torch.arange(96.0))


def test_a_walk_without_statistics_needs_no_calibration_set(begin: Begin) -> None:
    ctx = begin(calibration=None)

    visits = list(walk(ctx))

    assert [visit.block.index for visit in visits] == [0, 1, 2, 3]
    assert not any(visit.statistics for visit in visits)


def test_asking_for_statistics_without_a_calibration_set_is_a_mistake_of_the_method(begin: Begin) -> None:
    with pytest.raises(RuntimeError, match="without declaring"):
        next(walk(begin(calibration=None), InputNorm))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_probe_holds_the_logits_of_the_model_as_it_was_written(begin: Begin, dtype: str) -> None:
    ctx = begin(dtype=dtype)

    for visit in walk(ctx, InputNorm):
        for linear in visit.linears:
            linear.write(linear.weight * 1.003)  # no bfloat16 number, so what is stored differs from what was computed

    assert ctx.model.edits is not None
    probe = load_file(ctx.model.edits.probe_path)
    assert torch.equal(probe["input_ids"], PROBE)
    assert torch.equal(probe["logits"], torch.cat(list(logits(ctx.model, PROBE)))[0])


@pytest.mark.parametrize("stop", [0, 2, 3])
@pytest.mark.parametrize("sequential", [False, True])
def test_an_interrupted_walk_is_taken_up_again_and_ends_in_the_same_bytes(
    begin: Begin, stop: int, sequential: bool
) -> None:
    whole = begin("whole", dtype="bfloat16")
    halve_all(whole, sequential=sequential)

    first = begin("resumed", dtype="bfloat16")
    for visit in walk(first, InputNorm, sequential=sequential):
        halve(visit)
        if visit.block.index == stop:
            break
    again = begin("resumed", dtype="bfloat16")
    visited: list[int] = []
    for visit in walk(again, InputNorm, sequential=sequential):
        visited.append(visit.block.index)
        halve(visit)

    assert set(visited) == set(range(stop, 4))
    assert staged(again) == staged(whole)


def test_a_finished_walk_is_only_replayed(begin: Begin) -> None:
    ctx = begin()
    halve_all(ctx)
    before = staged(ctx)

    again = begin()
    assert list(walk(again, InputNorm)) == []
    assert staged(again) == before


def test_what_a_method_remarked_is_heard_again_when_its_blocks_are_replayed(begin: Begin) -> None:
    def run(ctx: Context, stop: int) -> list[str]:
        for visit in walk(ctx, InputNorm):
            ctx.note(f"block {visit.block.index}")
            if visit.block.index == stop:
                break
        return ctx.notes

    run(begin(), stop=2)

    assert run(begin(), stop=9) == ["block 0", "block 1", "block 2", "block 3"]


@pytest.mark.parametrize("family", ["llama", "gemma3n", "falcon"])
def test_hidden_states_on_disk_give_the_same_bytes(begin: Begin, family: str, tmp_path: Path) -> None:
    memory, disk = begin("memory", family=family), begin("disk", family=family, offload=tmp_path / "hidden")

    halve_all(memory)
    halve_all(disk)

    assert staged(disk) == staged(memory)
    assert len(list((tmp_path / "hidden").iterdir())) == 4  # three batches and the probe
    on_disk = list(logits(disk.model, IDS, batch_size=2, offload=tmp_path / "other"))
    assert all(map(torch.equal, on_disk, logits(disk.model, IDS, batch_size=2)))


def test_a_full_disk_under_the_hidden_states_is_a_resource_error(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(ResourceError, match="is full"):
        next(walk(begin(offload=tmp_path / "hidden"), InputNorm))


def test_the_number_of_threads_batches_and_blocks_is_told_to_whoever_watches(begin: Begin) -> None:
    class Watcher:
        def __init__(self) -> None:
            self.heard: list[object] = []

        def stage(self, title: str, total: int) -> None:
            self.heard.append((title, total))

        def step(self, text: str = "") -> None:
            self.heard.append(text)

        def note(self, text: str) -> None: ...

    watcher = Watcher()
    halve_all(begin(progress=watcher))

    assert watcher.heard == [("pruning", 4), *(f"model.layers.{index}" for index in range(4))]


def test_inputs_that_are_not_finite_are_refused_by_linear(begin: Begin) -> None:
    ctx = begin()

    def run() -> None:
        for visit in walk(ctx, InputNorm):
            visit.linears[-1].write(torch.full_like(visit.linears[-1].weight, 1e38))

    with pytest.raises(UnsupportedError, match=r"layers\.1\.self_attn\.q_proj cannot be pruned .* NaN") as caught:
        run()

    assert "calibrate on" in str(caught.value.hint)
    assert ctx.model.edits is not None and ctx.model.edits.finished_blocks() == 1


def test_a_linear_that_no_token_reaches_is_refused_by_name(begin: Begin) -> None:
    with pytest.raises(UnsupportedError, match=r"layers\.0\.mixer\.dt_proj cannot .*no calibration token reached it"):
        halve_all(begin(family="mamba"))


def test_every_batch_of_a_deterministic_run_repeats_to_the_byte(begin: Begin) -> None:
    one, other = begin("one"), begin("other")
    for ctx in (one, other):
        for visit in walk(ctx, Hessian):
            for linear in visit.linears:
                linear.write(linear.weight - 1e-3 * linear.weight @ visit.statistics[linear.path].matrix)

    assert staged(one) == staged(other)


def test_logits_come_in_order_whatever_the_batch_size(begin: Begin) -> None:
    model = begin().model

    whole = torch.cat(list(logits(model, IDS, batch_size=5)))

    for batch_size in (1, 2, 3):
        parts = list(logits(model, IDS, batch_size=batch_size))
        assert [len(part) for part in parts] == [len(part) for part in split(IDS, batch_size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=2e-6)


def test_the_default_batch_has_about_two_thousand_tokens_and_at_least_one_sequence() -> None:
    assert [default_batch_size(length) for length in (1, 128, 1000, 2048, 9000)] == [2048, 16, 2, 1, 1]
