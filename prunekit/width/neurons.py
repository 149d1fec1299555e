"""Cut neurons out of a block so that all its linears agree.

A neuron of a feed-forward layer can only be removed as a whole: a row of gate and up, a column of down, in whatever
linears a family keeps them. Their names do not say which belong together. It is found by running a block: a disturbance
of a neuron's `writers` reaches one input of the `reader` and no other token. And it is proven: a block whose reader
ignores some neurons computes the same when they are removed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunekit.blockwise.stream import Stream
from prunekit.errors import UnsupportedError
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import FFN, Block, Linear, Segments, features, fit_features

PROBE_TOKENS = 8
EXACT = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # relative to the largest output
Run = Callable[[nn.Module], Tensor]


def find_ffns(model: PrunableModel) -> dict[int, FFN]:
    """Block -> its feed-forward neurons in the source, for every kept block; blocks built alike are looked at once.

    Raises UnsupportedError for a block without such neurons, or where cutting some is not the same as ignoring them.
    """
    tokens = torch.arange(PROBE_TOKENS)[None] % model.config.get_text_config().vocab_size
    stream = Stream(model, [tokens])
    hidden = stream.hidden[
        0
    ]  # the model's own would do, except for embeddings of zero, such as that of a padding token
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    stream.hidden[0] = (noise * (hidden.float().std() or 1)).to(hidden.dtype)
    known: dict[tuple, FFN] = {}
    ffns: dict[int, FFN] = {}
    for block in model.kept:
        kind = (type(model.stack[block.index]), tuple(relative(block)), tuple(part.shape for part in block.linears))
        if kind not in known:
            with model.block(block.index, source=True) as module:
                known[kind] = find_neurons(block, module, lambda part, at=block: stream.run(part, at, 0))
        ffns[block.index] = replace(known[kind], block=block.index)
    return ffns


@torch.no_grad()
def find_neurons(block: Block, module: nn.Module, run: Run) -> FFN:
    """The feed-forward neurons of a block in memory; `run` runs it, or a copy of it, on a few tokens."""
    linears = relative(block)
    readers: dict[str, dict[str, Segments]] = {}
    with _recorder(module, linears) as inputs:
        run(module)
        calm = dict(inputs)
        for name, linear in linears.items():
            disturbed = torch.rand(linear.shape[0], generator=torch.Generator().manual_seed(0)) < 0.5
            with _disturbance(module.get_submodule(name), disturbed):
                run(module)
            for reader, before in calm.items():
                if segments := _one_to_one(before, inputs[reader], disturbed):
                    readers.setdefault(reader, {})[name] = segments
    where = f"{block.path} ({type(module).__name__})"
    if len(readers) != 1:
        found = f"{len(readers)} linears that read neurons" if readers else "no linear that reads neurons"
        raise UnsupportedError(f"{where} has {found}; its width cannot be cut", hint="prunekit methods")
    reader, writers = readers.popitem()
    ffn = FFN(block.index, linears[reader].shape[1], writers, reader)
    if problem := disproof(ffn, module, run):
        raise UnsupportedError(f"no neuron can be cut out of {where}: {problem}")
    return ffn


@torch.no_grad()
def disproof(ffn: FFN, module: nn.Module, run: Run) -> str | None:
    """What goes wrong when every other unit, which the reader was made to ignore, is cut out of a copy of the block."""
    ignoring = deepcopy(module)
    gone = torch.arange(0, ffn.units, 2)
    keep = torch.ones(ffn.units, dtype=torch.bool)
    keep[gone] = False
    reader = ignoring.get_submodule(ffn.reader)
    matrix(reader)[:, features(ffn.columns, gone, ffn.units)] = 0
    expected = run(ignoring)
    try:
        cut(ignoring, ffn, keep)
        found = run(ignoring)
    except (RuntimeError, IndexError, ValueError) as error:
        return f"{ffn.reader} and {', '.join(ffn.writers)} do not belong together ({str(error).splitlines()[0]})"
    apart = (found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return None if apart <= EXACT[expected.dtype] else f"its output changes by {float(apart):.1e} of its largest value"


def per_unit(ffn: FFN, values: Mapping[str, Tensor], module: nn.Module) -> Tensor:
    """(units,): the sum of values, one for each weight of a ffn's linears, over the weights that a unit owns.

    `values` are shaped like the stored weights and named like them, relative to the block.
    """
    every, totals = torch.arange(ffn.units), torch.zeros(ffn.units)
    for name in (*ffn.writers, ffn.reader):
        found = values[f"{name}.weight"].float()
        found = found.T if isinstance(module.get_submodule(name), Conv1D) else found
        segments = ffn.writers.get(name, ffn.columns)
        sums = found.sum(dim=0 if name == ffn.reader else 1).cpu()
        totals += sums[features(segments, every, ffn.units)].reshape(len(segments), ffn.units, -1).sum(dim=(0, 2))
    return totals


def widen(ffn: FFN, name: str, tensor: Tensor, units: int, wanted: int, transposed: bool) -> Tensor:
    """A stored tensor of the block, named relative to it, that has `units` units, filled up with zeros to `wanted`."""
    shape = ffn.shape(name, tensor.shape, wanted, transposed)
    if shape == tensor.shape:
        return tensor
    dim, segments = _cut_along(ffn, name, shape, tensor)
    return tensor.new_zeros(shape).index_copy_(dim, features(segments, torch.arange(units), wanted), tensor)


def shorten(ffn: FFN, name: str, tensor: Tensor, wanted: int, transposed: bool) -> Tensor:
    """A stored tensor of the block, named relative to it, with the first `wanted` of the ffn's units."""
    shape = ffn.shape(name, tensor.shape, wanted, transposed)
    if shape == tensor.shape:
        return tensor
    dim, segments = _cut_along(ffn, name, shape, tensor)
    return tensor.index_select(dim, features(segments, torch.arange(wanted), ffn.units))


def _cut_along(ffn: FFN, name: str, shape: tuple[int, ...], tensor: Tensor) -> tuple[int, Segments]:
    """The dimension in which a tensor becomes of another shape, and the segments of units along it."""
    dim = next(place for place, size in enumerate(shape) if size != tensor.shape[place])
    return dim, ffn.writers.get(name.rpartition(".")[0], ffn.columns)


@torch.no_grad()
def is_added(ffn: FFN, module: nn.Module, run: Run) -> bool:
    """Whether what the reader gives is added to the hidden states as it is, so that it can repair them."""
    before = run(module)
    step = before.abs().mean().clamp_min(torch.finfo(torch.float32).tiny)

    def move(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output + step

    handle = module.get_submodule(ffn.reader).register_forward_hook(move)
    try:
        moved = run(module) - before
    finally:
        handle.remove()
    return bool(((moved - step).abs() <= 0.05 * step).float().mean() > 0.99)


def cut(module: nn.Module, ffn: FFN, keep: Tensor) -> None:
    """Leave only the units of a keep mask (units,) in a block that is in memory, in their order."""
    units = keep.nonzero()[:, 0].cpu()
    for name, segments in ffn.writers.items():
        part = module.get_submodule(name)
        rows = features(segments, units, ffn.units)
        _exchange(part, matrix(part)[rows.to(matrix(part).device)])
        if isinstance(bias := getattr(part, "bias", None), Tensor):
            part.bias = nn.Parameter(bias.data[rows.to(bias.device)], requires_grad=False)
    reader = module.get_submodule(ffn.reader)
    columns = features(ffn.columns, units, ffn.units).to(matrix(reader).device)
    _exchange(reader, matrix(reader)[:, columns])


def matrix(part: nn.Module) -> Tensor:
    """The weight as (outputs, inputs), a view of the real one."""
    weight = part.get_parameter("weight").data
    return weight.T if isinstance(part, Conv1D) else weight


def relative(block: Block) -> dict[str, Linear]:
    """The linears of a block by their names inside it."""
    return {linear.path.removeprefix(f"{block.path}."): linear for linear in block.linears}


def _exchange(part: nn.Module, weight: Tensor) -> None:
    """Give a linear another weight, as (outputs, inputs)."""
    stored = weight.T if isinstance(part, Conv1D) else weight
    part.weight = nn.Parameter(stored.contiguous(), requires_grad=False)
    fit_features(part)


@contextmanager
def _recorder(module: nn.Module, linears: Mapping[str, Linear]) -> Iterator[dict[str, Tensor]]:
    """Name of a linear -> what it read last, as (tokens, inputs)."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: seen.update({name: given[0].detach().flatten(0, -2).clone()})

    with ExitStack() as handles:
        for name in linears:
            handles.callback(module.get_submodule(name).register_forward_pre_hook(hook(name)).remove)
        yield seen


@contextmanager
def _disturbance(part: nn.Module, disturbed: Tensor) -> Iterator[None]:
    """Add to the outputs of a linear, at the first token and where `disturbed` (outputs,) is True."""

    def disturb(_: nn.Module, __: object, output: Tensor) -> Tensor | None:
        if not isinstance(output, Tensor):  # a router of experts, which makes no neurons
            return None
        changed = output.clone()
        size = 4 * output.abs().max().clamp_min(1)
        changed.flatten(0, -2)[0] += size * disturbed.to(output)
        return changed

    handle = part.register_forward_hook(disturb)
    try:
        yield
    finally:
        handle.remove()


def _one_to_one(before: Tensor, after: Tensor, disturbed: Tensor) -> Segments | None:
    """Which outputs make one input each, where those that were disturbed changed inputs (tokens, n) of the first token.

    None when other tokens changed too, nothing did, or too many inputs did.
    """
    changed, n, outputs = after != before, before.shape[1], len(disturbed)
    if changed[1:].any() or not changed.any() or outputs % n:
        return None
    times = outputs // n
    for segments in dict.fromkeys([(1,) * times, (times,)]):
        owned = features(segments, torch.arange(n), n).reshape(len(segments), n, -1)
        reached = disturbed[owned].any(dim=2).any(dim=0)
        if not (changed[0].cpu() & ~reached).any():
            return segments
    return None
