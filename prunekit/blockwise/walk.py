"""Run the blocks of a model one at a time over the calibration set, and hand each to a method to be pruned.

For every block: read it, run all batches with hooks that feed the statistics, let the method edit its linears, commit
it, run all batches again so that the next block sees pruned outputs, free it. Peak memory is one block, its statistics
and the hidden states, whatever the depth of the model. Blocks that an interrupted run finished are replayed, not pruned
again.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from prunekit.blockwise.capture import capture, logits_of
from prunekit.blockwise.hooks import Forward, Groups, collect, find_groups
from prunekit.blockwise.statistics import Statistics
from prunekit.contract import Context
from prunekit.errors import UnsupportedError
from prunekit.files import storage_errors
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import Block, Linear
from prunekit.progress import Progress, Silent

S = TypeVar("S", bound=Statistics)
T = TypeVar("T")
WAITING_BYTES = 2 * 2**30  # hidden states that may wait at once, where a group of batches has several each
BATCH_TOKENS = 2048  # enough to keep matrix products busy, few enough for the activations to stay small


@dataclass
class LoadedLinear:
    """A linear in memory; `weight` is (outputs, inputs) in the compute dtype, a view of the real one."""

    linear: Linear
    module: nn.Module

    @property
    def path(self) -> str:
        """Full path, e.g. model.layers.3.mlp.down_proj."""
        return self.linear.path

    @property
    def weight(self) -> Tensor:
        """The weight as (outputs, inputs), whichever way the model stores it."""
        weight = self.module.get_parameter("weight").data
        return weight.T if self.linear.transposed else weight

    def write(self, weight: Tensor) -> None:
        """Replace the weight, given as (outputs, inputs)."""
        self.weight.copy_(weight)


@dataclass
class Visit(Generic[S]):
    """One block, or one group of its linears, ready to be pruned with what calibration knows of its inputs.

    Linears that read the same input share one statistics object.
    """

    block: Block
    linears: list[LoadedLinear]
    statistics: dict[str, S] = field(default_factory=dict)


class Stream:
    """Hidden states on their way through the blocks: one tensor (batch, tokens, width) per batch of token ids.

    They are kept on the CPU, or with `offload` in files of that folder that are mapped into memory.
    """

    def __init__(self, model: PrunableModel, batches: Sequence[Tensor], offload: Path | None = None) -> None:
        self.model = model
        self.batches = batches
        self.offload = offload
        numbers = count()
        captured = capture(model, batches, lambda hidden: self.keep(hidden, next(numbers)))
        self.hidden, self.calls, self.answer = captured.hidden, captured.calls, captured.answer

    def run(self, module: nn.Module, block: Block, batch: int, hidden: Tensor | None = None) -> Tensor:
        """The output of a block for one batch, or for other hidden states in its place; the block gets a copy."""
        state = self.hidden[batch] if hidden is None else hidden
        return self.calls[batch][block.index](module, state.to(self.model.device, copy=True))

    def advance(self, module: nn.Module, block: Block, batches: Sequence[int] | None = None) -> None:
        """Replace the hidden states of the given batches (default: all) by the block's output for them."""
        for batch in range(len(self.batches)) if batches is None else batches:
            self.hidden[batch] = self.keep(self.run(module, block, batch), batch)

    def keep(self, hidden: Tensor, batch: int) -> Tensor:
        """The hidden states of one batch where they shall wait; those that waited there before are lost."""
        if self.offload is None:
            return hidden.to("cpu", copy=True)
        path = self.offload / f"{batch:05d}.bin"
        flat = hidden.cpu().contiguous().reshape(-1)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(flat.view(torch.uint8).numpy().data)
        return torch.from_file(str(path), shared=True, size=flat.numel(), dtype=flat.dtype).view(hidden.shape)

    def logits(self, batches: Sequence[int] | None = None, hidden: Sequence[Tensor] | None = None) -> Iterator[Tensor]:
        """Logits (batch, tokens, vocabulary) of some batches, or all, once they have passed the last block.

        Of other hidden states than the stream's own when they are given, one tensor per batch.
        """
        with self.model.outside():
            for batch in range(len(self.batches)) if batches is None else batches:
                state = (hidden or self.hidden)[batch].to(self.model.device)
                yield logits_of(self.model, self.batches[batch], state, self.answer)


@torch.no_grad()
def walk(ctx: Context, statistics: type[S] | None = None, *, sequential: bool = False) -> Iterator[Visit[S]]:
    """Visit every block in order, with statistics of its linears' inputs; edit the linears between two visits.

    Each block's statistics are those of the unpruned block fed by the pruned ones before it. With `sequential` a
    block is visited once per group of linears that share an input, in the order they are called, and each group's
    statistics come from the block as the groups before it left it (SparseGPT's true-sequential).
    """
    samples = [] if statistics is None else split(calibration_of(ctx), ctx.batch_size)
    stream = Stream(ctx.model, [*samples, ctx.probe], ctx.offload)
    known: dict[Hashable, Groups | None] = {}
    for block, module in unfinished(ctx, stream):
        if statistics is None or not block.linears:
            yield Visit(block, _loaded(module, block))
        else:
            yield from _visits(stream, module, block, len(samples), statistics, known, sequential)


def unfinished(ctx: Context, stream: "Stream", dense: "Stream | None" = None) -> Iterator[tuple[Block, nn.Module]]:
    """Every kept block that no earlier run finished, in memory, to be edited; it is committed before the next comes.

    The stream's last batch is the probe: when it has passed the last block its logits are recorded. Meanwhile `dense`
    goes through all blocks of the source, and has passed those before the one that is handed out; the caller takes it
    through that one, before editing it.
    """
    model = ctx.model
    ctx.progress.stage("pruning", len(model.kept))
    for block in model.blocks if dense is not None else model.kept:
        finished = model.edits is not None and model.edits.has_block(block.index)
        if dense is not None and (finished or block.index in model.removed):
            with model.block(block.index, source=True) as module:
                dense.advance(module, block)
        if block.index in model.removed:
            continue
        with model.block(block.index) as module:
            if finished:
                for note in model.edits.notes(block.index) if model.edits else ():
                    ctx.note(note)
            else:
                noted = len(ctx.notes)
                yield block, module
                model.commit(block.index, ctx.notes[noted:])
            last = block is model.kept[-1]  # after it only the probe is still wanted
            stream.advance(module, block, [len(stream.batches) - 1] if last else None)
        ctx.progress.step(block.path)
    if model.edits is not None:
        model.edits.write_probe(ctx.probe, next(stream.logits([len(stream.batches) - 1]))[0])


@torch.no_grad()
def survey(ctx: Context, statistics: type[S], stream: Stream | None = None) -> Iterator[Visit[S]]:
    """Visit every block in order as `walk` does, and keep nothing: for deciding.

    What is written into a linear between two visits is seen by the blocks after it, and is gone with its block. A
    `stream` of one's own takes the place of the calibration set's, and has passed all blocks in the end.
    """
    own = stream or Stream(ctx.model, split(calibration_of(ctx), ctx.batch_size), ctx.offload)
    known: dict[Hashable, Groups | None] = {}
    for block in ctx.model.kept:
        with ctx.model.block(block.index) as module:
            if block.linears:
                yield from _visits(own, module, block, len(own.batches), statistics, known, False)
            else:
                yield Visit(block, [])
            if stream is not None or block is not ctx.model.kept[-1]:
                own.advance(module, block)


@torch.no_grad()
def logits(
    model: PrunableModel,
    ids: Tensor,
    *,
    batch_size: int | None = None,
    offload: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Logits (batch, window, vocabulary) of token ids (n, window), in order, with one block in memory at a time."""
    yield from passed(model, ids, batch_size=batch_size, offload=offload, progress=progress).logits()


@torch.no_grad()
def passed(
    model: PrunableModel,
    ids: Tensor,
    *,
    batch_size: int | None = None,
    offload: Path | None = None,
    progress: Progress | None = None,
) -> Stream:
    """Token ids (n, window) that have gone through all blocks; the stream gives their logits as often as is asked."""
    progress = progress or Silent()
    stream = Stream(model, split(ids, batch_size or default_batch_size(ids.shape[1])), offload)
    for block in model.kept:
        with model.block(block.index) as module:
            stream.advance(module, block)
        progress.step(block.path)
    return stream


@torch.no_grad()
def transitions(ctx: Context) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """What every kept block makes of every calibration batch: its input and its output (batch, tokens, width)."""
    stream = Stream(ctx.model, split(calibration_of(ctx), ctx.batch_size), ctx.offload)
    for block in ctx.model.kept:
        with ctx.model.block(block.index) as module:
            for batch in range(len(stream.batches)):
                before, after = stream.hidden[batch].to(ctx.device), stream.run(module, block, batch)
                yield block, before, after
                stream.hidden[batch] = stream.keep(after, batch)
        ctx.progress.step(block.path)


@torch.no_grad()
def record_probe(ctx: Context) -> None:
    """Write the logits of the model as it is now, without its removed blocks, to the staging folder."""
    if ctx.model.edits is not None:
        ctx.model.edits.write_probe(ctx.probe, next(logits(ctx.model, ctx.probe))[0])


def split(ids: Tensor, batch_size: int) -> list[Tensor]:
    """Token ids (samples, tokens) as batches of at most `batch_size` samples."""
    return list(ids.split(batch_size))


def waiting(each: int) -> int:
    """How many hidden states of so many bytes may wait at once."""
    return WAITING_BYTES // each


def grouped(batches: Sequence[T], each: int, resident: bool) -> list[Sequence[T]]:
    """Batches in groups whose hidden states, so many bytes `each`, fit WAITING_BYTES, or one by one.

    Each group reads the blocks anew. Of a resident model none is read, so nothing need wait for others. Groups are as
    equal as can be.
    """
    most = 1 if resident else max(1, waiting(each))
    size = math.ceil(len(batches) / max(1, math.ceil(len(batches) / most))) or 1
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def default_batch_size(seq_len: int) -> int:
    """How many sequences are run at once when the user does not say."""
    return max(1, BATCH_TOKENS // seq_len)


def calibration_of(ctx: Context) -> Tensor:
    """The calibration set (samples, tokens) of a method that declared that it needs one."""
    if ctx.calibration is None:
        raise RuntimeError("the method asked for statistics without declaring that it needs a calibration set")
    return ctx.calibration


def _loaded(module: nn.Module, block: Block) -> list[LoadedLinear]:
    prefix = f"{block.path}."
    return [LoadedLinear(part, module.get_submodule(part.path.removeprefix(prefix))) for part in block.linears]


def _visits(
    stream: Stream,
    module: nn.Module,
    block: Block,
    batches: int,
    statistics: type[S],
    known: dict[Hashable, Groups | None],
    sequential: bool,
) -> Iterator[Visit[S]]:
    """The visits of one block: one, or one per group of linears; `known` keeps the groups of blocks built alike."""
    loaded = {part.path.removeprefix(f"{block.path}."): part for part in _loaded(module, block)}
    modules = {name: part.module for name, part in loaded.items()}
    inputs = {name: part.linear.shape[1] for name, part in loaded.items()}
    forwards: list[Forward] = [partial(stream.run, module, block, batch) for batch in range(batches)]
    kind = (type(module), tuple(loaded))
    if kind not in known:
        known[kind] = find_groups(modules, forwards[0])
    groups = known[kind]
    for part in [[group] for group in groups] if sequential and groups else [groups]:
        found = {loaded[name].path: s for name, s in collect(modules, inputs, statistics, forwards, part).items()}
        _check(found)
        yield Visit(block, [linear for linear in loaded.values() if linear.path in found], found)


def _check(found: dict[str, S]) -> None:
    for path, statistics in found.items():
        if problem := statistics.problem():
            raise UnsupportedError(
                f"{path} cannot be pruned with this calibration set: {problem}",
                hint="calibrate on more or other text",
            )
