"""What the tests of the command line share: a way to run it in this process, and a run that took no time."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prunekit.cli.app import app

Run = Callable[..., Result]
PERPLEXITY = {"set": "sample", "protocol": "sparsegpt", "window": 512, "windows": 32, "before": 8.0, "after": 10.0}
OUTCOME: dict[str, Any] = {
    "output": "out",
    "method": "wanda",
    "ratio": 0.5,
    "pattern": "unstructured",
    "sparsity": 0.5,
    "weights": 1000,
    "zeros": 500,
    "parameters": 2000,
    "parameters_before": 2000,
    "blocks": 4,
    "removed_blocks": [],
    "widths": [],
    "perplexity": PERPLEXITY,
    "verification": {"mode": "full", "checks": []},
    "notes": [],
    "seconds": 75.0,
    "resumed_blocks": 3,
    "gates": [],
    "repeat": None,
}


@pytest.fixture
def run() -> Run:
    """`run("prune", "sample", stdin="", PRUNEKIT_RATIO="0.5")` answers with both streams and the exit code."""

    def call(*words: object, stdin: str = "", **environment: str) -> Result:
        variables: Mapping[str, str | None] = {"COLUMNS": None, **environment}
        return CliRunner().invoke(app, [str(word) for word in words], input=stdin, env=variables)

    return call


@pytest.fixture
def pruned(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let `prune` and `apply` succeed at once; holds what the pipeline was called with."""
    from prunekit.run import pipeline
    from prunekit.run.outcome import Outcome

    called: dict[str, Any] = {}

    def prune(recipe: Any, output: Any = None, **more: Any) -> Any:
        called.update(recipe=recipe, output=output, **more)
        return Outcome(**OUTCOME)

    def apply_plan(plan: Any, model: Any = None, output: Any = None, **more: Any) -> Any:
        called.update(plan=plan, model=model, output=output, **more)
        return Outcome(**OUTCOME)

    monkeypatch.setattr(pipeline, "prune", prune)
    monkeypatch.setattr(pipeline, "apply_plan", apply_plan)
    return called
