"""The folder beside the target where a run keeps what it has finished; nothing half-made is ever seen.

.OUT.prunekit/               OUT/.prunekit where nothing can be moved from beside OUT into it, as when OUT is a mount
    lock                 held by the run that is at work, given back by the system however it ends
    signature.json       what the run depends on; another run may continue from here only if it is the same
    plan.json            what was decided, once it is
    blocks/00003.safetensors   each pruned block, written, synced and renamed before the next begins
    blocks/outside.safetensors embeddings, norm and head, where a method changed them
    work/                the state of long work, such as training, from which it can continue
    done.json            the notes of pruning, once all of it is done
    stage-1/             blocks/, work/, done.json of the first recovery after it, and so on
    hidden/              hidden states that wait on disk; every run makes its own
    probe.safetensors    a short sequence and the pruned model's logits for it, also in stage-1/
    export/              the model folder being assembled, moved to OUT when it has been verified
    replaced/            what lay in OUT, while the new files are moved in; it comes back if that is cut short
    arriving.json        the names of the new files, from when the first may be in OUT
    old/                 what lay in OUT, once all new files are in place
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from filelock import BaseFileLock

from prunekit.errors import UsageError
from prunekit.export.target import REPLACED, check_target, contents, real_path, working_folder
from prunekit.files import acquire, storage_errors, sync, write_atomically
from prunekit.model.checkpoint import read_json
from prunekit.model.edits import DONE, Edits

SIGNATURE = "signature.json"
LOCK = "lock"
PLAN = "plan.json"


@dataclass
class Staging:
    """One run's working folder; `open` begins or resumes it, `publish` moves the result into place.

    As a context manager it releases the folder at the end: what is `kept` stays for the next run, and a folder
    without any is removed. An exception that passes through gets an attribute `kept`, which says which it was.
    """

    target: Path  # as the user calls it
    place: Path  # where that is, whatever the current directory and symbolic links
    folder: Path
    source: Path | None = None
    force: bool = False
    resumed: bool = False
    _lock: BaseFileLock | None = None

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
        """Begin a run that will end at `target`, or continue one that was interrupted: `reserve`, then `begin`."""
        staging = cls.reserve(target, source=source, force=force)
        staging.begin(signature, restart=restart)
        return staging

    @classmethod
    def reserve(cls, target: Path, *, source: Path | None = None, force: bool = False) -> Self:
        """Lock the working folder of `target`; `source` is the model that will be read.

        Raises UsageError when the target may not be written (see `check_target`) or another run is at work on it,
        InputError when its folder cannot be written.
        """
        check_target(target, source=source, force=force)
        place = real_path(target)
        with storage_errors(target):
            staging = cls(target, place, working_folder(place), source, force)
            staging.folder.mkdir(parents=True, exist_ok=True)
            staging._lock = acquire(staging.folder / LOCK, target)
            try:
                if staging._put_back():
                    check_target(target, source=source, force=force)
            except BaseException:
                staging.release()
                raise
        return staging

    def begin(self, signature: Mapping[str, Any], *, restart: bool = False) -> None:
        """Begin the run, or continue one that was interrupted.

        Raises UsageError when that had another signature.
        """
        with storage_errors(self.target):
            try:
                self.resumed = self._begin(json.loads(json.dumps(signature)), restart)
            except BaseException:
                self.release()
                raise

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

    @contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Release the folder if what is done here fails."""
        try:
            yield
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def release(self) -> None:
        """Let other runs use the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _begin(self, signature: dict[str, Any], restart: bool) -> bool:
        """Whether there is a run to continue; what it left of an export is dropped."""
        path = self.folder / SIGNATURE
        for folder in (self.export_dir, self.hidden, self.folder / "old"):
            shutil.rmtree(folder, ignore_errors=True)
        begun = path.is_file() and (self.kept or self.plan_path.is_file())
        if restart or not begun:
            for folder in (self.folder / "blocks", self.work, *self.folder.glob("stage-*")):
                shutil.rmtree(folder, ignore_errors=True)
            for folder in (self.folder / "blocks", self.work):
                folder.mkdir()
            for file in (self.plan_path, self.folder / DONE):
                file.unlink(missing_ok=True)
            write_atomically(path, json.dumps(signature, indent=2, sort_keys=True) + "\n")
            return False
        _check_signature(read_json(path), signature, self.folder)
        return True

    @property
    def kept(self) -> bool:
        """Whether there is finished work that another run can continue from."""
        return bool(self.edits.finished_blocks()) or any(self.work.glob("*"))

    @cached_property
    def edits(self) -> Edits:
        """The finished blocks of pruning, the first stage."""
        return Edits(self.folder)

    def stage(self, number: int) -> Edits:
        """The finished blocks of a stage: 0 is pruning, the others the recoveries after it, each on top of the last."""
        if number == 0:
            return self.edits
        return Edits(self.folder / f"stage-{number}", below=self.stage(number - 1))

    @property
    def hidden(self) -> Path:
        """Where hidden states wait on disk; removed when the run ends, since the next one makes them anew."""
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
        """Where long work of pruning keeps its state."""
        return self.edits.work

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
            for path in reversed(contents(self.place)):
                os.replace(path, replaced / path.name)
            new = contents(self.export_dir)
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
        for path in contents(replaced):
            os.replace(path, self.place / path.name)
        replaced.rmdir()
        return True

    @property
    def _arriving(self) -> Path:
        return self.folder / "arriving.json"


def _check_signature(found: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    differing = [key for key in sorted(found.keys() | expected.keys()) if found.get(key) != expected.get(key)]
    if differing:
        details = "; ".join(_difference(key, found.get(key), expected.get(key)) for key in differing)
        raise UsageError(
            f"{folder} holds an interrupted run that differs from this one in {details}",
            hint="repeat the old command to continue it, or add --restart to drop it",
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
