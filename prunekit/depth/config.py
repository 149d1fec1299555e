"""What changes in config.json when some blocks are removed: the depth, and everything said about single blocks.

A family is not known by name; the keys are. A list as long as the model is deep is sliced, lists of block indices are
renumbered, counts of first blocks recounted, rules such as "every fourth block" rewritten for the blocks that are left.
What the config class derives by itself, and would derive otherwise at the new depth, is written out. Whether the result
describes the same blocks is for `proof` to say.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from transformers import PretrainedConfig

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
HEADS = ("num_nextn_predict_layers", "num_mtp_layers")
FIRST = ("first_k_dense_replace", "num_dense_layers", "num_hash_layers", "dense_mlp_idx", "max_window_layers")
INDICES = {
    "mlp_only_layers": 0,  # key -> the number of the first block
    "moe_layers": 0,
    "full_attn_idxs": 0,
    "attn_layer_indices": 0,
    "attn_layer_idx": 0,
    "hybrid_layer_ids": 0,
    "local_layer_ids": 0,
    "cross_attention_layers": 0,
    "full_attn_layers": 1,
    "kda_layers": 1,
    "ple_layer_ids": 1,
}
PERIODS = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))
NOT_PER_BLOCK = re.compile(r"token|architectures|keys_to_ignore|_limit$|languages?$")

Changes = dict[str, Any]


@dataclass(frozen=True)
class Cut:
    """The blocks that stay, of a model that had `depth`; `section` is the part of config.json that describes them."""

    kept: tuple[int, ...]
    depth: int
    section: Mapping[str, Any]
    config: PretrainedConfig

    def value(self, key: str) -> Any:
        """What the config says, given or derived; None when it has no such key."""
        found = vars(self.config).get(key)
        return self.section.get(key) if found is None else found

    def slice(self, values: Sequence[Any]) -> list[Any]:
        """The entries of the blocks that stay."""
        return [values[index] for index in self.kept]

    def renumber(self, indices: Sequence[int], start: int = 0) -> list[int]:
        """Where the blocks of these indices, counted from `start`, are now; removed ones are left out."""
        return [new + start for new, old in enumerate(self.kept) if old + start in indices]

    def is_per_block(self, key: str, value: object) -> bool:
        """Whether this is a list with one entry per block."""
        return isinstance(value, (list, tuple)) and len(value) == self.depth and not NOT_PER_BLOCK.search(key)


def section_of(source: Mapping[str, Any], config: PretrainedConfig) -> tuple[str | None, Mapping[str, Any]]:
    """The key of config.json under which the decoder is described, and that part; None is the file itself."""
    text = config.get_text_config()
    for key, value in vars(config).items():
        if value is text and isinstance(source.get(key), dict):
            return key, source[key]
    return None, source


def patch_config(
    source: Mapping[str, Any],
    config: PretrainedConfig,
    kept: tuple[int, ...],
    rebuild: Callable[[Changes], PretrainedConfig],
    *,
    heads: bool = False,
) -> Changes:
    """The keys of config.json that change, with their new values.

    `rebuild` makes the transformers config of config.json with some of its keys changed. `heads`: the files held blocks
    beyond the model's depth, which predict several tokens, and hold none any more.
    """
    key, section = section_of(source, config)
    text = config.get_text_config()
    cut = Cut(kept, int(text.num_hidden_layers), section, text)
    changes = stored_changes(cut) | ({name: 0 for name in HEADS if section.get(name)} if heads else {})
    changes = derived_changes(cut, rebuild(_whole(key, section, changes)).get_text_config()) | changes
    new = {name: value for name, value in changes.items() if section.get(name, cut.value(name)) != value}
    return _whole(key, section, new)


def stored_changes(cut: Cut) -> Changes:
    """What follows from the keys themselves, be it new or as it was."""
    changes = _depths(cut) | _entries(cut, cut.section)
    for rule in (_first_counts, _attention_types, _repeated_types, _sparse_steps, _intervals, _periods, _scale_depth):
        changes |= rule(cut)
    return changes


def derived_changes(cut: Cut, rebuilt: PretrainedConfig) -> Changes:
    """Per-block attributes that the config class derives otherwise for the blocks that are left."""
    changes: Changes = {}
    for key, value in vars(cut.config).items():
        if key in INDICES and isinstance(value, (list, tuple)):
            wanted = cut.renumber(value, INDICES[key])
        elif not key.startswith("_") and cut.is_per_block(key, value):
            wanted = cut.slice(value)
        else:
            continue
        found = getattr(rebuilt, key, None)
        if not isinstance(found, (list, tuple)) or list(found) != wanted:
            changes[key] = wanted
    return changes


def _whole(key: str | None, section: Mapping[str, Any], changes: Changes) -> Changes:
    """The changes as keys of config.json, a nested section given whole."""
    return {key: {**section, **changes}} if key else dict(changes)


def _depths(cut: Cut) -> Changes:
    """The number of blocks, under every name it has."""
    own = (getattr(cut.config, "attribute_map", None) or {}).get("num_hidden_layers", "num_hidden_layers")
    names = [name for name in dict.fromkeys((own, *DEPTHS)) if cut.section.get(name) == cut.depth]
    return dict.fromkeys(names or [own], len(cut.kept))


def _entries(cut: Cut, section: Mapping[str, Any], *, nested: bool = False) -> Changes:
    """Lists, patterns and mappings with something for each block; in a nested object, index lists only."""
    changes: Changes = {}
    for key, value in section.items():
        if key in INDICES and isinstance(value, list):
            changes[key] = cut.renumber(value, INDICES[key])
        elif nested:
            continue
        elif key == "per_layer_config" and isinstance(value, dict):
            changes[key] = dict(_renumbered_keys(cut, value))
        elif isinstance(value, dict):
            changes[key] = value | _entries(cut, value, nested=True)
        elif cut.is_per_block(key, value):
            changes[key] = cut.slice(value)
        elif key.endswith("_pattern") and isinstance(value, str) and len(value) == cut.depth:
            changes[key] = "".join(cut.slice(value))
    return changes


def _renumbered_keys(cut: Cut, per_layer: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in per_layer.items():
        if not str(key).isdigit():
            yield key, value
        elif int(key) in cut.kept:
            yield str(cut.kept.index(int(key))), value


def _first_counts(cut: Cut) -> Changes:
    """How many of the first blocks are different; a number that reaches beyond the last block stays."""
    counts = {key: cut.value(key) for key in FIRST}
    inside = {key: value for key, value in counts.items() if isinstance(value, int) and 0 < value < cut.depth}
    recounted = {key: sum(index < value for index in cut.kept) for key, value in inside.items()}
    return {key: value for key, value in recounted.items() if value != inside[key]}


def _attention_types(cut: Cut) -> Changes:
    """Types in runs, `[[["global", "local"], 12]]`: the pair of types, twelve times."""
    runs = cut.value("attention_types")
    if not isinstance(runs, (list, tuple)) or not all(isinstance(run, (list, tuple)) and len(run) == 2 for run in runs):
        return {}
    types = list(chain.from_iterable(list(names) * times for names, times in runs))
    if len(types) != cut.depth:
        return {}
    return {"attention_types": [[[name], len(list(run))] for name, run in groupby(cut.slice(types))]}


def _repeated_types(cut: Cut) -> Changes:
    """`block_types` is repeated until it covers all blocks."""
    types = cut.value("block_types")
    if not isinstance(types, (list, tuple)) or not types:
        return {}
    wanted = [types[index % len(types)] for index in cut.kept]
    same = wanted == [types[index % len(types)] for index in range(len(cut.kept))]
    return {} if same else {"block_types": wanted}


def _sparse_steps(cut: Cut) -> Changes:
    """Experts in every `decoder_sparse_step`-th block but those of `mlp_only_layers`."""
    step, dense = cut.value("decoder_sparse_step"), cut.value("mlp_only_layers") or []
    if not isinstance(step, int) or step <= 1:
        return {}
    plain = [index for index in range(cut.depth) if index in dense or (index + 1) % step]
    return {"decoder_sparse_step": 1, "mlp_only_layers": cut.renumber(plain)}


def _intervals(cut: Cut) -> Changes:
    """Experts in every `moe_layer_interval`-th block from a first to a last one."""
    keys = ("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index")
    given = [cut.value(key) for key in keys]
    if not all(isinstance(value, int) for value in given):
        return {}
    step, start, end = given
    end = cut.depth - 1 if end == -1 else end
    sparse = cut.renumber([index for index in range(start, end + 1) if (index + 1) % step == 0])
    first, last = (sparse[0], sparse[-1]) if sparse else (len(cut.kept), len(cut.kept) - 1)
    for every in (step, *range(1, len(cut.kept) + 1)):
        if sparse == [index for index in range(first, last + 1) if (index + 1) % every == 0]:
            return dict(zip(keys, (every, first, last), strict=True))
    return {}


def _periods(cut: Cut) -> Changes:
    """Every `period`-th block is different, counted from an offset."""
    changes: Changes = {}
    for keys in PERIODS:
        period, offset = (cut.value(key) for key in keys)
        if isinstance(period, int) and isinstance(offset, int):
            marked = cut.renumber([index for index in range(cut.depth) if index % period == offset])
            changes |= dict(zip(keys, _period(marked, len(cut.kept), period), strict=False))
    return changes


def _period(marked: list[int], depth: int, old: int) -> tuple[int, ...]:
    """A period and an offset that mark exactly these of `depth` blocks, the old period if it can be; or nothing."""
    if not marked:
        return depth + 1, depth
    offset = marked[0]
    for period in (old, *range(1, depth + 1)):
        if offset < period and marked == list(range(offset, depth, period)):
            return period, offset
    return ()


def _scale_depth(cut: Cut) -> Changes:
    """Branches are scaled by `scale_depth` over the root of the depth: what they are scaled by must stay."""
    scale = cut.value("scale_depth")
    return {"scale_depth": scale * math.sqrt(len(cut.kept) / cut.depth)} if isinstance(scale, (int, float)) else {}
