"""`compare`: one table from manifests, and from new measurements where they are asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prunekit.evaluate import timing

from .conftest import Run

MEASURE = ("--protocol", "llm-pruner", "--windows", "2")


@pytest.fixture
def runs(run: Run, tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Two runs of one local model, `a` by magnitude and `b` by layers, in the folder where commands run."""
    tiny_llama()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog sat on the log.\n" * 60)
    quick = ("--ppl", "text.txt", "--protocol", "llm-pruner", "--eval-windows", "2", "--verify", "off", "-q")
    assert run("prune", "source", "-m", "magnitude", "-r", "0.5", *quick, "-o", "a").exit_code == 0
    assert run("prune", "source", "-m", "layers", "--set", "blocks=1", *quick, "-o", "b").exit_code == 0
    return ["a", "b"]


def test_the_table_comes_from_the_manifests_alone(run: Run, runs: list[str]) -> None:
    (Path("source") / "model.safetensors").unlink()
    result = run("compare", *runs)
    assert (result.exit_code, result.stderr) == (0, "")
    head, _, first, second = result.stdout.splitlines()
    assert head.split() == "run method ratio parameters size blocks zeros perplexity to dense best".split()
    assert first.split()[0] == "a" and "50.1 %" in first and second.split()[0] == "b"
    found = json.loads(run("compare", *runs, "--json").stdout)
    manifest = json.loads((Path("b") / "prunekit.json").read_text())
    assert found["runs"][1]["perplexity"]["after"] == manifest["perplexity"]["after"]
    assert found["runs"][1]["parameters"] == manifest["result"]["parameters"] and found["baseline"] is None


def test_runs_are_measured_beside_the_model_they_came_from(run: Run, runs: list[str]) -> None:
    result = run("compare", *runs, "--ppl", "text.txt", *MEASURE, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    for row in found["runs"]:
        (measured,) = row["measured"]["perplexity"]
        assert row["measured"]["model"] == row["name"] and measured["kl"] > 0
        assert measured["value"] == pytest.approx(row["perplexity"]["after"], rel=1e-5)
    assert found["baseline"]["model"] == "source"


def test_a_dense_model_whose_place_is_unknown_is_asked_for(run: Run, runs: list[str]) -> None:
    Path("source").rename("elsewhere")
    refused = run("compare", *runs, "--ppl", "text.txt", *MEASURE)
    assert refused.exit_code == 2 and "hint: --baseline PATH/TO/source" in refused.stderr
    assert run("compare", *runs, "--ppl", "text.txt", *MEASURE, "--baseline", "elsewhere").exit_code == 0


def test_speed_has_its_own_front_and_columns(run: Run, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "peak_memory", lambda *_: 1000)  # takes a process for each model
    words = ("--speed", "--rounds", "6", "--prompt-tokens", "8", "--new-tokens", "2", "--report", "found.json")
    head = run("compare", *runs, *words).stdout.splitlines()[0]
    assert head.split()[-5:] == "speed 95 % interval best".split()
    found = json.loads(Path("found.json").read_text())
    speeds = [row["measured"]["speed"]["decode"]["ratio"] for row in found["runs"]]
    assert all(speed > 0 for speed in speeds)
    assert any("speed" in row["fronts"] for row in found["runs"])


@pytest.mark.parametrize(("words", "code"), [(("nowhere",), 4), (("text.txt",), 4), (("source",), 4), ((), 2)])
def test_what_is_no_run_is_refused(run: Run, runs: list[str], words: tuple[str, ...], code: int) -> None:
    assert run("compare", *words).exit_code == code
