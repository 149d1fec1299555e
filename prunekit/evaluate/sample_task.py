"""The `sample` task: which line of four comes next in a module of the standard library that the sample never saw.

The three wrong lines come from other held-out modules and have the same indentation and about the same length, so that
only what the lines say can tell. Everything follows from the modules' text and a seed; another version of Python asks
other questions.
"""

import json
import platform
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from prunekit.sample.text import documents

NAME = "sample"
QUESTIONS = 200
CHOICES = 4
CONTEXT_LINES = 8  # about 100 tokens
SHORTEST = 12  # characters of a line that says something
ALIKE = 30  # lines of the nearest length, of which the wrong ones are drawn
SEED = 0

Place = tuple[str, int]  # module and line


def questions(count: int = QUESTIONS) -> list[dict[str, Any]]:
    """The first questions: `context`, the `choices` of its next line, and `gold`, the number of the right one."""
    chance = random.Random(SEED)
    modules = {document.name: document.text.splitlines() for document in documents("held-out")}
    places: list[Place] = [(name, at) for name, lines in modules.items() for at in _places(lines)]
    chance.shuffle(places)
    asked = (_question(modules, place, places, chance) for place in places)
    return list(islice((question for question in asked if question), count))


def _places(lines: list[str]) -> Iterator[int]:
    """Lines that can be asked for: long enough to be told from others, with enough of them before."""
    return (at for at in range(CONTEXT_LINES, len(lines)) if len(lines[at].strip()) >= SHORTEST)


def _question(
    modules: dict[str, list[str]], place: Place, places: list[Place], chance: random.Random
) -> dict[str, Any] | None:
    """One question; None where there are too few other lines like the right one."""
    name, at = place
    right = modules[name][at]
    others = {modules[other][line] for other, line in places if other != name}
    alike = [line for line in others - {right} if _indentation(line) == _indentation(right)]
    if len(alike) < ALIKE:
        return None
    nearest = sorted(alike, key=lambda line: (abs(len(line) - len(right)), line))[:ALIKE]
    choices = [right, *chance.sample(nearest, CHOICES - 1)]
    chance.shuffle(choices)
    context = "\n".join(modules[name][at - CONTEXT_LINES : at]) + "\n"
    return {"context": context, "choices": choices, "gold": choices.index(right)}


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def write(folder: Path) -> Path:
    """Write the task as lm-eval reads it, a YAML file with its documents beside it; returns the path of the YAML."""
    data, task = folder / f"{NAME}.jsonl", folder / f"{NAME}.yaml"
    data.write_text("".join(json.dumps(one) + "\n" for one in questions()), encoding="utf-8")
    config = {
        "task": NAME,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": f"1 ({platform.python_implementation()} {platform.python_version()})"},
    }
    task.write_text(json.dumps(config, indent=2), encoding="utf-8")  # JSON is YAML
    return task
