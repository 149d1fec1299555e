"""`targets` and `ignore`: only the linears they leave are pruned, and the ratio counts these."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from prunekit.errors import UsageError
from prunekit.recipe.recipe import Recipe
from prunekit.run import pipeline

QUICK = {
    "calibration": {"source": "sample", "samples": 4, "seq_len": 16},
    "evaluation": {"quick": False},
    "export": {"verify": "off"},
}


@pytest.mark.parametrize("allocator", ["uniform", "owl", "alphapruning"])
@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"targets": ["q_proj", "mlp.*"]}, ("q_proj", "gate_proj", "up_proj", "down_proj")),
        ({"ignore": ["re:model\\.layers\\.[03]\\."]}, ("q_proj", "k_proj", "v_proj", "o_proj")),
    ],
)
def test_only_the_chosen_linears_are_pruned_and_the_ratio_counts_them(
    patterns: dict[str, Any], expected: tuple[str, ...], allocator: str, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_llama()
    wanted = Recipe.model_validate(
        {"model": str(source), "method": "wanda", "ratio": 0.5, "allocator": allocator, **patterns, **QUICK}
    )
    done = pipeline.prune(wanted, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "prunekit.json").read_text())
    linears = manifest["result"]["linears"]
    assert set(expected) <= {path.rpartition(".")[2] for path in linears}
    assert done.sparsity == pytest.approx(0.5, abs=0.02)
    assert done.weights == sum(linear["weights"] for linear in linears.values())
    assert any("the ratio counts these only" in note for note in manifest["notes"])
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name.removesuffix(".weight") for name in before if not before[name].equal(after[name])}
    assert changed == set(linears)


def test_targets_of_a_method_that_prunes_no_weights_are_refused(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    wanted = Recipe.model_validate(
        {"model": str(tiny_llama()), "method": "shortgpt", "ratio": 0.25, "targets": ["q_proj"], **QUICK}
    )
    with pytest.raises(UsageError, match="targets means nothing to it"):
        pipeline.prune(wanted, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
