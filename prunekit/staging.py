"""The folder beside the target where a run keeps what it has finished; nothing half-made is ever seen.

.OUT.prunekit/
    lock                 held by the run that is at work, given back by the system however it ends
    signature.json       what the run depends on; another run may go on from here only if it is the same
    blocks/00003.safetensors   each pruned block, written, synced and renamed before the next begins
    probe.safetensors    a short sequence and the pruned model's logits for it
    export/              the model folder being assembled, moved to OUT when it has been verified
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors.torch import save_file
from torch import Tensor

from prunekit.checkpoint import Copy, read_json, read_metadata, read_safetensors
from prunekit.errors import InputError, ResourceError, UsageError

try:
    import fcntl
except ImportError:  # Windows: two runs at once on one target are not noticed
    fcntl = None

SIGNATURE = "signature.json"
LOCK = "lock"


@dataclass
class Staging:
    """One run's working folder; `open` begins or resumes it, `publish` moves the result into place.

    As a context manager it lets go of the folder at the end: finished blocks stay for the next run, and a folder
    without any is removed.
    """

    target: Path
    folder: Path
    force: bool = False
    resumed: bool = False
    _lock: int | None = None

    @classmethod
    def open(cls, target: Path, signature: Mapping[str, Any], *, force: bool = False, restart: bool = False) -> Self:
        """Begin a run that will end at `target`, or go on with one that was interrupted.

        Raises UsageError when the target is there already, when another run is at work on it, or when an
        interrupted run had another signature; InputError when the place cannot be written.
        """
        check_target(target, force=force)
        staging = cls(target, target.parent / f".{target.name}.prunekit", force)
        with storage_errors(target):
            staging.folder.mkdir(parents=True, exist_ok=True)
            staging._lock = _acquire(staging.folder / LOCK, target)
            try:
                staging.resumed = staging._begin(json.loads(json.dumps(signature)), restart)
            except BaseException:
                staging.release()
                raise
        return staging

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.finished_blocks():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let other runs use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _begin(self, signature: dict[str, Any], restart: bool) -> bool:
        """Whether there is a run to go on with; what it left of an export is dropped."""
        path = self.folder / SIGNATURE
        shutil.rmtree(self.export_dir, ignore_errors=True)
        if restart or not path.is_file() or not self.finished_blocks():
            shutil.rmtree(self.folder / "blocks", ignore_errors=True)
            (self.folder / "blocks").mkdir()
            write_atomically(path, json.dumps(signature, indent=2, sort_keys=True) + "\n")
            return False
        _check_signature(read_json(path), signature, self.folder)
        return True

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

    def write_block(self, index: int, tensors: Mapping[str, Tensor], notes: Sequence[str] = ()) -> None:
        """Commit one block and what there was to remark: write, sync, rename.

        Raises ResourceError when the disk is full.
        """
        path = self.block_path(index)
        with storage_errors(path):
            partial = path.with_suffix(".partial")
            ordered = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
            save_file(ordered, partial, {"notes": json.dumps(list(notes))})
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)

    def notes(self, index: int) -> list[str]:
        """What was remarked when a finished block was pruned."""
        return json.loads(read_metadata(self.block_path(index))["notes"])

    def read_block(self, index: int, names: list[str], copy: Copy = Tensor.clone) -> dict[str, Tensor]:
        """The named tensors of a finished block in their stored dtype, or what `copy` makes of them."""
        return read_safetensors({self.block_path(index): names}, copy)

    @property
    def probe_path(self) -> Path:
        """Token ids and the pruned model's logits for them, against which the export is verified."""
        return self.folder / "probe.safetensors"

    def write_probe(self, ids: Tensor, logits: Tensor) -> None:
        """Keep `input_ids` (1, tokens) and `logits` (tokens, vocabulary) in float32."""
        with storage_errors(self.probe_path):
            save_file(
                {"input_ids": ids.cpu().contiguous(), "logits": logits.float().cpu().contiguous()},
                self.probe_path,
            )

    def publish(self) -> None:
        """Move the assembled folder to the target, replacing an old one, and drop the working folder."""
        check_target(self.target, force=self.force)
        with storage_errors(self.target):
            replaced = self.folder / "replaced"
            shutil.rmtree(replaced, ignore_errors=True)
            if self.target.exists():
                os.replace(self.target, replaced)
            os.replace(self.export_dir, self.target)
            sync(self.target.parent)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def check_target(target: Path, *, force: bool = False) -> None:
    """Raise UsageError when the target holds something and `force` was not given."""
    with storage_errors(target):
        folder, empty = target.is_dir(), target.is_dir() and not any(target.iterdir())
        exists = target.exists() or target.is_symlink()
    if exists and not empty and not (folder and force):
        elsewhere = "choose another place with -o"
        raise UsageError(
            f"{target} exists already", hint=f"add --force to replace it, or {elsewhere}" if folder else elsewhere
        )


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
                f"the disk of {path.parent} is full",
                hint="free some space, then repeat the command: it goes on where it stopped",
            ) from error
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write {path}: {error.strerror or error}", hint="choose another place with -o"
            ) from error
        raise


def _acquire(path: Path, target: Path) -> int:
    """Lock a file for this process, until its descriptor is closed or the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return os.open(path, os.O_RDWR)  # a file system without locks
        raise UsageError(
            f"another run is at work on {target}", hint="wait until it ends, or choose another place with -o"
        ) from error
    return descriptor


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
