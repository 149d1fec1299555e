"""Where a model folder may be written: only a model is ever replaced, and never the model that is read."""

import os
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from prunekit.errors import UsageError
from prunekit.files import CONFIG, MANIFEST, storage_errors
from prunekit.model.hub import WANTED

INSIDE = ".prunekit"
REPLACED = "replaced"
NOT_CONTENT = (INSIDE, "lost+found")  # in a folder that counts as empty; the second comes with a fresh disk
ELSEWHERE = "choose another place with -o"


def check_target(target: Path, *, source: Path | None = None, force: bool = False) -> None:
    """Raise UsageError unless a model can be written to `target` without a loss.

    It may be absent or an empty folder; with `force`, a folder that is a model and nothing else. It may not be, hold
    or lie in `source`, the model that is read.
    """
    with storage_errors(target):
        place = real_path(target)
        if source is not None:
            refuse_source(target, source)
        if not target.is_dir():
            if target.exists() or target.is_symlink():
                raise UsageError(f"{target} exists already", hint=ELSEWHERE)
            return
        if not contents(place) or any((folder / REPLACED).is_dir() for folder in working_folders(place)):
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


def refuse_source(target: Path, source: Path) -> None:
    """Raise UsageError if a target is, holds or lies in the folder of the model that is read."""
    place, source = real_path(target), real_path(source)
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


def contents(folder: Path) -> list[Path]:
    """What lies in a folder: weights first and config.json last, for without that one nothing loads it as a model."""
    found = [path for path in folder.iterdir() if path.name not in NOT_CONTENT]
    return sorted(found, key=lambda path: (path.name == CONFIG, path.suffix != ".safetensors", path.name))


def _no_part_of_a_model(folder: Path) -> str | None:
    """The name of something in a folder that must not be deleted along with a model.

    With prunekit's manifest every file belongs to the model, with config.json and safetensors every file of a kind
    that models are made of; a folder never does.
    """
    found = contents(folder)
    names = {path.name for path in found if path.is_file()}
    ours = MANIFEST in names
    model = CONFIG in names and any(name.endswith(".safetensors") for name in names)
    for path in found:
        known = ours or (model and any(fnmatch(path.name, kind) for kind in (*WANTED, ".gitattributes")))
        if path.name not in names or not known:
            return path.name
    return None


def real_path(path: Path) -> Path:
    """Where a path leads; unlike Path.resolve it bears links in a circle."""
    return Path(os.path.realpath(path))


def working_folders(place: Path) -> tuple[Path, Path]:
    """Beside the target, and inside it."""
    return place.with_name(f".{place.name}{INSIDE}") if place.name else place / INSIDE, place / INSIDE


def working_folder(place: Path) -> Path:
    """Beside the target; inside where one is at work, or where nothing can be moved into it: a mount, for one."""
    beside, inside = working_folders(place)
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
