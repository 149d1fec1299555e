"""Files that are there whole or not at all, disk errors as prunekit's own, and locks between runs."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from prunekit.errors import InputError, ResourceError, UsageError

CONFIG, MANIFEST = "config.json", "prunekit.json"  # of a model folder


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
    """Hold a lock file, so that one run at a time works on `target`; raises UsageError if another one does."""
    with storage_errors(target):
        lock = acquire(path, target)
    try:
        yield
    finally:
        lock.release()


def acquire(path: Path, target: Path) -> BaseFileLock:
    """Lock a file until the lock is released or this process ends; raises UsageError if another process holds it."""
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        return lock.acquire().lock
    except Timeout as error:
        raise UsageError(
            f"another run is at work on {target}", hint="wait until it ends, or choose another place with -o"
        ) from error
