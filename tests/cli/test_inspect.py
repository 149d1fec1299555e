import json
from collections.abc import Callable
from pathlib import Path

from .conftest import Run


def test_a_model_is_shown_in_tables(run: Run, tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama()
    result = run("inspect", folder)
    rows = [line.split() for line in result.stdout.splitlines()]

    assert result.exit_code == 0, result.stderr
    assert ["mlp.up_proj", "4", "64", "x", "32", "F32", "0.0", "%", "-"] in rows
    assert ["is", "read", "block", "by", "block"] in rows
    assert any(row[:2] == ["transformers", "yes"] for row in rows)
    assert "reading 4/4" in result.stderr
    piped = run("inspect", "-", "-q", "--no-sparsity", stdin=f"{folder}\n")
    assert piped.exit_code == 0
    assert "sparsity  " not in piped.stdout.split("linear")[0]


def test_json_holds_every_linear(run: Run, tiny_llama: Callable[..., Path]) -> None:
    found = json.loads(run("inspect", tiny_llama(), "--json", "-q").stdout)

    assert found["schema_version"] == 1
    assert sum(len(block["linears"]) for block in found["blocks"]) == 4 * 7


def test_a_folder_that_is_none_ends_with_4(run: Run, tmp_path: Path) -> None:
    result = run("inspect", tmp_path / "nowhere", "--json")

    assert result.exit_code == 4
    assert json.loads(result.stdout)["error"]["kind"] == "input"
