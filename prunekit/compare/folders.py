"""Compare two model folders tensor by tensor: what only one of them holds, in another form, or otherwise.

One pair of tensors is in memory at a time.
"""

from filecmp import cmp
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from prunekit.model.checkpoint import Checkpoint, TensorInfo
from prunekit.plan import Frozen


class TensorDifference(Frozen):
    """One tensor that both folders hold with other numbers; `zeros` are fractions of its elements."""

    name: str
    elements: int
    zeros: float
    zeros_against: float
    changed: float = Field(description="Fraction of the elements that are another number.")
    rewritten: float = Field(description="Fraction that is another number and not zero.")
    largest: float = Field(description="Largest difference of two elements.")


class Comparison(Frozen):
    """How a folder differs from the one it is compared with."""

    folder: str
    against: str
    missing: tuple[str, ...] = Field(description="Tensors that only the other folder holds.")
    added: tuple[str, ...] = Field(description="Tensors that only this folder holds.")
    reshaped: dict[str, str] = Field(description="Tensors of another dtype or shape: `F16 (8, 4), was F32 (8, 4)`.")
    config: dict[str, str] = Field(description="Keys of config.json with another value: `2, was 4`.")
    same: int = Field(description="Number of tensors equal to the bit.")
    differing: tuple[TensorDifference, ...]


def compare(folder: Path, against: Path) -> Comparison:
    """Compare a model folder with another, such as a pruned model with its source.

    Raises InputError and UnsupportedError as `Checkpoint.open` does, for either.
    """
    ours, theirs = Checkpoint.open(folder), Checkpoint.open(against)
    common = [name for name in ours.tensors if name in theirs.tensors]
    reshaped = {name: _form(ours.tensors[name], theirs.tensors[name]) for name in common}
    comparable = [name for name in common if not reshaped[name]]
    differing = [difference for name in comparable if (difference := _difference(name, ours, theirs))]
    return Comparison(
        folder=str(folder),
        against=str(against),
        missing=tuple(sorted(theirs.tensors.keys() - ours.tensors.keys())),
        added=tuple(sorted(ours.tensors.keys() - theirs.tensors.keys())),
        reshaped={name: form for name, form in reshaped.items() if form},
        config=_config_changes(ours.config, theirs.config),
        same=len(comparable) - len(differing),
        differing=tuple(differing),
    )


def first_difference(folder: Path, against: Path) -> str | None:
    """The first thing in which the weights of two folders differ, in words; None when the files agree to the byte."""
    ours, theirs = _weights(folder), _weights(against)
    if ours.keys() == theirs.keys() and all(cmp(ours[name], theirs[name], shallow=False) for name in ours):
        return None
    found = compare(folder, against)
    if found.missing or found.added:
        name = (*found.missing, *found.added)[0]
        return f"{name} is {'missing' if found.missing else 'new'}"
    if found.reshaped:
        return next(f"{name} is {form}" for name, form in found.reshaped.items())
    if not found.differing:
        return "every tensor is equal, but the files are cut or ordered otherwise"
    first, total = found.differing[0], found.same + len(found.differing)
    share = f"{first.changed:.2%} of its numbers are others, by at most {first.largest:.2g}"
    return f"{len(found.differing)} of {total} tensors differ; in the first, {first.name}, {share}"


def _weights(folder: Path) -> dict[str, Path]:
    """The weight files of a folder and their index, by name."""
    return {path.name: path for path in sorted(folder.glob("*.safetensors*"))}


def _difference(name: str, ours: Checkpoint, theirs: Checkpoint) -> TensorDifference | None:
    mine, other = ours.read([name])[name], theirs.read([name])[name]
    if torch.equal(mine, other):
        return None
    moved = mine != other
    return TensorDifference(
        name=name,
        elements=mine.numel(),
        zeros=_fraction(mine == 0),
        zeros_against=_fraction(other == 0),
        changed=_fraction(moved),
        rewritten=_fraction(moved & (mine != 0)),
        largest=float((mine.double() - other.double()).abs().max()),
    )


def _form(mine: TensorInfo, other: TensorInfo) -> str | None:
    """How a tensor is stored here and was stored there, or None when both agree."""
    if (mine.dtype, mine.shape) == (other.dtype, other.shape):
        return None
    return f"{mine.dtype} {mine.shape}, was {other.dtype} {other.shape}"


def _config_changes(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    keys = sorted(key for key in mine.keys() | other.keys() if mine.get(key) != other.get(key))
    return {key: f"{mine.get(key)}, was {other.get(key)}" for key in keys}


def _fraction(mask: Tensor) -> float:
    return int(mask.count_nonzero()) / max(1, mask.numel())
