"""Run the blocks of a model one at a time over the calibration set, and hand each to a method to be pruned.

For every block: read it, run all batches with hooks that feed the statistics, let the method edit its linears, commit it,
run all batches again so that the next block sees pruned outputs, free it. Peak memory is one block, its statistics and
the hidden states, whatever the depth of the model. Blocks that an interrupted run finished are replayed, not pruned again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from prunekit.capture import Captured, capture, logits_of
from prunekit.collect import collect
from prunekit.contract import Context
from prunekit.errors import UnsupportedError
from prunekit.model import Block, Linear, PrunableModel
from prunekit.progress import Progress, Silent
from prunekit.statistics import Statistics

S = TypeVar("S", bound=Statistics)
BATCH_TOKENS = 2048  # enough to keep matrix products busy, few enough for the activations to stay small


@dataclass
class LoadedLinear:
    """A linear whose weight is in memory; `weight` is (outputs, inputs) in the compute dtype, a view of the real one."""

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
    """Hidden states on their way through the blocks: one tensor (batch, tokens, width) per batch of token ids."""

    def __init__(self, model: PrunableModel, batches: Sequence[Tensor], offload: Path | None = None) -> None:
        self.model = model
        self.batches = batches
        captured = capture(model, batches)
        self.calls, self.answer = captured.calls, captured.answer
        self.hidden = _shelve(captured, offload)

    def run(self, module: nn.Module, block: Block, batch: int) -> Tensor:
        """The output of a block for one batch."""
        return self.calls[batch][block.index](module, self.hidden[batch].to(self.model.device))

    def advance(self, module: nn.Module, block: Block, batches: Sequence[int] | None = None) -> None:
        """Replace the hidden states of the given batches (default: all) by the block's output for them."""
        for batch in range(len(self.batches)) if batches is None else batches:
            self.hidden[batch].copy_(self.run(module, block, batch))

    def logits(self) -> Iterator[Tensor]:
        """Logits (batch, tokens, vocabulary) of each batch, once the states have passed the last block."""
        with self.model.outside():
            for ids, hidden in zip(self.batches, self.hidden, strict=True):
                yield logits_of(self.model, ids, hidden.to(self.model.device), self.answer)


@torch.no_grad()
def walk(ctx: Context, statistics: type[S] | None = None, *, sequential: bool = False) -> Iterator[Visit[S]]:
    """Visit every block in order, with the wanted statistics of its linears' inputs; edit the linears between two visits.

    Each block's statistics are those of the unpruned block fed by the pruned ones before it. With `sequential` a
    block is visited once per group of linears that share an input, in the order they are called, and each group's
    statistics come from the block as the groups before it left it (SparseGPT's true-sequential).
    """
    model, samples = ctx.model, [] if statistics is None else split(_calibration(ctx), ctx.batch_size)
    stream = Stream(model, [*samples, ctx.probe], ctx.offload)
    ctx.progress.stage("pruning", len(model.blocks))
    for block in model.blocks:
        with model.block(block.index) as module:
            if model.edits is None or not model.edits.has_block(block.index):
                yield from _visits(stream, module, block, len(samples), statistics, sequential)
                model.commit(block.index)
            final = block.index == len(model.blocks) - 1  # nobody reads what the calibration set becomes there
            stream.advance(module, block, [len(samples)] if final else None)
        ctx.progress.step(block.path)
    if model.edits is not None:
        model.edits.write_probe(ctx.probe, list(stream.logits())[-1][0])


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
    progress = progress or Silent()
    stream = Stream(model, split(ids, batch_size or default_batch_size(ids.shape[1])), offload)
    for block in model.blocks:
        with model.block(block.index) as module:
            stream.advance(module, block)
        progress.step(block.path)
    yield from stream.logits()


def split(ids: Tensor, batch_size: int) -> list[Tensor]:
    """Token ids (samples, tokens) as batches of at most `batch_size` samples."""
    return list(ids.split(batch_size))


def default_batch_size(seq_len: int) -> int:
    """How many sequences are run at once when the user does not say."""
    return max(1, BATCH_TOKENS // seq_len)


def _calibration(ctx: Context) -> Tensor:
    if ctx.calibration is None:
        raise RuntimeError("the method asked for statistics without declaring that it needs a calibration set")
    return ctx.calibration


def _visits(
    stream: Stream, module: nn.Module, block: Block, batches: int, statistics: type[S] | None, sequential: bool
) -> Iterator[Visit[S]]:
    """The visits of one block: one, or one per group of linears."""
    prefix = f"{block.path}."
    loaded = {linear.path: LoadedLinear(linear, module.get_submodule(linear.path.removeprefix(prefix))) for linear in block.linears}
    if statistics is None:
        yield Visit(block, list(loaded.values()))
        return
    forwards: list[Callable[[], object]] = [lambda batch=batch: stream.run(module, block, batch) for batch in range(batches)]
    modules = {path: part.module for path, part in loaded.items()}
    done: set[str] = set()
    while len(done) < len(loaded):
        remaining = {path: part for path, part in modules.items() if path not in done}
        found = collect(remaining, {path: part.linear.shape[1] for path, part in loaded.items()}, statistics, forwards, one_group=sequential)
        _check(found)
        yield Visit(block, [loaded[path] for path in loaded if path in found], found)
        done |= found.keys()


def _check(found: dict[str, S]) -> None:
    for path, statistics in found.items():
        if problem := statistics.problem():
            raise UnsupportedError(f"{path} cannot be pruned with this calibration set: {problem}", hint="calibrate on more or other text")


def _shelve(captured: Captured, folder: Path | None) -> list[Tensor]:
    """The hidden states in memory on the CPU, or as memory-mapped files in a folder."""
    if folder is None:
        return [hidden.cpu() for hidden in captured.hidden]
    folder.mkdir(parents=True, exist_ok=True)
    shelved: list[Tensor] = []
    for number, hidden in enumerate(captured.hidden):
        path = folder / f"{number:05d}.bin"
        mapped = torch.from_file(str(path), shared=True, size=hidden.numel(), dtype=hidden.dtype)
        shelved.append(mapped.view(hidden.shape).copy_(hidden))
    return shelved
