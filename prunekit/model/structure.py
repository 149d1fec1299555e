"""The decoder blocks and linears of a model, found from its modules; no model family is known by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunekit.errors import UnsupportedError


@dataclass(frozen=True)
class Linear:
    """One weight matrix inside a block; `shape` is (outputs, inputs) whichever way it is stored."""

    path: str
    shape: tuple[int, int]
    transposed: bool = False

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Block:
    """One decoder layer, named as in the source model, e.g. `model.layers.3`."""

    index: int
    path: str
    linears: tuple[Linear, ...]


Segments = tuple[int, ...]  # features come in segments, and of each segment a unit owns so many, one unit after another
NEURON: Segments = (1,)


@dataclass(frozen=True)
class FFN:
    """The neurons of one block, its units: `writers` make them, the inputs of `reader` are them.

    Names of linears are relative to their block. `writers` holds which output features of each belong to a unit,
    `columns` which input features of the reader do.
    """

    block: int
    units: int
    writers: Mapping[str, Segments]
    reader: str
    columns: Segments = NEURON

    def shape(self, name: str, shape: Sequence[int], units: int, transposed: bool) -> tuple[int, ...]:
        """What the shape of a stored tensor of the block, named relative to it, becomes with so many units left."""
        path, _, kind = name.rpartition(".")
        found = list(shape)
        if path in self.writers:
            found[-1 if transposed or kind == "bias" else 0] = units * sum(self.writers[path])
        elif path == self.reader and kind == "weight":
            found[0 if transposed else -1] = units * sum(self.columns)
        return tuple(found)


def features(segments: Segments, units: Tensor, total: int) -> Tensor:
    """The features that some of `total` units own, in the order in which a linear with only these units holds them."""
    parts, start = [], 0
    for width in segments:
        parts.append((start + units[:, None] * width + torch.arange(width)).flatten())
        start += total * width
    return torch.cat(parts)


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList, list[Block]]:
    """Path and module of the decoder stack, and its blocks with their linears."""
    path, stack = find_stack(model)
    places = [f"{path}.{index}" for index in range(len(stack))]
    blocks = [Block(index, place, find_linears(stack[index], place)) for index, place in enumerate(places)]
    return path, stack, blocks


def find_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Path and module of the decoder stack: the one outermost ModuleList as long as `num_hidden_layers`.

    Raises UnsupportedError naming what was found when there is none, or more than one.
    """
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    outermost = {name: part for name, part in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    found = [(name, part) for name, part in outermost.items() if len(part) == depth]
    if len(found) != 1:
        names = ", ".join(f"{name} ({len(part)})" for name, part in outermost.items()) or "none"
        wanted = f"one list of {depth} decoder blocks in {type(model).__name__}"
        raise UnsupportedError(f"expected {wanted}, found {len(found)}; its lists: {names}")
    return found[0]


def find_linears(block: nn.Module, path: str) -> tuple[Linear, ...]:
    """Every `Linear` and `Conv1D` of a block, in the order of its modules."""
    linears: list[Linear] = []
    for name, part in block.named_modules(prefix=path):
        if isinstance(part, Conv1D):
            inputs, outputs = part.weight.shape
            linears.append(Linear(name, (outputs, inputs), transposed=True))
        elif isinstance(part, nn.Linear):
            linears.append(Linear(name, (part.out_features, part.in_features)))
    return tuple(linears)


def find_other_matrices(block: nn.Module, path: str) -> tuple[str, ...]:
    """Names of the parameters of two or more dimensions that belong to no linear or norm, such as fused experts."""
    return tuple(
        f"{path}.{name}.{kind}" if name else f"{path}.{kind}"
        for name, part in block.named_modules()
        if not isinstance(part, (nn.Linear, Conv1D)) and "norm" not in type(part).__name__.lower()
        for kind, parameter in part.named_parameters(recurse=False)
        if parameter.dim() >= 2
    )


def fit_features(part: nn.Module) -> None:
    """Let a linear say how wide it is, after its weight was exchanged for one of another shape."""
    shape = part.get_parameter("weight").shape
    if isinstance(part, Conv1D):
        part.nx, part.nf = shape
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = shape
