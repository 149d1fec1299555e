"""Proof, from the structure only, that the blocks of a shortened model are the source's blocks.

Both models are built on the meta device from their configs. Every kept block and its counterpart must have the same
modules, parameters of the same shape, equal buffers and equal settings; only its index may differ. What is left is
mathematics that reads the index, or another block, while it runs: configs announce it, and `READS_INDEX` names it.
"""

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.errors import UnsupportedError
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import find_stack

INDEX = re.compile(r"(^|_)(layer|block)_?(idx|id|index|number|num)$")
READS_INDEX = {  # key of the config -> what its being set means
    "scale_attn_by_inverse_layer_idx": "attention is divided by the block's index",
    "num_kv_shared_layers": "later blocks use the keys and values of earlier ones",
    "rescale_every": "hidden states are halved after every few blocks",
}
HANDED = re.compile(r"^prev_|block_states$")  # what a block's forward takes from an earlier block
NO_ATTENTION = {"linear_attention", "conv", "moe", "mlp"}  # entries of `layer_types` without keys and values
Simple = int | float | str | None | tuple | list


def refuse_shared_mathematics(model: PrunableModel) -> None:
    """Raise UnsupportedError for a model whose blocks compute with their index or with parts of other blocks."""
    name, text = type(model.skeleton).__name__, model.config.get_text_config()
    for key, meaning in READS_INDEX.items():
        if value := getattr(text, key, None):
            raise UnsupportedError(f"no block can be taken out of {name}: {meaning} ({key} is {value})")
    for argument in inspect.signature(model.stack[0].forward).parameters:
        if HANDED.search(argument):
            raise UnsupportedError(f"no block can be taken out of {name}: one hands its {argument} to the next")
    owners: dict[int, int] = {}
    for index, block in enumerate(model.stack):
        for path, parameter in block.named_parameters():
            owner = owners.setdefault(id(parameter), index)
            if owner != index:
                raise UnsupportedError(
                    f"no block can be taken out of {name}: blocks {owner} and {index} share their {path}"
                )


def prove_equal(source: PreTrainedModel, shorter: PreTrainedModel, path: str, kept: tuple[int, ...]) -> None:
    """Raise UnsupportedError unless a shorter model is the source with no other blocks at `path` than those kept.

    Neither model's buffers may have been loaded.
    """
    refusal = f"no block can be taken out of {type(source).__name__}"
    _compare_attention(source, shorter)
    found, stack = find_stack(shorter)
    if (found, len(stack)) != (path, len(kept)):
        raise UnsupportedError(f"{refusal}: config.json cannot say that {path} has {len(kept)} blocks")
    _compare_outside(source, shorter, f"{path}.", refusal)
    for new, old in enumerate(kept):
        block = source.get_submodule(f"{path}.{old}")
        for where, before, after in _differences(block, stack[new], old, kept):
            raise UnsupportedError(
                f"{refusal} with {len(kept)} left: {path}.{old}{where} depends on the block's index; "
                f"it is {before}, and would be {after} as block {new}"
            )


def _compare_attention(source: PreTrainedModel, shorter: PreTrainedModel) -> None:
    """Without any attention, transformers cannot tell the positions of new tokens in a model that had some."""
    before, after = (
        set(getattr(each.config.get_text_config(), "layer_types", None) or ()) for each in (source, shorter)
    )
    if before - NO_ATTENTION and after and not after - NO_ATTENTION:
        raise UnsupportedError(
            f"the blocks that are left of {type(source).__name__} are all {' or '.join(sorted(after))}",
            hint="keep a block with attention",
        )


def _compare_outside(source: PreTrainedModel, shorter: PreTrainedModel, inside: str, refusal: str) -> None:
    """Embeddings, norms and head must not know how deep the model is."""
    before, after = (
        {
            name: tuple(part.shape)
            for name, part in each.named_parameters(remove_duplicate=False)
            if not name.startswith(inside)
        }
        for each in (source, shorter)
    )
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            shapes = f"it is {before.get(name)}, and would be {after.get(name)}"
            raise UnsupportedError(f"{refusal}: {name} depends on the number of blocks; {shapes}")


def _differences(
    before: nn.Module, after: nn.Module, index: int, kept: tuple[int, ...]
) -> Iterator[tuple[str, Any, Any]]:
    """Where two blocks differ, and both values; a difference of modules comes before what follows from it."""
    parts, others = dict(before.named_modules()), dict(after.named_modules())
    for name in dict.fromkeys((*parts, *others)):
        one, other = (type(each[name]).__name__ if name in each else "nothing" for each in (parts, others))
        if one != other:
            yield f".{name}".rstrip("."), one, other
    for name, part in parts.items():
        for read in (_shapes, _buffers, _settings):
            ours, theirs = read(part), read(others[name])
            for key in dict.fromkeys((*ours, *theirs)):
                one, other = ours.get(key), theirs.get(key)
                is_index = INDEX.search(key) and (one, other) == (index, kept.index(index))
                if not is_index and not _equal(one, other) and not _sliced(one, other, kept):
                    yield f".{name}.{key}".replace("..", "."), _shown(one), _shown(other)


def _shapes(part: nn.Module) -> Mapping[str, Any]:
    return {name: tuple(parameter.shape) for name, parameter in part.named_parameters(recurse=False)}


def _buffers(part: nn.Module) -> Mapping[str, Any]:
    return dict(part.named_buffers(recurse=False))


def _settings(part: nn.Module) -> Mapping[str, Any]:
    """Attributes that are plain values, such as a scale or the type of attention."""
    return {key: value for key, value in vars(part).items() if not key.startswith("_") and isinstance(value, Simple)}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)  # a square root taken of another product
    return bool(one == other)


def _sliced(one: Any, other: Any, kept: tuple[int, ...]) -> bool:
    """Whether these are lists of all blocks, before and after."""
    lists = isinstance(one, list) and isinstance(other, list) and len(one) > kept[-1]
    return lists and [one[index] for index in kept] == other


def _shown(value: Any) -> str:
    text = str(value.flatten()[:4].tolist()) if isinstance(value, Tensor) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
