"""Removing blocks: which tensors and config keys change, that the result is exact, and which models are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3Config, LlamaConfig, PreTrainedModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3ForCausalLM

import depth_families
from depth_families import REMOVED
from prunekit.depth.config import Cut, patch_config, stored_changes
from prunekit.depth.removal import (
    Removal,
    blocks_to_remove,
    parse_blocks,
    plan_removal,
    protected_blocks,
    rename_tensors,
)
from prunekit.errors import UnsupportedError, UsageError
from prunekit.export.folder import write_safetensors
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel

pytestmark = pytest.mark.slow

IDS = torch.randint(1, 96, (2, 20), generator=torch.Generator().manual_seed(7))


def write_without(folder: Path, target: Path, removed: tuple[int, ...]) -> Removal:
    """Write a model folder without some blocks."""
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu")
    removal, stored = plan_removal(model, removed), model.checkpoint
    target.mkdir()

    def read(names: list[str]) -> dict[str, Tensor]:
        tensors = stored.read([removal.names[name] for name in names])
        return {name: tensors[removal.names[name]] for name in names}

    infos = {new: stored.tensors[old] for new, old in removal.names.items()}
    write_safetensors(target / "model.safetensors", infos, read)
    (target / "config.json").write_text(json.dumps(stored.config | removal.config))
    return removal


def load(folder: Path) -> PreTrainedModel:
    """A model by plain transformers, with nothing missing, unexpected or of another shape."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def bypass(model: PreTrainedModel, path: str, removed: tuple[int, ...]) -> None:
    """Let some blocks hand on their hidden states, in the form in which blocks return them."""
    heard: list[Any] = []
    stack = model.get_submodule(path)
    hook = stack.get_submodule("0").register_forward_hook(lambda *call: heard.append(call[-1]))
    logits(model)
    hook.remove()

    def identity(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if isinstance(heard[0], Tensor) else (hidden, *[None] * (len(heard[0]) - 1))

    for index in removed:
        stack.get_submodule(str(index)).forward = identity


@torch.no_grad()
def greedy(model: PreTrainedModel, *, use_cache: bool) -> list[int]:
    settings: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "use_cache": use_cache}
    found: Any = model.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), **settings)  # pyright: ignore
    return found[0, IDS.shape[1] :].tolist()


@pytest.mark.parametrize("family", depth_families.FAMILIES)
def test_a_folder_without_two_blocks_computes_what_the_source_computes_around_them(family: str, tmp_path: Path) -> None:
    folder = depth_families.save(depth_families.config(family), tmp_path / "source")
    path = PrunableModel.open(Checkpoint.open(folder), device="cpu").stack_path

    write_without(folder, tmp_path / "shorter", REMOVED)

    source, shorter = load(folder), load(tmp_path / "shorter")
    assert not torch.allclose(logits(source), logits(shorter), atol=1e-3)
    bypass(source, path, REMOVED)
    wanted, found = logits(source), logits(shorter)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert greedy(shorter, use_cache=True) == greedy(shorter, use_cache=False)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "diffllama": (
        "diffllama",
        {},
        r"layers\.2\.self_attn\.lambda_init depends on the block's index; it is 0\.\d+, and",
    ),
    "gpt2-scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attention is divided by the block's index"),
    "minimax": ("minimax", {}, r"layers\.5\.self_attn\.slope_rate depends on the block's index"),
    "gemma3n": ("gemma3n", {"num_kv_shared_layers": 2}, "keys and values of earlier ones"),
    "gemma3n-unshared": ("gemma3n", {"num_kv_shared_layers": 0}, "per_layer.* depends on the number of blocks"),
    "gemma4": ("gemma4", {"num_kv_shared_layers": 0}, "per_layer.* depends on the number of blocks"),
    "rwkv": ("rwkv", {}, "halved"),
    "zamba": ("zamba", {}, "blocks 1 and 3 share their shared_transf"),
    "beam": ("beam", {}, "attn_residual_add_idx depends on the block's index"),
    "zaya": ("zaya", {}, "one hands its prev_router_hidden_states to the next"),
    "glm_moe_dsa": ("glm_moe_dsa", {}, "one hands its prev_topk_indices to the next"),
    "jamba": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}, r"layers\.\d.* is Jamba.*Layer, and would be"),
    "qwen3_5": ("qwen3_5", {"full_attention_interval": 2}, "left of Qwen3_5ForCausalLM are all linear_attention"),
    "olmo_hybrid": ("olmo_hybrid", {"layer_types": ["full_attention", "linear_attention"] * 3}, "at least one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_whose_mathematics_depends_on_the_index_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    family, changes, reason = REFUSED[case]
    removed = {"jamba": (2,), "olmo_hybrid": (1, 3, 5), "qwen3_5": (1, 3, 5)}.get(case, REMOVED)
    folder = depth_families.save(depth_families.config(family, **changes), tmp_path / "source")
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu")

    with pytest.raises(UnsupportedError, match=reason) as caught:
        plan_removal(model, removed)

    assert caught.value.exit_code == 3


def opened(folder: Path) -> PrunableModel:
    return PrunableModel.open(Checkpoint.open(folder), device="cpu")


@pytest.fixture
def family(tmp_path: Path) -> Callable[..., PrunableModel]:
    """`family("gemma2", **changes)` opens a random model of six blocks."""

    def make(name: str, **changes: Any) -> PrunableModel:
        return opened(depth_families.save(depth_families.config(name, **changes), tmp_path / name))

    return make


def test_a_plain_config_changes_in_its_depth_only(family: Callable[..., PrunableModel]) -> None:
    removal = plan_removal(family("llama"), [4, 2])

    assert (removal.removed, removal.kept) == ((2, 4), (0, 1, 3, 5))
    assert removal.config == {"num_hidden_layers": 4}


def test_tensors_keep_their_order_and_those_behind_a_removed_block_move_up(
    family: Callable[..., PrunableModel],
) -> None:
    model = family("llama")

    names = plan_removal(model, REMOVED).names

    assert list(names.values()) == [
        name for name in model.checkpoint.tensors if not name.startswith(("model.layers.1.", "model.layers.3."))
    ]
    assert names["model.layers.3.mlp.up_proj.weight"] == "model.layers.5.mlp.up_proj.weight"
    assert names["model.embed_tokens.weight"] == "model.embed_tokens.weight"


# family -> what its config says of the four blocks that are left of six
DESCRIBED: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 4},
    "gemma2": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "gpt_neo": {
        "num_layers": 4,
        "attention_types": [[["global"], 3], [["local"], 1]],
        "attention_layers": ["global", "global", "global", "local"],
    },
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 1], "layer_types": ["full_attention"] * 4},
    "qwen3_moe": {"num_hidden_layers": 4, "decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 2]},
    "deepseek_v3": {"num_hidden_layers": 4, "first_k_dense_replace": 1},
    "ernie4_5_moe": {"num_hidden_layers": 4, "moe_layer_start_index": 1, "moe_layer_end_index": 3},
    "recurrent_gemma": {"num_hidden_layers": 4, "block_types": ["recurrent", "attention", "recurrent", "attention"]},
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 2]},
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_what_the_config_says_of_each_block_follows_the_blocks(name: str, family: Callable[..., PrunableModel]) -> None:
    assert plan_removal(family(name), REMOVED).config == DESCRIBED[name]


def test_the_config_of_a_nested_decoder_is_given_whole() -> None:
    text = {"num_hidden_layers": 3, "hidden_size": 8}
    source = {"model_type": "gemma3", "text_config": text, "vision_config": {"num_hidden_layers": 3}}
    config = depth_families.config("gemma3", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    whole = Gemma3Config(text_config=config.to_dict(), vision_config={"num_hidden_layers": 3})

    changes = patch_config(source, whole, (0, 2), lambda changes: Gemma3Config(**changes))

    assert changes == {"text_config": text | {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}}


def cut(kept: tuple[int, ...], **section: Any) -> dict[str, Any]:
    return stored_changes(Cut(kept, 6, section, LlamaConfig(num_hidden_layers=6)))


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        ({"per_layer_config": {"1": {"a": 1}, "4": {"a": 2}}}, {"per_layer_config": {"2": {"a": 2}}}),
        ({"mlp_only_layers": [1, 2, 3, 4, 5, 0]}, {"mlp_only_layers": [0, 1, 2, 3]}),
        ({"linear_attn_config": {"kda_layers": [1, 2, 6]}}, {"linear_attn_config": {"kda_layers": [1, 4]}}),
        ({"hybrid_override_pattern": "M*ME-M"}, {"hybrid_override_pattern": "MM-M"}),
        ({"rope_scaling": {"long_factor": [1.0] * 6}}, {"rope_scaling": {"long_factor": [1.0] * 6}}),
        ({"eos_token_id": [1, 2, 3, 4, 5, 6]}, {}),
        ({"max_window_layers": 3, "first_k_dense_replace": 9}, {"max_window_layers": 2}),
        ({"attn_layer_period": 3, "attn_layer_offset": 1}, {"attn_layer_period": 3, "attn_layer_offset": 2}),
        ({"attn_layer_period": 3, "attn_layer_offset": 7}, {"attn_layer_period": 5, "attn_layer_offset": 4}),
        (
            {"moe_layer_interval": 2, "moe_layer_start_index": 0, "moe_layer_end_index": -1},
            {"moe_layer_interval": 2, "moe_layer_start_index": 3, "moe_layer_end_index": 3},
        ),
    ],
    ids=lambda value: next(iter(value), "nothing"),
)
def test_a_key_that_speaks_of_blocks_is_rewritten(section: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert cut((0, 2, 4, 5), **section) == {"num_hidden_layers": 4, **wanted}


def test_branches_are_scaled_as_before_where_the_scale_depends_on_the_depth(
    family: Callable[..., PrunableModel],
) -> None:
    model = family("minicpm3", scale_depth=1.4)

    config = plan_removal(model, REMOVED).config

    assert config["scale_depth"] == pytest.approx(1.4 * (4 / 6) ** 0.5)


def test_heads_that_predict_more_tokens_are_dropped(
    family: Callable[..., PrunableModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.6.*"])
    folder = family("deepseek_v3").checkpoint.folder
    tensors = load_file(folder / "model.safetensors")
    heads = {name.replace(".5.", ".6.", 1): part.clone() for name, part in tensors.items() if ".layers.5." in name}
    save_file(tensors | heads | {"model.layers.6.eh_proj.weight": torch.ones(2)}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))

    removal = write_without(folder, tmp_path / "shorter", REMOVED)

    assert {name.split(".")[2] for name in removal.names if ".layers." in name} == {"0", "1", "2", "3"}
    assert removal.config["num_nextn_predict_layers"] == 0
    load(tmp_path / "shorter")


def test_a_sharded_source_with_tied_embeddings_stays_tied(tmp_path: Path) -> None:
    config = depth_families.config("llama", tie_word_embeddings=True)
    folder = depth_families.save(config, tmp_path / "source", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2

    removal = write_without(folder, tmp_path / "shorter", REMOVED)

    assert "lm_head.weight" not in removal.names
    shorter: Any = load(tmp_path / "shorter")
    assert shorter.get_output_embeddings().weight is shorter.get_input_embeddings().weight


def test_names_without_the_models_prefix_are_understood(tmp_path: Path) -> None:
    folder = depth_families.save(depth_families.config("gpt2"), tmp_path / "source")
    stored = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})

    removal = write_without(folder, tmp_path / "shorter", REMOVED)

    assert removal.names["h.3.ln_1.weight"] == "h.5.ln_1.weight"
    source, shorter = load(folder), load(tmp_path / "shorter")
    bypass(source, "transformer.h", REMOVED)
    torch.testing.assert_close(logits(shorter), logits(source), rtol=0, atol=1e-6)


OWN_CODE = """
from transformers import LlamaForCausalLM

class TinyForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.strength = STRENGTH
"""


@pytest.mark.parametrize("strength", ["2.0", "0.5 * layer.self_attn.layer_idx"])
def test_a_model_that_brings_its_own_code_is_built_from_it(tmp_path: Path, strength: str) -> None:
    folder = depth_families.save(depth_families.config("llama"), tmp_path / "source")
    (folder / "modeling_tiny.py").write_text(OWN_CODE.replace("STRENGTH", strength))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu", trust_remote_code=True)

    if strength == "2.0":
        assert plan_removal(model, REMOVED).config == {"num_hidden_layers": 4}
    else:
        with pytest.raises(UnsupportedError, match=r"layers\.2\.strength .* it is 1.0, and would be 0.5 as block 1"):
            plan_removal(model, REMOVED)


def test_blocks_that_cannot_be_told_by_name_are_refused() -> None:
    names = [f"{path}.layers.{index}.weight" for path in ("text", "vision") for index in range(2)]

    with pytest.raises(UnsupportedError, match=r"numbered names: text.layers \(2\), vision.layers \(2\)"):
        rename_tensors(names, "model.layers", 2, [0])
    assert rename_tensors(names, "model.text.layers", 2, [0])["text.layers.0.weight"] == "text.layers.1.weight"
    with pytest.raises(UnsupportedError, match="numbered names: none"):
        rename_tensors(["model.norm.weight"], "model.layers", 2, [0])


@pytest.mark.parametrize(
    ("removed", "reason"),
    [([], "no block"), (range(6), "all 6 blocks"), ([6], r"\[6\] .* blocks 0 to 5"), ([-1], r"\[-1\]")],
)
def test_blocks_that_cannot_go_are_a_usage_error(
    family: Callable[..., PrunableModel], removed: list[int], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        plan_removal(family("llama"), removed)


def test_planning_twice_gives_the_same_after_blocks_were_in_memory(family: Callable[..., PrunableModel]) -> None:
    model = family("deepseek_v3")
    first = plan_removal(model, REMOVED)
    for block in model.blocks:
        with model.block(block.index):
            pass

    assert plan_removal(model, REMOVED) == first


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("first:1,last:1", {0, 9}),
        ("first:2, last:0, 5", {0, 1, 5}),
        ("3", {3}),
        ("none", set()),
        ("first:10", set(range(10))),
    ],
)
def test_protected_blocks_are_read(text: str, wanted: set[int]) -> None:
    assert protected_blocks(text, 10) == wanted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("first:1,end:2", "'end:2' of 'first:1,end:2' is not first:N, last:N or the index of a block"),
        ("first:-1", "'first:-1'"),
        ("first:1,", "''"),
        ("10", "10 is beyond the model's 10 blocks, 0 to 9"),
        ("last:11", "last:11 is beyond"),
    ],
)
def test_protected_blocks_that_mean_nothing_are_a_usage_error(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        protected_blocks(text, 10)
    assert caught.value.hint


@pytest.mark.parametrize(("ratio", "wanted"), [(0.3, 3), (0.01, 1), (0.25, 2), (0.8, 8)])
def test_a_ratio_means_at_least_one_block(ratio: float, wanted: int) -> None:
    assert blocks_to_remove(ratio, 10, {0, 9}) == wanted


def test_a_ratio_that_needs_protected_blocks_says_how_many_could_go() -> None:
    with pytest.raises(
        UsageError, match=r"removes 5 of 6 blocks, and 2 are protected; at most 4 can be removed"
    ) as caught:
        blocks_to_remove(0.8, 6, {0, 5})
    assert caught.value.hint == "--ratio 0.67"
    with pytest.raises(UsageError, match="at most 5 can be removed"):
        blocks_to_remove(0.99, 6, ())
    with pytest.raises(UsageError, match="at most 0 can be removed") as caught:
        blocks_to_remove(0.2, 2, {0, 1})
    assert caught.value.hint == "--protect-blocks none"
    with pytest.raises(UsageError, match="ratio 0 "):
        blocks_to_remove(0.0, 6, ())


@pytest.mark.parametrize(
    ("text", "wanted"), [("21-28,30", (*range(21, 29), 30)), ("4,2 - 3, 3", (2, 3, 4)), ("0", (0,))]
)
def test_named_blocks_are_read(text: str, wanted: tuple[int, ...]) -> None:
    assert parse_blocks(text, 31) == wanted


@pytest.mark.parametrize("text", ["", "a", "5-3", "1,,2", "-1", "1.5", "31", "29-31"])
def test_named_blocks_that_mean_nothing_are_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"not a block or a range|block 31 is beyond the model's 31 blocks, 0 to 30"):
        parse_blocks(text, 31)
