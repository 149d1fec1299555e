"""Feed the inputs of a block's linears to their statistics while the block runs, doing no work twice.

One batch shows in which order the linears are called and which of them read the very same tensor. Then each shared
input is accumulated once, and a run of the block ends as soon as its last input has been seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from torch import Tensor, nn

from prunekit.blockwise.statistics import Statistics

S = TypeVar("S", bound=Statistics)
Forward = Callable[[], object]
Groups = list[list[str]]  # names of linears in the order they are called; those of one group read the same tensor


class _Seen(Exception):
    """Raised inside a block when nothing of it is still wanted."""


def find_groups(linears: Mapping[str, nn.Module], forward: Forward) -> Groups | None:
    """The groups of linears that read the same tensor, found by running their block once.

    None when a linear is not called exactly once, so that one batch does not speak for all.
    """
    calls: list[tuple[str, Tensor, int]] = []
    with _hooks(linears, lambda name, x: calls.append((name, x, x._version))):
        forward()
    if sorted(name for name, _, _ in calls) != sorted(linears):
        return None
    groups: dict[tuple[int, int], list[str]] = {}
    for name, x, version in calls:
        groups.setdefault((id(x), version), []).append(name)
    return list(groups.values())


def collect(
    linears: Mapping[str, nn.Module],
    inputs: Mapping[str, int],
    kind: type[S],
    forwards: Sequence[Forward],
    groups: Groups | None,
) -> dict[str, S]:
    """Statistics of the inputs of the linears in `groups` over all runs of their block, by name.

    `inputs` gives the number of input features per name. Linears of one group share one accumulator. Without groups,
    or when they do not hold for this block or a run did not call what they promise, every call of every linear is
    accumulated.
    """
    if groups is None:
        return _collect_calls(linears, inputs, kind, forwards)
    leaders = [group[0] for group in groups]
    statistics: dict[str, S] = {}

    def add(name: str, x: Tensor) -> None:
        _add(statistics, name, x, inputs, kind)
        if name == leaders[-1]:
            raise _Seen

    confirm = _Confirmation(groups, lambda name, x: _add(statistics, name, x, inputs, kind))
    with _hooks({name: linears[name] for group in groups for name in group}, confirm), suppress(_Seen):
        forwards[0]()
    if not confirm.holds:
        return _collect_calls(linears, inputs, kind, forwards)
    with _hooks({name: linears[name] for name in leaders}, add):
        for forward in forwards[1:]:
            with suppress(_Seen):
                forward()
    if statistics.keys() != set(leaders):
        return _collect_calls(linears, inputs, kind, forwards)
    return {name: statistics[group[0]] for group in groups for name in group}


class _Confirmation:
    """Hears a block's first run and tells whether the groups, which were found in another block, hold for it too."""

    def __init__(self, groups: Groups, add: Callable[[str, Tensor], None]) -> None:
        self.leaders = {name: group[0] for group in groups for name in group}
        self.add = add
        self.read: dict[str, tuple[Tensor, int]] = {}
        self.called: list[str] = []
        self.agrees = True

    def __call__(self, name: str, x: Tensor) -> None:
        leader = self.leaders[name]
        first, version = self.read.setdefault(leader, (x, x._version))
        self.agrees &= x is first and x._version == version
        self.called.append(name)
        if name == leader:
            self.add(name, x)
        if not self.agrees or len(self.called) == len(self.leaders):
            raise _Seen

    @property
    def holds(self) -> bool:
        """Whether every linear was called once, with the very input of its group."""
        return self.agrees and sorted(self.called) == sorted(self.leaders)


def _collect_calls(
    linears: Mapping[str, nn.Module], inputs: Mapping[str, int], kind: type[S], forwards: Sequence[Forward]
) -> dict[str, S]:
    """One accumulator per linear, fed by every call; linears that were never called keep an empty one."""
    statistics: dict[str, S] = {}
    with _hooks(linears, lambda name, x: _add(statistics, name, x, inputs, kind)):
        for forward in forwards:
            forward()
    for name, module in linears.items():
        statistics.setdefault(name, kind.begin(inputs[name], module.get_parameter("weight").device))
    return {name: statistics[name] for name in linears}


def _add(statistics: dict[str, S], name: str, x: Tensor, inputs: Mapping[str, int], kind: type[S]) -> None:
    if name not in statistics:
        statistics[name] = kind.begin(inputs[name], x.device)
    statistics[name].add(x)


@contextmanager
def _hooks(linears: Mapping[str, nn.Module], add: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `add(name, input)` whenever one of the linears is about to run."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _module, args, kwargs: add(name, args[0] if args else kwargs["input"])

    handles = [module.register_forward_pre_hook(hook(name), with_kwargs=True) for name, module in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
