"""Learn from the model's own forward how each of its blocks is called, and what enters the first one.

Recorders stand in for the blocks while the model runs on token ids. What the model hands to each of them (attention
masks, rotary embeddings, per-layer settings) is kept, so a block can later be run alone. No family is known by name.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import UnsupportedError
from prunekit.model import PrunableModel

HIDDEN = "hidden_states"
Answer = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Call:
    """The arguments with which the model calls one block, without the hidden states, which always come first."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run a block on hidden states (batch, tokens, width) and return its hidden states."""
        return first(self.raw(block, hidden))

    def raw(self, block: nn.Module, hidden: Tensor) -> Any:
        """Run a block and return exactly what it returns."""
        if self.by_name:
            return block(*self.args, **{HIDDEN: hidden}, **self.kwargs)
        return block(hidden, *self.args, **self.kwargs)


@dataclass
class Captured:
    """What a model does around its blocks: inputs of the first block per batch, and how each block is called.

    `calls[b][i]` calls block i on batch b; batches of one shape share the same list when the model treats them alike.
    """

    hidden: list[Tensor] = field(default_factory=list)
    calls: list[list[Call]] = field(default_factory=list)
    answer: Answer = lambda hidden: hidden


class _Stop(Exception):
    """Raised inside the model's forward when all that is wanted of it has been seen."""


class Recorder(nn.Module):
    """Stands in for a block: keeps how it was called, and answers with the hidden states it was given."""

    def __init__(self, block: nn.Module, heard: list[tuple[Call, Tensor]], answer: Answer, last: bool) -> None:
        super().__init__()
        self.__dict__.update(block=block, heard=heard, answer=answer, last=last)  # no submodule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.pop(HIDDEN)
        self.heard.append((Call(args[1:], kwargs, by_name=not args), hidden))
        if self.last:
            raise _Stop
        return self.answer(hidden)


class Player(nn.Module):
    """Stands in for a block: answers with given hidden states, or with what it is given."""

    def __init__(self, block: nn.Module, answer: Answer, hidden: Tensor | None) -> None:
        super().__init__()
        self.__dict__.update(block=block, answer=answer, hidden=hidden)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs[HIDDEN]
        return self.answer(given if self.hidden is None else self.hidden)


@dataclass
class _Shape:
    """How batches of one shape are called; alike once two batches of different tokens were called the same way."""

    calls: list[Call] | None = None
    seen: int = 0
    alike: bool = True

    @property
    def settled(self) -> bool:
        return self.seen >= 2 and self.alike

    def take(self, calls: list[Call]) -> list[Call]:
        if self.calls is None:
            self.calls = calls
        elif not self.settled:
            self.alike = self.alike and same(calls, self.calls)
        self.seen += 1
        return self.calls if self.alike else calls


@torch.no_grad()
def capture(model: PrunableModel, batches: Sequence[Tensor]) -> Captured:
    """Run the model around its blocks for every batch of token ids (batch, tokens)."""
    captured = Captured()
    shapes: dict[torch.Size, _Shape] = {}
    with model.outside(head=False):
        captured.answer = _learn_answer(model, batches[0])
        for ids in batches:
            shape = shapes.setdefault(ids.shape, _Shape())
            heard = _listen(model, ids, captured.answer, blocks=1 if shape.settled else len(model.blocks))
            captured.hidden.append(heard[0][1])
            captured.calls.append(shape.take([call for call, _ in heard]))
    return captured


@torch.no_grad()
def logits_of(model: PrunableModel, ids: Tensor, hidden: Tensor, answer: Answer) -> Tensor:
    """Logits (batch, tokens, vocabulary) from the last block's output; needs `model.outside()` to be entered."""
    last = len(model.blocks) - 1
    players = [Player(block, answer, hidden if index == last else None) for index, block in enumerate(model.stack)]
    with _standing_in(model.stack, players):
        return model.skeleton(input_ids=ids.to(model.device), use_cache=False).logits


def _listen(model: PrunableModel, ids: Tensor, answer: Answer, blocks: int) -> list[tuple[Call, Tensor]]:
    """What the first `blocks` blocks are called with, each with the hidden states it was given."""
    heard: list[tuple[Call, Tensor]] = []
    recorders = [Recorder(block, heard, answer, last=index == blocks - 1) for index, block in enumerate(model.stack)]
    with _standing_in(model.stack, recorders), suppress(_Stop):
        model.skeleton(input_ids=ids.to(model.device), use_cache=False)
    if len(heard) != blocks:
        raise UnsupportedError(
            f"{type(model.skeleton).__name__} called {len(heard)} of its {blocks} blocks; each must be called once, in order"
        )
    return heard


def _learn_answer(model: PrunableModel, ids: Tensor) -> Answer:
    """Whether blocks return their hidden states alone or first in a tuple, learned by running the first one."""
    call, hidden = _listen(model, ids[:1], lambda hidden: hidden, blocks=1)[0]
    with model.block(0) as module:
        result = call.raw(module, hidden)
    if isinstance(result, Tensor):
        return lambda hidden: hidden
    rest = tuple(result[1:])
    return lambda hidden: (hidden, *rest)


@contextmanager
def _standing_in(stack: nn.ModuleList, players: Sequence[nn.Module]) -> Iterator[None]:
    """Put other modules in place of the blocks for a while."""
    blocks = list(stack)
    for index, player in enumerate(players):
        stack[index] = player
    try:
        yield
    finally:
        for index, block in enumerate(blocks):
            stack[index] = block


def first(result: Any) -> Tensor:
    """The hidden states in what a block returned."""
    return result if isinstance(result, Tensor) else result[0]


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, tensors inside compared by value."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
    if isinstance(one, Call) and isinstance(other, Call):
        return same((one.args, one.kwargs), (other.args, other.kwargs))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one is other or bool(one == other)
