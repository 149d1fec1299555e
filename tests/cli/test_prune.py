import json
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import VerificationError
from prunekit.run.pipeline import RunOptions

from .conftest import OUTCOME, Run

WANDA = ("-m", "wanda", "-r", "0.5")


def test_stdout_is_the_path_of_the_new_folder_and_stderr_the_rest(run: Run, pruned: dict[str, Any]) -> None:
    result = run("prune", "sample", *WANDA)

    assert result.exit_code == 0
    assert result.stdout == "out\n"
    for words in (
        "file size, memory and speed will not change",
        "wanda, unstructured: 50.00 % of 1,000 weights are zero",
        "8.00 -> 10.00 (+25.0 %) on sample, protocol sparsegpt, 32 windows of 512 tokens",
        "yes, full",
        "1 min 15 s, 3 blocks taken over from before",
        "prunekit eval out --baseline sample",
    ):
        assert words in result.stderr


def test_the_summary_says_when_the_text_was_calibrated_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.run import pipeline
    from prunekit.run.outcome import Outcome

    measured = {**OUTCOME["perplexity"], "set": "notes.txt", "calibration_text": True}
    done = Outcome(**{**OUTCOME, "perplexity": measured})
    monkeypatch.setattr(pipeline, "prune", lambda *_, **__: done)

    assert "on notes.txt, the calibration text itself, protocol sparsegpt" in run("prune", "sample", *WANDA).stderr


def test_a_recipe_file_alone_does_not_let_the_models_code_run(run: Run, pruned: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: magnitude\nratio: 0.5\ntrust_remote_code: true")
    words = ("prune", "sample", "--recipe", tmp_path / "recipe.yaml")
    refused = run(*words)

    assert (refused.exit_code, pruned) == (2, {})
    assert "recipe.yaml wants to run code that comes with the model" in refused.stderr
    assert "hint: read it, then add --trust-remote-code" in refused.stderr
    assert run(*words, "--trust-remote-code").exit_code == 0
    assert pruned["recipe"].trust_remote_code
    assert run("recipe", "show", tmp_path / "recipe.yaml").exit_code == 0


def test_json_is_one_object_with_the_whole_outcome(run: Run, pruned: dict[str, Any]) -> None:
    result = run("prune", "sample", *WANDA, "--json")

    assert json.loads(result.stdout) == {"schema_version": 1, **OUTCOME}
    assert result.stdout.count("\n") == 1


def test_quiet_leaves_only_the_result(run: Run, pruned: dict[str, Any]) -> None:
    result = run("prune", "sample", *WANDA, "-q")

    assert (result.stdout, result.stderr) == ("out\n", "")


def test_flags_reach_the_recipe_and_the_pipeline(run: Run, pruned: dict[str, Any]) -> None:
    words = [
        "--pattern",
        "2:4",
        "--calib",
        "c4",
        "--samples",
        "8",
        "--seq-len",
        "64",
        "--seed",
        "3",
        "--batch-size",
        "2",
    ]
    words += ["--device", "cpu", "--dtype", "float32", "--offload", "disk", "--ppl", "ptb", "--protocol", "wanda"]
    words += ["--eval-windows", "5", "--no-eval-quick", "--max-shard-size", "1MB", "--verify", "off", "--offline"]
    words += ["--set", "variant=true", "--set", "evaluation.windows=9", "--force", "--restart", "-o", "there"]
    result = run("prune", "sample", "-m", "wanda", *words)
    recipe = pruned["recipe"]

    assert result.exit_code == 0, result.stderr
    assert (recipe.model, recipe.method, recipe.pattern, recipe.sparsity) == ("sample", "wanda", "2:4", 0.5)
    assert recipe.calibration.model_dump() == {
        "source": "c4",
        "column": None,
        "samples": 8,
        "seq_len": 64,
        "seed": 3,
        "batch_size": 2,
    }
    assert recipe.compute.model_dump() == {"device": "cpu", "dtype": "float32", "offload": "disk"}
    assert recipe.evaluation.model_dump() == {"quick": False, "set": "ptb", "protocol": "wanda", "windows": 5}
    assert recipe.export.model_dump() == {"max_shard_size": "1MB", "verify": "off"}
    assert recipe.options == {"variant": True}
    assert pruned["output"] == Path("there")
    assert pruned["options"] == RunOptions(force=True, restart=True, offline=True)


def test_variables_stand_in_for_flags(run: Run, pruned: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: sample\nmethod: magnitude\nratio: 0.1\ncompute: {device: cpu}")
    result = run(
        "prune",
        PRUNEKIT_RECIPE=str(recipe),
        PRUNEKIT_METHOD="wanda",
        PRUNEKIT_SET="calibration.samples=5 seed=4",
        PRUNEKIT_EVAL_QUICK="0",
        PRUNEKIT_OUTPUT="there",
        PRUNEKIT_QUIET="1",
    )
    found = pruned["recipe"]

    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert (found.method, found.ratio, found.compute.device) == ("wanda", 0.1, "cpu")
    assert (found.calibration.samples, found.seed, found.evaluation.quick) == (5, 4, False)
    assert pruned["output"] == Path("there")


@pytest.mark.parametrize("ratio", ["0", "1", "1.2", "abc"])
def test_a_ratio_that_is_none_is_a_usage_error(run: Run, ratio: str) -> None:
    result = run("prune", "sample", "-m", "wanda", "-r", ratio)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == f"error: --ratio is {ratio}; expected a number above 0 and below 1\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sample", "-m", "wnda", "-r", "0.5"), "hint: did you mean wanda?"),
        (
            ("sample", "-m", "wanda", "--pattern", "3:2"),
            "pattern '3:2' is not 'unstructured', N:M with 1 <= N < M, or *:M",
        ),
        (("sample", "-m", "wanda", "--pattern", "2:4", "-r", "0.6"), "ratio 0.6 contradicts pattern 2:4"),
        (("sample", "-m", "wanda"), "hint: --ratio 0.5 prunes one half"),
        (("sample", "-r", "0.5"), "no method is given"),
        (WANDA, "no model is given"),
        (("-", *WANDA, "--calib", "-"), "MODEL and --calib cannot both be read from standard input"),
        (("sample", *WANDA, "--set", "no_such=1"), "wanda has no option 'no_such'"),
        (("sample", *WANDA, "--ration", "0.5"), "no such option: --ration"),
        (("sample", "other", *WANDA), "unexpected extra argument"),
    ],
)
def test_a_usage_error_ends_with_2_and_says_what_would_be_right(run: Run, words: tuple[str, ...], said: str) -> None:
    result = run("prune", *words, stdin="sample\n")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert result.stderr.startswith("error: ")


def test_an_existing_output_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    result = run("prune", tmp_path / "nowhere", *WANDA, "-o", tmp_path / "out")

    assert result.exit_code == 2
    assert "exists" in result.stderr and "--force" in result.stderr


def test_an_error_of_the_pipeline_keeps_its_code_and_is_json_on_demand(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit.run import pipeline

    def fail(*_: Any, **__: Any) -> None:
        raise VerificationError("logits differ", hint="look")

    monkeypatch.setattr(pipeline, "prune", fail)
    plain, as_json = run("prune", "sample", *WANDA, "-q"), run("prune", "sample", *WANDA, "--json", "-q")

    assert plain.exit_code == as_json.exit_code == 6
    assert (plain.stdout, plain.stderr) == ("", "error: logits differ\nhint: look\n")
    error = {"code": 6, "kind": "verification", "message": "logits differ", "hint": "look"}
    assert json.loads(as_json.stdout) == {"schema_version": 1, "error": error}
    assert as_json.stderr == plain.stderr


def test_what_a_library_prints_does_not_reach_stdout(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.run import pipeline
    from prunekit.run.outcome import Outcome

    def prune(*_: Any, **__: Any) -> Any:
        print("a stray line")
        return Outcome(**OUTCOME)

    monkeypatch.setattr(pipeline, "prune", prune)
    result = run("prune", "sample", *WANDA)

    assert result.stdout == "out\n"
    assert "a stray line" in result.stderr
