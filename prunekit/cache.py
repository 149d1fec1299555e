"""Tensors that took long to compute, kept from run to run: a safetensors file each, named by what decides its content.

A cache never fails a run: a file that cannot be read or was damaged counts as absent, one that cannot be written is not
written. Files appear whole (temporary file, then rename), so runs may share a cache.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor


def folder() -> Path:
    """`PRUNEKIT_CACHE`, else `prunekit` in the platform's cache folder (Linux: XDG_CACHE_HOME, ~/.cache)."""
    if chosen := os.environ.get("PRUNEKIT_CACHE"):
        return Path(chosen).expanduser()
    return user_cache_path("prunekit", appauthor=False)


def entry(kind: str, **parts: object) -> Path:
    """The file of an entry of a kind, named by a hash of everything that decides its content."""
    return folder() / kind / f"{key(**parts)}.safetensors"


def key(**parts: object) -> str:
    """sha256 of everything that decides the content of an entry, given as JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def ids_digest(ids: Tensor) -> str:
    """sha256 of token ids as little-endian int64, in order; the same on every machine."""
    return hashlib.sha256(ids.to("cpu", torch.int64).contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def digest(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, then of its dtype and shape."""
    content = tensor.contiguous().flatten().view(torch.uint8).numpy()
    name = f"{tensor.dtype} {tuple(tensor.shape)}"
    return hashlib.sha256(content.data).hexdigest() + hashlib.sha256(name.encode()).hexdigest()[:8]


def read(path: Path) -> tuple[Tensor, dict[str, Any]] | None:
    """The tensor of an entry and what was kept with it; None if there is no sound entry."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensor, metadata = file.get_tensor("tensor"), file.metadata() or {}
        kept = json.loads(metadata.get("kept", ""))
    except (OSError, SafetensorError, ValueError):
        return None
    return (tensor, kept) if metadata.get("seal") == _seal(tensor, kept) else None


def write(path: Path, tensor: Tensor, kept: Mapping[str, Any] | None = None) -> None:
    """Write an entry whole or not at all; `kept` is JSON that is read back with the tensor."""
    from safetensors.torch import save

    kept = kept or {}
    data = save({"tensor": tensor.contiguous()}, {"kept": json.dumps(kept), "seal": _seal(tensor, kept)})
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except OSError:
            os.unlink(name)


def _seal(tensor: Tensor, kept: Mapping[str, Any]) -> str:
    return key(tensor=digest(tensor), kept=kept)
