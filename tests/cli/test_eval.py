import json
from pathlib import Path
from typing import Any

import pytest

from prunekit.evaluate.rows import Accuracy, Count, Evaluation, Perplexity, Rate, Row, Size, Speed
from prunekit.evaluate.side_by_side import Questions, Texts
from prunekit.evaluate.speed import SpeedOptions
from prunekit.evaluate.tasks import TaskOptions
from prunekit.evaluate.verdicts import judge
from prunekit.model.loading import Opening
from prunekit.recipe.limits import Gates

from .conftest import Run

SIZE = Size(parameters=Count(value=2000), stored_bytes=Count(value=8000))
FOUND = Perplexity(
    value=8.0,
    set="sample",
    revision=None,
    split="held-out",
    protocol="sparsegpt",
    join="",
    window=512,
    windows=4,
    tokens=2044,
    sha256="0",
)


def row(name: str, baseline: bool = False, **changes: Any) -> Row:
    return Row(
        model=name, baseline=baseline, size=SIZE, perplexity=(FOUND.model_copy(update={"ratio": 1.0, **changes}),)
    )


DENSE, PRUNED = row("dense", baseline=True), row("pruned", value=10.0, ratio=1.25, kl=0.125, agreement=0.75)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let `eval` find the rows above at once, or those under `models`; holds what it was called with."""
    from prunekit.evaluate import side_by_side

    calls: dict[str, Any] = {}

    def evaluate(models: list[str], questions: Questions, **more: Any) -> Evaluation:
        found = calls.pop("rows", (DENSE, PRUNED) if more["baseline"] else (row(models[0], ratio=None),))
        calls.update(models=list(models), questions=questions, **more)
        return Evaluation(models=found, gates=judge(questions.gates, found))

    monkeypatch.setattr(side_by_side, "evaluate", evaluate)
    return calls


def test_the_table_is_the_result_and_states_what_a_perplexity_depends_on(run: Run, called: dict[str, Any]) -> None:
    result = run("eval", "pruned", "--baseline", "dense")
    lines = [line.split() for line in result.stdout.splitlines()]

    assert result.exit_code == 0, result.stderr
    heads = ["model", "text", "protocol", "windows", "perplexity", "to", "baseline", "KL", "same", "choice"]
    assert lines[0] == heads
    figures = ["pruned", "sample", "sparsegpt", "4", "x", "512", "10.00", "+25.0", "%", "0.1250", "75.0", "%"]
    assert (lines[3][:-1], set(lines[3][-1])) == (figures, {"█"})
    assert lines[-1][:2] == ["pruned", "2,000"]
    assert result.stderr == ""


def test_json_is_one_object(run: Run, called: dict[str, Any]) -> None:
    result = run("eval", "pruned", "--baseline", "dense", "--json")

    expected = {"schema_version": 1, "models": [DENSE, PRUNED], "gates": []}
    assert json.loads(result.stdout) == json.loads(
        json.dumps(expected, default=lambda row: row.model_dump(mode="json"))
    )
    assert result.stdout.count("\n") == 1


def test_without_a_baseline_nothing_is_compared(run: Run, called: dict[str, Any]) -> None:
    assert "baseline" not in run("eval", "model").stdout


def test_options_reach_the_measurement(run: Run, called: dict[str, Any]) -> None:
    words = ["--ppl", "c4", "--ppl", "ptb", "--protocol", "wanda", "--windows", "3", "--device", "cpu", "--offline"]
    words += ["--offload", "disk", "--ppl-column", "body", "--tasks", "piqa,arc_easy", "--tasks", "mine.yaml"]
    words += ["--include-path", "mine", "--limit", "9", "--num-fewshot", "2", "--batch-size", "4", "--speed"]
    words += ["--prompt-tokens", "64", "--new-tokens", "8", "--rounds", "7", "--compile", "--max-kl", "0.5"]
    words += ["--min-acc", "piqa=0.6", "--min-acc", "arc_easy/acc_norm=0.5", "--min-speedup", "1.2"]
    words += ["--max-acc-drop", "2pt", "--exit-zero"]
    result = run("eval", "one", "two", *words, "--dtype", "float32", "--trust-remote-code")
    called.pop("progress")

    assert result.exit_code == 0, result.stderr
    assert called == {
        "models": ["one", "two"],
        "baseline": None,
        "questions": Questions(
            texts=Texts(["c4", "ptb"], "wanda", "body", 3),
            tasks=TaskOptions(["piqa", "arc_easy", "mine.yaml"], [Path("mine")], 9, 2, 4),
            speed=SpeedOptions(4, 64, 8, 7, True),
            gates=Gates(
                max_kl=0.5, min_acc={"piqa": 0.6, "arc_easy/acc_norm": 0.5}, min_speedup=1.2, max_acc_drop="2pt"
            ),
            opening=Opening("cpu", "float32", offline=True, trust_remote_code=True),
            offload="disk",
        ),
    }


def test_what_is_not_asked_for_is_not_measured(run: Run, called: dict[str, Any]) -> None:
    run("eval", "one")
    asked = called["questions"]
    assert (asked.tasks, asked.speed, asked.gates) == (None, None, Gates())


def test_tasks_and_speeds_have_tables_of_their_own(run: Run, called: dict[str, Any]) -> None:
    rate = Rate(value=100.0, low=90.0, high=110.0)
    faster = rate.model_copy(update={"value": 150.0, "ratio": 1.5, "ratio_low": 1.4, "ratio_high": 1.6})
    count = Count(value=4000)
    rest = {"rounds": 7, "batch_size": 1, "prompt_tokens": 64, "new_tokens": 8, "device": "cpu", "dtype": "float32"}
    rest |= {"threads": 2, "compiled": False, "peak_memory": None, "flops_per_token": count}
    scored = {"task": "piqa", "metric": "acc", "stderr": 0.01, "documents": 9, "few_shot": 0, "version": "1"}
    called["rows"] = tuple(
        one.model_copy(
            update={
                "tasks": (Accuracy(value=0.5, ratio=1.0, **scored),),
                "speed": Speed(prefill=speed, decode=speed, first_token=speed, **rest),
            }
        )
        for one, speed in ((DENSE, rate), (PRUNED, faster))
    )
    lines = [line.split() for line in run("eval", "pruned", "--baseline", "dense").stdout.splitlines()]

    assert ["pruned", "piqa", "acc", "9", "0.5000", "0.0100", "+0.0", "%"] in lines
    assert ["dense", "decode,", "tokens/s", "100.0", "90.0", "to", "110.0", "-", "-"] in lines
    assert ["pruned", "decode,", "tokens/s", "150.0", "90.0", "to", "110.0", "x", "1.50", "1.40", "to", "1.60"] in lines
    assert ["pruned", "-", "-", "4,000", "-"] in lines
    assert " ".join(lines[-1]) == "speed: 1 x 64 prompt tokens, 8 new ones, 7 rounds, cpu, float32, 2 threads"


def test_a_dash_is_what_prune_printed(run: Run, called: dict[str, Any]) -> None:
    run("eval", "-", stdin="sample-wanda-50\n")
    assert called["models"] == ["sample-wanda-50"]
    run("eval", "-", stdin='{"schema_version": 1, "output": "elsewhere"}\n')
    assert called["models"] == ["elsewhere"]
    run("eval", "model", "--baseline", "-", stdin="dense\n")
    assert (called["models"], called["baseline"]) == (["model"], "dense")


def test_an_empty_pipe_ends_with_4_and_no_model_with_2(run: Run, called: dict[str, Any]) -> None:
    assert run("eval", "-").exit_code == 4
    assert run("eval").exit_code == 2
    assert run("eval", "model", "--windows", "0").exit_code == 2


def test_standard_input_is_a_model_or_a_text(run: Run, called: dict[str, Any]) -> None:
    result = run("eval", "-", "--ppl", "-", stdin="model\n")

    assert result.exit_code == 2
    assert "MODEL and --ppl cannot both be read from standard input" in result.stderr
    assert run("eval", "model", "--ppl", "-").exit_code == 0


def test_what_cannot_be_compared_is_a_dash(run: Run, called: dict[str, Any]) -> None:
    called["rows"] = (DENSE, row("other", ratio=None))
    shown = run("eval", "other", "--baseline", "dense").stdout.splitlines()[3]
    assert shown.split()[-5:-1] == ["8.00", "-", "-", "-"]


def test_values_that_are_no_numbers_are_shown_as_they_are(run: Run, called: dict[str, Any]) -> None:
    called["rows"] = (DENSE, row("m", value="nan", ratio=None, kl="nan", agreement=0.0))
    shown = run("eval", "m", "--baseline", "dense").stdout.splitlines()[3]
    assert shown.split()[-5:] == ["nan", "-", "nan", "0.0", "%"]


GATES = ("--max-ppl", "9", "--max-ppl-increase", "10%", "--max-kl", "0.2", "--max-size", "9KB", "--max-params", "1K")


def test_every_gate_that_failed_is_named_behind_the_result_and_the_exit_code_is_1(
    run: Run, called: dict[str, Any]
) -> None:
    result = run("eval", "pruned", "--baseline", "dense", *GATES, "-q")

    assert result.exit_code == 1
    assert result.stdout.splitlines()[3].startswith("pruned"), "the result is out all the same"
    assert result.stderr.splitlines() == [
        "error: 3 of 5 gates failed",
        "  gate max_ppl failed for pruned: the perplexity on sample is 10.00; at most 9 is allowed",
        "  gate max_ppl_increase failed for pruned: the perplexity on sample is 25.00 % above the dense model's; "
        "at most 10% is allowed",
        "  gate max_params failed for pruned: there are 2,000 parameters; at most 1K is allowed",
        "hint: --exit-zero reports it and ends with 0",
    ]


def test_with_json_the_verdicts_are_in_the_one_object(run: Run, called: dict[str, Any]) -> None:
    result = run("eval", "pruned", "--baseline", "dense", *GATES, "--json", "-q")

    assert result.exit_code == 1
    verdicts = json.loads(result.stdout)["gates"]
    assert [verdict["gate"] for verdict in verdicts if not verdict["passed"]] == [
        "max_ppl",
        "max_ppl_increase",
        "max_params",
    ]
    assert result.stderr.startswith("error: 3 of 5 gates failed")


def test_exit_zero_says_the_same_and_ends_with_0(run: Run, called: dict[str, Any]) -> None:
    result = run("eval", "pruned", "--baseline", "dense", *GATES, "--exit-zero")

    assert result.exit_code == 0
    assert result.stderr.startswith("note: 3 of 5 gates failed\n  gate max_ppl failed for pruned")


def test_gates_that_were_kept_are_counted(run: Run, called: dict[str, Any]) -> None:
    result = run("eval", "pruned", "--baseline", "dense", "--max-ppl", "11", "--max-size", "8KB")
    assert (result.exit_code, result.stderr) == (0, "gates: 2 of 2 kept\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-ppl-increase", "15"), "--max-ppl-increase is 15; expected a text such as 15%"),
        (("--max-ppl", "inf"), "--max-ppl is inf; expected a number above 0"),
        (("--max-acc-drop", "2"), "--max-acc-drop is 2; expected a text such as 2pt"),
        (("--max-size", "9"), "--max-size is 9; expected a text such as 500MB or 9GB"),
        (("--max-params", "many"), "--max-params is many; expected a text such as 350M or 5B"),
        (("--min-acc", "piqa"), "is not task=accuracy"),
        (("--min-acc", "piqa=60"), "--min-acc"),
        (("--min-speedup", "0"), "--min-speedup is 0; expected a number above 0"),
        (("--max-kl", "-1"), "--max-kl is -1; expected a number of at least 0"),
    ],
)
def test_a_limit_that_is_none_is_a_usage_error(
    run: Run, called: dict[str, Any], words: tuple[str, ...], said: str
) -> None:
    result = run("eval", "m", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert called == {}
