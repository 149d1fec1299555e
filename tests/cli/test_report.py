"""`--report` on real runs: every command writes one, and a model's name stays a name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from page_checks import check

from .conftest import Run

pytestmark = pytest.mark.slow

EVIL = "<img src=x onerror=alert(1)>"
SMALL = ("--samples", "4", "--seq-len", "32", "--eval-windows", "2", "--protocol", "llm-pruner", "--verify", "off")


@pytest.fixture
def model(tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A model whose folder has a hostile name, in the folder where commands run; beside it a text."""
    monkeypatch.chdir(tmp_path)
    shutil.move(tiny_llama(), tmp_path / EVIL)
    (tmp_path / "text.txt").write_text(f"The {EVIL} sat on the mat; {'and so it goes, ' * 40}\n\n" * 8)
    return EVIL


def read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def test_every_command_writes_a_page_in_which_a_name_stays_a_name(run: Run, model: str) -> None:
    pruning = ("-m", "shortgpt", "-r", "0.5", "--calib", "text.txt", *SMALL)
    assert run("prune", model, *pruning, "-o", "out", "--report", "prune.html").exit_code == 0
    assert run("prune", model, "--from", "out", "--calib", "text.txt", "--report", "from.html").exit_code == 0
    measuring = ("--ppl", "text.txt", "--protocol", "llm-pruner", "--windows", "2")
    result = run("eval", "out", "--baseline", model, *measuring, "--max-ppl", "1", "--report", "eval.html")
    assert result.exit_code == 1
    assert run("compare", "out", f"{Path(model).name}-shortgpt-50-again", "--report", "compare.html").exit_code == 0
    Path("grid.yaml").write_text("method: shortgpt\nratio: [0.3, 0.5]\n")
    words = ("sweep", "grid.yaml", model, "--calib", "text.txt", *SMALL, "-o", "grid", "--report", "sweep.html")
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    for name in ("prune", "from", "eval", "compare", "sweep"):
        page = check(read(f"{name}.html"))
        assert EVIL in page.all("body")[0].text, name
    assert "report: sweep.html" in result.stderr


def test_the_sample_shows_what_both_models_make_of_one_beginning(run: Run, model: str) -> None:
    words = ("-m", "magnitude", "-r", "0.5", "--ppl", "text.txt", *SMALL, "-o", "out", "--report", "out.md")
    assert run("prune", model, *words).exit_code == 0
    text = read("out.md")
    for name in ("the beginning", r"\(dense\)", "out"):
        assert re.search(rf"^\*\*.*{re.escape(name)}\*\*$", text, re.M), name


def test_the_spectra_that_an_allocator_computed_are_drawn(run: Run, model: str) -> None:
    words = ("-m", "alphapruning", "--set", "base=magnitude", "-r", "0.5", "--no-eval-quick", "--verify", "off")
    result = run("prune", model, *words, "-o", "out", "--report", "out.html")
    assert result.exit_code == 0, result.stderr
    page = check(read("out.html"))
    text = page.all("body")[0].text
    assert "Alpha peak per block" in text and "one line for each of 28 matrices" in text
    assert "magnitude (allocator alphapruning)" in text


def test_json_is_what_the_command_prints(run: Run, model: str) -> None:
    words = ("-m", "magnitude", "-r", "0.5", "--no-eval-quick", "--verify", "off", "-o", "out", "--json")
    printed = run("prune", model, *words, "--report", "out.json")
    assert printed.exit_code == 0, printed.stderr
    assert json.loads(read("out.json")) == json.loads(printed.stdout)


@pytest.mark.parametrize("command", ["prune", "apply", "eval", "compare", "sweep"])
def test_a_report_that_cannot_be_written_is_refused_first(run: Run, command: str) -> None:
    words = {"prune": ("no/model", "-m", "wanda", "-r", "0.5")}.get(command, ("no/model",))
    result = run(command, *words, "--report", "report.pdf")
    assert result.exit_code == 2 and "has no suffix that says what to write" in result.stderr
