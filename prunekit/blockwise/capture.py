"""Learn from the model's own forward how each of its blocks is called, and what enters the first one.

Recorders stand in for the blocks while the model runs on token ids. What the model hands to each of them (attention
masks, rotary embeddings, per-layer settings) is kept, so a block can later be run by itself. No family is known by
name; a model that does more between its blocks than hand on the hidden states is refused.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import UnsupportedError
from prunekit.model.prunable import PrunableModel

HIDDEN = "hidden_states"
Pack = Callable[[Tensor], Any]


def hidden_of(result: Any) -> Tensor:
    """The hidden states among what a block returns."""
    return result if isinstance(result, Tensor) else result[0]


@dataclass(frozen=True)
class Call:
    """The arguments with which the model calls one block, except the hidden states, which always come first."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run a block on hidden states (batch, tokens, width) and return its hidden states."""
        return hidden_of(self.raw(block, hidden))

    def raw(self, block: nn.Module, hidden: Tensor) -> Any:
        """Run a block and return exactly what it returns."""
        if self.by_name:
            return block(*self.args, **{HIDDEN: hidden}, **self.kwargs)
        return block(hidden, *self.args, **self.kwargs)

    @property
    def values(self) -> tuple[Any, ...]:
        """All arguments."""
        return (*self.args, *self.kwargs.values())


@dataclass
class Captured:
    """What a model does around its blocks: inputs of the first block per batch, and how each block is called.

    `calls[b][i]` calls block i on batch b; batches that the model treats alike share the same list.
    """

    hidden: list[Tensor] = field(default_factory=list)
    calls: list[list[Call]] = field(default_factory=list)
    pack: Pack = lambda hidden: hidden


class _Stop(Exception):
    """Raised inside the model's forward when all that is wanted of it has been seen."""


class Proxy(nn.Module):
    """A module in place of a block, with all of its attributes."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block  # no submodule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)


class Recorder(Proxy):
    """Records how its block is called, and returns its input."""

    def __init__(
        self, block: nn.Module, index: int, calls_seen: list[tuple[Call, Tensor]], pack: Pack, last: bool
    ) -> None:
        super().__init__(block)
        self.__dict__.update(index=index, calls_seen=calls_seen, pack=pack, last=last)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        name, given = type(self.block).__name__, args[0] if args else kwargs.pop(HIDDEN, None)
        if not isinstance(given, Tensor):
            raise UnsupportedError(f"{name} is not called with hidden states first")
        if len(self.calls_seen) != self.index:
            raise UnsupportedError(
                f"{name}s are not called once each, in order: {self.index} came as {len(self.calls_seen)}"
            )
        if self.calls_seen and not same(given, self.calls_seen[-1][1]):
            raise UnsupportedError(f"the hidden states are changed between two {name}s")
        self.calls_seen.append((Call(args[1:], kwargs, by_name=not args), given))
        if self.last:
            raise _Stop
        return self.pack(given)


class Replay(Proxy):
    """Returns the recorded hidden states if there are any, otherwise its input."""

    def __init__(self, block: nn.Module, pack: Pack, hidden: Tensor | None) -> None:
        super().__init__(block)
        self.__dict__.update(pack=pack, hidden=hidden, calls=0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["calls"] += 1
        if self.calls > 1:
            raise UnsupportedError(f"each {type(self.block).__name__} is called more than once")
        given = args[0] if args else kwargs[HIDDEN]
        return self.pack(given if self.hidden is None else self.hidden)


@torch.no_grad()
def capture(
    model: PrunableModel, batches: Sequence[Tensor], keep: Callable[[Tensor], Tensor] = lambda hidden: hidden
) -> Captured:
    """Run the model around its blocks for every batch of token ids (batch, tokens).

    `keep` puts the hidden states of each batch where they shall stay. Raises UnsupportedError for a model whose blocks
    cannot be run one after the other.
    """
    captured = Captured()
    known: dict[torch.Size, list[Call]] = {}
    with model.outside(head=False):
        if batches:
            captured.pack = _learn_pack(model, batches[0])
        for ids in batches:
            calls, hidden = _listen(model, ids, captured.pack)
            shared = known.setdefault(ids.shape, calls)
            captured.calls.append(shared if alike(calls, shared) else calls)
            captured.hidden.append(keep(hidden))
    return captured


def logits_of(model: PrunableModel, ids: Tensor, hidden: Tensor, pack: Pack) -> Tensor:
    """Logits (batch, tokens, vocabulary) from the last block's output; needs `model.outside()` to be entered."""
    last = len(model.blocks) - 1
    proxies = [Replay(block, pack, hidden if index == last else None) for index, block in enumerate(model.stack)]
    with replaced(model.stack, proxies):
        return model.skeleton(input_ids=ids.to(model.device), use_cache=False).logits


def _listen(model: PrunableModel, ids: Tensor, pack: Pack, blocks: int | None = None) -> tuple[list[Call], Tensor]:
    """How the first `blocks` blocks (default: all) are called, and the hidden states given to the first one."""
    blocks = blocks or len(model.blocks)
    calls_seen: list[tuple[Call, Tensor]] = []
    recorders = [
        Recorder(block, index, calls_seen, pack, last=index == blocks - 1) for index, block in enumerate(model.stack)
    ]
    with replaced(model.stack, recorders), suppress(_Stop):
        model.skeleton(input_ids=ids.to(model.device), use_cache=False)
    if len(calls_seen) != blocks:
        raise UnsupportedError(f"{type(model.skeleton).__name__} called {len(calls_seen)} of its {blocks} blocks")
    return [call for call, _ in calls_seen], calls_seen[0][1]


def _learn_pack(model: PrunableModel, ids: Tensor) -> Pack:
    """Whether blocks return only their hidden states or a tuple that begins with them, found by running the first.

    What else is in the tuple is returned as NaN, so that a model that hands it to a later block is noticed.
    """
    calls, hidden = _listen(model, ids[:1], lambda hidden: hidden, blocks=1)
    with model.block(0) as module:
        result = calls[0].raw(module, hidden)
    if isinstance(result, Tensor):
        return lambda hidden: hidden
    rest = tuple(_as_nan(value) for value in result[1:])

    def pack(hidden: Tensor) -> Any:
        return hidden, *rest

    if _has_nan(rest) and any(_has_nan(call.values) for call in _listen(model, ids[:1], pack)[0]):
        name = type(model.skeleton).__name__
        raise UnsupportedError(f"{name} hands more than hidden states from block to block")
    return pack


def _as_nan(value: Any) -> Any:
    return torch.full_like(value, torch.nan) if isinstance(value, Tensor) and value.is_floating_point() else value


def _has_nan(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and bool(value.isnan().any())
    if isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, (list, tuple)) and any(map(_has_nan, value))


@contextmanager
def replaced(stack: nn.ModuleList, proxies: Sequence[nn.Module]) -> Iterator[None]:
    """Put other modules in place of the blocks for a while."""
    blocks = list(stack)
    for index, proxy in enumerate(proxies):
        stack[index] = proxy
    try:
        yield
    finally:
        for index, block in enumerate(blocks):
            stack[index] = block


def alike(calls: Sequence[Call], others: Sequence[Call]) -> bool:
    """Whether two batches call the blocks in the same way, and no block leaves anything behind for a later one."""
    left = [id(value) for call in calls for value in call.values if isinstance(value, (MutableMapping, list, set))]
    return calls is others or (len(set(left)) == len(left) and same(calls, others))


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, tensors inside compared by value."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Call) and isinstance(other, Call):
        return same((one.args, one.kwargs), (other.args, other.kwargs))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    try:
        return bool(one == other)
    except (RuntimeError, ValueError, TypeError):  # objects that cannot say
        return False
