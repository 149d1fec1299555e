"""The three weight methods give what a plain whole-model implementation gives that was written from the formulas alone.

Both sides run on random models of six families; `reference.py` holds the other side. prunekit solves SparseGPT's
systems in float32, as the authors do, so its error grows with the condition of the Hessian: the models are made so
that their inputs vary in all directions (about 1e-6 of the largest weight remains), as they do in trained models.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig, PretrainedConfig, Qwen3Config

import reference
from prunekit import testing as checks
from prunekit.contract import Method
from prunekit.plan import Pattern
from prunekit_methods.magnitude import Magnitude
from prunekit_methods.sparsegpt import SparseGPT
from prunekit_methods.wanda import Wanda

pytestmark = pytest.mark.slow

Model = Callable[..., Path]
Config = Callable[..., PretrainedConfig]
COMMON = {"vocab_size": 320, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0}
SIZES = COMMON | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 160, "initializer_range": 0.2}
NEOX = SIZES | {"hidden_size": 64, "intermediate_size": 160, "initializer_range": 0.2}
OPT = SIZES | {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 136, "init_std": 0.5}
GPT2 = COMMON | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 136, "initializer_range": 0.5}
GEMMA = GATED | {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
QWEN = GATED | {"head_dim": 16, "intermediate_size": 96, "num_hidden_layers": 3}
# where the blocks are, the class of the config, its values, and a seed with which no decision is a near tie
FAMILIES: dict[str, tuple[str, Config, dict[str, Any], int]] = {
    "llama": ("model.layers", LlamaConfig, GATED | {"intermediate_size": 288}, 15),
    "qwen3": ("model.layers", Qwen3Config, QWEN, 12),
    "gemma2": ("model.layers", Gemma2Config, GEMMA, 9),
    "opt": ("model.decoder.layers", OPTConfig, OPT, 19),
    "gpt-neox": ("gpt_neox.layers", GPTNeoXConfig, NEOX, 13),
    "gpt2": ("transformer.h", GPT2Config, GPT2, 7),
}
PATTERNS = {
    "0.5": ("unstructured", 0.5, reference.Setting(0.5)),
    "0.7": ("unstructured", 0.7, reference.Setting(0.7)),
    "2:4": ("2:4", 0.5, reference.Setting(0.5, pruned=2, m=4)),
    "4:8": ("4:8", 0.5, reference.Setting(0.5, pruned=4, m=8)),
}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_pattern = pytest.mark.parametrize("pattern", PATTERNS)
IDS = torch.randint(320, (14, 64), generator=torch.Generator().manual_seed(7))


class Comparison:
    """Every tensor of the blocks as prunekit makes it through its public path, and as the reference does, by name."""

    def __init__(
        self,
        make: Model,
        family: str,
        pattern: str,
        method: Method,
        pruner: reference.Pruner,
        stages: Any = None,
    ) -> None:
        stack, config, values, seed = FAMILIES[family]
        folder = make(config(**values), seed=seed)
        text, ratio, setting = PATTERNS[pattern]
        found = checks.prune(folder, method, folder.parent / "out", ratio=ratio, pattern=text, ids=IDS)
        expected = reference.prune_model(str(folder), IDS, setting, pruner, stack, stages).state_dict()
        self.pairs = {name: (tensor, expected[name]) for name, tensor in found.items()}
        self.pattern, self.transposed = Pattern.parse(text), family == "gpt2"

    def assert_equal(self) -> None:
        for name, (found, expected) in self.pairs.items():
            assert torch.equal(found, expected), f"{name} differs at {int((found != expected).sum())} places"

    def assert_close(self, relative: float) -> None:
        """Every weight within `relative` times the largest weight of its matrix, and the same zeros."""
        for name, (found, expected) in self.pairs.items():
            assert torch.equal(found == 0, expected == 0), f"{name} has other zeros"
            distance = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
            assert distance <= relative, f"{name} is {distance:.1e} away"

    def assert_groups_keep(self) -> None:
        for name, (found, _) in self.pairs.items():
            if self.pattern.group and found.dim() == 2:
                rows = found.T if self.transposed else found
                kept = (rows.reshape(len(rows), -1, self.pattern.group) != 0).sum(dim=2)
                assert kept.max() == self.pattern.kept, name


@each_family
@pytest.mark.parametrize("pattern", ["0.7", "2:4"])
def test_magnitude_is_bit_equal_to_the_reference(family: str, pattern: str, tiny_model: Model) -> None:
    Comparison(tiny_model, family, pattern, Magnitude(), reference.magnitude).assert_equal()


@each_family
@each_pattern
def test_wanda_is_bit_equal_to_the_reference(family: str, pattern: str, tiny_model: Model) -> None:
    comparison = Comparison(tiny_model, family, pattern, Wanda(), reference.wanda)
    comparison.assert_equal()
    comparison.assert_groups_keep()


@each_family
def test_wanda_variant_is_bit_equal_to_the_reference(family: str, tiny_model: Model) -> None:
    Comparison(tiny_model, family, "0.5", Wanda(variant=True), reference.wanda_variant).assert_equal()


def compare_sparsegpt(
    make: Model, family: str, pattern: str, method: SparseGPT, stages: Any = None, **settings: Any
) -> Comparison:
    """A comparison in which every decision of the reference is clear enough for float32 to take it too."""
    closest = reference.Closest()
    pruner = partial(reference.sparsegpt, closest=closest, **settings)
    comparison = Comparison(make, family, pattern, method, pruner, stages)
    assert closest.margin > 1e-5, f"a decision hangs on a relative difference of {closest.margin:.0e}: change the seed"
    return comparison


@each_family
@each_pattern
def test_sparsegpt_equals_the_reference_to_1e_5_of_the_largest_weight(
    family: str, pattern: str, tiny_model: Model
) -> None:
    comparison = compare_sparsegpt(tiny_model, family, pattern, SparseGPT())
    comparison.assert_close(1e-5)
    comparison.assert_groups_keep()


STAGES = {
    "llama": (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)),
    "opt": (("q_proj", "k_proj", "v_proj"), ("out_proj",), ("fc1",), ("fc2",)),
}


@pytest.mark.parametrize("family", STAGES)
def test_true_sequential_sparsegpt_equals_the_reference_that_prunes_in_stages(family: str, tiny_model: Model) -> None:
    method = SparseGPT(true_sequential=True)
    compare_sparsegpt(tiny_model, family, "2:4", method, STAGES[family]).assert_close(1e-5)


@pytest.mark.parametrize("pattern", ["0.5", "4:8"])
def test_other_dampening_and_block_size_equal_the_reference(pattern: str, tiny_model: Model) -> None:
    method = SparseGPT(dampening=0.1, block_size=48)
    compare_sparsegpt(tiny_model, "llama", pattern, method, damp=0.1, width=48).assert_close(1e-5)
