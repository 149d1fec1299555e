import json
from typing import Any

import pytest

from .conftest import Run

FOUND = {"set": "sample", "protocol": "sparsegpt", "window": 512, "windows": 4, "tokens": 2044, "value": 8.0}
ROWS = [
    {"model": "dense", "baseline": True, "perplexity": [{**FOUND, "ratio": 1.0}]},
    {"model": "pruned", "baseline": False, "perplexity": [{**FOUND, "value": 10.0, "ratio": 1.25}]},
]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from prunekit import pipeline

    calls: dict[str, Any] = {}

    def evaluate(models: list[str], **more: Any) -> list[dict[str, Any]]:
        calls.update(models=list(models), **more)
        return ROWS if more["baseline"] else [{"model": models[0], "baseline": False, "perplexity": [FOUND]}]

    monkeypatch.setattr(pipeline, "evaluate", evaluate)
    return calls


def test_the_table_is_the_result_and_states_what_a_perplexity_depends_on(run: Run, called: dict[str, Any]) -> None:
    result = run("eval", "pruned", "--baseline", "dense")
    lines = [line.split() for line in result.stdout.splitlines()]

    assert result.exit_code == 0, result.stderr
    assert lines[0] == ["model", "text", "protocol", "windows", "perplexity", "to", "baseline"]
    assert lines[-1] == ["pruned", "sample", "sparsegpt", "4", "x", "512", "10.00", "+25.0", "%"]
    assert result.stderr == ""


def test_json_is_one_object(run: Run, called: dict[str, Any]) -> None:
    result = run("eval", "pruned", "--baseline", "dense", "--json")

    assert json.loads(result.stdout) == {"schema_version": 1, "models": ROWS}


def test_without_a_baseline_nothing_is_compared(run: Run, called: dict[str, Any]) -> None:
    assert "baseline" not in run("eval", "model").stdout


def test_options_reach_the_pipeline(run: Run, called: dict[str, Any]) -> None:
    words = ["--ppl", "c4", "--ppl", "ptb", "--protocol", "wanda", "--windows", "3", "--device", "cpu", "--offline"]
    words += ["--offload", "disk", "--ppl-column", "body"]
    result = run("eval", "one", "two", *words, "--dtype", "float32", "--trust-remote-code")
    called.pop("progress")

    assert result.exit_code == 0, result.stderr
    assert called == {
        "models": ["one", "two"],
        "baseline": None,
        "sets": ["c4", "ptb"],
        "protocol": "wanda",
        "device": "cpu",
        "dtype": "float32",
        "offload": "disk",
        "column": "body",
        "windows": 3,
        "offline": True,
        "trust_remote_code": True,
    }


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


def test_what_cannot_be_compared_is_a_dash(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit import pipeline

    row = {"model": "other", "baseline": False, "perplexity": [{**FOUND, "ratio": None}]}
    monkeypatch.setattr(pipeline, "evaluate", lambda *_, **__: [ROWS[0], row])
    assert run("eval", "other", "--baseline", "dense").stdout.splitlines()[-1].split()[-1] == "-"


def test_values_that_are_no_numbers_are_shown_as_they_are(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit import pipeline

    found = {**FOUND, "value": "nan", "ratio": None}
    monkeypatch.setattr(
        pipeline, "evaluate", lambda *_, **__: [{"model": "m", "baseline": False, "perplexity": [found]}]
    )
    assert run("eval", "m").stdout.splitlines()[-1].split()[-2:] == ["nan", "-"]
