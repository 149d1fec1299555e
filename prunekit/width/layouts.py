"""What a folder holds whose blocks are narrower than the source's: tensors of which shape, which config, which code."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from prunekit.depth.config import Changes
from prunekit.model import modeling_file
from prunekit.model.changes import FolderChanges
from prunekit.model.checkpoint import TensorInfo
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import FFN
from prunekit.plan import Layout
from prunekit.width.config import WidthKey, current_widths, find_width_key, layout_changes
from prunekit.width.neurons import widen


class Narrowed:
    """The narrower blocks of a model, written in one of the layouts."""

    def __init__(self, model: PrunableModel, layout: Layout) -> None:
        self.model = model
        self.layout: Layout = layout
        self.widths = current_widths(model)
        self.ffns = model.ffns

    @cached_property
    def key(self) -> WidthKey:
        """The setting of config.json that says how wide the blocks are."""
        return find_width_key(self.model, self.ffns, max(self.widths.values()))

    @property
    def differ(self) -> bool:
        """Whether the folder holds blocks of different widths."""
        return self.layout == "per-layer" and len(set(self.widths.values())) > 1

    def added_to(self, changes: FolderChanges) -> FolderChanges:
        """These changes of a folder, too."""
        code = self.code()
        return replace(
            changes,
            config=self.config(changes.config),
            files={**changes.files, modeling_file.FILE: code} if code else changes.files,
            info=self.info,
            tensor=self.tensor,
        )

    def info(self, name: str, info: TensorInfo) -> TensorInfo:
        """How a tensor, known by its name in the model, is written."""
        place = self._place(name)
        if place is None or self.layout != "padded":
            return info
        ffn, inside, transposed = place
        return replace(info, shape=ffn.shape(inside, info.shape, max(self.widths.values()), transposed))

    def tensor(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor itself, as it is written."""
        place = self._place(name)
        if place is None or self.layout != "padded":
            return tensor
        ffn, inside, transposed = place
        return widen(ffn, inside, tensor, self.widths[ffn.block], max(self.widths.values()), transposed)

    def config(self, changes: Mapping[str, object]) -> Changes:
        """The keys of config.json that change, beside those that do already."""
        if set(self.widths.values()) == {ffn.units for ffn in self.ffns.values()}:
            return dict(changes)
        found = layout_changes(self.model, self.key, self.widths, self.layout, changes)
        return found | ({"auto_map": modeling_file.auto_map(self.model.skeleton)} if self.differ else {})

    def code(self) -> str | None:
        """The model file, where blocks of different widths need one."""
        if not self.differ:
            return None
        ffn = next(iter(self.ffns.values()))
        return modeling_file.render(self.model.skeleton, self.model.stack_path, self.key.name, self.key.unit, ffn)

    def _place(self, name: str) -> tuple[FFN, str, bool] | None:
        """The ffn that a tensor may belong to, its name inside the block, and whether its linear is transposed."""
        number, _, inside = name.removeprefix(f"{self.model.stack_path}.").partition(".")
        if not (name.startswith(f"{self.model.stack_path}.") and number.isdigit() and int(number) in self.ffns):
            return None
        return self.ffns[int(number)], inside, self.model.is_transposed(name)
