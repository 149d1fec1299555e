import io
import sys
from typing import Any

import pytest

from prunekit.cli.models import read_model, read_models
from prunekit.errors import InputError, UsageError

from .conftest import Run


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.parametrize(
    "text", ["a/path\n", "\n\n  a/path  \nmore\n", '{"output": "a/path", "x": 1}\n', '{\n  "output": "a/path"\n}']
)
def test_a_dash_takes_the_path_or_the_output_that_standard_input_brings(stdin: Any, text: str) -> None:
    stdin(text)
    assert read_model("-") == "a/path"


def test_anything_else_is_the_model_itself() -> None:
    assert read_model("org/name@main") == "org/name@main"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the command before it wrote nothing"),
        (" \n ", "the command before it wrote nothing"),
        ('{"error": {"code": 3, "message": "not supported"}}', "the command before failed: not supported"),
        ('{"models": []}', "expected a path, or JSON with an output"),
        ("{broken", "expected a path, or JSON with an output"),
    ],
)
def test_input_that_names_no_model_is_refused(stdin: Any, text: str, said: str) -> None:
    stdin(text)
    with pytest.raises(InputError) as caught:
        read_model("-")
    assert said in caught.value.message


def test_a_terminal_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO("typed")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(InputError, match="is a terminal"):
        read_model("-")


def test_standard_input_names_one_model_only(stdin: Any) -> None:
    stdin("first\n")
    assert read_models(["other", "-"]) == ["other", "first"]
    with pytest.raises(UsageError, match="one model only"):
        read_models(["-", "-"])


def test_an_empty_pipe_ends_with_4(run: Run) -> None:
    result = run("prune", "-", "-m", "wanda", "-r", "0.5")

    assert result.exit_code == 4
    assert "the command before it wrote nothing" in result.stderr
