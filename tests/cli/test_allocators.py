"""Allocators from the command line: by their own name, over each method, and where they cannot be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prunekit.plan import PrunePlan

from .conftest import Run

pytestmark = pytest.mark.slow

Make = Callable[..., Path]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("The cat sat on the mat, and the dog sat on the log.\n" * 40)
    return file


def small(text: Path) -> tuple[object, ...]:
    return ("--calib", text, "--samples", 4, "--seq-len", 32)


@pytest.mark.parametrize("allocator", ["alphapruning", "owl", "measured"])
@pytest.mark.parametrize("base", [None, "magnitude", "sparsegpt"])
def test_an_allocator_named_as_the_method_allocates_for_wanda_or_for_the_base(
    run: Run, tiny_llama: Make, text: Path, tmp_path: Path, allocator: str, base: str | None
) -> None:
    chosen = ["--set", f"base={base}"] if base else []
    chosen += ["--set", "rounds=1"] if allocator == "measured" else []
    words = ("prune", tiny_llama(), "-m", allocator, "-r", "0.6", *chosen, *small(text), "--no-eval-quick")
    ended = run(*words, "--verify", "off", "-o", tmp_path / "out", "--json")
    assert ended.exit_code == 0, ended.stderr
    done = json.loads(ended.stdout)
    assert done["method"] == (base or "wanda")
    assert done["sparsity"] == pytest.approx(0.6, abs=0.02)
    manifest = json.loads((tmp_path / "out" / "prunekit.json").read_text())
    assert manifest["recipe"]["allocator"] == allocator
    assert len({action["sparsity"] for action in manifest["plan"]["actions"]}) > 1
    if allocator == "measured":
        assert any(f"pruned by {base or 'wanda'};" in note for note in done["notes"])


def test_options_of_the_allocator_reach_it(run: Run, tiny_llama: Make, tmp_path: Path) -> None:
    folder = tiny_llama()
    words = ("plan", folder, "-m", "alphapruning", "-r", "0.6", "--set", "base=magnitude", "-q")
    wide, none = (run(*words, "--set", f"epsilon={epsilon}").stdout for epsilon in (0.5, 0))
    spread = [{action.sparsity for action in PrunePlan.from_json(found).sparsify().values()} for found in (wide, none)]
    assert max(spread[0]) / min(spread[0]) > 2 and max(spread[1]) - min(spread[1]) < 1e-9


@pytest.mark.parametrize("allocator", ["alphapruning", "owl", "measured"])
def test_an_allocator_is_refused_before_any_work_where_it_has_nothing_to_do(
    run: Run, tmp_path: Path, allocator: str
) -> None:
    nowhere = tmp_path / "nowhere"  # a model that is never looked for
    depth = run("plan", nowhere, "-m", "shortgpt", "-r", "0.3", "--allocator", allocator)
    assert depth.exit_code == 2 and "takes no budget" in depth.stderr
    fixed = run("plan", nowhere, "-m", "wanda", "--pattern", "2:4", "--allocator", allocator)
    assert fixed.exit_code == 2
    assert "pattern 2:4 fixes one sparsity for all linears" in fixed.stderr and "--pattern *:4" in fixed.stderr


def test_a_mixed_pattern_is_pruned_and_named_in_the_folder(
    run: Run, tiny_llama: Make, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("-m", "wanda", "--allocator", "alphapruning", "--pattern", "*:8", "-r", "0.7", *small(text))
    ended = run("prune", tiny_llama(), *words, "--no-eval-quick", "--verify", "off", "-q")
    assert (ended.exit_code, ended.stdout) == (0, "source-wanda-alphapruning-N-8-70\n"), ended.stderr
    found = json.loads(run("inspect", "source-wanda-alphapruning-N-8-70", "--json", "-q").stdout)
    patterns = {part["pattern"] for block in found["blocks"] for part in block["linears"]}
    assert {text for text in patterns if text.endswith(":8")}
