"""Tiny models of many families, six blocks deep, for removing blocks: those of `families.py` and more.

Patterns of blocks are left to the config classes where these have one, so that taking blocks out breaks them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import families
from families import COMMON, EXPERTS, GATED, LATENT, OLD, SLIDING, WINDOW

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DEPTH = 6
REMOVED = (1, 3)
ROUTED: dict[str, Any] = EXPERTS | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 2}
MAMBA: dict[str, Any] = {"mamba_d_state": 4, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}

# family -> its config class, and what it is made with
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": (
        "AfmoeConfig",
        SLIDING | EXPERTS | {"head_dim": 8, "num_dense_layers": 2, "global_attn_every_n_layers": 3},
    ),
    "bamba": ("BambaConfig", GATED | MAMBA | {"attn_layer_indices": [2, 4]}),
    "bitnet": ("BitNetConfig", GATED),
    "cohere2_moe": ("Cohere2MoeConfig", SLIDING | EXPERTS | {"sliding_window_pattern": 3}),
    "cwm": ("CwmConfig", SLIDING),
    "dbrx": (
        "DbrxConfig",
        OLD
        | {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": DEPTH,
            "max_seq_len": 128,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
        },
    ),
    "deepseek_v2": ("DeepseekV2Config", ROUTED | LATENT | {"topk_method": "greedy", "n_group": None}),
    "dots1": (
        "Dots1Config",
        ROUTED | {"head_dim": 8, "n_shared_experts": 1, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        EXPERTS | {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 2, "moe_num_shared_experts": 1},
    ),
    "exaone_moe": ("ExaoneMoeConfig", SLIDING | ROUTED | {"num_shared_experts": 1}),
    "falcon_h1": ("FalconH1Config", GATED | MAMBA | {"head_dim": 8, "mamba_d_ssm": 64}),
    "falcon_mamba": (
        "FalconMambaConfig",
        OLD | {"hidden_size": 32, "num_hidden_layers": DEPTH, "state_size": 4, "pad_token_id": 0},
    ),
    "flex_olmo": ("FlexOlmoConfig", EXPERTS),
    "glm4_moe": ("Glm4MoeConfig", ROUTED | {"head_dim": 8}),
    "gpt_neox_japanese": ("GPTNeoXJapaneseConfig", COMMON | {"intermediate_multiple_size": 2}),
    "granitemoe": ("GraniteMoeConfig", EXPERTS),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        EXPERTS | MAMBA | {"shared_intermediate_size": 32, "layer_types": ["linear_attention", "full_attention"] * 3},
    ),
    "granitemoeshared": ("GraniteMoeSharedConfig", EXPERTS | {"shared_intermediate_size": 32}),
    "hunyuan_moe": (
        "HunYuanMoEV1Config",
        EXPERTS | {"head_dim": 8, "moe_topk": 2},
    ),
    "jais2": ("Jais2Config", GATED),
    "jetmoe": ("JetMoeConfig", EXPERTS | {"kv_channels": 8, "num_key_value_heads": 2}),
    "lfm2_moe": (
        "Lfm2MoeConfig",
        EXPERTS | {"num_dense_layers": 2, "layer_types": ["conv", "full_attention", "conv"] * 2},
    ),
    "mamba2": (
        "Mamba2Config",
        OLD
        | {
            "hidden_size": 32,
            "num_hidden_layers": DEPTH,
            "state_size": 4,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
        },
    ),
    "nemotron_h": (
        "NemotronHConfig",
        EXPERTS
        | {
            "layers_block_type": ["mamba", "moe", "attention", "mlp", "mamba", "moe"],
            "head_dim": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 4,
            "n_groups": 1,
            "n_routed_experts": 4,
            "moe_shared_expert_intermediate_size": 32,
            "moe_latent_size": None,
        },
    ),
    "olmo_hybrid": (
        "OlmoHybridConfig",
        GATED
        | {
            "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
    "phimoe": ("PhimoeConfig", EXPERTS),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        EXPERTS
        | {
            "decoder_sparse_step": 2,
            "mlp_only_layers": [5],
            "shared_expert_intermediate_size": 32,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 4,
        },
    ),
    "qwen3_5": (
        "Qwen3_5TextConfig",
        GATED
        | {
            "head_dim": 8,
            "full_attention_interval": 3,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        GATED | {"lru_width": 32, "attention_window_size": WINDOW, "num_key_value_heads": 1, "head_dim": 8},
    ),
    "solar_open": ("SolarOpenConfig", ROUTED | {"head_dim": 8}),
    "minimax_m2": ("MiniMaxM2Config", EXPERTS | {"head_dim": 8, "rotary_dim": 4}),
    "beam": ("BeamConfig", SLIDING | EXPERTS | {"n_group": 2, "topk_group": 1}),
    "glm_moe_dsa": (
        "GlmMoeDsaConfig",
        ROUTED
        | LATENT
        | {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 2, "indexer_types": ["full", "full", "shared"] * 2},
    ),
    "minimax": ("MiniMaxConfig", EXPERTS | {"head_dim": 8, "block_size": 8}),
    "zamba": (
        "ZambaConfig",
        GATED
        | {
            "num_key_value_heads": 4,
            "mamba_d_state": 4,
            "use_mamba_kernels": False,
            "layers_block_type": ["linear_attention", "hybrid"] * 3,
        },
    ),
}

# what is put into a family's tiny model of `families.py` to make its blocks differ
CHANGES: dict[str, dict[str, Any]] = {
    "qwen2": {"max_window_layers": 3},
    "gemma3": {"sliding_window_pattern": 3},
    "gemma3n": {"layer_types": ["sliding_attention", "full_attention"] * 3},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "qwen3_moe": {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
    "llama4": {"interleave_moe_layer_step": 2, "no_rope_layer_interval": 3},
    "deepseek_v3": {"first_k_dense_replace": 2},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"] * 2},
    "qwen3_next": {"layer_types": None, "full_attention_interval": 3},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
}
REFUSED = frozenset("beam diffllama gemma3n gemma4 glm_moe_dsa minimax rwkv zamba zaya".split())
FAMILIES = sorted((families.FAMILIES.keys() | MORE.keys()) - REFUSED)


def config(family: str, **changes: Any) -> "PretrainedConfig":
    """The config of a family's tiny model of six blocks, with some values changed."""
    import transformers

    kind, values = MORE.get(family) or (families.FAMILIES | families.REFUSED)[family]
    own: dict[str, Any] = {
        key: DEPTH for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if key in values
    }
    if len(values.get("layer_types") or ()) not in (0, DEPTH):
        own["layer_types"] = None
    return getattr(transformers, kind)(**values | own | CHANGES.get(family, {}) | changes)


def save(config: "PretrainedConfig", folder: Path, **save: Any) -> Path:
    """Save a model of this config with every parameter random; `save` goes to `save_pretrained`."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    model.save_pretrained(folder, **save)
    return folder
