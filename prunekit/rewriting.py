"""A folder with blocks of different widths, written again in another layout: nothing is scored, no neuron is lost."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from prunekit import layer_code
from prunekit.checkpoint import TensorInfo
from prunekit.errors import UsageError
from prunekit.export import copy, parse_size, write_weights
from prunekit.layer_removal import split_name, stored_prefix
from prunekit.manifest import Manifest
from prunekit.model import PrunableModel
from prunekit.narrowing import refuse_per_layer
from prunekit.plan import Layout
from prunekit.staging import storage_errors, sync, write_atomically
from prunekit.width import find_sites, shorten, widen
from prunekit.width_config import WidthKey, find_width_key


def check_layout(model: PrunableModel, name: str, layout: Layout) -> None:
    """Raise UsageError when a folder need not be written in a layout, UnsupportedError when it cannot."""
    widths, unequal = widths_of(model)
    if len(set(widths)) < 2:
        raise UsageError(f"all blocks of {name} are {widths[0]} neurons wide, so every layout is the one it has")
    if layout == ("per-layer" if unequal else "padded"):
        raise UsageError(f"{name} is in layout {layout} already")
    if layout == "per-layer":
        refuse_per_layer(model)


def widths_of(model: PrunableModel) -> tuple[tuple[int, ...], bool]:
    """Neurons of every block of a folder, and whether its blocks are stored as wide as they are.

    Where all are equally wide, the manifest says how many of a padded one's neurons are more than zeros.
    """
    sites = find_sites(model)
    stored = tuple(sites[block.index].units for block in model.blocks)
    if len(set(stored)) > 1:
        return stored, True
    known = Manifest.read(model.checkpoint.folder).result.widths
    return (known if len(known) == len(stored) else stored), False


def rewrite(model: PrunableModel, layout: Layout, folder: Path, max_shard_size: str) -> None:
    """Write weights, config, code and side files of a finished run in another layout."""
    source, rewriting = model.checkpoint, _Rewriting(model, widths_of(model)[0], layout)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        infos = {name: rewriting.info(name, info) for name, info in source.tensors.items()}
        write_weights(folder, infos, rewriting.read, parse_size(max_shard_size))
        text = json.dumps(rewriting.config(), indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / "config.json", text)
        for path in source.side_files():
            if path.name != layer_code.FILE:
                copy(path, folder / path.name)
        if layout == "per-layer":
            write_atomically(folder / layer_code.FILE, rewriting.code())
        sync(folder)


class _Rewriting:
    """Every tensor of a folder as wide as the layout wants it; what is filled up is at the end of every block."""

    def __init__(self, model: PrunableModel, widths: Sequence[int], layout: Layout) -> None:
        self.model, self.layout, self.widths = model, layout, widths
        self.sites = find_sites(model)
        self.prefix = stored_prefix(model.checkpoint.tensors, model.stack_path, len(model.blocks))
        self.transposed = {path for path, linear in model.linears().items() if linear.transposed}
        found = layer_code.read(model.checkpoint.folder)
        if found:
            self.key = WidthKey(model, found["key"], int(found["unit"]))
        else:
            self.key = find_width_key(model, self.sites, min(widths))

    def info(self, name: str, info: TensorInfo) -> TensorInfo:
        """How a stored tensor is written."""
        index, inside = split_name(name, self.prefix)
        if index is None:
            return info
        shape = self.sites[index].shape(inside, info.shape, self._units(index), self._transposed(index, inside))
        return replace(info, shape=shape)

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """Stored tensors as they are written."""
        return {name: self._fitted(name, tensor) for name, tensor in self.model.checkpoint.read(names).items()}

    def config(self) -> dict[str, Any]:
        """The whole of config.json."""
        config = deepcopy(self.model.checkpoint.config)
        if layer_code.is_ours(self.model.checkpoint.folder, config):
            del config["auto_map"]
        section = config if self.key.key is None else config[self.key.key]
        section.pop("per_layer_config", None)
        section[self.key.name] = self.key.value(max(self.widths))
        if self.layout == "per-layer":
            section["per_layer_config"] = self.key.narrower(self.widths)
            config["auto_map"] = layer_code.auto_map(self.model.skeleton)
        return config

    def code(self) -> str:
        """The model file of layout per-layer."""
        key, model = self.key, self.model
        return layer_code.render(model.skeleton, model.stack_path, key.name, key.unit, self.sites[0])

    def _units(self, index: int) -> int:
        return max(self.widths) if self.layout == "padded" else self.widths[index]

    def _transposed(self, index: int, inside: str) -> bool:
        return f"{self.model.stack_path}.{index}.{inside.rpartition('.')[0]}" in self.transposed

    def _fitted(self, name: str, tensor: Tensor) -> Tensor:
        index, inside = split_name(name, self.prefix)
        if index is None:
            return tensor
        site, units, transposed = self.sites[index], self._units(index), self._transposed(index, inside)
        if units >= site.units:
            return widen(site, inside, tensor, site.units, units, transposed)
        return shorten(site, inside, tensor, units, transposed)
