"""Adapters: nothing at first, nothing when they are off, and an ordinary model with what they learned at the end."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import families
from prunekit.errors import UnsupportedError, UsageError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.train import lora as module
from prunekit.train.lora import Adapters, adapt

Model = Callable[..., Path]
# linears, transposed ones, fused weights, blocks that read a weight by themselves, experts beside a shared one
FAMILIES = ("llama", "gpt2", "falcon-new", "mamba", "jamba", "qwen3_next", "llama4")
IDS = torch.arange(24).reshape(2, 12)


def adapted(
    folder: Path, blocks: slice = slice(None), rank: int = 4, seed: int = 0
) -> tuple[PreTrainedModel, Adapters]:
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu")
    student = model.load(torch.float32)
    return student, adapt(student, [part for block in model.blocks[blocks] for part in block.linears], IDS, rank, seed)


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def learn(adapters: Adapters) -> None:
    """Give B something other than zero."""
    for name, part in adapters.parameters().items():
        if "lora_B" in name:
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05)


def test_adapters_change_nothing_at_first_and_nothing_when_they_are_off(tiny_llama: Model) -> None:
    student, adapters = adapted(tiny_llama())
    with adapters.off():
        dense = logits(student)
    assert torch.equal(logits(student), dense)
    learn(adapters)
    assert not torch.allclose(logits(student), dense, atol=1e-2)
    with adapters.off():
        assert torch.equal(logits(student), dense)
    assert all(part.requires_grad for part in adapters.parameters().values()), "they can be trained again afterwards"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_folded_in_is_an_ordinary_model_that_computes_the_same(family: str, tmp_path: Path) -> None:
    folder = families.save(family, tmp_path / family)
    student, adapters = adapted(folder)
    names = PrunableModel.open(Checkpoint.open(folder), device="cpu").load(torch.float32).state_dict().keys()
    learn(adapters)
    expected = logits(student)
    adapters.fold()
    assert torch.allclose(logits(student), expected, rtol=1e-3, atol=1e-4)
    assert student.state_dict().keys() == names


def test_only_the_linears_that_are_named_are_adapted(tiny_llama: Model) -> None:
    student, adapters = adapted(tiny_llama(), slice(1, 3))
    found = adapters.parameters()
    assert {name.split(".")[2] for name in found} == {"1", "2"}
    assert len(found) == 2 * 7 * 2, "A and B of seven linears in two blocks"
    trainable = {name for name, part in student.named_parameters() if part.requires_grad}
    assert trainable == found.keys()


def test_the_seed_alone_says_how_they_begin(tiny_llama: Model) -> None:
    folder = tiny_llama()
    before = torch.get_rng_state()
    one, same, other = (adapted(folder, seed=seed)[1].parameters() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(part, same[name]) for name, part in one.items())
    assert any(not torch.equal(part, other[name]) for name, part in one.items())


def test_the_scale_is_twice_the_rank_over_the_rank(tiny_llama: Model) -> None:
    student, adapters = adapted(tiny_llama(), slice(1), rank=3)
    path = "model.layers.0.mlp.up_proj"
    before = student.get_submodule(path).get_parameter("base_layer.weight").clone()
    learn(adapters)
    found = {name: part.detach().clone() for name, part in adapters.parameters().items()}
    a, b = (found[f"{path}.lora_{kind}.default.weight"] for kind in "AB")
    adapters.fold()
    linear = student.get_submodule(path)
    assert type(linear) is nn.Linear and a.shape == (3, 32)
    assert torch.allclose(linear.weight, before + 2 * b @ a, atol=1e-6)


def test_without_peft_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the library peft") as caught:
        module.require_peft()
    assert caught.value.hint == "pip install 'prunekit[lora]'"


def test_a_model_without_linears_is_refused(tiny_llama: Model) -> None:
    with pytest.raises(UnsupportedError, match="no linears"):
        adapted(tiny_llama(), slice(0))
