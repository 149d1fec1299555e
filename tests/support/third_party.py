"""Distributions of strangers: installed by pip, or left where pip would leave them."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def install(name: str, source: str, site: Path, project: Path) -> None:
    """Install a distribution of one module into `site` with pip, as a stranger would."""
    (project / f"{name}.py").write_text(source)
    (project / "pyproject.toml").write_text(
        f'[project]\nname = "prunekit-{name}"\nversion = "1.5"\ndependencies = ["prunekit"]\n'
        f'[project.entry-points."prunekit.methods"]\n{name} = "{name}:{name.capitalize()}"\n'
    )
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "."], cwd=project, check=True, timeout=120)


def put(
    name: str,
    source: str,
    site: Path,
    more: Mapping[str, Mapping[str, str]] | None = None,
    *,
    group: str = "prunekit.methods",
) -> None:
    """Leave in `site` what pip would leave for a distribution of one module; `more` are further entry points."""
    information = site / f"prunekit_{name}-1.5.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: prunekit-{name}\nVersion: 1.5\n")
    groups = {group: {name: f"{name}:{name.capitalize()}"}, **(more or {})}
    with (information / "entry_points.txt").open("w") as file:
        for each, rows in groups.items():
            file.write(f"[{each}]\n" + "".join(f"{key} = {value}\n" for key, value in rows.items()))
    (site / f"{name}.py").write_text(source)
