"""Token ids kept from run to run, a safetensors file each, named by a hash of everything that decides them.

A cache never fails a run: a file that cannot be read or was damaged counts as absent, one that cannot be
written is not written. Files appear whole (temporary file, then rename), so runs may share a cache.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def folder() -> Path:
    """`PRUNEKIT_CACHE`, else `prunekit` in the platform's cache folder (Linux: XDG_CACHE_HOME, ~/.cache)."""
    if chosen := os.environ.get("PRUNEKIT_CACHE"):
        return Path(chosen).expanduser()
    return _platform_folder() / "prunekit"


def _platform_folder() -> Path:
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return Path(xdg) if os.path.isabs(xdg) else home / ".cache"


def key(**parts: object) -> str:
    """The name of an entry: a hash of everything that decides its content."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest(ids: Tensor) -> str:
    """sha256 of token ids as little-endian int64, in order; the same on every machine."""
    return hashlib.sha256(ids.to("cpu", torch.int64).contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def read(path: Path) -> tuple[Tensor, dict[str, Any]] | None:
    """The token ids of an entry and what was kept with them; None when there is no sound entry."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            ids, metadata = file.get_tensor("ids"), file.metadata() or {}
        kept = json.loads(metadata.get("kept", ""))
    except (OSError, SafetensorError, ValueError):
        return None
    return (ids, kept) if metadata.get("seal") == _seal(ids, kept) else None


def write(path: Path, ids: Tensor, kept: Mapping[str, Any]) -> None:
    """Write an entry whole or not at all; `kept` is JSON that comes back with the ids."""
    from safetensors.torch import save

    write_whole(path, save({"ids": ids.contiguous()}, {"kept": json.dumps(kept), "seal": _seal(ids, kept)}))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all; one that cannot be written is left out."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except OSError:
            os.unlink(name)


def _seal(ids: Tensor, kept: Mapping[str, Any]) -> str:
    return key(ids=digest(ids), shape=list(ids.shape), kept=kept)
