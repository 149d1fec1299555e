"""A session times what was asked for, however many sessions came before it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.evaluate import timing
from prunekit.evaluate.compiling import compilation
from prunekit.evaluate.speed import Place, Round, Runner, SpeedOptions
from prunekit.evaluate.timing import Sessions, Subject
from prunekit.model.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

Model = Callable[..., Path]
LIMIT = 3  # graphs of one function that torch compiles; then it runs the others as they are


@pytest.mark.filterwarnings("ignore")  # torch's own, of compiling
def test_the_last_of_many_models_is_compiled_as_the_first_was(
    tiny_llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    real = torch.compile

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    def once(runners: Sequence[Runner], *_: Any) -> list[list[Round]]:
        for runner in runners:
            with compilation():
                runner.model(runner.ids, use_cache=False)
        return [[Round(1.0, 1.0)] * 6 for _ in runners]

    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend=backend))
    monkeypatch.setattr(timing, "timed", once)
    monkeypatch.setattr(timing, "peak_memory", lambda *_: None)
    place = Place(torch.device("cpu"), torch.float32)
    folders = [tiny_llama(name=f"of {depth}", num_hidden_layers=depth) for depth in range(1, LIMIT + 2)]
    dense, *others = (Subject(folder.name, Checkpoint.open(folder), place) for folder in folders)
    options = SpeedOptions(prompt_tokens=4, new_tokens=3, rounds=6, compile=True)
    with torch._dynamo.config.patch(recompile_limit=LIMIT):
        Sessions(dense, options).speeds(others)
    assert len(compiled) == 2 * len(others)
