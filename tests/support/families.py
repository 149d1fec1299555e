"""Tiny random models of many decoder families: 2-4 blocks of width 32, vocabulary 320.

`config("gemma2")` is the config of one, `save("gemma2", folder)` a model folder with random weights. Windows of
attention are 8 tokens wide, so that a test on 24 tokens or more sees them. A new family is one line.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WINDOW = 8
COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
GATED: dict[str, Any] = COMMON | {"num_key_value_heads": 2, "intermediate_size": 64}
SLIDING: dict[str, Any] = GATED | {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
OLD: dict[str, Any] = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2}
EXPERTS: dict[str, Any] = GATED | {
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}

LATENT: dict[str, Any] = GATED | {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}

# family -> its config class in transformers, and what it is made with
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GATED | {"num_hidden_layers": 4}),
    "mistral": ("MistralConfig", GATED | {"sliding_window": WINDOW}),
    "ministral": ("MinistralConfig", SLIDING),
    "qwen2": (
        "Qwen2Config",
        GATED | {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", GATED | {"head_dim": 16}),
    "gemma": ("GemmaConfig", GATED | {"head_dim": 16}),
    "gemma2": ("Gemma2Config", SLIDING | {"query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", SLIDING),
    "gemma3n": (
        "Gemma3nTextConfig",
        SLIDING
        | {
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 320,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": None,
        },
    ),
    "gemma4": (
        "Gemma4TextConfig",
        SLIDING
        | {
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 320,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 8,
        },
    ),
    "phi": ("PhiConfig", COMMON | {"intermediate_size": 64}),
    "phi3": ("Phi3Config", GATED | {"sliding_window": WINDOW}),
    "opt": ("OPTConfig", COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2}),
    "opt-projected": ("OPTConfig", COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "gpt2": ("GPT2Config", OLD | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt_neo": (
        "GPTNeoConfig",
        OLD
        | {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 128,
            "window_size": WINDOW,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", COMMON | {"intermediate_size": 64}),
    "gptj": ("GPTJConfig", OLD | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCodeConfig", OLD | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "codegen": ("CodeGenConfig", OLD | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4}),
    "falcon": ("FalconConfig", COMMON | {"alibi": False}),
    "falcon-alibi": ("FalconConfig", COMMON | {"alibi": True, "parallel_attn": False, "bias": True}),
    "falcon-new": ("FalconConfig", COMMON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "bloom": ("BloomConfig", OLD | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptConfig", OLD | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "expansion_ratio": 2}),
    "olmo": ("OlmoConfig", GATED),
    "olmo2": ("Olmo2Config", GATED),
    "olmo3": ("Olmo3Config", SLIDING),
    "granite": ("GraniteConfig", GATED | {"embedding_multiplier": 2.0, "logits_scaling": 4.0}),
    "cohere": ("CohereConfig", GATED | {"use_qk_norm": True}),
    "cohere2": ("Cohere2Config", SLIDING),
    "stablelm": ("StableLmConfig", GATED),
    "starcoder2": ("Starcoder2Config", GATED | {"sliding_window": WINDOW}),
    "smollm3": ("SmolLM3Config", GATED | {"num_hidden_layers": 4}),
    "glm": ("GlmConfig", GATED | {"head_dim": 8}),
    "glm4": ("Glm4Config", GATED | {"head_dim": 8}),
    "exaone4": ("Exaone4Config", SLIDING),
    "ernie4_5": ("Ernie4_5Config", GATED | {"head_dim": 8}),
    "nemotron": ("NemotronConfig", GATED),
    "persimmon": ("PersimmonConfig", COMMON | {"intermediate_size": 64}),
    "seed_oss": ("SeedOssConfig", GATED | {"head_dim": 8}),
    "hunyuan": ("HunYuanDenseV1Config", GATED | {"head_dim": 8}),
    "helium": ("HeliumConfig", GATED | {"head_dim": 8}),
    "apertus": ("ApertusConfig", GATED),
    "arcee": ("ArceeConfig", GATED),
    "xglm": (
        "XGLMConfig",
        OLD | {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, "pad_token_id": 0},
    ),
    "biogpt": ("BioGptConfig", COMMON | {"intermediate_size": 64}),
    "minicpm3": ("MiniCPM3Config", LATENT | {"head_dim": 8}),
    "lfm2": ("Lfm2Config", GATED | {"layer_types": ["conv", "full_attention"]}),
    "nanochat": ("NanoChatConfig", GATED),
    "ministral3": ("Ministral3Config", GATED | {"head_dim": 8}),
    "vaultgemma": ("VaultGemmaConfig", SLIDING),
    "diffllama": ("DiffLlamaConfig", GATED),
    "doge": ("DogeConfig", GATED),
    "openai-gpt": ("OpenAIGPTConfig", OLD | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "mixtral": ("MixtralConfig", EXPERTS),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS),
    "olmoe": ("OlmoeConfig", EXPERTS),
    "gpt_oss": ("GptOssConfig", SLIDING | EXPERTS | {"num_hidden_layers": 4, "head_dim": 8}),
    "llama4": (
        "Llama4TextConfig",
        EXPERTS | {"head_dim": 8, "attention_chunk_size": WINDOW, "intermediate_size_mlp": 64},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        EXPERTS | LATENT | {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        EXPERTS
        | {
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "mamba": ("MambaConfig", OLD | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}),
    "jamba": (
        "JambaConfig",
        EXPERTS | {"attn_layer_offset": 1, "attn_layer_period": 2, "use_mamba_kernels": False, "mamba_d_state": 4},
    ),
}


# their blocks cannot be run one after the other
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "zaya": ("ZayaConfig", GATED),
    "rwkv": ("RwkvConfig", OLD | {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}),
}
# transformers converts their tensors while loading, so they are kept whole in memory
WHOLE = frozenset("gpt_neox mixtral qwen3_moe olmoe deepseek_v3 qwen3_next jamba".split())
# they have matrices that are no linears, which weight methods refuse
FUSED = frozenset("mixtral qwen3_moe olmoe gpt_oss llama4 deepseek_v3 qwen3_next jamba mamba lfm2".split())


def config(family: str, **changes: Any) -> "PretrainedConfig":
    """The config of a family's tiny model, with some values changed."""
    import transformers

    kind, values = (FAMILIES | REFUSED)[family]
    return getattr(transformers, kind)(**values | changes)


def save(family: str, folder: Path, *, seed: int = 0, dtype: str = "float32", **changes: Any) -> Path:
    """Save a family's tiny model, every parameter of it random, without a tokenizer; returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(family, **changes))
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder
