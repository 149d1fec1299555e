"""`plan` and then `apply` is `prune` in two steps; a plan belongs to one model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from contract_checks import bytes_of
from prunekit.cli.app import app

QUICK = ("--no-eval-quick", "--verify", "off")


@pytest.fixture
def wanda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Flags that prune by Wanda on a text, in an empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog sat on the log.\n" * 60)
    return ("-m", "wanda", "-r", "0.4", "--calib", "../text.txt", "--samples", "4", "--seq-len", "32", *QUICK)


def run(*words: object, stdin: str = "") -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    assert "Traceback" not in result.output
    return result


def test_a_plan_that_is_applied_gives_what_prune_gives(
    wanda: tuple[str, ...], tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_llama(dtype="bfloat16", max_shard_size="40KB")
    before = bytes_of(source)
    assert run("prune", source, *wanda, "-o", "pruned").exit_code == 0
    planned = run("plan", source, *wanda, "-o", "plan.json")
    assert (planned.exit_code, planned.stdout) == (0, "plan.json\n")
    applied = run("apply", "plan.json", source, "-o", "applied")
    assert (applied.exit_code, applied.stdout) == (0, "applied\n")
    assert bytes_of(tmp_path / "work" / "applied") == bytes_of(tmp_path / "work" / "pruned")
    piped = run("apply", "-", "-o", "piped", "-q", stdin=run("plan", source, *wanda, "-q").stdout)
    assert (piped.exit_code, piped.stdout, piped.stderr) == (0, "piped\n", "")
    assert bytes_of(tmp_path / "work" / "piped") == bytes_of(tmp_path / "work" / "pruned")
    assert bytes_of(source) == before


def test_a_plan_for_another_model_is_refused(
    wanda: tuple[str, ...], tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    assert run("plan", tiny_llama(), *wanda, "-o", "plan.json").exit_code == 0
    refused = run("apply", "plan.json", tiny_llama(name="other", seed=1), "-o", "out", "--json")
    error = json.loads(refused.stdout)["error"]
    assert (refused.exit_code, error["kind"]) == (4, "input")
    assert error["message"] == "the plan was made for another model: model.safetensors is not the file it knows"
    assert error["hint"].startswith("prunekit plan ")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["plan.json"]


def test_a_plan_finds_its_model_where_it_was_moved(wanda: tuple[str, ...], tiny_llama: Callable[..., Path]) -> None:
    source = tiny_llama()
    assert run("plan", source, *wanda, "-o", "plan.json").exit_code == 0
    moved = source.rename(source.with_name("moved"))
    lost = run("apply", "plan.json")
    assert lost.exit_code == 4 and "error: " in lost.stderr
    assert run("apply", "plan.json", moved).stdout == "moved-wanda-40\n"
