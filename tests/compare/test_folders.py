"""Two folders are compared tensor by tensor: which are gone, new, of another form, or hold other numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunekit.compare.folders import compare
from prunekit.errors import InputError

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def pair(tiny_llama: Callable[..., Path]) -> Callable[..., tuple[Path, Path]]:
    """`pair(edit)` saves a model twice, the first time with edited tensors."""

    def make(edit: Callable[[dict[str, Tensor]], object] = lambda tensors: None) -> tuple[Path, Path]:
        ours, theirs = tiny_llama(name="ours"), tiny_llama(name="theirs", max_shard_size="40KB")
        tensors = load_file(ours / "model.safetensors")
        edit(tensors)
        save_file(tensors, ours / "model.safetensors", metadata={"format": "pt"})
        return ours, theirs

    return make


def test_one_model_in_two_layouts_is_the_same(pair: Callable[..., tuple[Path, Path]]) -> None:
    found = compare(*pair())
    assert found.same == 39
    assert not (found.missing or found.added or found.reshaped or found.config or found.differing)


def test_pruned_weights_are_told_from_updated_ones(pair: Callable[..., tuple[Path, Path]]) -> None:
    def prune(tensors: dict[str, Tensor]) -> None:
        tensors[NAME][:32] = 0
        tensors[NAME][32:48] += 1

    found = compare(*pair(prune))
    (only,) = found.differing
    assert (only.name, only.elements) == (NAME, 64 * 32)
    assert (only.zeros, only.zeros_against, only.changed, only.rewritten) == (0.5, 0, 0.75, 0.25)
    assert found.same == 38


def test_tensors_that_are_gone_new_or_of_another_form_are_named(pair: Callable[..., tuple[Path, Path]]) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[NAME] = tensors[NAME].half()
        tensors["new"] = tensors.pop("model.norm.weight")

    found = compare(*pair(edit))
    assert found.missing == ("model.norm.weight",)
    assert found.added == ("new",)
    assert found.reshaped == {NAME: "F16 (64, 32), was F32 (64, 32)"}


def test_keys_of_the_config_with_another_value_are_named(pair: Callable[..., tuple[Path, Path]]) -> None:
    ours, theirs = pair()
    config = json.loads((ours / "config.json").read_text()) | {"num_hidden_layers": 2, "new": True}
    (ours / "config.json").write_text(json.dumps(config))
    assert compare(ours, theirs).config == {"new": "True, was None", "num_hidden_layers": "2, was 4"}


def test_a_damaged_tensor_is_an_input_error(pair: Callable[..., tuple[Path, Path]]) -> None:
    with pytest.raises(InputError, match="NaN"):
        compare(*pair(lambda tensors: tensors[NAME].fill_(torch.nan)))
