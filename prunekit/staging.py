"""The folder beside the target where a run keeps what it has finished; nothing half-made is ever seen.

.OUT.prunekit/               OUT/.prunekit where nothing can be moved from beside OUT into it, as when OUT is a mount
    lock                 held by the run that is at work, given back by the system however it ends
    signature.json       what the run depends on; another run may go on from here only if it is the same
    plan.json            what was decided, once it is
    blocks/00003.safetensors   each pruned block, written, synced and renamed before the next begins
    blocks/outside.safetensors embeddings, norm and head, where a method changed them
    work/                the state of long work, such as training, from which it can go on
    hidden/              hidden states that wait on disk; every run makes its own
    probe.safetensors    a short sequence and the pruned model's logits for it
    export/              the model folder being assembled, moved to OUT when it has been verified
    replaced/            what lay in OUT, while the new files are moved in; it comes back if that is cut short
    arriving.json        the names of the new files, from when the first may be in OUT
    old/                 what lay in OUT, once all new files are in place
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, Self

from safetensors.torch import save_file
from torch import Tensor

from prunekit.checkpoint import Copy, TensorInfo, read_header, read_json, read_metadata, read_safetensors
from prunekit.errors import InputError, ResourceError, UsageError
from prunekit.locate import WANTED

try:
    import fcntl
except ImportError:  # Windows: two runs at once on one target are not noticed
    fcntl = None

SIGNATURE = "signature.json"
LOCK = "lock"
PLAN = "plan.json"
INSIDE = ".prunekit"
REPLACED = "replaced"
CONFIG, MANIFEST = "config.json", "prunekit.json"
NOT_CONTENT = (INSIDE, "lost+found")  # in a folder that counts as empty; the second comes with a fresh disk
ELSEWHERE = "choose another place with -o"


Piece = int | Literal["outside"]  # a block by its index, or all that is no block


@dataclass
class Staging:
    """One run's working folder; `open` begins or resumes it, `publish` moves the result into place.

    As a context manager it lets go of the folder at the end: what is `kept` stays for the next run, and a folder
    without any is removed. An exception that passes through gets an attribute `kept`, which says which it was.
    """

    target: Path  # as the user calls it
    place: Path  # where that is, whatever the current directory and symbolic links
    folder: Path
    source: Path | None = None
    force: bool = False
    resumed: bool = False
    _lock: int | None = None

    @classmethod
    def open(
        cls,
        target: Path,
        signature: Mapping[str, Any],
        *,
        source: Path | None = None,
        force: bool = False,
        restart: bool = False,
    ) -> Self:
        """Begin a run that will end at `target`, or go on with one that was interrupted; `source` is the dense model.

        Raises UsageError when the target may not be written (see `check_target`), when another run is at work on it,
        or when an interrupted run had another signature; InputError when the place cannot be written.
        """
        check_target(target, source=source, force=force)
        place = _real(target)
        with storage_errors(target):
            staging = cls(target, place, _working_folder(place), source, force)
            staging.folder.mkdir(parents=True, exist_ok=True)
            staging._lock = _acquire(staging.folder / LOCK, target)
            try:
                if staging._put_back():
                    check_target(target, source=source, force=force)
                staging.resumed = staging._begin(json.loads(json.dumps(signature)), restart)
            except BaseException:
                staging.release()
                raise
        return staging

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._lock is None:  # published, and the folder may be another run's by now
            return
        shutil.rmtree(self.hidden, ignore_errors=True)
        if error is not None:
            vars(error)["kept"] = self.kept
        if not self.kept and not (self.folder / REPLACED).is_dir():
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
        for folder in (self.export_dir, self.hidden, self.folder / "old"):
            shutil.rmtree(folder, ignore_errors=True)
        begun = path.is_file() and (self.kept or self.plan_path.is_file())
        if restart or not begun:
            for folder in (self.folder / "blocks", self.work):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            self.plan_path.unlink(missing_ok=True)
            write_atomically(path, json.dumps(signature, indent=2, sort_keys=True) + "\n")
            return False
        _check_signature(read_json(path), signature, self.folder)
        return True

    @property
    def kept(self) -> bool:
        """Whether there is finished work that another run can go on from."""
        return bool(self.finished_blocks()) or any(self.work.glob("*"))

    @property
    def hidden(self) -> Path:
        """Where hidden states wait on disk; gone when the run ends, for the next one makes them anew."""
        return self.folder / "hidden"

    @property
    def export_dir(self) -> Path:
        """Where the model folder is assembled before it is moved to the target."""
        return self.folder / "export"

    @property
    def plan_path(self) -> Path:
        """The plan of the run, once it is made."""
        return self.folder / PLAN

    @property
    def work(self) -> Path:
        """Where long work keeps its state."""
        return self.folder / "work"

    def block_path(self, part: Piece) -> Path:
        """The file of one finished block, or of what is outside the blocks."""
        name = f"{part:05d}" if isinstance(part, int) else part
        return self.folder / "blocks" / f"{name}.safetensors"

    def has_block(self, part: Piece) -> bool:
        """Whether that part was finished, by this run or by the one it resumes."""
        return self.block_path(part).is_file()

    def finished_blocks(self) -> int:
        """How many blocks are finished."""
        return sum(1 for _ in (self.folder / "blocks").glob("[0-9]*.safetensors"))

    def write_block(self, part: Piece, tensors: Mapping[str, Tensor], notes: Sequence[str] = ()) -> None:
        """Commit one block and what there was to remark: write, sync, rename.

        Raises ResourceError when the disk is full.
        """
        path = self.block_path(part)
        with storage_errors(path):
            partial = path.with_suffix(".partial")
            ordered = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
            save_file(ordered, partial, {"notes": json.dumps(list(notes))})
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)

    def notes(self, part: Piece) -> list[str]:
        """What was remarked when a finished block was pruned."""
        return json.loads(read_metadata(self.block_path(part))["notes"])

    def block_infos(self, part: Piece) -> dict[str, TensorInfo]:
        """What is stored of a finished part, by name."""
        return read_header(self.block_path(part))

    def read_block(self, part: Piece, names: list[str], copy: Copy = Tensor.clone) -> dict[str, Tensor]:
        """The named tensors of a finished part in their stored dtype, or what `copy` makes of them."""
        return read_safetensors({self.block_path(part): names}, copy)

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
        """Move the assembled folder to the target, replacing what was in it, and drop the working folder.

        Whatever goes wrong before the last file is in place, what was in the target comes back: at once, or, after
        a kill, with the next run.
        """
        check_target(self.target, source=self.source, force=self.force)
        with storage_errors(self.target):
            if self.place.is_dir():
                self._fill()
            else:
                os.replace(self.export_dir, self.place)
                sync(self.place.parent)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def _fill(self) -> None:
        """Exchange the files of a folder that stays, as it may be a mount or somebody's current directory."""
        replaced, old = self.folder / REPLACED, self.folder / "old"
        try:
            self._arriving.unlink(missing_ok=True)
            replaced.mkdir()
            for path in reversed(_contents(self.place)):
                os.replace(path, replaced / path.name)
            new = _contents(self.export_dir)
            write_atomically(self._arriving, json.dumps([path.name for path in new]))
            for path in new:
                os.replace(path, self.place / path.name)
            sync(self.place)
            os.replace(replaced, old)
        except BaseException:
            self._put_back()
            raise

    def _put_back(self) -> bool:
        """Undo an exchange that was cut short, unless all new files are in place; whether there was one."""
        replaced = self.folder / REPLACED
        if not replaced.is_dir():
            return False
        if self.export_dir.is_dir() and not any(self.export_dir.iterdir()):
            os.replace(replaced, self.folder / "old")
            return True
        self.place.mkdir(parents=True, exist_ok=True)
        if self._arriving.is_file():
            for name in json.loads(self._arriving.read_text(encoding="utf-8")):
                (self.place / name).unlink(missing_ok=True)
            self._arriving.unlink()
        for path in _contents(replaced):
            os.replace(path, self.place / path.name)
        replaced.rmdir()
        return True

    @property
    def _arriving(self) -> Path:
        return self.folder / "arriving.json"


def check_target(target: Path, *, source: Path | None = None, force: bool = False) -> None:
    """Raise UsageError unless a model can be written to `target` without a loss.

    It may be absent or an empty folder; with `force`, a folder that is a model and nothing else. It may not be, hold
    or lie in `source`, the model that is read.
    """
    with storage_errors(target):
        place = _real(target)
        if source is not None:
            _refuse_source(target, place, _real(source))
        if not target.is_dir():
            if target.exists() or target.is_symlink():
                raise UsageError(f"{target} exists already", hint=ELSEWHERE)
            return
        if not _contents(place) or any((folder / REPLACED).is_dir() for folder in _working_folders(place)):
            return  # the second: an exchange was cut short, which `open` undoes before it looks again
        lost = _no_part_of_a_model(place)
    if force and lost:
        raise UsageError(
            f"{target} is not a model folder and nothing else: --force would delete {lost}",
            hint=f"move {lost} away, or {ELSEWHERE}",
        )
    if not force:
        only = f"{ELSEWHERE}; --force replaces a model and nothing else, and would delete {lost}"
        raise UsageError(
            f"{target} exists already", hint=only if lost else f"add --force to replace it, or {ELSEWHERE}"
        )


def _refuse_source(target: Path, place: Path, source: Path) -> None:
    within, around = _holds(source, place), _holds(place, source)
    if within or around:
        relation = "lies in" if not around else "holds" if not within else "is"
        raise UsageError(
            f"{target} {relation} the model that is read, {source}; the result needs a folder of its own",
            hint=f"choose a place outside, such as -o {source}-pruned",
        )


def _holds(outer: Path, inner: Path) -> bool:
    """Whether a folder is another one or lies above it, by whatever name."""
    return outer.exists() and any(path.exists() and path.samefile(outer) for path in (inner, *inner.parents))


def _contents(folder: Path) -> list[Path]:
    """What lies in a folder: weights first and config.json last, for without that one nothing loads it as a model."""
    found = [path for path in folder.iterdir() if path.name not in NOT_CONTENT]
    return sorted(found, key=lambda path: (path.name == CONFIG, path.suffix != ".safetensors", path.name))


def _no_part_of_a_model(folder: Path) -> str | None:
    """The name of something in a folder that must not be deleted along with a model.

    With prunekit's manifest every file belongs to the model, with config.json and safetensors every file of a kind
    that models are made of; a folder never does.
    """
    found = _contents(folder)
    names = {path.name for path in found if path.is_file()}
    ours = MANIFEST in names
    model = CONFIG in names and any(name.endswith(".safetensors") for name in names)
    for path in found:
        known = ours or (model and any(fnmatch(path.name, kind) for kind in (*WANTED, ".gitattributes")))
        if path.name not in names or not known:
            return path.name
    return None


def _real(path: Path) -> Path:
    """Where a path leads; unlike Path.resolve it bears links in a circle."""
    return Path(os.path.realpath(path))


def _working_folders(place: Path) -> tuple[Path, Path]:
    """Beside the target, and inside it."""
    return place.with_name(f".{place.name}{INSIDE}") if place.name else place / INSIDE, place / INSIDE


def _working_folder(place: Path) -> Path:
    """Beside the target; inside where one is at work, or where nothing can be moved into it: a mount, for one."""
    beside, inside = _working_folders(place)
    if (beside / REPLACED).is_dir() or not place.is_dir():
        return beside
    if inside.is_dir():
        return inside
    probe = beside / f"probe-{os.getpid()}"
    try:
        probe.mkdir(parents=True)
        os.replace(probe, inside)
        inside.rmdir()
    except OSError:
        for folder in (probe, beside):  # the second stays when it holds an interrupted run
            with suppress(OSError):
                folder.rmdir()
        return inside
    return beside


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
                hint="free some space, then repeat the command",
            ) from error
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write {path}: {error.strerror or error}", hint="choose another place with -o"
            ) from error
        raise


@contextmanager
def locked(path: Path, target: Path) -> Iterator[None]:
    """Hold a lock file, so that one run at a time works on `target`; raises UsageError when another one does."""
    with storage_errors(target):
        descriptor = _acquire(path, target)
    try:
        yield
    finally:
        os.close(descriptor)


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
