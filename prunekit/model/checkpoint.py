"""A model folder on disk: its config as JSON, an index of its tensors, and lazy reads from safetensors.

Nothing here builds a model. Every read copies the bytes out of the file, so that no mapping stays open and
resident memory holds the tensors that were asked for and nothing else.
"""

import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunekit.errors import InputError, UnsupportedError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
BUFFER_DTYPES = {"BOOL", "U8", "I8", "I16", "I32", "I64"}  # masks and position ids of older families
BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "BF16": 16, "F16": 16, "I16": 16}
PACKED_NAMES = ("qweight", "qzeros", "g_idx", "weight_packed", "absmax")
WEIGHT_FILES = re.compile(
    r".*\.(safetensors|bin|pt|pth|pkl|pickle|ckpt|npz|h5|msgpack|gguf|onnx|onnx_data|ot|index\.json)$"
)

Copy = Callable[[Tensor], Tensor]  # must not hand back the tensor it is given: its file is about to be closed


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: its safetensors dtype name, its shape, and the file of the folder that holds it."""

    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of data on disk."""
        return self.elements * BITS.get(self.dtype, 8) // 8


@dataclass(frozen=True)
class Checkpoint:
    """A local model folder whose weights are safetensors in float32, bfloat16 or float16."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the headers of a folder, and no weight.

        Raises InputError when something is missing or corrupt, UnsupportedError when the folder is sound but
        holds what prunekit does not prune (quantised weights, pickles).
        """
        if not folder.is_dir():
            raise InputError(
                f"{folder} is not a folder",
                hint="give a model folder, a hub id such as org/name, or 'sample'",
            )
        config = _read_config(folder)
        tensors: dict[str, TensorInfo] = {}
        for file, expected in _weight_files(folder).items():
            found = read_header(folder / file)
            if expected is not None and (absent := sorted(expected - found.keys())):
                raise InputError(f"{INDEX} places {absent[0]} in {file}, which does not hold it")
            tensors |= {name: info for name, info in found.items() if expected is None or name in expected}
        _check_dtypes(tensors)
        return cls(folder, config, tensors)

    def read(self, names: Iterable[str], copy: Copy = Tensor.clone) -> dict[str, Tensor]:
        """Fresh CPU tensors in their stored dtype, or what `copy` makes of them.

        Raises InputError naming a tensor with NaN or infinite values.
        """
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensors[name].file, []).append(name)
        return read_safetensors({self.folder / file: wanted for file, wanted in by_file.items()}, copy)

    def fingerprint(self) -> dict[str, str]:
        """File name -> sha256 of its content, for the config, every weight file and the code that the model brings."""
        code = self.folder.glob("*.py") if "auto_map" in self.config else ()
        files = ["config.json", *sorted(path.name for path in code)]
        files += sorted({info.file for info in self.tensors.values()})
        with ThreadPoolExecutor() as pool:
            return dict(zip(files, pool.map(lambda file: _sha256(self.folder / file), files), strict=True))

    def side_files(self) -> list[Path]:
        """Every file an export carries over unchanged: tokenizer, chat template, generation config, licence.

        Python files belong to a model only when one of its configs names them in an `auto_map`.
        """
        left_out = {"config.json", "README.md", "prunekit.json"}
        configs = (path.read_text(encoding="utf-8", errors="replace") for path in self.folder.glob("*config.json"))
        own_code = any('"auto_map"' in text for text in configs)
        return sorted(
            path
            for path in self.folder.iterdir()
            if path.is_file()
            and path.name not in left_out
            and not path.name.startswith(".")
            and not WEIGHT_FILES.match(path.name)
            and (own_code or path.suffix != ".py")
        )


def read_safetensors(wanted: Mapping[Path, Iterable[str]], copy: Copy = Tensor.clone) -> dict[str, Tensor]:
    """Copy the named tensors out of each file, checked to be finite; the files are closed again on return."""
    tensors: dict[str, Tensor] = {}
    for path, names in wanted.items():
        with _open_safetensors(path) as file:
            for name in names:
                tensors[name] = copy(finite(f"{name} in {path.name}", file.get_tensor(name)))
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The free-form strings in the header of a safetensors file."""
    with _open_safetensors(path) as file:
        return file.metadata() or {}


def finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself; raises InputError naming it when it has NaN or infinite values."""
    # the sum of a finite tensor can overflow and a non-finite one cannot hide in it: look closer only then
    if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
        raise InputError(f"{name} has NaN or infinite values", hint="the checkpoint is damaged; fetch it again")
    return tensor


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(
            f"{path.name} is not a complete safetensors file: {error}", hint="fetch the file again"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{folder} has no config.json, so it is not a Hugging Face model folder",
            hint="give the folder that holds config.json and the weights",
        )
    config = read_json(path)
    if quantised := config.get("quantization_config") or config.get("compression_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise UnsupportedError(
            f"the checkpoint is quantised ({method}); prunekit prunes F32, BF16 and F16 weights",
            hint="prune the unquantised model, then quantise the result",
        )
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises InputError when it is unreadable, not JSON, or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; a JSON object was expected")
    return content


def _weight_files(folder: Path) -> dict[str, set[str] | None]:
    """File name -> the tensors the index places in it (None: all of them); one file wins, as in transformers."""
    if (folder / SINGLE).is_file():
        return {SINGLE: None}
    if (folder / INDEX).is_file():
        return _indexed_files(folder)
    if any(folder.glob("*.bin")):
        raise UnsupportedError(
            "the weights are pickles (pytorch_model.bin), which prunekit never opens",
            hint=conversion_hint(str(folder), f"{folder.resolve().name}-safetensors"),
        )
    raise InputError(
        f"{folder} holds no {SINGLE} and no {INDEX}", hint="fetch the model again, with its safetensors files"
    )


def conversion_hint(source: str, target: str) -> str:
    """A command that writes a model with pickled weights as safetensors, outside prunekit."""
    steps = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T",
        f"M.from_pretrained({source!r}, dtype='auto').save_pretrained({target!r})",
        f"T.from_pretrained({source!r}).save_pretrained({target!r})",
    )
    return f'convert it once, and prune {target}: python -c "{"; ".join(steps)}"'


def _indexed_files(folder: Path) -> dict[str, set[str] | None]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{INDEX} has no weight_map from tensor names to files")
    files: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\]+\.safetensors", file):
            raise InputError(f"{INDEX} places {name} in {file!r}; expected a safetensors file of this folder")
        files.setdefault(file, set()).add(name)
    for file in files:
        if not (folder / file).is_file():
            raise InputError(
                f"{file} is missing; {INDEX} names {len(files)} weight files", hint="fetch the model again"
            )
    return dict(files)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """What a safetensors file holds, by name."""
    file = path.name
    with _open_safetensors(path) as handle:
        slices = {name: handle.get_slice(name) for name in handle.offset_keys()}
        return {name: TensorInfo(part.get_dtype(), tuple(part.get_shape()), file) for name, part in slices.items()}


def _check_dtypes(tensors: Mapping[str, TensorInfo]) -> None:
    for name, info in tensors.items():
        if name.rpartition(".")[2] in PACKED_NAMES or info.dtype not in STORED_DTYPES.keys() | BUFFER_DTYPES:
            raise UnsupportedError(
                f"{name} is {info.dtype}; prunekit prunes F32, BF16 and F16",
                hint="prune the unquantised model, then quantise the result",
            )


def _sha256(path: Path) -> str:
    # the hub's cache names each weight file by its sha256
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name):
        return target.name
    if not stat.S_ISREG(target.stat().st_mode):
        raise InputError(f"{path} is not a regular file")
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
