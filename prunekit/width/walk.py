"""Narrow one block after the other, each with what calibration knows of the neurons that its predecessors left it.

Every block is handed out with statistics of its neurons and with what the layer that reads them should give, its goal:

    layer     what it gives now, with all its neurons
    dense     what it gave in the dense model, whose hidden states walk along
    stream    what makes the hidden states behind the block those of the dense model, whatever went wrong before it

Peak memory is one block, the statistics of one layer, what a method solves with them, and the hidden states, twice
where the dense model walks along.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from prunekit.blockwise.statistics import Moments
from prunekit.blockwise.stream import Stream, split
from prunekit.blockwise.walk import calibration_of, unfinished
from prunekit.contract import Context
from prunekit.errors import UnsupportedError
from prunekit.model.structure import FFN, Block
from prunekit.plan import PrunePlan
from prunekit.width.neurons import cut, is_added, matrix, per_unit
from prunekit.width.plan import check_narrowing

S = TypeVar("S", bound=Moments)
Target = Literal["layer", "dense", "stream"]


@dataclass
class Narrowable(Generic[S]):
    """One block in memory, to be left with `units` neurons by `leave`.

    `inputs` is what calibration knows of the neurons. `missing` is X^T (T - Y), (neurons, outputs) float32: what the
    goal T asks for beyond what the layer gives now, Y; None where T is Y.
    """

    block: Block
    module: nn.Module
    ffn: FFN
    units: int
    inputs: S
    missing: Tensor | None = None

    @property
    def reader(self) -> nn.Module:
        """The linear that reads the neurons."""
        return self.module.get_submodule(self.ffn.reader)

    @property
    def weight(self) -> Tensor:
        """Its weight (outputs, neurons), a view of the real one."""
        return matrix(self.reader)

    def magnitudes(self) -> Tensor:
        """(neurons,) float32: the norm of all weights that a neuron has, in and out."""
        names = [f"{name}.weight" for name in (*self.ffn.writers, self.ffn.reader)]
        squares = {name: self.module.get_parameter(name).float().square() for name in names}
        return per_unit(self.ffn, squares, self.module).sqrt()

    def leave(self, keep: Tensor, weight: Tensor | None = None) -> None:
        """Leave the neurons of a keep mask (neurons,), after replacing the reader's weight (outputs, neurons)."""
        if weight is not None:
            self.weight.copy_(weight)
        cut(self.module, self.ffn, keep)


@torch.no_grad()
def narrow(
    ctx: Context, plan: PrunePlan, kind: type[S], target: Target = "layer", *, dense: bool = False
) -> Iterator[Narrowable[S]]:
    """Every kept block in turn, to be narrowed before the next one is asked for; an interrupted run goes on.

    Statistics of that kind are those of the neurons in the model as it is pruned so far, or in the `dense` one.
    """
    ffns, widths = check_narrowing(ctx, plan), plan.widths()
    samples = split(calibration_of(ctx), ctx.batch_size)
    stream = Stream(ctx.model, [*samples, ctx.probe], ctx.offload)
    beside = Stream(ctx.model, samples, ctx.offload and ctx.offload / "dense") if dense or target != "layer" else None
    for block, module in unfinished(ctx, stream, beside):
        ffn = ffns[block.index]
        aim = target
        if aim == "stream" and not is_added(ffn, module, lambda part, at=block: stream.run(part, at, len(samples))):
            ctx.note(f"{block.path} does not add what {ffn.reader} gives to the hidden states: target dense is used")
            aim = "dense"
        measured = _Measurement(kind.begin(ffn.units, ctx.device), aim, dense)
        measured.run(stream, beside, block, module, ffn)
        if problem := measured.problem():
            raise UnsupportedError(
                f"{block.path}.{ffn.reader} cannot be pruned with this calibration set: {problem}",
                hint="calibrate on more or other text",
            )
        yield Narrowable(block, module, ffn, widths[block.index], measured.inputs, measured.missing)


@torch.no_grad()
def statistics_of_dense(ctx: Context, ffns: Mapping[int, FFN], kind: type[S]) -> Iterator[tuple[int, S, nn.Module]]:
    """Of every kept block its index, statistics of its neurons in the dense model, and the linear that reads them."""
    stream = Stream(ctx.model, split(calibration_of(ctx), ctx.batch_size), ctx.offload)
    for block in ctx.model.kept:
        with ctx.model.block(block.index) as module:
            ffn = ffns[block.index]
            found, reader = kind.begin(ffn.units, ctx.device), module.get_submodule(ffn.reader)
            with _listener(reader) as seen:
                for batch in range(len(stream.batches)):
                    stream.advance(module, block, [batch])
                    found.add(seen["input"])
            yield block.index, found, reader


@dataclass
class _Measurement(Generic[S]):
    """The statistics of a block's neurons, and what is missing from the layer that reads them."""

    inputs: S
    target: Target
    of_dense: bool
    missing: Tensor | None = None

    def run(self, stream: Stream, dense: Stream | None, block: Block, module: nn.Module, ffn: FFN) -> None:
        """Run the block on every calibration batch; takes the dense model through it."""
        with _listener(module.get_submodule(ffn.reader)) as seen:
            for batch in range(len(stream.batches) - 1):
                wanted = None if dense is None else dense.run(module, block, batch)
                if dense is not None and wanted is not None:
                    dense.hidden[batch] = dense.keep(wanted, batch)
                    wanted = seen["output"] if self.target == "dense" else wanted
                if not self.of_dense:
                    after = stream.run(module, block, batch)
                    if self.target != "layer" and wanted is not None:
                        now = seen["output"] if self.target == "dense" else after
                        self._miss(seen["input"], wanted.float() - now.float())
                self.inputs.add(seen["input"])

    def problem(self) -> str | None:
        """Why this cannot be used for pruning, or None."""
        if self.missing is not None and not self.missing.isfinite().all():
            return "hidden states of the dense model are NaN or infinite on the calibration set"
        return self.inputs.problem()

    def _miss(self, x: Tensor, difference: Tensor) -> None:
        """Add x^T (t - y), of inputs and differences for the same tokens, however these are arranged."""
        product = x.float().flatten(0, -2).T @ difference.flatten(0, -2)
        self.missing = product if self.missing is None else self.missing.add_(product)


@contextmanager
def _listener(part: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What a linear read and gave last."""
    seen: dict[str, Tensor] = {}

    def see(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        seen["input"], seen["output"] = given[0], output

    handle = part.register_forward_hook(see)
    try:
        yield seen
    finally:
        handle.remove()
