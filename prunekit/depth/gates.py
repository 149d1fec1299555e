"""One scalar per block, and the gradient of the loss in these scalars, with one block's activations in memory.

    branch   x_out = x + s (F(x) - x)      s = 1 leaves the block as it is, s = 0 bypasses it
    output   x_out = s F(x)                s scales the whole residual stream (TRSP, section 3)

The weights are frozen, so only the hidden states before each block must be kept for the way back; there each block is
run again (gradient checkpointing at every block). With weights on disk one block at a time is read, forth and back.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Literal, Self

import torch
from torch import Tensor

from prunekit import distributed
from prunekit.blockwise.capture import logits_of
from prunekit.blockwise.loss import loss_and_slope
from prunekit.blockwise.stream import Stream, grouped
from prunekit.model.prunable import PrunableModel

Kind = Literal["branch", "output"]


def gated(output: Tensor, given: Tensor, gate: Tensor | float, kind: Kind) -> Tensor:
    """What leaves a gated block: `output` is F(x) and `given` x, both (batch, tokens, width)."""
    return gate * output if kind == "output" else given + gate * (output - given)


class GatedLoss:
    """Calibration loss as a function of the gates, one per block of the source; removed blocks are bypassed.

    Of several processes each computes it on its share of the batches, and all are told the sums.
    """

    def __init__(self, model: PrunableModel, batches: list[Tensor], kind: Kind = "branch") -> None:
        self.model = model
        self.kind: Kind = kind
        self.stream = Stream(model, distributed.share(batches))
        self.predicted = sum(batch.shape[0] * (batch.shape[1] - 1) for batch in batches)

    def without(self, removed: Iterable[int]) -> Self:
        """The same loss of the model without these blocks."""
        other = copy(self)
        other.model = self.model.without(removed)
        return other

    def gradient(self, gates: Tensor) -> tuple[float, Tensor]:
        """Mean loss in nats at some gates (blocks,), and its gradient (blocks,), both in float64."""
        loss, slopes = 0.0, torch.zeros(len(self.model.blocks), dtype=torch.float64)
        for batches in self._groups():
            inputs, outputs = self._forward(batches, gates)
            found, gradients = self._head(batches, outputs)
            loss += found
            self._backward(batches, gates, inputs, gradients, slopes)
        loss, *summed = distributed.summed([loss, *slopes.tolist()])
        return loss / self.predicted, torch.tensor(summed, dtype=torch.float64) / self.predicted

    @torch.no_grad()
    def _forward(self, batches: Sequence[int], gates: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
        """Hidden states before every kept block, per block and batch, and those after the last one."""
        inputs: list[list[Tensor]] = []
        states = [self.stream.hidden[batch].to(self.model.device) for batch in batches]
        for block in self.model.kept:
            inputs.append(states)
            gate = float(gates[block.index])
            with self.model.block(block.index) as module:
                pairs = [(x, self.stream.run(module, block, b, x)) for b, x in zip(batches, states, strict=True)]
            states = [gated(output, x, gate, self.kind) for x, output in pairs]
        return inputs, states

    def _head(self, batches: Sequence[int], outputs: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        """Summed loss, and its gradient in the hidden states after the last block."""
        total, gradients = 0.0, []
        with self.model.outside():
            for batch, output in zip(batches, outputs, strict=True):
                x, ids = output.detach().requires_grad_(), self.stream.batches[batch]
                with torch.enable_grad():
                    logits = logits_of(self.model, ids, x, self.stream.pack)
                loss, slope = loss_and_slope(logits.detach(), ids)
                gradients += torch.autograd.grad(logits, x, slope)
                total += loss
        return total, gradients

    def _backward(
        self,
        batches: Sequence[int],
        gates: Tensor,
        inputs: list[list[Tensor]],
        gradients: list[Tensor],
        slopes: Tensor,
    ) -> None:
        """Add the summed loss's slope in every gate to `slopes`, from the last block to the first."""
        for block in reversed(self.model.kept):
            states = inputs.pop()
            with self.model.block(block.index) as module:
                for place, batch in enumerate(batches):
                    x = states[place].detach().requires_grad_()
                    gate = torch.tensor(float(gates[block.index]), device=x.device, requires_grad=True)
                    with torch.enable_grad():
                        y = gated(self.stream.run(module, block, batch, x), x, gate.to(x.dtype), self.kind)
                    gradients[place], slope = torch.autograd.grad(y, (x, gate), gradients[place])
                    slopes[block.index] += slope.double().item()

    def _groups(self) -> list[Sequence[int]]:
        """The batches in groups whose hidden states before all blocks may wait at once."""
        hidden = max((state.nbytes for state in self.stream.hidden), default=1)
        return grouped(range(len(self.stream.batches)), hidden * len(self.model.kept), self.model.is_resident)
