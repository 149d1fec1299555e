"""A folder with blocks of different widths, written again in another layout: nothing is scored, no neuron is lost."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from prunekit.depth.removal import split_name, stored_prefix
from prunekit.errors import UsageError
from prunekit.export.folder import copy, parse_size, write_weights
from prunekit.export.manifest import Manifest
from prunekit.files import storage_errors, sync, write_atomically
from prunekit.model import modeling_file
from prunekit.model.checkpoint import TensorInfo
from prunekit.model.prunable import PrunableModel
from prunekit.plan import Layout
from prunekit.width.config import WidthKey, find_width_key
from prunekit.width.neurons import find_ffns, shorten, widen
from prunekit.width.plan import refuse_per_layer


class Rewriting:
    """Every tensor of a folder as wide as the layout wants it; what is filled up is at the end of every block.

    `widths` holds the neurons of every block. Where all are stored equally wide, the manifest says how many of a padded
    one's are more than zeros. Raises UsageError when the folder, which is called `name`, need not be written in the
    layout, UnsupportedError when it cannot be.
    """

    def __init__(self, model: PrunableModel, manifest: Manifest, layout: Layout, name: str) -> None:
        self.model, self.layout = model, layout
        self.ffns = find_ffns(model)
        stored = tuple(self.ffns[block.index].units for block in model.blocks)
        known, self._unequal = manifest.result.widths, len(set(stored)) > 1
        self.widths = known if not self._unequal and len(known) == len(stored) else stored
        self._check(name)
        self.prefix = stored_prefix(model.checkpoint.tensors, model.stack_path, len(model.blocks))
        found = modeling_file.read(model.checkpoint.folder)
        if found:
            self.key = WidthKey(model, found["key"], int(found["unit"]))
        else:
            self.key = find_width_key(model, self.ffns, min(self.widths))

    def _check(self, name: str) -> None:
        if len(set(self.widths)) < 2:
            wide = f"all blocks of {name} are {self.widths[0]} neurons wide"
            raise UsageError(f"{wide}, so every layout is the one it has")
        if self.layout == ("per-layer" if self._unequal else "padded"):
            raise UsageError(f"{name} is in layout {self.layout} already")
        if self.layout == "per-layer":
            refuse_per_layer(self.model)

    def write(self, folder: Path, max_shard_size: str) -> None:
        """Write weights, config, code and side files."""
        source = self.model.checkpoint
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            infos = {name: self.info(name, info) for name, info in source.tensors.items()}
            write_weights(folder, infos, self.read, parse_size(max_shard_size))
            write_atomically(folder / "config.json", json.dumps(self.config(), indent=2, ensure_ascii=False) + "\n")
            for path in source.side_files():
                if path.name != modeling_file.FILE:
                    copy(path, folder / path.name)
            if self.layout == "per-layer":
                write_atomically(folder / modeling_file.FILE, self.code())
            sync(folder)

    def info(self, name: str, info: TensorInfo) -> TensorInfo:
        """How a stored tensor is written."""
        index, inside = split_name(name, self.prefix)
        if index is None:
            return info
        shape = self.ffns[index].shape(inside, info.shape, self._units(index), self._transposed(index, inside))
        return replace(info, shape=shape)

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """Stored tensors as they are written."""
        return {name: self._fitted(name, tensor) for name, tensor in self.model.checkpoint.read(names).items()}

    def config(self) -> dict[str, Any]:
        """The whole of config.json."""
        config = deepcopy(self.model.checkpoint.config)
        if modeling_file.is_ours(self.model.checkpoint.folder, config):
            del config["auto_map"]
        section = config if self.key.key is None else config[self.key.key]
        section.pop("per_layer_config", None)
        section[self.key.name] = self.key.value(max(self.widths))
        if self.layout == "per-layer":
            section["per_layer_config"] = self.key.narrower(self.widths)
            config["auto_map"] = modeling_file.auto_map(self.model.skeleton)
        return config

    def code(self) -> str:
        """The model file of layout per-layer."""
        key, model = self.key, self.model
        return modeling_file.render(model.skeleton, model.stack_path, key.name, key.unit, self.ffns[0])

    def _units(self, index: int) -> int:
        return max(self.widths) if self.layout == "padded" else self.widths[index]

    def _transposed(self, index: int, inside: str) -> bool:
        return self.model.is_transposed(f"{self.model.stack_path}.{index}.{inside}")

    def _fitted(self, name: str, tensor: Tensor) -> Tensor:
        index, inside = split_name(name, self.prefix)
        if index is None:
            return tensor
        ffn, units, transposed = self.ffns[index], self._units(index), self._transposed(index, inside)
        if units >= ffn.units:
            return widen(ffn, inside, tensor, ffn.units, units, transposed)
        return shorten(ffn, inside, tensor, units, transposed)
