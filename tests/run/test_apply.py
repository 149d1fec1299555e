"""`plan` and then `apply` is `prune` in two steps; a plan belongs to one model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from prunekit.cli.app import app
from prunekit.testing import bytes_of

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


def edited(change: Callable[[dict], object]) -> Path:
    """The plan of the working folder with something changed by hand."""
    path = Path("plan.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_an_edited_plan_is_applied_recorded_and_repeated_as_what_it_is(
    wanda: tuple[str, ...], tiny_llama: Callable[..., Path]
) -> None:
    source = tiny_llama()
    assert run("plan", source, *wanda, "-o", "plan.json").exit_code == 0
    edited(lambda plan: [action.update(sparsity=0.25) for action in plan["actions"]])
    assert run("apply", "plan.json", "-o", "out").exit_code == 0
    manifest = json.loads(Path("out/prunekit.json").read_text())
    assert manifest["plan"]["ratio"] == pytest.approx(0.25)
    assert manifest["result"]["sparsity"] == pytest.approx(0.25, abs=0.02)
    assert f"prunekit apply prunekit.json {source.name}" in Path("out/README.md").read_text()
    Path("../text.txt").rename("text.txt")  # a manifest names files without their folders
    again = run("apply", "out/prunekit.json", source, "-o", "again")
    assert again.exit_code == 0, again.stderr
    assert bytes_of(Path("again")) == bytes_of(Path("out"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan["actions"].pop(0), "the plan has no action for model.layers.0.self_attn.q_proj"),
        (
            lambda plan: plan["actions"][0].update(linear="model.layers.0.q"),
            "the plan names model.layers.0.q, which is",
        ),
        (lambda plan: plan["actions"][0].update(pattern="2:4", sparsity=0.9), "and pattern 2:4 means 0.5"),
        (lambda plan: plan["actions"].append({"kind": "remove_block", "block": 1}), "remove_block for block 1"),
        (lambda plan: plan.update(method="magnitude"), "one of magnitude, and its recipe names the method wanda"),
    ],
)
def test_a_plan_that_was_edited_into_nonsense_is_refused(
    change: Callable[[dict], object], message: str, wanda: tuple[str, ...], tiny_llama: Callable[..., Path]
) -> None:
    assert run("plan", tiny_llama(), *wanda, "-o", "plan.json").exit_code == 0
    edited(change)
    refused = run("apply", "plan.json", "-o", "out")
    assert refused.exit_code == 4
    assert message in refused.stderr
    assert [path.name for path in Path().iterdir()] == ["plan.json"]


def test_blocks_are_planned_removed_and_reported(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    source, plan = tiny_llama(), tmp_path / "plan.json"
    assert run("plan", source, "-m", "layers", "--set", "blocks=1-2", "-o", plan, *QUICK).exit_code == 0
    done = run("apply", plan, "-o", tmp_path / "out", "--json")
    found = json.loads(done.stdout)
    assert (found["blocks"], found["removed_blocks"]) == (2, [1, 2])
    assert found["parameters"] < found["parameters_before"]
    from transformers import AutoModelForCausalLM

    assert len(AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers) == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "without 2 of its 4 decoder blocks by prunekit" in card
    assert "| removed blocks | 1, 2 (counted from 0, in the source) |" in card
    assert "the zeros are stored" not in card.lower()
