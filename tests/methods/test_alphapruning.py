from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit import testing as checks
from prunekit.contract import Context
from prunekit.spectra.eigenvalues import eigenvalues
from prunekit.spectra.power_law import measure
from prunekit.weights.allocation import check_budget
from prunekit.weights.masks import mean_sparsity
from prunekit_methods.alphapruning import AlphaPruning

Make = Callable[..., Path]
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 88}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))


def context(folder: Path, allocator: AlphaPruning, ratio: float) -> Context:
    return checks.open_context(folder, allocator, ratio=ratio)


def stored_spectra(folder: Path) -> dict[str, torch.Tensor]:
    stored = load_file(folder / "model.safetensors")
    return {name.removesuffix(".weight"): eigenvalues(stored[name]) for name in stored if "proj" in name}


def alphas(folder: Path, block: int) -> list[float]:
    found = stored_spectra(folder).items()
    return [measure(values, "alpha_peak") for path, values in found if path.startswith(f"model.layers.{block}.")]


def test_blocks_follow_the_mean_of_their_exponents(tiny_llama: Make) -> None:
    folder = tiny_llama(**GROUPED)
    ctx = context(folder, AlphaPruning(epsilon=0.3), 0.6)
    budget = AlphaPruning(epsilon=0.3).allocate(ctx, 0.6)

    q = [sum(alphas(folder, block)) / 7 for block in range(4)]
    r = [(value - min(q)) / (max(q) - min(q)) * 0.6 + 0.7 for value in q]
    eta = 0.6 * 4 / sum(r)  # blocks of one size
    for path, value in budget.items():
        assert value == pytest.approx(eta * r[int(path.split(".")[2])], abs=1e-9)


def test_what_it_decided_from_is_left_as_evidence(tiny_llama: Make) -> None:
    folder = tiny_llama()
    ctx = context(folder, AlphaPruning(metric="stable_rank"), 0.6)
    AlphaPruning(metric="stable_rank").allocate(ctx, 0.6)
    found = {path: measure(value, "stable_rank") for path, value in stored_spectra(folder).items()}
    means = [sum(value for path, value in found.items() if f".{block}." in path) / 7 for block in range(4)]
    assert ctx.evidence["stable_rank"] == pytest.approx(means)
    assert ctx.evidence["spectra"].keys() == ctx.model.linears().keys()


@pytest.mark.parametrize("mapping", ["block", "matrix", "mixed"])
@pytest.mark.parametrize(("ratio", "epsilon"), [(0.5, 0.2), (0.7, 0.5), (0.8, 1.0), (0.95, 0.9)])
def test_the_budget_is_met_by_parameter_count_also_where_it_is_clipped(
    tiny_llama: Make, mapping: str, ratio: float, epsilon: float
) -> None:
    allocator = AlphaPruning(mapping=mapping, epsilon=epsilon)  # type: ignore[arg-type]
    ctx = context(tiny_llama(**GROUPED), allocator, ratio)
    budget = allocator.allocate(ctx, ratio)
    check_budget(ctx, budget, ratio, "alphapruning")
    assert abs(mean_sparsity(ctx.model, budget) - ratio) < 1e-9
    assert max(budget.values()) <= 0.99 + 1e-9 and len(set(budget.values())) > 1


def test_mixed_gives_each_block_what_block_gives_it_and_splits_it_inside(tiny_llama: Make) -> None:
    folder = tiny_llama(**GROUPED)
    ctx = context(folder, AlphaPruning(), 0.6)
    block, mixed = (AlphaPruning(mapping=kind).allocate(ctx, 0.6) for kind in ("block", "mixed"))  # type: ignore[arg-type]
    for index in range(4):
        paths = [path for path in block if path.startswith(f"model.layers.{index}.")]
        inside = mean_sparsity(ctx.model, {path: mixed[path] for path in paths})
        assert inside == pytest.approx(block[paths[0]])
        assert len({round(mixed[path], 6) for path in paths}) > 1


def test_blocks_of_unequal_size_are_weighed_by_their_weights(tiny_model: Make) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "gemma3n_text",
        hidden_size=32,
        intermediate_size=[32, 64, 96, 128],
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=320,
        vocab_size_per_layer_input=320,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        altup_num_inputs=2,
        num_kv_shared_layers=0,
        layer_types=["full_attention"] * 4,
        activation_sparsity_pattern=[0.0] * 4,
        max_position_embeddings=128,
    )
    ctx = context(tiny_model(config), AlphaPruning(), 0.7)
    sizes = {sum(linear.parameters for linear in block.linears) for block in ctx.model.blocks}
    assert len(sizes) > 1
    budget = AlphaPruning(epsilon=0.8).allocate(ctx, 0.7)
    assert mean_sparsity(ctx.model, budget) == pytest.approx(0.7, abs=1e-9)


@pytest.mark.parametrize("metric", ["alpha_mid", "alpha_ks", "stable_rank", "entropy", "spectral_norm", "log_norm"])
def test_every_metric_makes_a_budget(tiny_llama: Make, metric: str) -> None:
    allocator = AlphaPruning(metric=metric, windows=2)  # type: ignore[arg-type]
    ctx = context(tiny_llama(), allocator, 0.5)
    check_budget(ctx, allocator.allocate(ctx, 0.5), 0.5, "alphapruning")


def test_matrices_without_an_exponent_are_noted_and_never_give_a_nan(tiny_llama: Make) -> None:
    folder = tiny_llama()
    stored = load_file(folder / "model.safetensors")
    stored["model.layers.2.mlp.up_proj.weight"].zero_()
    for name in list(stored):  # a model of zeros, but for one block
        if "layers.3" in name and "proj" in name:
            stored[name] = torch.zeros_like(stored[name])
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    ctx = context(folder, AlphaPruning(), 0.7)
    budget = AlphaPruning().allocate(ctx, 0.7)
    check_budget(ctx, budget, 0.7, "alphapruning")
    assert len(ctx.notes) == 8 and "model.layers.2.mlp.up_proj is all zero" in ctx.notes[0]


def test_removed_blocks_take_no_part_and_get_the_target(tiny_llama: Make) -> None:
    ctx = context(tiny_llama(), AlphaPruning(), 0.6)
    ctx.model = ctx.model.without({2})
    budget = AlphaPruning().allocate(ctx, 0.6)
    check_budget(ctx, budget, 0.6, "alphapruning")
    assert {budget[path] for path in budget if ".layers.2." in path} == {0.6}
    kept = {path: value for path, value in budget.items() if ".layers.2." not in path}
    assert mean_sparsity(ctx.model, kept) == pytest.approx(0.6, abs=1e-9)
