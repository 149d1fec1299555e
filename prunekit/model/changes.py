"""How a written model folder differs from its source, beyond the values in its tensors."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prunekit.model.checkpoint import TensorInfo


def _same_names(stored: Collection[str]) -> dict[str, str]:
    return {name: name for name in stored}


def _same_info(name: str, info: TensorInfo) -> TensorInfo:
    return info


def _same_tensor(name: str, tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class FolderChanges:
    """What an export writes differently; each kind of action adds to it with `dataclasses.replace`.

    `config` holds the keys of config.json that change, a nested section whole; `files` further text files, by name.
    `rename` gives, for the stored names of all tensors, new name -> stored name; what it leaves out is not written.
    `info` and `tensor` say how a tensor, known by its name in the model, is written: its dtype and shape, its values.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    rename: Callable[[Collection[str]], dict[str, str]] = _same_names
    info: Callable[[str, TensorInfo], TensorInfo] = _same_info
    tensor: Callable[[str, Tensor], Tensor] = _same_tensor
