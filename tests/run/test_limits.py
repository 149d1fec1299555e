"""Gates of a run: what `prune` measures is judged, what it does not is refused before any work; the page on CI runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import UsageError
from prunekit.evaluate import perplexity
from prunekit.export.manifest import Manifest
from prunekit.recipe import settings
from prunekit.run import pipeline
from prunekit.run.job import Job

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
Model = Callable[..., Path]


@pytest.fixture
def recipe(tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`recipe(max_ppl=9)` removes one block of four of a tiny model under these gates; `more` changes its settings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog sat on the log.\n" * 60)
    source = str(tiny_llama())

    def make(more: dict[str, Any] | None = None, **gates: Any) -> Any:
        flags = {"model": source, "method": "layers", "ppl": "text.txt", "eval_windows": 2, "verify": "off"}
        sets = ["options.blocks=1", *(f"gates.{name}={json.dumps(value)}" for name, value in gates.items())]
        return settings.build(flags | (more or {}), sets)[0]

    return make


@pytest.mark.parametrize(
    ("gate", "kept", "missed"),
    [
        ("max_ppl", 1e9, 1.5),
        ("max_ppl_increase", "100000%", "0%"),
        ("max_size", "1GB", "1KB"),
        ("max_params", "1M", "1K"),
    ],
)
def test_a_gate_of_a_run_is_kept_or_missed_and_the_folder_is_written_either_way(
    recipe: Any, gate: str, kept: Any, missed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(windows: Any, model: Any, *_: Any) -> perplexity.Perplexity:
        value = 20.0 if model.removed else 10.0
        return perplexity.Perplexity(value, "text.txt", None, "all", "sparsegpt", "", 128, 2, 254)

    monkeypatch.setattr(perplexity.Windows, "measure", worse)
    for limit, passed in ((kept, True), (missed, False)):
        done = pipeline.prune(recipe(**{gate: limit}), Path("out"), options=pipeline.RunOptions(force=True))
        assert [(verdict.gate, verdict.passed) for verdict in done.gates] == [(gate, passed)]
        assert Manifest.read(Path("out")).recipe["gates"][gate] == limit


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("gate", [{"max_ppl": 1e9}, {"max_ppl_increase": "1000000%"}])
def test_a_perplexity_that_is_no_number_keeps_no_gate_of_a_run(
    recipe: Any, gate: dict[str, Any], bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = perplexity.Perplexity(bad, "text.txt", None, "all", "sparsegpt", "", 128, 2, 254)
    monkeypatch.setattr(perplexity.Windows, "measure", lambda *_: broken)
    (verdict,) = pipeline.prune(recipe(**gate), Path("out")).gates
    assert not verdict.passed and str(bad) in verdict.reason


@pytest.mark.parametrize(
    ("gates", "more", "said"),
    [
        ({"min_acc": {"piqa": 0.5}}, {}, "it needs a task"),
        ({"max_acc_drop": "1pt"}, {}, "it needs a task"),
        ({"max_kl": 0.1}, {}, "it needs the dense model's predictions"),
        ({"min_speedup": 1.1}, {}, "it needs the speed"),
        ({"max_ppl": 9}, {"eval_quick": False}, "it needs a perplexity"),
        ({"max_ppl_increase": "9%"}, {"eval_quick": False}, "it needs a perplexity"),
    ],
)
def test_a_gate_that_a_run_does_not_measure_is_refused_before_anything_is_loaded(
    recipe: Any, gates: dict[str, Any], more: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "load", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UsageError, match=said) as caught:
        pipeline.prune(recipe(more, **gates), Path("out"))
    assert caught.value.exit_code == 2 and caught.value.hint
    assert not Path("out").exists()


def test_a_gate_on_a_text_that_fills_no_window_is_refused_before_the_work(recipe: Any) -> None:
    Path("short.txt").write_text("too short")
    wanted = recipe({"ppl": None}, max_ppl=9).model_copy()
    calibration = wanted.calibration.model_copy(update={"source": "short.txt"})
    with pytest.raises(UsageError, match="the gate max_ppl cannot be measured here"):
        pipeline.prune(wanted.model_copy(update={"calibration": calibration}), Path("out"))
    assert not Path("out").exists()


def test_a_plan_carries_its_gates(recipe: Any) -> None:
    plan = pipeline.make_plan(recipe(max_params="1K"))
    (verdict,) = pipeline.apply_plan(plan, output=Path("out")).gates
    assert (verdict.gate, verdict.passed) == ("max_params", False)


def test_unknown_gates_are_errors(recipe: Any) -> None:
    with pytest.raises(UsageError, match="max_pql"):
        recipe(max_pql=3)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_shell_example_of_the_page_on_ci_runs(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "ci.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    kept = run(script)
    assert kept.returncode == 0, kept.stderr
    assert [line.split()[:2] for line in kept.stdout.splitlines()[1:]] == [
        ["kept", gate] for gate in ("max_ppl_increase", "max_kl", "max_params")
    ]
    again = re.sub(r"^prunekit prune .*$", "", script, flags=re.M)
    missed = run(again.replace("--max-kl 1 ", "--max-kl 0 ").replace("--windows 4", "--windows 1"))
    assert missed.returncode == 1
    assert "FAILED max_kl" in missed.stdout
