"""Write the pruned model as an ordinary folder: safetensors shards and index, config and side files.

Tensors keep the names, the order and the dtypes of the source. They are written as they are read, so a model
larger than memory can be exported. Shards follow huggingface_hub's rules, and the same model gives the same
bytes.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from prunekit.checkpoint import BITS, INDEX, STORED_DTYPES, TensorInfo
from prunekit.errors import UsageError
from prunekit.manifest import LinearResult, Result
from prunekit.model import PrunableModel
from prunekit.sparsity import measure_sparsity
from prunekit.staging import storage_errors, sync, write_atomically

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


def export(
    model: PrunableModel, folder: Path, *, max_shard_size: str = "5GB", patch: Mapping[str, Any] | None = None
) -> None:
    """Write weights, index, config and side files of a model, edits included, into `folder`.

    `patch` holds the keys of config.json that change; without it the file is the source's, byte for byte.
    Raises UsageError for a size that cannot be read, ResourceError when the disk is full, InputError when the
    folder cannot be written.
    """
    limit = parse_size(max_shard_size)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write = write_weights if model.streaming else _save_whole
        write(model, folder, limit)
        _write_config(model, folder, patch)
        for path in model.checkpoint.side_files():
            _copy(path, folder / path.name)
        sync(folder)


def measure(model: PrunableModel) -> Result:
    """Count the zeros in every linear of the blocks, as they are stored; one block in memory at a time."""
    sizes = {path: linear.parameters for path, linear in model.linears().items()}
    linears = {path: _counted(sizes[path], sparsity) for path, sparsity in measure_sparsity(model).items()}
    weights = sum(part.weights for part in linears.values())
    zeros = sum(part.zeros for part in linears.values())
    return Result(
        parameters=sum(_count(info.shape) for info in model.tensors.values()),
        weights=weights,
        zeros=zeros,
        sparsity=zeros / max(1, weights),
        linears=linears,
    )


def write_weights(model: PrunableModel, folder: Path, limit: int) -> None:
    """Write every stored tensor of a streamed model, in shards of at most `limit` bytes, and their index."""
    infos = model.checkpoint.tensors
    split = split_state_dict_into_shards_factory(
        dict(infos),
        get_storage_size=lambda info: info.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    for file, names in split.filename_to_tensors.items():
        write_safetensors(folder / file, {name: infos[name] for name in names}, _reader(model))
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
        raise UsageError(f"size {text!r} is no number of bytes such as 500MB", hint="--max-shard-size 5GB")
    return int(size)


def _counted(weights: int, sparsity: float) -> LinearResult:
    zeros = round(sparsity * weights)
    return LinearResult(weights=weights, zeros=zeros, sparsity=zeros / max(1, weights))


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


def _reader(model: PrunableModel) -> Read:
    """Reads edited blocks from the staging folder; tensors that the model ignores come from the source."""
    known = set(model.skeleton.state_dict())

    def read(names: list[str]) -> dict[str, Tensor]:
        ignored = [name for name in names if name not in known]
        return model.read([name for name in names if name in known]) | model.checkpoint.read(ignored)

    return read


def _save_whole(model: PrunableModel, folder: Path, limit: int) -> None:
    """Let transformers write a model that it converted while loading: it alone can turn the names back."""
    assert model.whole is not None
    for block in model.blocks:
        tensors = model.read(model.block_tensors(block.index))
        state = {name.removeprefix(f"{block.path}."): tensor for name, tensor in tensors.items()}
        model.whole.get_submodule(block.path).load_state_dict(state, assign=True)
    work = folder / ".saving"
    shutil.rmtree(work, ignore_errors=True)
    model.whole.save_pretrained(work, max_shard_size=limit)
    for path in sorted([*work.glob("*.safetensors"), *work.glob(INDEX)]):
        sync(path)
        os.replace(path, folder / path.name)
    shutil.rmtree(work)


def _write_config(model: PrunableModel, folder: Path, patch: Mapping[str, Any] | None) -> None:
    if patch is None:
        _copy(model.checkpoint.folder / "config.json", folder / "config.json")
    else:
        text = json.dumps(model.checkpoint.config | dict(patch), indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / "config.json", text)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    sync(target)
