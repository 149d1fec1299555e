from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prunekit import testing as checks
from prunekit.blockwise.stream import logits
from prunekit.weights.allocation import check_budget
from prunekit.weights.outliers import less_for_more, outlier_ratio
from prunekit_methods.owl import OWL

Make = Callable[..., Path]


def by_hand(folder: Path, ids: torch.Tensor) -> list[float]:
    """Outlier ratios from a plain model with hooks, in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    squares: dict[str, torch.Tensor] = {}
    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_pre_hook(
                lambda _, args, name=name: squares.__setitem__(name, args[0].double().square().sum((0, 1)))
            )
    with torch.no_grad():
        model(input_ids=ids)
    ratios = []
    for layer, block in enumerate(model.model.layers):
        parts = [
            (f"model.layers.{layer}.{name}", part) for name, part in block.named_modules() if hasattr(part, "weight")
        ]
        scores = torch.cat(
            [
                (part.weight.double().abs() * (squares[name] / len(ids)).sqrt()).flatten()
                for name, part in parts
                if isinstance(part, torch.nn.Linear)
            ]
        )
        ratios.append((scores > 3 * scores.mean()).double().mean().item())
    return ratios


def test_blocks_with_more_outliers_lose_less_by_the_papers_formula(tiny_llama: Make) -> None:
    folder = tiny_llama()
    allocator = OWL(threshold=3, spread=0.1)
    ctx = checks.open_context(folder, allocator, ratio=0.6)
    assert ctx.calibration is not None
    budget = allocator.allocate(ctx, 0.6)
    check_budget(ctx, budget, 0.6, "owl")

    ratios = torch.tensor(by_hand(folder, ctx.calibration))
    keep = (ratios - ratios.min()) / (ratios.max() - ratios.min()) * 0.2  # the authors' code: ratios kept
    keep = keep - keep.mean() + (1 - 0.6)
    found = [budget[block.linears[0].path] for block in ctx.model.blocks]
    assert found == pytest.approx((1 - keep).tolist(), abs=2e-3)
    assert max(found) - min(found) == pytest.approx(0.2)
    assert ctx.evidence["outlier_ratio"] == pytest.approx(ratios.tolist(), abs=2e-3)


def test_an_outlier_is_counted_against_the_mean_of_the_whole_block() -> None:
    assert outlier_ratio([torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 17.0]])], 3) == 0.25
    assert outlier_ratio([], 5) == 0.0


def test_equal_ratios_give_equal_sparsities() -> None:
    assert less_for_more([0.02, 0.02], [1, 1], 0.08) == [0.0, 0.0]
    assert less_for_more([0.0, 0.01, 0.02], [1, 1, 1], 0.08) == pytest.approx([0, -0.08, -0.16])


def test_allocating_changes_nothing_in_the_model(tiny_llama: Make) -> None:
    ctx = checks.open_context(tiny_llama(), OWL(), ratio=0.6)
    before = next(logits(ctx.model, ctx.probe))
    OWL().allocate(ctx, 0.6)
    assert torch.equal(next(logits(ctx.model, ctx.probe)), before)
