import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import contract_checks as checks
from prunekit.allocation import budget_of_blocks, check_budget
from prunekit.calibration import calibrate
from prunekit.contract import Context
from prunekit.harm import Laboratory
from prunekit.sample import PATH as SAMPLE
from prunekit_methods.measured import Measured, beginnings

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))


def context(folder: Path, ratio: float = 0.6) -> Context:
    return checks.open_context(folder, Measured(), ratio=ratio)


@pytest.fixture
def muted(tmp_path: Path) -> Path:
    """The sample with a block 4 that does nothing: what it adds is zero, so all its other weights are free to go."""
    shutil.copytree(SAMPLE, tmp_path / "muted")
    file = tmp_path / "muted" / "model.safetensors"
    stored = load_file(file)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        stored[f"model.layers.4.{name}.weight"].zero_()
    save_file(stored, file, {"format": "pt"})
    return tmp_path / "muted"


def test_a_block_that_does_nothing_loses_much_more_than_its_share(muted: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(muted)
    ids = calibrate("sample", tokenizer, samples=2, seq_len=64, cache=tmp_path / "cache").ids
    ctx = checks.open_context(muted, Measured(), ratio=0.6, ids=ids)
    budget = Measured().allocate(ctx, 0.6)
    check_budget(ctx, budget, 0.6, "measured")
    assert budget["model.layers.4.mlp.up_proj"] > 0.7


def test_what_is_found_is_measured_to_be_no_worse_than_uniform_alphapruning_and_owl(tiny_llama: Make) -> None:
    ctx = context(tiny_llama())
    budget = Measured().allocate(ctx, 0.6)
    assert ctx.calibration is not None
    lab = Laboratory(ctx, ctx.calibration, "wanda")
    begun = {name: lab.loss(budget_of_blocks(ctx, levels, 0.6)) for name, levels in beginnings(ctx, 0.6)}
    assert begun.keys() == {"uniform", "alphapruning", "owl"}
    assert lab.loss(budget) <= min(begun.values())


def test_the_passes_are_bounded_as_the_page_says_and_told(tiny_llama: Make) -> None:
    ctx = context(tiny_llama())
    Measured(rounds=2, points=2, samples=4).allocate(ctx, 0.6)
    depth, rounds, points = 4, 2, 2
    most = 2 * 3 + rounds * (2 + points * (depth + 1) + 2 * 2)
    assert f"{most} forward passes over 4 sequences" in ctx.notes[0]


@pytest.mark.parametrize(
    ("option", "method", "score"),
    [
        ("auto", "wanda", "wanda"),
        ("auto", "sparsegpt", "sparsegpt"),
        ("auto", "magnitude", "magnitude"),
        ("auto", "somebody-elses", "wanda"),
        ("wanda", "sparsegpt", "wanda"),
    ],
)
def test_harm_is_measured_by_the_score_of_the_method_that_runs(option: Any, method: str, score: str) -> None:
    assert Measured(score=option).score_for(method) == score


def test_removed_blocks_take_no_part_and_get_the_target(tiny_llama: Make) -> None:
    ctx = context(tiny_llama())
    ctx.model.removed = frozenset({0})
    budget = Measured(rounds=1).allocate(ctx, 0.6)
    check_budget(ctx, budget, 0.6, "measured")
    assert {value for path, value in budget.items() if ".layers.0." in path} == {0.6}
