"""Write the pruned model as an ordinary folder: safetensors shards and index, config and side files.

Tensors keep the names, the order and the dtypes of the source; where blocks were removed, the following ones move
up. They are written as they are read, so a model larger than memory can be exported. Shards follow huggingface_hub's
rules, and the same model gives the same bytes.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from prunekit.depth.removal import plan_removal
from prunekit.errors import UsageError
from prunekit.export.manifest import LinearResult, Result
from prunekit.files import storage_errors, sync, write_atomically
from prunekit.model.changes import FolderChanges
from prunekit.model.checkpoint import BITS, INDEX, STORED_DTYPES, Checkpoint, TensorInfo
from prunekit.model.prunable import PrunableModel, fit
from prunekit.plan import Layout, PrunePlan
from prunekit.width.config import current_widths
from prunekit.width.layouts import Narrowed

BATCH_BYTES = 64 * 2**20  # read at once: few openings of a file, little memory
NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()} | {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}

Read = Callable[[list[str]], dict[str, Tensor]]


def folder_changes(model: PrunableModel, layout: Layout = "uniform", plan: PrunePlan | None = None) -> FolderChanges:
    """What the folder of a model says differently from its source's: fewer blocks, narrower ones, what the plan adds.

    Raises UsageError for widths that the layout cannot hold, UnsupportedError when config.json cannot describe the
    model.
    """
    changes = FolderChanges()
    if model.removed:
        changes = plan_removal(model, model.removed).added_to(changes, model)
    if model.ffns:
        changes = Narrowed(model, layout).added_to(changes)
    for kind, actions in plan.kinds().items() if plan else ():
        changes = kind.exported(model, actions, changes)
    return changes


def export(
    model: PrunableModel, folder: Path, changes: FolderChanges | None = None, *, max_shard_size: str = "5GB"
) -> None:
    """Write weights, index, config and side files of a model, with its edits and what else `changes` about it.

    Without changes (None: those of `folder_changes`) config.json is the source's, byte for byte; else only the keys
    that must change do. Raises UsageError for a size that cannot be read, ResourceError when the disk is full,
    InputError when the folder cannot be written.
    """
    limit, changes = parse_size(max_shard_size), folder_changes(model) if changes is None else changes
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _stored(model, folder, changes) as (infos, read):
            names = changes.rename(infos)
            write_weights(folder, {new: infos[old] for new, old in names.items()}, _renamed(read, names), limit)
        _write_config(model, folder, changes.config)
        for path in model.checkpoint.side_files():
            copy(path, folder / path.name)
        for name, text in changes.files.items():
            write_atomically(folder / name, text)
        sync(folder)


def measure(model: PrunableModel, changes: FolderChanges | None = None) -> Result:
    """Count what is written: parameters, and the zeros in every linear of the blocks; one block in memory at a time.

    Linears are named by their paths in the exported folder.
    """
    changes = folder_changes(model) if changes is None else changes
    linears: dict[str, LinearResult] = {}
    for position, block in enumerate(model.kept):
        names = {f"{linear.path}.weight": linear.path for linear in block.linears}
        for name, weight in model.read(names).items():
            written = changes.tensor(name, weight)
            path = f"{model.stack_path}.{position}{names[name].removeprefix(block.path)}"
            zeros, weights = written.numel() - int(written.count_nonzero()), written.numel()
            linears[path] = LinearResult(weights=weights, zeros=zeros, sparsity=zeros / max(1, weights))
    weights = sum(part.weights for part in linears.values())
    zeros = sum(part.zeros for part in linears.values())
    before = sum(_count(info.shape) for info in model.tensors.values())
    inside = [name for block in model.blocks for name in model.block_tensors(block.index)]
    left = model.stored(name for block in model.kept for name in model.block_tensors(block.index))
    written = sum(_count(changes.info(name, info).shape) for name, info in left.items())
    return Result(
        parameters=before - sum(_count(model.tensors[name].shape) for name in inside) + written,
        parameters_before=before,
        blocks=len(model.kept),
        removed_blocks=tuple(sorted(model.removed)),
        widths=tuple(current_widths(model).values()) if model.ffns else (),
        weights=weights,
        zeros=zeros,
        sparsity=zeros / max(1, weights),
        linears=linears,
    )


def write_weights(folder: Path, infos: Mapping[str, TensorInfo], read: Read, limit: int) -> None:
    """Write tensors as they are read, in shards of at most `limit` bytes, and their index."""
    split = split_state_dict_into_shards_factory(
        dict(infos),
        get_storage_size=lambda info: info.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    for file, names in split.filename_to_tensors.items():
        write_safetensors(folder / file, {name: infos[name] for name in names}, read)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_atomically(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_safetensors(path: Path, infos: Mapping[str, TensorInfo], read: Read) -> None:
    """Write one safetensors file, asking `read` for a few tensors at a time, and sync it.

    The format: eight bytes of header length, a JSON header padded with blanks to a multiple of eight, the
    data without gaps. Wider dtypes come first, which keeps every tensor aligned; within one width the order
    is that of `infos`.
    """
    ordered = dict(sorted(infos.items(), key=lambda item: -BITS.get(item[1].dtype, 8)))
    with path.open("wb") as file:
        file.write(_header(ordered))
        for names in _batches(ordered):
            tensors = read(names)
            for name in names:
                file.write(_data(name, tensors.pop(name), infos[name]))
        file.flush()
        os.fsync(file.fileno())


def parse_size(text: str) -> int:
    """Bytes in `500MB`, `5GB` or `2GiB`; raises UsageError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)((?:[KMGT]i?)?)B", text.strip())
    base = 1024 if match and match[2].endswith("i") else 1000
    size = float(match[1]) * base ** " KMGT".index(match[2][:1] or " ") if match else 0
    if size < 1:
        raise UsageError(f"size {text!r} is not a number of bytes such as 500MB", hint="--max-shard-size 5GB")
    return int(size)


def _count(shape: Iterable[int]) -> int:
    return int(torch.Size(shape).numel())


def _header(infos: Mapping[str, TensorInfo]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, info in infos.items():
        end = start + info.nbytes
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _batches(infos: Mapping[str, TensorInfo]) -> Iterator[list[str]]:
    """The names in order, in groups of at most BATCH_BYTES or one tensor."""
    names: list[str] = []
    size = 0
    for name, info in infos.items():
        if names and size + info.nbytes > BATCH_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += info.nbytes
    if names:
        yield names


def _data(name: str, tensor: Tensor, info: TensorInfo) -> memoryview:
    """The bytes of a tensor (little-endian, as torch's machines are), checked against the header."""
    found = (NAMES.get(tensor.dtype), tuple(tensor.shape))
    if found != (info.dtype, info.shape):
        raise RuntimeError(f"{name} became {found}; the header says {(info.dtype, info.shape)}")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def _stored(
    model: PrunableModel, folder: Path, changes: FolderChanges
) -> Iterator[tuple[Mapping[str, TensorInfo], Read]]:
    """The tensors to write under the names of the source's files, and what reads them.

    A model that transformers converted while loading, and that was edited, is first saved by transformers, which
    can turn the names back.
    """
    if model.streaming:
        yield _infos(model, changes), _reader(model, changes)
    elif model.edits is None or not any(model.edits.holds(block.index) for block in model.kept):
        yield model.checkpoint.tensors, model.checkpoint.read
    else:
        work = folder / ".saving"
        shutil.rmtree(work, ignore_errors=True)
        saved = _save_whole(model, work, changes)
        yield saved.tensors, saved.read
        shutil.rmtree(work)


def _infos(model: PrunableModel, changes: FolderChanges) -> dict[str, TensorInfo]:
    """What is written of a model whose tensors are stored under its own names, in the source's order."""
    infos = dict(model.checkpoint.tensors)
    stored = model.stored(name for block in model.kept for name in model.block_tensors(block.index))
    infos |= {name: changes.info(name, info) for name, info in stored.items()}
    return infos


def _renamed(read: Read, names: Mapping[str, str]) -> Read:
    """Reads tensors under the names they get, where `names` says which they have."""

    def renamed(wanted: list[str]) -> dict[str, Tensor]:
        tensors = read([names[name] for name in wanted])
        return {name: tensors[names[name]] for name in wanted}

    return renamed


def _reader(model: PrunableModel, changes: FolderChanges) -> Read:
    """Reads edited blocks from the staging folder; tensors that the model ignores come from the source."""
    known = set(model.skeleton.state_dict())

    def read(names: list[str]) -> dict[str, Tensor]:
        ignored = [name for name in names if name not in known]
        found = model.read([name for name in names if name in known])
        found = {name: changes.tensor(name, tensor) for name, tensor in found.items()}
        return found | model.checkpoint.read(ignored)

    return read


def _save_whole(model: PrunableModel, folder: Path, changes: FolderChanges) -> Checkpoint:
    """Let transformers write a model, with its edits, into a folder."""
    assert model.whole is not None
    for block in model.kept:
        tensors = model.read(model.block_tensors(block.index))
        tensors = {name: changes.tensor(name, tensor) for name, tensor in tensors.items()}
        state = {name.removeprefix(f"{block.path}."): tensor for name, tensor in tensors.items()}
        part = model.whole.get_submodule(block.path)
        fit(part, state)
        part.load_state_dict(state, assign=True)
    if model.edits is not None and model.edits.holds("outside"):
        outside = [name for name in model.tensors if not name.startswith(f"{model.stack_path}.")]
        model.whole.load_state_dict(model.read(outside), strict=False)
    model.whole.save_pretrained(folder)
    return Checkpoint.open(folder)


def _write_config(model: PrunableModel, folder: Path, patch: Mapping[str, Any]) -> None:
    if not patch:
        copy(model.checkpoint.folder / "config.json", folder / "config.json")
    else:
        text = json.dumps(model.checkpoint.config | dict(patch), indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / "config.json", text)


def copy(source: Path, target: Path) -> None:
    """Copy a file, and sync it."""
    shutil.copyfile(source, target)
    sync(target)
