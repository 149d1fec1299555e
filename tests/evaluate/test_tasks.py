"""Tasks are lm-eval's: the same figures as it gives when it is asked directly, from task files and from the sample."""

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from local_tasks import ASKED, write_tasks
from prunekit.errors import InputError, UsageError
from prunekit.evaluate import sample_task, side_by_side, tasks
from prunekit.evaluate.tasks import TaskOptions, Tasks, accuracies
from prunekit.model.loading import Opening
from prunekit.recipe.limits import Gates
from prunekit.sample.text import documents

LIMIT = 4
NO_TEXT = side_by_side.Texts([side_by_side.NO_SET])
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: pip install 'prunekit[eval]'"
)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of lm-eval and what it imports


@needs_lm_eval
def test_figures_are_those_of_lm_eval_itself(shared_data: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate

    if not (shared_data / "tasks").is_dir():
        pytest.skip("needs the documents of real tasks: no folder tasks")
    model, files = shared_data / "models" / "stories260K", write_tasks(tmp_path, shared_data / "tasks", tmp_path / "c")
    asked = TaskOptions(files, limit=LIMIT)
    (row,) = side_by_side.evaluate(
        [str(model)], side_by_side.Questions(texts=NO_TEXT, tasks=asked, opening=Opening(device="cpu"))
    ).models

    direct: Any = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=files,
        limit=LIMIT,
        device="cpu",
        batch_size=1,
        log_samples=False,
    )
    expected = {
        (f"local_{name}", metric): direct["results"][f"local_{name}"][f"{metric},none"]
        for name in ASKED
        for metric in ("acc", "acc_norm")
    }
    assert {(part.task, part.metric): part.value for part in row.tasks} == expected
    assert {part.documents for part in row.tasks} == {LIMIT}


@needs_lm_eval
def test_the_sample_task_needs_no_network_and_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_task, "QUESTIONS", 6)
    monkeypatch.setattr(sample_task.questions, "__defaults__", (6,))
    asked = TaskOptions(["sample"], limit=4, batch_size=2)
    gates = Gates.model_validate({"max_acc_drop": "0pt", "min_acc": {"sample": 0, "sample/acc_norm": 0}})
    done = side_by_side.evaluate(
        ["sample"],
        side_by_side.Questions(texts=NO_TEXT, tasks=asked, gates=gates, opening=Opening(device="cpu")),
        baseline="sample",
    )
    dense, itself = done.models

    assert [(part.task, part.metric) for part in itself.tasks] == [("sample", "acc"), ("sample", "acc_norm")]
    assert [part.value for part in dense.tasks] == [part.value for part in itself.tasks]
    assert {part.documents for part in itself.tasks} == {4}
    assert {part.ratio for part in itself.tasks} <= {1.0, None}
    assert "CPython" in str(itself.tasks[0].version)
    assert done.failed == [] and len(done.gates) == 3


@needs_lm_eval
def test_a_gate_on_a_task_that_is_not_run_is_refused_before_the_work() -> None:
    gates = Gates(min_acc={"piqa": 0.5})
    with pytest.raises(UsageError, match="piqa is not among the tasks") as caught:
        side_by_side.evaluate(
            ["sample"], side_by_side.Questions(texts=NO_TEXT, tasks=TaskOptions(["sample"]), gates=gates)
        )
    assert caught.value.hint == "the tasks are sample"


@needs_lm_eval
def test_a_folder_of_task_files_is_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "data.jsonl").write_text(json.dumps({"q": "one two", "choices": ["three", "blue"], "gold": 0}))
    config = {"task": "counting", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice"}
    config |= {"doc_to_text": "q", "doc_to_choice": "choices", "doc_to_target": "gold"}
    config["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "data.jsonl")}, "cache_dir": str(tmp_path / "c")}
    (tmp_path / "mine" / "counting.yaml").write_text(json.dumps(config))
    found = Tasks.find(TaskOptions(["counting"], include=[tmp_path / "mine"]), tmp_path)
    assert found.names == {"counting"}


@needs_lm_eval
def test_a_task_file_with_another_content_is_another_task(tmp_path: Path) -> None:
    def identity(content: str, limit: int = 4) -> dict[str, Any]:
        file = tmp_path / "task.yaml"
        file.write_text(content)
        return Tasks(TaskOptions([str(file)], limit=limit), [str(file)], cast(Any, None), frozenset()).identity

    assert identity("a: 1") == identity("a: 1")
    assert identity("a: 1") != identity("a: 2") and identity("a: 1") != identity("a: 1", limit=5)


def test_without_lm_eval_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="lm-eval, which is not installed") as caught:
        Tasks.find(TaskOptions(["piqa"]), tmp_path)
    assert (caught.value.exit_code, caught.value.hint) == (2, "pip install 'prunekit[eval]'")


def test_an_unknown_task_is_a_usage_error_with_the_nearest_name() -> None:
    manager: Any = SimpleNamespace(all_tasks=["piqa", "arc_easy"])
    tasks._refuse_unknown(["piqa", "/a/file.yaml"], manager)
    with pytest.raises(UsageError, match="no task 'arc_eazy'") as caught:
        tasks._refuse_unknown(["arc_eazy"], manager)
    assert caught.value.hint == "did you mean arc_easy?"


@needs_lm_eval
def test_files_and_data_that_are_missing_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such task file"):
        Tasks.find(TaskOptions([str(tmp_path / "no.yaml")]), tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        Tasks.find(TaskOptions(["sample"], include=[tmp_path / "no"]), tmp_path)
    missing = {"data_files": {"test": str(tmp_path / "no.jsonl")}, "cache_dir": str(tmp_path / "c")}
    bad = {"task": "bad", "dataset_path": "json", "dataset_kwargs": missing, "test_split": "test"}
    (tmp_path / "bad.yaml").write_text(json.dumps(bad))
    with pytest.raises(InputError, match=r"the tasks bad.yaml cannot be loaded"):
        Tasks.find(TaskOptions([str(tmp_path / "bad.yaml")]), tmp_path)


def test_what_lm_eval_answers_becomes_rows() -> None:
    found = {
        "results": {
            "one": {"alias": "one", "name": "one", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 9},
            "two": {"exact_match,strict": math.nan, "exact_match_stderr,strict": "N/A", "note,none": "text"},
        },
        "versions": {"one": 1.0},
        "n-shot": {"one": 5},
        "n-samples": {"one": {"original": 100, "effective": 9}},
    }
    one, two = accuracies(found)
    assert (one.task, one.metric, one.value, one.stderr) == ("one", "acc", 0.5, 0.1)
    assert (one.documents, one.few_shot, one.version) == (9, 5, "1.0")
    assert (two.metric, two.value, two.stderr, two.documents) == ("exact_match,strict", "nan", None, None)


def test_the_questions_of_the_sample_can_be_answered_from_the_text_alone() -> None:
    asked = sample_task.questions(12)
    modules = {document.name: document.text for document in documents("held-out")}
    assert asked == sample_task.questions(12)
    assert len({question["gold"] for question in asked}) > 1
    for question in asked:
        right = question["choices"][question["gold"]]
        homes = [name for name, text in modules.items() if question["context"] + right + "\n" in text]
        assert homes, "the right line comes next"
        assert len(set(question["choices"])) == sample_task.CHOICES
        indents = {len(line) - len(line.lstrip(" ")) for line in question["choices"]}
        assert len(indents) == 1, "indentation alone cannot tell"
        assert not any(
            question["context"] + line + "\n" in modules[homes[0]] for line in question["choices"] if line != right
        )


@needs_lm_eval
def test_a_narrower_model_scores_the_same_through_lm_evals_own_loader_and_through_prunekit(
    shared_data: Path, tmp_path: Path
) -> None:
    from lm_eval import simple_evaluate

    from prunekit.recipe.recipe import Recipe
    from prunekit.run.pipeline import prune

    if not (shared_data / "tasks").is_dir():
        pytest.skip("needs the documents of real tasks: no folder tasks")
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little girl who liked to play with her dog.\n" * 40)
    settings = {
        "model": str(shared_data / "models" / "stories260K"),
        "method": "comp",
        "ratio": 0.2,
        "layout": "per-layer",
        "calibration": {"source": str(text), "samples": 2, "seq_len": 64},
        "evaluation": {"quick": False},
    }
    done = prune(Recipe.model_validate(settings), tmp_path / "out")
    assert len(set(done.widths)) > 1
    files = write_tasks(tmp_path, shared_data / "tasks", tmp_path / "c")[:1]
    (row,) = side_by_side.evaluate(
        [done.output],
        side_by_side.Questions(texts=NO_TEXT, tasks=TaskOptions(files, limit=LIMIT), opening=Opening(device="cpu")),
    ).models
    direct: Any = simple_evaluate(
        model="hf",
        model_args={"pretrained": done.output, "dtype": "float32", "trust_remote_code": True},
        tasks=files,
        limit=LIMIT,
        device="cpu",
        batch_size=1,
        log_samples=False,
    )
    (found,) = direct["results"].values()
    expected = {name: found[f"{name},none"] for name in ("acc", "acc_norm")}
    assert {part.metric: part.value for part in row.tasks} == expected
