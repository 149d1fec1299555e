"""What the commands print under --json is what the published schemas say, and these are up to date."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from typer.testing import CliRunner

from prunekit.cli.app import app

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "docs" / "schemas"
TEXT = "The cat sat on the mat, and the dog sat on the log.\n"


def validator(name: str) -> Draft202012Validator:
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def printed(*words: object) -> Any:
    """The object that a command prints, whatever its exit code."""
    result = CliRunner().invoke(app, [*map(str, words), "--json", "-q"])
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT * 60)
    return tmp_path / "text.txt"


def test_the_published_schemas_are_up_to_date() -> None:
    made = runpy.run_path(str(REPOSITORY / "docs" / "scripts" / "schemas.py"))["schemas"]()
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert made == found, "run: make docs"


def test_what_prune_prints_is_valid(tiny_llama: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    words = ["-m", "layers", "--set", "blocks=1", "--ppl", text, "--eval-windows", 2, "--max-ppl-increase", "0%"]
    found = printed("prune", tiny_llama(), *words, "-o", tmp_path / "out")
    validator("prune").validate(found)
    assert found["perplexity"] and found["verification"] and len(found["gates"]) == 1
    found = printed(
        "prune",
        tiny_llama(),
        "-m",
        "magnitude",
        "-r",
        "0.5",
        "--no-eval-quick",
        "--verify",
        "off",
        "-o",
        tmp_path / "b",
    )
    validator("prune").validate(found)
    assert found["perplexity"] is found["verification"] is None


def test_what_eval_prints_is_valid(
    tiny_llama: Callable[..., Path], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit.evaluate import timing

    monkeypatch.setattr(timing, "peak_memory", lambda *_: 1000)
    one, other = tiny_llama(name="one"), tiny_llama(name="other", seed=1)
    timed = ("--speed", "--prompt-tokens", 8, "--new-tokens", 2, "--rounds", 6, "--min-speedup", 9)
    found = printed("eval", other, "--baseline", one, "--ppl", text, "--windows", 2, *timed, "--max-kl", 0)
    validator("eval").validate(found)
    assert [row["baseline"] for row in found["models"]] == [True, False]
    assert found["models"][1]["speed"] and len(found["gates"]) == 3
    validator("eval").validate(printed("eval", one, "--ppl", "none"))


@pytest.mark.parametrize("name", ["eval", "prune", "compare", "sweep", "push"])
def test_a_schema_refuses_what_is_not_said(name: str) -> None:
    with pytest.raises(ValidationError):
        validator(name).validate({"schema_version": 1})


def test_figures_that_are_no_numbers_are_words(tiny_llama: Callable[..., Path], text: Path) -> None:
    found = printed("eval", tiny_llama(), "--ppl", text, "--windows", 1)
    found["models"][0]["perplexity"][0]["value"] = "nan"
    validator("eval").validate(found)
    found["models"][0]["perplexity"][0]["value"] = "many"
    with pytest.raises(ValidationError):
        validator("eval").validate(found)


def test_what_compare_sweep_push_and_a_repeated_run_print_is_valid(
    tiny_llama: Callable[..., Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, grid, out = tiny_llama(), tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text(
        "method: [magnitude, layers]\nratio: [0.3, 0.5]\noptions: {layers: {blocks: '9'}}\nexport: {verify: off}\n"
    )
    quick = ("--ppl", text, "--protocol", "llm-pruner", "--eval-windows", 2)
    result = CliRunner().invoke(app, [*map(str, ("sweep", grid, model, *quick, "-o", out)), "--json", "-q"])
    assert result.exit_code != 0, "block 9 does not exist"
    found = json.loads(result.stdout)
    validator("sweep").validate(found)
    assert [cell["state"] for cell in found["cells"]] == ["done", "done", "failed"]
    runs = [out / cell["name"] for cell in found["cells"][:2]]
    validator("compare").validate(printed("compare", *runs))
    compared = printed("compare", *runs, "--ppl", text, "--protocol", "llm-pruner", "--baseline", model)
    validator("compare").validate(compared)
    assert compared["baseline"] and compared["runs"][0]["measured"]
    validator("push").validate(printed("push", runs[0], "me/small", "--dry-run"))
    monkeypatch.chdir(tmp_path)
    again = printed("prune", model, "--from", runs[0], "--ppl", text, "-o", tmp_path / "again")
    validator("prune").validate(again)
    assert again["repeat"]["weights"] == "equal"
