"""Take blocks out of a model folder: which tensor gets which name, and what changes in config.json.

No tensor is read: a folder without some blocks is the same tensors under other names, so whoever writes it needs
memory for one of them at a time. Blocks that follow a removed one move up. A model whose mathematics depends on where a
block stands is refused.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from prunekit.depth.config import Changes, patch_config
from prunekit.depth.proof import prove_equal, refuse_shared_mathematics
from prunekit.errors import InputError, UnsupportedError, UsageError
from prunekit.model.changes import FolderChanges
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.model.skeleton import build_skeleton, load_config

PROTECT = "--protect-blocks first:1,last:1"
NUMBERED = re.compile(r"(.+?)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Removal:
    """A model folder without some of its blocks.

    `names` leads from the new name of every tensor to the name it has in the source, in the source's order; `config`
    holds the keys of config.json that change, a nested one such as `text_config` given whole.
    """

    removed: tuple[int, ...]
    kept: tuple[int, ...]
    names: dict[str, str]
    config: dict[str, Any]

    def added_to(self, changes: FolderChanges, model: PrunableModel) -> FolderChanges:
        """These changes of a folder, too; a checkpoint that was saved anew may have other names than the source."""

        def rename(stored: Collection[str]) -> dict[str, str]:
            return rename_tensors(stored, model.stack_path, len(model.blocks), self.removed)

        return replace(changes, config={**changes.config, **self.config}, rename=rename)


def plan_removal(model: PrunableModel, removed: Collection[int]) -> Removal:
    """How the folder changes when these blocks are removed.

    Raises UsageError for blocks that are not there or for all of them, UnsupportedError when a block's mathematics
    depends on its index, or when the config cannot describe the model that is left.
    """
    depth = len(model.blocks)
    gone = _check_removed(removed, depth)
    kept = tuple(index for index in range(depth) if index not in gone)
    refuse_shared_mathematics(model)
    names = rename_tensors(model.checkpoint.tensors, model.stack_path, depth, gone)
    return Removal(gone, kept, names, _shorten(model, kept, heads=_stored_heads(model)))


def rename_tensors(stored: Collection[str], stack_path: str, depth: int, removed: Collection[int]) -> dict[str, str]:
    """New name -> stored name of every tensor that stays, in the given order.

    Blocks beyond the model's depth are dropped: heads that predict several tokens, which transformers does not load and
    which continue the old last block. Raises UnsupportedError when the blocks cannot be told by their names.
    """
    prefix = stored_prefix(stored, stack_path, depth)
    places = {old: new for new, old in enumerate(index for index in range(depth) if index not in removed)}
    names: dict[str, str] = {}
    for name in stored:
        index, rest = split_name(name, prefix)
        if index is None:
            names[name] = name
        elif index in places:
            names[f"{prefix}.{places[index]}.{rest}"] = name
    return names


def stored_prefix(stored: Iterable[str], stack_path: str, depth: int) -> str:
    """The path of the decoder blocks in the files, which need not be their path in the model (`h` for `transformer.h`).

    Raises UnsupportedError naming what was found when it is not clear.
    """
    found: dict[str, set[int]] = {}
    for name in stored:
        if match := NUMBERED.fullmatch(name):
            found.setdefault(match[1], set()).add(int(match[2]))
    fitting = [path for path, indices in found.items() if indices >= set(range(depth))]
    for choice in (
        [path for path in fitting if path == stack_path],
        [path for path in fitting if f".{stack_path}".endswith(f".{path}") or path.endswith(f".{stack_path}")],
        [path for path in fitting if len(found[path]) == depth] if len(fitting) > 1 else fitting,
    ):
        if len(choice) == 1:
            return choice[0]
    names = ", ".join(f"{path} ({len(indices)})" for path, indices in found.items()) or "none"
    raise UnsupportedError(f"cannot tell which tensors are the {depth} blocks of {stack_path}; numbered names: {names}")


def protected_blocks(text: str, depth: int) -> frozenset[int]:
    """The blocks that `first:N,last:M,i,j` names, or no block for `none`; raises UsageError for anything else."""
    if text.strip() in ("none", ""):
        return frozenset()
    blocks: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(?:(first|last):)?(\d+)", part.strip())
        if not match:
            raise UsageError(
                f"{part.strip()!r} of {text!r} is not first:N, last:N or the index of a block", hint=PROTECT
            )
        number = int(match[2])
        if number > depth if match[1] else number >= depth:
            raise UsageError(f"{part.strip()} is beyond the model's {depth} blocks, 0 to {depth - 1}", hint=PROTECT)
        ends = {"first": range(number), "last": range(depth - number, depth)}
        blocks.update(ends.get(match[1], [number]))
    return frozenset(blocks)


def blocks_to_remove(ratio: float, depth: int, protected: Collection[int]) -> int:
    """How many blocks a ratio means, at least one; raises UsageError if more would be removed than are unprotected."""
    if not 0 < ratio < 1:
        raise UsageError(f"ratio {ratio:g} removes no blocks; expected a number between 0 and 1", hint="--ratio 0.25")
    wanted, free = max(1, round(ratio * depth)), depth - len(set(protected))
    if wanted > free or wanted == depth:
        free = min(free, depth - 1)
        raise UsageError(
            f"ratio {ratio:g} removes {wanted} of {depth} blocks, and {len(set(protected))} are protected; "
            f"at most {free} can be removed",
            hint=f"--ratio {free / depth:.2f}" if free > 0 else "--protect-blocks none",
        )
    return wanted


def parse_blocks(text: str, depth: int) -> tuple[int, ...]:
    """The ascending indices that `21-28,30` names; raises UsageError for anything else."""
    blocks: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UsageError(
                f"{part.strip()!r} of {text!r} is not a block or a range of blocks", hint="blocks=21-28,30"
            )
        if last >= depth:
            raise UsageError(f"block {last} is beyond the model's {depth} blocks, 0 to {depth - 1}")
        blocks.update(range(first, last + 1))
    return tuple(sorted(blocks))


def _check_removed(removed: Collection[int], depth: int) -> tuple[int, ...]:
    gone = tuple(sorted(set(removed)))
    if not gone:
        raise UsageError("no block is named to be removed", hint="--set blocks=21-28,30")
    if gone[0] < 0 or gone[-1] >= depth:
        raise UsageError(f"blocks {list(gone)} are to be removed; the model has blocks 0 to {depth - 1}")
    if len(gone) == depth:
        raise UsageError(f"all {depth} blocks are to be removed; at least one must stay")
    return gone


def split_name(name: str, prefix: str) -> tuple[int | None, str]:
    """Index of the block a tensor belongs to, and its name in the block; None for a tensor outside the blocks."""
    number, _, rest = name.removeprefix(f"{prefix}.").partition(".")
    inside = name.startswith(f"{prefix}.") and number.isdigit() and bool(rest)
    return (int(number), rest) if inside else (None, name)


def _stored_heads(model: PrunableModel) -> bool:
    """Whether the files hold blocks beyond the model's depth."""
    depth = len(model.blocks)
    prefix = stored_prefix(model.checkpoint.tensors, model.stack_path, depth)
    return any((split_name(name, prefix)[0] or 0) >= depth for name in model.checkpoint.tensors)


def _shorten(model: PrunableModel, kept: tuple[int, ...], *, heads: bool) -> Changes:
    """The changes of config.json, proven by building the model that they describe."""
    remote = runs_own_code(model)
    with tempfile.TemporaryDirectory(prefix="prunekit-") as place:
        changed = with_changes(model.checkpoint, Path(place))

        def rebuild(changes: Changes) -> PretrainedConfig:
            return load_config(changed(changes), remote)

        try:
            changes = patch_config(model.checkpoint.config, model.config, kept, rebuild, heads=heads)
            shorter = build_skeleton(changed(changes), trust_remote_code=remote)
        except InputError as error:
            reason = error.message.replace(f"{place}/", "")
            raise UnsupportedError(f"the blocks that are left make no model: {reason}") from error
    changed_since = bool(model.ffns) or _has_stored_buffers(model)
    fresh = build_skeleton(model.checkpoint, trust_remote_code=remote) if changed_since else model.skeleton
    prove_equal(fresh, shorter, model.stack_path, kept)
    return changes


def runs_own_code(model: PrunableModel) -> bool:
    """Whether the model is built by code that came with it."""
    return any(type(part).__module__.startswith("transformers_modules") for part in (model.config, model.skeleton))


def with_changes(checkpoint: Checkpoint, folder: Path) -> Callable[[Changes], Checkpoint]:
    """Put the model's own code into `folder`; returns what writes the config there with some of its keys changed."""
    for code in checkpoint.folder.glob("*.py"):
        shutil.copyfile(code, folder / code.name)

    def changed(changes: Changes) -> Checkpoint:
        config = {**checkpoint.config, **changes}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return replace(checkpoint, folder=folder, config=config)

    return changed


def _has_stored_buffers(model: PrunableModel) -> bool:
    """Whether a run may have filled buffers of the blocks with stored values, so that they tell nothing any more."""
    parameters = {name for name, _ in model.stack.named_parameters(remove_duplicate=False)}
    return any(name not in parameters for name in model.stack.state_dict())
