import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Run

TAILS = ("alpha_peak", "alpha_mid", "alpha_ks")


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


def test_spectra_are_a_table_of_blocks_and_kinds_and_all_metrics_are_in_the_json(
    run: Run, tiny_llama: Callable[..., Path]
) -> None:
    folder = tiny_llama()
    result = run("inspect", folder, "--spectra", "--no-sparsity", "-q")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    heads = "alpha_peak q_proj k_proj v_proj o_proj gate_proj up_proj down_proj mean".split()
    start = rows.index(heads)
    assert [row[0] for row in rows[start + 2 : start + 6]] == ["0", "1", "2", "3"]

    found = json.loads(run("inspect", folder, "--spectra", "--json", "-q").stdout)["spectra"]
    assert len(found) == 4 * 7
    assert found[0]["metrics"].keys() == {*TAILS, "stable_rank", "entropy", "spectral_norm", "log_norm"}
    assert f"{found[0]['metrics']['alpha_peak']:.2f}" == rows[start + 2][1]
    assert found[0]["bits"] is None
    assert "spectra" not in json.loads(run("inspect", folder, "--json", "-q").stdout)


def test_bits_have_the_mean_that_was_asked_for_and_are_more_where_the_tail_is_heavier(
    run: Run, tiny_llama: Callable[..., Path]
) -> None:
    data = json.loads(run("inspect", tiny_llama(), "--bits", "4", "--json", "-q").stdout)
    sizes = {part["path"]: part["parameters"] for block in data["blocks"] for part in block["linears"]}
    bits = {part["path"]: part["bits"] for part in data["spectra"]}
    mean = sum(sizes[path] * count for path, count in bits.items()) / sum(sizes.values())
    assert abs(mean - 4) < max(sizes.values()) / sum(sizes.values())
    ranked = sorted(data["spectra"], key=lambda part: part["metrics"]["alpha_peak"])
    assert ranked[0]["bits"] > 4 > ranked[-1]["bits"]


@pytest.mark.slow
def test_a_figure_is_drawn_and_is_the_same_every_time(
    run: Run, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder, file = tiny_llama(), tmp_path / "out.svg"
    result = run("inspect", folder, "--figure", file)
    assert result.exit_code == 0, result.stderr
    assert f"the figure is in {file}" in result.stderr
    drawn = file.read_text()
    assert "<svg" in drawn and drawn.count("<path") > 50
    run("inspect", folder, "--figure", file)
    assert file.read_text() == drawn
    assert run("inspect", folder, "--figure", tmp_path / "none" / "out.png").exit_code == 4


def test_a_figure_that_cannot_be_drawn_is_refused_at_once_with_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = run("inspect", tmp_path / "nowhere", "--figure", "out.gif")
    assert wrong.exit_code == 2 and ".svg" in wrong.stderr
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    missing = run("inspect", tmp_path / "nowhere", "--figure", tmp_path / "out.svg")
    assert missing.exit_code == 2
    assert "matplotlib" in missing.stderr and 'pip install "prunekit[plot]"' in missing.stderr
