"""The folder beside the target where a run keeps what it has finished, so that nothing half-made is ever seen.

    .OUT.prunekit/
        signature.json       what the run depends on; another run may go on from here only if it is the same
        blocks/00003.safetensors   each pruned block, written, synced and renamed before the next begins
        probe.safetensors    a short sequence and the pruned model's logits for it
        export/              the model folder being assembled, moved to OUT when it has been verified
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Self

from safetensors.torch import save_file
from torch import Tensor

from prunekit.checkpoint import read_safetensors
from prunekit.errors import InputError, ResourceError, UsageError

SIGNATURE = "signature.json"


@dataclass
class Staging:
    """One run's working folder; `open` begins or resumes it, `publish` moves the result into place."""

    target: Path
    folder: Path
    resumed: bool = False

    @classmethod
    def open(cls, target: Path, signature: Mapping[str, Any], *, force: bool = False, restart: bool = False) -> Self:
        """Begin a run that will end at `target`, or go on with one that was interrupted.

        Raises UsageError when the target is there already or an interrupted run had another signature,
        InputError when the place cannot be written.
        """
        check_target(target, force=force)
        staging = cls(target, target.parent / f".{target.name}.prunekit")
        with storage_errors(target):
            if restart:
                shutil.rmtree(staging.folder, ignore_errors=True)
            staging.resumed = staging._begin(dict(signature))
        return staging

    def _begin(self, signature: dict[str, Any]) -> bool:
        path = self.folder / SIGNATURE
        if path.is_file():
            _check_signature(json.loads(path.read_text(encoding="utf-8")), signature, self.folder)
            return True
        (self.folder / "blocks").mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(signature, indent=2, sort_keys=True) + "\n")
        return False

    @property
    def export_dir(self) -> Path:
        """Where the model folder is assembled before it is moved to the target."""
        return self.folder / "export"

    def block_path(self, index: int) -> Path:
        """The file of one finished block."""
        return self.folder / "blocks" / f"{index:05d}.safetensors"

    def has_block(self, index: int) -> bool:
        """Whether that block was finished, by this run or by the one it resumes."""
        return self.block_path(index).is_file()

    def finished_blocks(self) -> int:
        """How many blocks are finished."""
        return sum(1 for _ in (self.folder / "blocks").glob("*.safetensors"))

    def write_block(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Commit one block: write, sync, rename. Raises ResourceError when the disk is full."""
        path = self.block_path(index)
        with storage_errors(path):
            partial = path.with_suffix(".partial")
            save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, partial)
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)

    def read_block(self, index: int, names: list[str]) -> dict[str, Tensor]:
        """The named tensors of a finished block, in their stored dtype."""
        return read_safetensors({self.block_path(index): names})

    @property
    def probe_path(self) -> Path:
        """Token ids and the pruned model's logits for them, against which the export is verified."""
        return self.folder / "probe.safetensors"

    def write_probe(self, ids: Tensor, logits: Tensor) -> None:
        """Keep `input_ids` (1, tokens) and `logits` (tokens, vocabulary) in float32."""
        with storage_errors(self.probe_path):
            save_file({"input_ids": ids.cpu().contiguous(), "logits": logits.float().cpu().contiguous()}, self.probe_path)

    def publish(self) -> None:
        """Move the assembled folder to the target, replacing an old one, and drop the working folder."""
        with storage_errors(self.target):
            replaced = self.folder / "replaced"
            shutil.rmtree(replaced, ignore_errors=True)
            if self.target.exists():
                os.replace(self.target, replaced)
            os.replace(self.export_dir, self.target)
            sync(self.target.parent)
            shutil.rmtree(self.folder, ignore_errors=True)


def check_target(target: Path, *, force: bool = False) -> None:
    """Raise UsageError when the target holds something and `force` was not given."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() and not (force and target.is_dir()):
        hint = "add --force to replace it, or choose another place with -o" if target.is_dir() else "choose another place with -o"
        raise UsageError(f"{target} exists already", hint=hint)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all, also after a power cut."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Push a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's complaints about a disk into prunekit's errors."""
    try:
        yield
    except Exception as error:  # safetensors reports a full disk as its own error, with the code in its text
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise ResourceError(
                f"the disk of {path.parent} is full", hint="free some space, then repeat the command: it goes on where it stopped"
            ) from error
        if isinstance(error, OSError):
            raise InputError(f"cannot write {path}: {error.strerror}", hint="choose another place with -o") from error
        raise


def _check_signature(found: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    differing = [key for key in sorted(found.keys() | expected.keys()) if found.get(key) != expected.get(key)]
    if differing:
        details = "; ".join(_difference(key, found.get(key), expected.get(key)) for key in differing)
        raise UsageError(
            f"{folder} holds an interrupted run that differs from this one in {details}",
            hint="repeat the old command to go on with it, or add --restart to drop it",
        )


def _difference(key: str, found: Any, expected: Any) -> str:
    """Name the innermost part that differs: `recipe.ratio (0.5, now 0.6)`."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [part for part in sorted(found.keys() | expected.keys()) if found.get(part) != expected.get(part)]
        return ", ".join(_difference(f"{key}.{part}", found.get(part), expected.get(part)) for part in keys)
    return f"{key} ({_short(found)}, now {_short(expected)})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"
