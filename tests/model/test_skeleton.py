"""Which folders are decoder-only models whose weights fit, and how the others are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import families
from prunekit.errors import InputError, PrunekitError, UnsupportedError
from prunekit.model.checkpoint import SINGLE, Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.model.skeleton import build_skeleton, load_whole

BERT: dict[str, Any] = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def folder_of(path: Path, config: dict[str, Any]) -> Path:
    """A folder with that config and no weights to speak of."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"x": torch.zeros(1)}, path / SINGLE)
    return path


def opened(folder: Path, **options: bool) -> PrunableModel:
    return PrunableModel.open(Checkpoint.open(folder), device="cpu", **options)


def refused(folder: Path, kind: type[PrunekitError], text: str) -> PrunekitError:
    with pytest.raises(kind, match=text) as caught:
        opened(folder)
    return caught.value


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (BERT | {"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is not a causal language model"),
        (BERT, "bert is an encoder; prunekit prunes decoder-only models"),
        (BERT | {"architectures": ["BertLMHeadModel"], "is_decoder": False}, "bert is an encoder"),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification is",
        ),
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            "t5 is an encoder-decoder",
        ),
        ({"model_type": "vit", "architectures": []}, "model type 'vit' is not a causal language model"),
        ({"model_type": "hal9000"}, "model type 'hal9000' is not a causal language model that transformers 5"),
        ({}, "model type None is not a causal language model"),
    ],
)
def test_anything_but_a_decoder_only_language_model_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], text: str
) -> None:
    assert refused(folder_of(tmp_path / "m", config), UnsupportedError, text).exit_code == 3


def test_a_bert_that_is_a_decoder_is_one(tmp_path: Path) -> None:
    folder = families.save("llama", tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(BERT | {"is_decoder": True}), encoding="utf-8")

    assert build_skeleton(Checkpoint.open(folder)).config.model_type == "bert"


def test_a_model_with_its_own_code_is_refused_until_it_is_trusted(tmp_path: Path) -> None:
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}

    error = refused(folder_of(tmp_path / "m", own), UnsupportedError, "own brings its own code")

    assert "--trust-remote-code" in str(error.hint)


def test_a_trusted_models_own_code_is_run(tmp_path: Path) -> None:
    folder = families.save("llama", tmp_path / "m")
    code = (
        "from transformers import LlamaConfig, LlamaForCausalLM\nclass C(LlamaConfig):\n    model_type = 'own_llama'\n"
    )
    (folder / "own_code.py").write_text(f"{code}class M(LlamaForCausalLM):\n    config_class = C\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = {"model_type": "own_llama", "auto_map": {"AutoConfig": "own_code.C", "AutoModelForCausalLM": "own_code.M"}}
    (folder / "config.json").write_text(json.dumps(config | own), encoding="utf-8")

    model = opened(folder, trust_remote_code=True)

    assert type(model.skeleton).__name__ == "M"
    assert len(model.blocks) == 4


@pytest.mark.parametrize(
    "change", [{"hidden_size": "wide"}, {"num_attention_heads": 5}, {"num_hidden_layers": -1}, {"vocab_size": None}]
)
def test_a_config_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = families.save("llama", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")

    with pytest.raises(PrunekitError) as caught:
        opened(folder)

    assert caught.value.exit_code in (3, 4)


Edit = Callable[[dict[str, Tensor]], None]


def edited(path: Path, edit: Edit, family: str = "llama") -> Path:
    """A model folder whose tensors were changed by hand."""
    folder = families.save(family, path)
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    return folder


GATE = "model.layers.2.mlp.gate_proj.weight"


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda tensors: tensors.pop(GATE), f"{GATE} is missing"),
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors) if ".3." in name],
            r"9 tensors are missing, the first is model\.layers\.3\.",
        ),
        (lambda tensors: tensors.pop("model.embed_tokens.weight"), r"model\.embed_tokens\.weight is missing"),
        (
            lambda tensors: tensors.update({GATE: torch.zeros(64, 31)}),
            rf"{GATE} is stored as \(64, 31\); expected \(64, 32\)",
        ),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "extra is unknown to the model"),
        (lambda tensors: tensors.update(renamed=tensors.pop(GATE)), f"{GATE} is missing"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_named(tmp_path: Path, edit: Edit, text: str) -> None:
    error = refused(edited(tmp_path / "m", edit), InputError, text)

    assert error.exit_code == 4
    assert "config.json belongs to these weights" in str(error.hint)


def test_a_missing_tensor_is_found_without_loading_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunekit.model.prunable.load_whole", pytest.fail)

    refused(edited(tmp_path / "m", lambda tensors: tensors.pop(GATE)), InputError, "is missing")


def test_a_missing_tensor_of_a_converted_model_is_named(tmp_path: Path) -> None:
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"

    refused(edited(tmp_path / "m", lambda tensors: tensors.pop(name), "gpt_neox"), InputError, f"{name} is missing")


def test_buffers_that_old_releases_stored_are_no_obstacle(tmp_path: Path) -> None:
    def add_buffers(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["model.layers.0.attn.masked_bias"] = torch.ones(1)

    assert opened(edited(tmp_path / "m", add_buffers)).streaming


def test_names_without_the_base_models_prefix_are_loaded_whole(tmp_path: Path) -> None:
    def drop_prefix(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    model = opened(edited(tmp_path / "m", drop_prefix, "gpt2"))

    assert not model.streaming
    assert model.whole_because == "transformer.wte.weight is not stored under that name"
    assert "transformer.h.0.attn.c_attn.weight" in model.tensors


def test_a_tied_head_need_not_be_stored_but_may_be(tmp_path: Path) -> None:
    folder = families.save("llama", tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in Checkpoint.open(folder).tensors
    assert opened(folder).streaming

    tensors = load_file(folder / SINGLE)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / SINGLE)
    assert opened(folder).streaming


def test_a_model_loaded_whole_keeps_its_stored_dtype(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(families.save("gpt_neox", tmp_path / "m", dtype="bfloat16"))

    whole = load_whole(checkpoint)

    assert not whole.training
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.bfloat16}
