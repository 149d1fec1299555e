"""`prunekit doctor`: what prunekit finds on this machine, and whether every plug-in works."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prunekit import __version__
from prunekit.cli.command import Run, command
from prunekit.cli.methods import describe, origin
from prunekit.cli.screen import facts, table
from prunekit.errors import PrunekitError, UnsupportedError
from prunekit.formatting import megabytes
from prunekit.recipe import registry

LIBRARIES = (
    "torch",
    "transformers",
    "safetensors",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "typer",
    "pydantic",
)

EXAMPLES = """
prunekit doctor
prunekit doctor --json
"""


@command()
def doctor(run: Run) -> None:
    """Check this machine and every installed plug-in.

    Shows versions, devices, memory, disk and caches, and imports each plug-in. The network is not tried.
    Ends with 0, or with 3 when a plug-in that comes with prunekit is broken.
    """
    plugins = [(plugin, problem_of(plugin)) for plugin in registry.plugins()]
    data = machine() | {"plugins": [describe(plugin) | {"problem": problem} for plugin, problem in plugins]}
    rows = [(plugin.name, plugin.kind, origin(plugin), problem or "works") for plugin, problem in plugins]
    run.screen.result(data, facts(_lines(data)), table("plug-in", "kind", "from", "state", rows=rows))
    broken = [plugin.name for plugin, problem in plugins if problem and plugin.built_in]
    if broken:
        raise UnsupportedError(f"{', '.join(broken)} of prunekit itself does not work", hint="install prunekit again")


def problem_of(plugin: registry.Plugin) -> str | None:
    """Why a plug-in cannot be used, found by importing it; None when it can."""
    try:
        if plugin.problem is None:
            registry.load(plugin.name, plugin.kind)
    except PrunekitError as error:
        return error.message
    return plugin.problem


def machine() -> dict[str, Any]:
    """What a run would find here."""
    import psutil

    from prunekit.cache import folder

    memory = psutil.virtual_memory()
    return {
        "python": platform.python_version(),
        "prunekit": __version__,
        "libraries": {name: _version(name) for name in LIBRARIES},
        "platform": f"{platform.system()} {platform.machine()}",
        "devices": list(_devices()),
        "memory": {"total": memory.total, "available": memory.available},
        "disk": {"folder": str(Path.cwd()), "free": shutil.disk_usage(Path.cwd()).free},
        "cache": _place(folder()),
        "hub_cache": _place(_hub_cache()),
        "offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("PRUNEKIT_")},
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _devices() -> Iterator[str]:
    import torch

    yield f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        details = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}, {details.name}, {megabytes(details.total_memory)}"
    if torch.backends.mps.is_available():
        yield "mps"


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _place(folder: Path) -> dict[str, Any]:
    """A folder, and whether it is there or can be made, and written."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {"folder": str(folder), "exists": folder.is_dir(), "writable": os.access(existing, os.W_OK)}


def _lines(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "prunekit", f"{data['prunekit']}, Python {data['python']} at {sys.executable}, {data['platform']}"
    yield "libraries", ", ".join(f"{name} {found or 'MISSING'}" for name, found in data["libraries"].items())
    yield "devices", "; ".join(data["devices"])
    yield "memory", f"{megabytes(data['memory']['available'])} of {megabytes(data['memory']['total'])} free"
    yield "disk", f"{megabytes(data['disk']['free'])} free at {data['disk']['folder']}"
    for name in ("cache", "hub_cache"):
        place = data[name]
        yield name.replace("_", " "), place["folder"] + ("" if place["writable"] else ", NOT WRITABLE")
    yield "network", "not used (HF_HUB_OFFLINE)" if data["offline"] else "may be used; it was not tried"
    if data["environment"]:
        yield "variables", ", ".join(f"{name}={value}" for name, value in data["environment"].items())
