"""`prunekit export`: a finished run in another layout, and back to the byte; what cannot be is refused in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from prunekit.model.checkpoint import Checkpoint
from prunekit.testing import bytes_of

from .conftest import Run

pytestmark = pytest.mark.slow

Model = Callable[..., Path]
SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
NARROW = ["-m", "comp", "-r", "0.3", "--samples", 4, "--seq-len", 32, "--no-eval-quick", "--width-multiple", 4]


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of `unequal` is, once it was made."""
    return tmp_path_factory.mktemp("unequal") / "out"


@pytest.fixture
def unequal(kept: Path, run: Run, tiny_llama: Model, tmp_path: Path) -> Path:
    """A run in layout per-layer: a copy of one that all tests share."""
    if not kept.exists():
        text = tmp_path / "text.txt"
        text.write_text("The cat sat on the mat, and the dog sat on the log.\n" * 40)
        words = (*NARROW, "--calib", text, "--layout", "per-layer", "--verify", "off", "-q")
        ended = run("prune", tiny_llama(), *words, "-o", kept)
        assert ended.exit_code == 0, ended.stderr
    shutil.copytree(kept, tmp_path / "unequal")
    return tmp_path / "unequal"


def test_from_per_layer_to_padded_and_back_gives_the_same_bytes(run: Run, unequal: Path, tmp_path: Path) -> None:
    padded, back = tmp_path / "padded", tmp_path / "back"
    ended = run("export", unequal, "--layout", "padded", "-o", padded)
    assert (ended.exit_code, ended.stdout) == (0, f"{padded}\n"), ended.stderr
    assert "verified    yes, full" in ended.stderr
    assert not list(padded.glob("*.py"))
    assert "auto_map" not in json.loads((padded / "config.json").read_text())
    ended = run("export", padded, "--layout", "per-layer", "-o", back, "-q")
    assert ended.exit_code == 0, ended.stderr
    kept = ("model.safetensors", "config.json", "modeling_prunekit.py", "prunekit.json")
    one, other = bytes_of(unequal), bytes_of(back)
    assert {name: one[name] for name in kept} == {name: other[name] for name in kept}


def test_the_answer_in_json_counts_what_is_written(run: Run, unequal: Path, tmp_path: Path) -> None:
    done = json.loads(run("export", unequal, "--layout", "padded", "-o", tmp_path / "out", "--json").stdout)
    jsonschema.validate(done, json.loads((SCHEMAS / "export.schema.json").read_text()))
    tensors = Checkpoint.open(tmp_path / "out").tensors.values()
    assert done["layout"] == "padded" and len(set(done["widths"])) > 1
    assert done["parameters"] > done["parameters_before"]
    assert done["parameters"] * 4 == sum(info.nbytes for info in tensors)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("per-layer", "is in layout per-layer already"),
        ("uniform", "--layout is uniform; expected per-layer or padded"),
        (None, "no layout is given"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(layout: str | None, words: str, run: Run, unequal: Path) -> None:
    ended = run("export", unequal, *([] if layout is None else ["--layout", layout]))
    assert ended.exit_code == 2 and words in ended.stderr


def test_a_run_that_has_all_its_neurons_has_nothing_to_lay_out(run: Run, tiny_llama: Model, tmp_path: Path) -> None:
    out = tmp_path / "zeros"
    words = ("-m", "magnitude", "-r", "0.5", "--no-eval-quick", "--verify", "off", "-q")
    assert run("prune", tiny_llama(), *words, "-o", out).exit_code == 0
    ended = run("export", out, "--layout", "padded")
    assert ended.exit_code == 2 and "so every layout is the one it has" in ended.stderr


def test_a_folder_that_prunekit_did_not_write_is_an_input_error(run: Run, tiny_llama: Model) -> None:
    ended = run("export", tiny_llama(), "--layout", "padded")
    assert ended.exit_code == 4 and "prunekit.json" in ended.stderr


def test_an_existing_target_needs_force_and_the_run_is_never_the_target(
    run: Run, unequal: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    assert run("export", unequal, "--layout", "padded", "-o", tmp_path / "there").exit_code == 2
    assert run("export", unequal, "--layout", "padded", "-o", unequal, "--force").exit_code == 2
    assert (tmp_path / "there" / "notes.txt").read_text() == "mine"


def test_a_method_that_cuts_no_neurons_is_told_so_when_a_layout_is_given(run: Run, tiny_llama: Model) -> None:
    ended = run("prune", tiny_llama(), "-m", "magnitude", "-r", "0.5", "--layout", "padded")
    assert ended.exit_code == 2 and "layout means nothing to it" in ended.stderr


def test_an_interrupted_run_at_the_target_is_never_dropped(run: Run, unequal: Path, tmp_path: Path) -> None:
    blocks = tmp_path / ".out.prunekit" / "blocks"
    blocks.mkdir(parents=True)
    (blocks / "00000.safetensors").write_bytes(b"hours of work")
    (tmp_path / ".out.prunekit" / "signature.json").write_text('{"method": "another"}')
    ended = run("export", unequal, "--layout", "padded", "-o", tmp_path / "out")
    assert ended.exit_code == 2 and "holds an interrupted run" in ended.stderr
    assert (blocks / "00000.safetensors").read_bytes() == b"hours of work"


def test_a_folder_per_layer_that_was_pruned_again_can_still_be_padded(run: Run, unequal: Path, tmp_path: Path) -> None:
    again, padded = tmp_path / "again", tmp_path / "padded"
    words = ("-m", "magnitude", "-r", "0.5", "--no-eval-quick", "--verify", "off", "-q", "-o", again)
    assert run("prune", unequal, *words).exit_code == 0
    assert "trust_remote_code=True" in (again / "README.md").read_text()
    assert run("export", again, "--layout", "padded", "-o", padded, "-q").exit_code == 0
    assert not list(padded.glob("*.py"))
