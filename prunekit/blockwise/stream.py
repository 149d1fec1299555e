"""Hidden states on their way through the blocks of a model, one block in memory at a time."""

import math
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from prunekit.blockwise.capture import capture, logits_of
from prunekit.files import storage_errors
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import Block
from prunekit.progress import Progress, Silent

T = TypeVar("T")
WAITING_BYTES = 2 * 2**30  # hidden states that may wait at once, where a group of batches has several each
BATCH_TOKENS = 2048  # enough to keep matrix products busy, few enough for the activations to stay small


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
        self.hidden, self.calls, self.pack = captured.hidden, captured.calls, captured.pack

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
                yield logits_of(self.model, self.batches[batch], state, self.pack)


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
    """Token ids (n, window) that have passed through all blocks; the stream gives their logits as often as is asked."""
    progress = progress or Silent()
    stream = Stream(model, split(ids, batch_size or default_batch_size(ids.shape[1])), offload)
    for block in model.kept:
        with model.block(block.index) as module:
            stream.advance(module, block)
        progress.step(block.path)
    return stream


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
