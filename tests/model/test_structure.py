from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import families
from prunekit.errors import UnsupportedError
from prunekit.model.structure import Linear, find_blocks, find_linears, find_other_matrices, find_stack


def skeleton(family: str, **changes: Any) -> Any:
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(families.config(family, **changes))


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("llama", "model.layers"),
        ("gpt2", "transformer.h"),
        ("opt", "model.decoder.layers"),
        ("gpt_neox", "gpt_neox.layers"),
        ("mpt", "transformer.blocks"),
        ("mamba", "backbone.layers"),
        ("mixtral", "model.layers"),
    ],
)
def test_the_decoder_stack_is_found_whatever_it_is_called(family: str, path: str) -> None:
    model = skeleton(family)

    found, stack, blocks = find_blocks(model)

    assert found == path
    assert [block.path for block in blocks] == [f"{path}.{index}" for index in range(len(stack))]


class Lists(nn.Module):
    """A model with some lists of modules and a config that says how many blocks there are."""

    def __init__(self, depth: int | None, **lists: int) -> None:
        super().__init__()
        self.config = self
        self.num_hidden_layers = depth
        for name, length in lists.items():
            setattr(self, name, nn.ModuleList(nn.ModuleList([nn.Identity()] * 2) for _ in range(length)))

    def get_text_config(self) -> "Lists":
        return self


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Lists(3), "found 0; its lists: none"),
        (Lists(3, layers=2), r"found 0; its lists: layers \(2\)"),
        (Lists(2, upper=2, lower=2), r"found 2; its lists: upper \(2\), lower \(2\)"),
        (Lists(None, layers=2), r"expected one list of None decoder blocks"),
    ],
)
def test_no_stack_or_two_are_refused_with_what_was_found(model: Any, found: str) -> None:
    with pytest.raises(UnsupportedError, match=found) as caught:
        find_stack(model)

    assert caught.value.exit_code == 3


def test_a_list_inside_a_block_is_not_taken_for_the_stack() -> None:
    model: Any = Lists(2, layers=2)

    assert find_stack(model)[0] == "layers"


def test_linears_are_named_by_path_with_outputs_before_inputs() -> None:
    linears = find_blocks(skeleton("llama"))[2][3].linears

    assert linears[1] == Linear("model.layers.3.self_attn.k_proj", (16, 32))
    assert linears[-1] == Linear("model.layers.3.mlp.down_proj", (32, 64))
    assert linears[-1].parameters == 2048


def test_gpt2s_conv1d_is_a_transposed_linear() -> None:
    linears = {linear.path: linear for linear in find_blocks(skeleton("gpt2"))[2][0].linears}

    assert linears["transformer.h.0.attn.c_attn"] == Linear("transformer.h.0.attn.c_attn", (96, 32), transposed=True)
    assert linears["transformer.h.0.mlp.c_proj"].shape == (32, 128)


@pytest.mark.parametrize("family", sorted(families.FUSED))
def test_matrices_that_are_no_linears_are_found(family: str) -> None:
    model = skeleton(family)
    _, stack, blocks = find_blocks(model)

    others = [name for block in blocks for name in find_other_matrices(stack[block.index], block.path)]

    assert others
    assert all(model.get_parameter(name).dim() >= 2 for name in others)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "cohere"])
def test_linears_norms_and_biases_are_all_that_most_blocks_have(family: str) -> None:
    _, stack, blocks = find_blocks(skeleton(family))

    assert not find_other_matrices(stack[0], blocks[0].path)


def test_a_blocks_own_matrix_is_named_without_a_doubled_dot() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(2, 2))
            self.inner = Conv1D(3, 2)

    assert find_other_matrices(Own(), "blocks.0") == ("blocks.0.table",)
    assert find_linears(Own(), "blocks.0") == (Linear("blocks.0.inner", (3, 2), transposed=True),)
