"""The command that repeats a run, from its recipe."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from prunekit.files import MANIFEST
from prunekit.recipe.options import OPTIONS

SHOWN = ("method", "ratio", "pattern", "protect_blocks", "allocator", "calib", "samples", "seq_len")  # as flags
PLAIN = re.compile(r"(?!(?:true|false|null|yes|no|on|off)$)[A-Za-z_][\w./:-]*", re.IGNORECASE)


def repeat_command(spec: str, changed: Mapping[str, Any], *, edited: bool = False) -> str:
    """The `prunekit prune` that repeats a run, from the settings of its recipe that are not the default.

    A plan that was `edited` is only in the manifest, from which it can be applied.
    """
    if edited:
        return shlex.join(["prunekit", "apply", MANIFEST, spec])
    words = ["prunekit", "prune", spec]
    settings = dict(_leaves(portable(dict(changed))))
    flags = {OPTIONS[name].paths[0]: _flag(name) for name in SHOWN}
    named = [path for path in flags if path in settings]
    for path in [*named, *sorted(settings.keys() - set(named) - {"model"})]:
        value = settings[path]
        shown = value if isinstance(value, str) and PLAIN.fullmatch(value) else json.dumps(value)
        words += [flags[path], str(value)] if path in flags else ["--set", f"{path}={shown}"]
    return shlex.join(words)


def portable(value: Any) -> Any:
    """The same JSON value with only the last part of every string that is a path of this machine."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    return _last_part(value) if isinstance(value, str) else value


def _last_part(text: str) -> str:
    if text.startswith(("/", "~", "./", "../")):
        return PurePosixPath(text).name or text
    windows = PureWindowsPath(text)
    return windows.name if windows.is_absolute() else text


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _flag(name: str) -> str:
    return "-m" if name == "method" else f"--{name.replace('_', '-')}"
