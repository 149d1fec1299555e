import json
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import InputError
from prunekit.plan import PrunePlan
from prunekit.weights.actions import Sparsify

from .conftest import Run

RECIPE = {"model": "sample", "method": "wanda", "ratio": 0.5, "calibration": {"samples": 8}}
PLAN = PrunePlan(
    method="wanda",
    ratio=0.5,
    actions=tuple(
        Sparsify(linear=f"model.layers.{index}.mlp.{name}", sparsity=sparsity)
        for index, sparsity in ((0, 0.4), (1, 0.6))
        for name in ("up_proj", "down_proj")
    ),
    recipe=RECIPE,
)
WANDA = ("-m", "wanda", "-r", "0.5")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.run import pipeline

    monkeypatch.setattr(pipeline, "make_plan", lambda recipe, **_: PLAN)


@pytest.mark.usefixtures("planned")
def test_a_plan_is_json_on_stdout_and_a_table_on_stderr(run: Run) -> None:
    result = run("plan", "sample", *WANDA)

    assert PrunePlan.from_json(result.stdout) == PLAN
    lines = [line.split() for line in result.stderr.splitlines()]
    assert ["mlp.up_proj", "2", "40.0", "-", "60.0", "%", "unstructured"] in lines
    bars = {line[0]: line[3] for line in lines if line[1:3] in (["40.0", "%"], ["60.0", "%"])}
    assert len(set(bars["0"])) == 1 and (len(bars["0"]), len(bars["1"])) == (16, 24)


@pytest.mark.usefixtures("planned")
def test_a_plan_goes_to_a_file_whose_path_is_printed(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    result = run("plan", "sample", *WANDA, "-q", "-o", file)

    assert (result.stdout, result.stderr) == (f"{file}\n", "")
    assert PrunePlan.read(file) == PLAN
    as_json = run("plan", "sample", *WANDA, "-q", "-o", file, "--json")
    assert json.loads(as_json.stdout) == {"schema_version": 1, "output": str(file)}


@pytest.mark.usefixtures("planned")
def test_a_plan_that_cannot_be_written_ends_with_4(run: Run, tmp_path: Path) -> None:
    result = run("plan", "sample", *WANDA, "-q", "-o", tmp_path / "nowhere" / "plan.json")

    assert result.exit_code == 4
    assert "cannot write" in result.stderr


@pytest.mark.usefixtures("planned")
def test_a_plan_does_not_replace_what_is_no_plan(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.run import pipeline

    file = tmp_path / "notes.json"
    file.write_text(json.dumps({"plan": json.loads(PLAN.to_json())}))  # a manifest holds a plan and more
    before = file.read_text()
    with monkeypatch.context() as patch:
        patch.delattr(pipeline, "make_plan")
        refused = run("plan", "sample", *WANDA, "-o", file)
        folder = run("plan", "sample", *WANDA, "-o", tmp_path, "--force")

    assert (refused.exit_code, folder.exit_code) == (2, 2)
    assert f"{file} exists already and is not a plan" in refused.stderr and "--force" in refused.stderr
    assert f"{tmp_path} is not a file" in folder.stderr
    assert file.read_text() == before
    assert run("plan", "sample", *WANDA, "-q", "-o", file, "--force").exit_code == 0
    assert PrunePlan.read(file) == PLAN


@pytest.mark.usefixtures("planned")
def test_the_variable_of_the_output_folder_is_none_of_plan(run: Run, tmp_path: Path) -> None:
    result = run("plan", "sample", *WANDA, "-q", PRUNEKIT_OUTPUT=str(tmp_path / "out"))

    assert PrunePlan.from_json(result.stdout) == PLAN
    assert not (tmp_path / "out").exists()


def test_a_plan_alone_does_not_let_the_models_code_run(run: Run, pruned: dict[str, Any]) -> None:
    trusting = PLAN.model_copy(update={"recipe": {**RECIPE, "trust_remote_code": True}}).to_json()
    refused = run("apply", "-", "--json", stdin=trusting)
    error = json.loads(refused.stdout)["error"]

    assert (refused.exit_code, pruned) == (2, {})
    assert error["message"] == "the plan wants to run code that comes with the model"
    assert error["hint"] == "read it, then add --trust-remote-code"
    assert run("apply", "-", "--trust-remote-code", stdin=trusting).exit_code == 0
    assert pruned["plan"].recipe["trust_remote_code"]
    pruned.clear()
    assert run("apply", "-", stdin=trusting, PRUNEKIT_TRUST_REMOTE_CODE="1").exit_code == 0
    assert pruned["plan"].recipe["trust_remote_code"]


def test_hidden_states_of_a_plan_can_wait_on_disk(run: Run, pruned: dict[str, Any]) -> None:
    assert run("apply", "-", "--offload", "disk", stdin=PLAN.to_json()).exit_code == 0
    assert pruned["plan"].recipe["compute"]["offload"] == "disk"


def test_a_plan_is_applied_with_the_options_given_now_over_its_own(
    run: Run, pruned: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text(PLAN.to_json())
    result = run("apply", tmp_path / "plan.json", "moved", "-o", "there", "--device", "cpu", PRUNEKIT_VERIFY="off")

    assert result.exit_code == 0, result.stderr
    assert result.stdout == "out\n"
    assert "file size, memory and speed will not change" in result.stderr
    assert (pruned["model"], pruned["output"]) == ("moved", Path("there"))
    recipe = pruned["plan"].recipe
    assert (recipe["compute"]["device"], recipe["export"]["verify"]) == ("cpu", "off")
    assert recipe["calibration"]["samples"] == 8
    assert pruned["plan"].actions == PLAN.actions


def test_a_plan_may_come_through_a_pipe(run: Run, pruned: dict[str, Any]) -> None:
    result = run("apply", "-", stdin=PLAN.to_json())

    assert result.exit_code == 0, result.stderr
    assert pruned["plan"].actions == PLAN.actions
    assert "--baseline sample" in result.stderr


@pytest.mark.parametrize(
    ("words", "stdin", "code", "said"),
    [
        (("absent.json",), "", 4, "cannot read the plan absent.json"),
        (("-",), "{}", 4, "standard input is not a prunekit plan: method"),
        (("-",), "", 4, "the command before it wrote nothing"),
        (("-", "-"), "", 2, "PLAN and MODEL cannot both be read from standard input"),
        ((), "", 2, "missing argument 'PLAN'"),
    ],
)
def test_a_plan_that_is_none_is_refused(run: Run, words: tuple[str, ...], stdin: str, code: int, said: str) -> None:
    result = run("apply", *words, stdin=stdin)

    assert result.exit_code == code
    assert said in result.stderr


def test_a_plan_for_another_model_keeps_the_error_of_the_pipeline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.run import pipeline

    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("the plan was made for another model")

    monkeypatch.setattr(pipeline, "apply_plan", refuse)
    assert run("apply", "-", stdin=PLAN.to_json()).exit_code == 4
