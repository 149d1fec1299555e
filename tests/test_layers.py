"""Who may import whom, read from the source with `ast`, and what a light command must not import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# A file imports files of the rows above its own, and in its own row files to its left.
LAYERS = tuple(
    row.split()
    for row in (
        "prunekit errors words plan progress sample processes",
        "checkpoint locate staging structure compute layer_code skeleton model statistics loss "
        "text_files text_hub texts token_cache eigen tails number_cache spectra",
        "contract capture collect sharding",
        "calibration walk layer_config layer_proof layer_removal budgets sparsity surgeon allocation outliers harm "
        "depth width width_config narrowing narrowed_walk neurons gates gate_path "
        "fading training_state training adapters",
        "evaluate registry fields yaml_text recipe settings grid workers manifest runs card push layouts loading "
        "export rewriting comparison checks verify figure inspection",
        "job lockstep assessment pipeline relayout repeat survey sweep report",
        "cli __main__",
    )
)
ORDER = [name for row in LAYERS for name in row]
FOR_METHODS = {name for row in LAYERS[:4] for name in row}
SOURCES = sorted((REPOSITORY / "prunekit").rglob("*.py"))
METHODS = sorted((REPOSITORY / "methods" / "prunekit_methods").glob("*.py"))
HEAVY = ("torch", "transformers", "datasets", "accelerate")


def unit(module: str) -> str:
    """The part of the table that a module of the toolkit belongs to: `prunekit.cli.eval` -> `cli`."""
    return module.split(".")[1] if "." in module else module


def imported(source: Path) -> Iterator[str]:
    """Full names of the project's modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import; write the full name"
            names = [f"{node.module}.{a.name}" if node.module == "prunekit" else node.module for a in node.names]
        else:
            continue
        yield from (name for name in names if name and name.split(".")[0] in ("prunekit", "prunekit_methods"))


def name_of(source: Path) -> str:
    """`prunekit/cli/eval.py` -> `cli`; `prunekit/__init__.py` -> `prunekit`."""
    parts = source.relative_to(REPOSITORY / "prunekit").with_suffix("").parts
    return "prunekit" if parts == ("__init__",) else parts[0]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_of_the_toolkit_imports_lower_layers_only(source: Path) -> None:
    own = name_of(source)
    assert own in ORDER, f"{own} has no layer; add it to LAYERS and to docs/architecture.md"
    for module in imported(source):
        other = unit(module)
        if other.startswith("__") and other != "__main__":  # prunekit.__version__
            continue
        assert not module.startswith("prunekit_methods"), f"{own} imports a method, {module}"
        assert other in ORDER, f"{own} imports {module}, which has no layer"
        assert other == own or ORDER.index(other) < ORDER.index(own), f"{own} imports {other}, which is above it"


@pytest.mark.parametrize("source", METHODS, ids=lambda path: path.name)
def test_a_method_imports_the_toolbox_and_nothing_above_it(source: Path) -> None:
    for module in imported(source):
        assert not module.startswith("prunekit_methods"), f"{source.name} imports another method, {module}"
        assert unit(module) in FOR_METHODS, f"{source.name} imports {module}; a method may import layers 0 to 3"


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


def test_the_layers_of_the_architecture_page_are_those_tested_here() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    for number, row in enumerate(LAYERS):
        line = next((line for line in page.splitlines() if line.startswith(f"| {number} |")), "")
        missing = [name for name in row if f"`{name}`" not in line and name not in ("prunekit", "__main__")]
        assert not missing, f"docs/architecture.md, layer {number}, does not name {missing}"
