"""Run the blocks of a model one at a time over the calibration set, and hand each to a method to be pruned.

For every block: read it, run all batches with hooks that feed the statistics, let the method edit its linears, commit
it, run all batches again so that the next block sees pruned outputs, free it. Peak memory is one block, its statistics
and the hidden states, whatever the depth of the model. Blocks that an interrupted run finished are replayed, not pruned
again.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from prunekit.blockwise.hooks import Forward, Groups, collect, find_groups
from prunekit.blockwise.statistics import Statistics
from prunekit.blockwise.stream import Stream, logits, split
from prunekit.contract import Context
from prunekit.errors import UnsupportedError
from prunekit.model.structure import Block, Linear

S = TypeVar("S", bound=Statistics)


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
    """One block in memory, or one group of its linears, with what calibration knows of its inputs.

    `statistics` holds those of each linear's input, by path; linears that read the same input share one object.
    `inputs`, `run` and `outputs` are for methods that fit a block to data: the calibration set, in `batches` batches,
    as the pruned blocks before it left it.
    """

    block: Block
    module: nn.Module
    linears: list[LoadedLinear]
    stream: Stream = field(repr=False)
    batches: int
    statistics: dict[str, S] = field(default_factory=dict)

    def inputs(self) -> Iterator[Tensor]:
        """The hidden states before the block, (sequences, tokens, width) for each batch, on the run's device."""
        for batch in range(self.batches):
            yield self.stream.hidden[batch].to(self.stream.model.device)

    def run(self, hidden: Tensor, batch: int = 0) -> Tensor:
        """The block's output for hidden states (sequences, tokens, width), called as the model calls it for a batch.

        Differentiable in the hidden states and in the block's parameters that require a gradient; none does at first.
        """
        return self.stream.run(self.module, self.block, batch, hidden)

    def outputs(self) -> Iterator[Tensor]:
        """The block's outputs for its inputs, with its weights as they are now; like `inputs`, without gradients."""
        for batch, hidden in enumerate(self.inputs()):
            with torch.no_grad():
                output = self.run(hidden, batch)
            yield output


@torch.no_grad()
def walk(ctx: Context, statistics: type[S] | None = None, *, sequential: bool = False) -> Iterator[Visit[S]]:
    """Visit every block in order, with statistics of its linears' inputs; edit the linears between two visits.

    Each block's statistics are those of the unpruned block fed by the pruned ones before it. With `sequential` a
    block is visited once per group of linears that share an input, in the order they are called, and each group's
    statistics come from the block as the groups before it left it (SparseGPT's true-sequential).
    """
    needed = ctx.calibration is not None or statistics is not None
    samples = split(calibration_of(ctx), ctx.batch_size) if needed else []
    stream = Stream(ctx.model, [*samples, ctx.probe], ctx.offload)
    known: dict[Hashable, Groups | None] = {}
    for block, module in unfinished(ctx, stream):
        if statistics is None or not block.linears:
            yield Visit(block, module, _loaded(module, block), stream, len(samples))
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
def observe(ctx: Context, statistics: type[S], stream: Stream | None = None) -> Iterator[Visit[S]]:
    """Visit every block in order as `walk` does and commit nothing: for methods and allocators that decide.

    Blocks see what was written into the linears of earlier ones; when the next block comes, that is lost. A `stream`
    replaces the calibration set's, and has passed all blocks in the end.
    """
    own = stream or Stream(ctx.model, split(calibration_of(ctx), ctx.batch_size), ctx.offload)
    known: dict[Hashable, Groups | None] = {}
    for block in ctx.model.kept:
        with ctx.model.block(block.index) as module:
            if block.linears:
                yield from _visits(own, module, block, len(own.batches), statistics, known, False)
            else:
                yield Visit(block, module, [], own, len(own.batches))
            if stream is not None or block is not ctx.model.kept[-1]:
                own.advance(module, block)


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
        visited = [linear for linear in loaded.values() if linear.path in found]
        yield Visit(block, module, visited, stream, batches, found)


def _check(found: dict[str, S]) -> None:
    for path, statistics in found.items():
        if problem := statistics.problem():
            raise UnsupportedError(
                f"{path} cannot be pruned with this calibration set: {problem}",
                hint="calibrate on more or other text",
            )
