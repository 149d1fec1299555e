"""Feed the inputs of a block's linears to their statistics while the block runs, doing no work twice.

The first batch shows in which order the linears are called and which of them read the very same tensor. From then on
each shared input is accumulated once, and a run of the block ends as soon as its last input has been seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from prunekit.statistics import Statistics

S = TypeVar("S", bound=Statistics)
Forward = Callable[[], object]


class _Seen(Exception):
    """Raised inside a block when nothing of it is still wanted."""


class _Listener(Generic[S]):
    """What one pass over the block learns: groups of linears in call order, and one accumulator per group."""

    def __init__(self, linears: Mapping[str, nn.Module], inputs: Mapping[str, int], kind: type[S]) -> None:
        self.linears, self.inputs, self.kind = linears, inputs, kind
        self.groups: list[list[str]] = []
        self.statistics: dict[str, S] = {}
        self.calls = dict.fromkeys(linears, 0)
        self.last: Tensor | None = None

    def discover(self, path: str, x: Tensor) -> None:
        """First batch: join the group that just read this very tensor, or begin a new one."""
        self.calls[path] += 1
        if x is self.last:
            self.groups[-1].append(path)
            self.statistics[path] = self.statistics[self.groups[-1][0]]
            return
        self.last = x
        self.groups.append([path])
        self.take(path, x)

    def take(self, path: str, x: Tensor) -> None:
        """Add to a linear's accumulator."""
        if path not in self.statistics:
            self.statistics[path] = self.kind.begin(self.inputs[path], x.device)
        self.statistics[path].add(x)

    @property
    def regular(self) -> bool:
        """Whether every linear was called exactly once, so that the first batch speaks for all."""
        return all(count == 1 for count in self.calls.values())


def collect(
    linears: Mapping[str, nn.Module],
    inputs: Mapping[str, int],
    kind: type[S],
    forwards: Sequence[Forward],
    *,
    one_group: bool = False,
) -> dict[str, S]:
    """Statistics of the inputs of `linears` over all runs of their block, by path.

    `inputs` gives the number of input features per path. With `one_group`, only the linears that share the input of the
    first one called are collected. A linear that is called never or repeatedly is accumulated call by call.
    """
    listener = _Listener(linears, inputs, kind)
    with _hooks(linears, listener.discover):
        forwards[0]()
    listener.last = None
    if not listener.regular:
        return _collect_each(linears, inputs, kind, forwards)
    groups = listener.groups[:1] if one_group else listener.groups
    leaders = [group[0] for group in groups]

    def hear(path: str, x: Tensor) -> None:
        listener.take(path, x)
        if path == leaders[-1]:
            raise _Seen

    with _hooks({path: linears[path] for path in leaders}, hear):
        for forward in forwards[1:]:
            with suppress(_Seen):
                forward()
    return {path: listener.statistics[path] for group in groups for path in group}


def _collect_each(
    linears: Mapping[str, nn.Module], inputs: Mapping[str, int], kind: type[S], forwards: Sequence[Forward]
) -> dict[str, S]:
    """One accumulator per linear, fed by every call; linears that were never called keep an empty one."""
    listener = _Listener(linears, inputs, kind)
    with _hooks(linears, listener.take):
        for forward in forwards:
            forward()
    device = next(iter(linears.values())).get_parameter("weight").device
    return {path: listener.statistics.get(path) or kind.begin(inputs[path], device) for path in linears}


@contextmanager
def _hooks(linears: Mapping[str, nn.Module], hear: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `hear(path, input)` whenever one of the linears is about to run."""

    def hook(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, args: hear(path, args[0])

    handles = [module.register_forward_pre_hook(hook(path)) for path, module in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
