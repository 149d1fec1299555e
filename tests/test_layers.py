"""Who may import whom (the contracts of pyproject.toml), and what a light command must not import."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "datasets", "accelerate")


def test_packages_import_only_what_stands_below_them() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["prune", "--help"], ["--version"]], ids=" ".join)
def test_a_light_command_imports_neither_torch_nor_transformers(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom prunekit.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (None, 0), end.code\n"
        f"print('heavy:', *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stderr.splitlines()[-1].split() == ["heavy:"]
