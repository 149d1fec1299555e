"""How config.json says that feed-forward layers are narrower, proven by building the model that it then describes.

Of a family only its config is known. The key is the one whose value is the width, or the width over the hidden size;
with it changed, transformers must build a model in which just the expected tensors are narrower.

    uniform     one width for all blocks, under the family's own key: a stock model
    padded      the same, as wide as the widest block; the others are filled up with zeros
    per-layer   `per_layer_config`, and a small model file beside the weights that builds each block as wide as it is
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from prunekit.depth.config import Changes, section_of
from prunekit.depth.removal import runs_own_code, with_changes
from prunekit.errors import InputError, UnsupportedError, UsageError
from prunekit.model.prunable import PrunableModel
from prunekit.model.skeleton import build_skeleton
from prunekit.plan import Layout
from prunekit.width.neurons import FFN

UNSET = ("n_inner", "ffn_hidden_size", "intermediate_size")  # None in these means some multiple of the hidden size
NEITHER = "plan it again with --layout padded, or with --layout per-layer"
WIDE, NARROW, FINE = 256, 64, 8  # multiples for feed-forward layers from 4096 neurons on, from 1024 on, and below


def default_multiple(neurons: int) -> int:
    """What widths are rounded to: matrix units and quantised formats want round numbers."""
    return WIDE if neurons >= 4096 else NARROW if neurons >= 1024 else FINE


class WidthKey:
    """The setting of a model that says how wide the feed-forward layers are: `name`, in units of `unit` neurons."""

    def __init__(self, model: PrunableModel, name: str, unit: int) -> None:
        self.name, self.unit = name, unit
        self.key, self.section = section_of(model.checkpoint.config, model.config)

    def value(self, units: int) -> int | float:
        """What the setting is for so many neurons."""
        return units if self.unit == 1 else units / self.unit

    def narrower(self, widths: Sequence[int]) -> dict[str, dict[str, int | float]]:
        """`per_layer_config`: the blocks, by where they stand, that are narrower than the widest."""
        return {str(place): {self.name: self.value(width)} for place, width in enumerate(widths) if width < max(widths)}

    def changes(self, units: int, config: Mapping[str, Any] | None = None) -> Changes:
        """The keys of config.json that change, beside those that do already; a nested section is given whole."""
        before = dict(config or {})
        if self.key is None:
            return before | {self.name: self.value(units)}
        return before | {self.key: {**before.get(self.key, self.section), self.name: self.value(units)}}


def find_width_key(model: PrunableModel, ffns: Mapping[int, FFN], units: int) -> WidthKey:
    """The setting that makes all feed-forward layers `units` neurons wide.

    Raises UnsupportedError when the blocks are not equally wide, or no setting does that and nothing else.
    """
    name = type(model.skeleton).__name__
    widths = {ffn.units for ffn in ffns.values()}
    if len(widths) > 1 or len(ffns) < len(model.kept):
        raise UnsupportedError(f"the blocks of {name} are {sorted(widths)} neurons wide; one width is expected")
    for key in _candidates(model, widths.pop()):
        if _makes(model, ffns, key, units):
            return key
    raise UnsupportedError(f"no setting of {name}'s config.json makes its feed-forward layers {units} neurons wide")


def _candidates(model: PrunableModel, width: int) -> Iterator[WidthKey]:
    config = model.config.get_text_config()
    hidden = int(config.hidden_size)
    values = {key: value for key, value in vars(config).items() if not key.startswith("_")}
    for key, value in sorted(values.items(), key=lambda item: "inter" not in item[0] and "ff" not in item[0]):
        if isinstance(value, int) and not isinstance(value, bool) and value == width:
            yield WidthKey(model, key, 1)
    yield from (WidthKey(model, key, 1) for key in UNSET if key in values and values[key] is None)
    for key, value in values.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value * hidden == width:
            yield WidthKey(model, key, hidden)


def _makes(model: PrunableModel, ffns: Mapping[int, FFN], key: WidthKey, units: int) -> bool:
    """Whether the model that the changed config describes is the source with narrower feed-forward layers."""
    with tempfile.TemporaryDirectory(prefix="prunekit-") as place:
        try:
            changed = with_changes(model.checkpoint, Path(place))(key.changes(units))
            other = build_skeleton(changed, trust_remote_code=runs_own_code(model))
        except (InputError, UnsupportedError):
            return False
    return shapes(other) == narrowed_shapes(model, ffns, units)


def shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by name."""
    return {name: tuple(part.shape) for name, part in model.named_parameters(remove_duplicate=False)}


def narrowed_shapes(model: PrunableModel, ffns: Mapping[int, FFN], units: int) -> dict[str, tuple[int, ...]]:
    """The same for the source model with so many units in every ffn."""
    stored = model.tensors  # of blocks that are finished, the skeleton may be narrower
    found = {name: stored[name].shape if name in stored else shape for name, shape in shapes(model.skeleton).items()}
    for block in model.blocks:
        ffn = ffns.get(block.index) or next(iter(ffns.values()))
        for name in [name for name in found if name.startswith(f"{block.path}.")]:
            inside = name.removeprefix(f"{block.path}.")
            found[name] = ffn.shape(inside, found[name], units, model.is_transposed(name))
    return found


def current_widths(model: PrunableModel) -> dict[int, int]:
    """Kept block -> how many neurons it has now, of a model whose finished blocks are narrower."""
    names = {index: f"{model.blocks[index].path}.{ffn.reader}.weight" for index, ffn in model.ffns.items()}
    stored = model.stored(names.values())
    return {index: stored[name].shape[0 if model.is_transposed(name) else 1] for index, name in names.items()}


def layout_changes(
    model: PrunableModel, key: WidthKey, widths: Mapping[int, int], layout: Layout, config: Mapping[str, Any]
) -> Changes:
    """The keys of config.json that change for kept blocks of these widths, beside those that change already.

    A layout per-layer whose widths are equal is the uniform one. Raises UsageError for widths that differ where they
    may not.
    """
    places = [widths[block.index] for block in model.kept]
    if layout == "uniform" and len(set(places)) > 1:
        raise UsageError(
            f"blocks are to be {min(places)} to {max(places)} neurons wide, and layout uniform has one width",
            hint=NEITHER,
        )
    changes = key.changes(max(places), config)
    if layout != "per-layer" or len(set(places)) == 1:
        return changes
    section = changes if key.key is None else changes[key.key]
    section["per_layer_config"] = key.narrower(places)
    return changes
