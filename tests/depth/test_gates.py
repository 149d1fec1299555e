"""The gradient of the loss in the gates is the one that finite differences find, for both kinds of gate."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunekit import testing as checks
from prunekit.blockwise import stream
from prunekit.depth.gates import GatedLoss, Kind, gated
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel

Model = Callable[..., Path]


def opened(folder: Path) -> tuple[PrunableModel, torch.Tensor]:
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu", dtype="float32")
    return model, checks.token_ids(model, samples=4, tokens=12)


def test_a_gate_of_one_leaves_a_block_alone_and_a_branch_of_zero_bypasses_it() -> None:
    output, given = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(gated(output, given, 1.0, "output"), output)
    assert torch.allclose(gated(output, given, 1.0, "branch"), output, atol=1e-6)
    assert torch.equal(gated(output, given, 0.0, "branch"), given)


@pytest.mark.parametrize("family", ["llama", "tuples"])
def test_open_gates_give_the_models_own_loss(family: str, tiny_llama: Model, tiny_model: Model) -> None:
    from transformers import AutoModelForCausalLM, BloomConfig

    folder = tiny_llama() if family == "llama" else tiny_model(BloomConfig(n_layer=3, hidden_size=32, n_head=4))
    model, ids = opened(folder)
    loss, _ = GatedLoss(model, list(ids.split(2))).gradient(torch.ones(len(model.blocks), dtype=torch.float64))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits[:, :-1]
    assert loss == pytest.approx(cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["branch", "output"])
def test_the_gradient_is_that_of_finite_differences(kind: Kind, tiny_llama: Model) -> None:
    model, ids = opened(tiny_llama())
    loss = GatedLoss(model, list(ids.split(2)), kind)
    at, small = torch.tensor([1.0, 0.6, 0.9, 1.1], dtype=torch.float64), 1e-2
    _, slopes = loss.gradient(at)
    for block in range(4):
        step = small * torch.nn.functional.one_hot(torch.tensor(block), 4)
        expected = (loss.gradient(at + step)[0] - loss.gradient(at - step)[0]) / (2 * small)
        assert float(slopes[block]) == pytest.approx(expected, abs=2e-4)
    assert float(slopes.abs().max()) > 5e-3  # far above the tolerance, so the comparison says something


def test_groups_of_batches_and_weights_in_memory_change_nothing(
    tiny_llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = opened(tiny_llama())
    loss, at = GatedLoss(model, list(ids.split(1))), torch.full((4,), 0.8, dtype=torch.float64)
    one, slopes = loss.gradient(at)
    monkeypatch.setattr(stream, "WAITING_BYTES", 1)
    assert len(loss._groups()) == 4
    monkeypatch.undo()
    assert len(loss._groups()) == 1
    with model.resident():
        assert len(loss._groups()) == 4, "nothing is read, so nothing need wait"
        other, others = loss.gradient(at)
    assert other == pytest.approx(one, rel=1e-12)
    assert torch.allclose(others, slopes, rtol=1e-6)
    assert all(parameter.is_meta for parameter in model.skeleton.parameters())


def test_a_removed_block_is_bypassed_and_has_no_slope(tiny_llama: Model) -> None:
    model, ids = opened(tiny_llama())
    loss, closed = GatedLoss(model, [ids]), torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    expected, _ = loss.gradient(closed)
    found, slopes = loss.without({1}).gradient(torch.ones(4, dtype=torch.float64))
    assert found == pytest.approx(expected, rel=1e-6)
    assert float(slopes[1]) == 0
