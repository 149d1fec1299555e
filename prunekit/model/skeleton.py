"""The model that a config describes, without weights, and whether the stored tensors are its parameters."""

import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from prunekit.errors import InputError, UnsupportedError
from prunekit.model import modeling_file
from prunekit.model.checkpoint import Checkpoint, TensorInfo

CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
LEGACY_BUFFERS = (r"inv_freq$", r"(attn|attention)\.(masked_)?bias$")  # stored by old releases, computed by new ones
MISFIT = "fetch the model again, or check that config.json belongs to these weights"


def build_skeleton(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model on the meta device, in evaluation mode, with real buffers.

    Raises UnsupportedError for anything but a decoder-only language model, InputError for a config that makes no sense.
    """
    config = load_config(checkpoint, trust_remote_code)
    try:
        with init_empty_weights(include_buffers=False), no_init_weights():  # there is nothing to draw numbers for
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=_trusted(checkpoint, trust_remote_code))
    except ImportError as error:
        raise UnsupportedError(f"the model needs a package that is not installed: {error}") from error
    except Exception as error:  # whatever a family's constructor raises for inconsistent numbers
        raise InputError(
            f"transformers cannot build the model of {checkpoint.folder / 'config.json'}: {error}"
        ) from error
    model.eval().requires_grad_(False).tie_weights()
    return model


def load_config(checkpoint: Checkpoint, trust_remote_code: bool = False) -> PretrainedConfig:
    """The transformers config, refused by name when it is not a decoder-only language model's."""
    _refuse_other_kinds(checkpoint.config, trust_remote_code)
    try:
        return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # validators and custom code fail in as many ways as there are families
        raise InputError(f"transformers cannot read {checkpoint.folder / 'config.json'}: {error}") from error


def _trusted(checkpoint: Checkpoint, trust_remote_code: bool) -> bool:
    """Whether the model's own code may run: because the user said so, or because prunekit wrote it."""
    return trust_remote_code or modeling_file.is_ours(checkpoint.folder, checkpoint.config)


def _refuse_other_kinds(config: Mapping[str, object], trust_remote_code: bool) -> None:
    kind, architectures = config.get("model_type"), config.get("architectures") or []
    if isinstance(architectures, list) and architectures and not any(str(a).endswith(CAUSAL) for a in architectures):
        raise UnsupportedError(
            f"{architectures[0]} is not a causal language model; prunekit prunes decoder-only models"
        )
    if config.get("is_encoder_decoder"):
        raise UnsupportedError(f"{kind} is an encoder-decoder; prunekit prunes decoder-only models")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        raise UnsupportedError(f"{kind} is an encoder; prunekit prunes decoder-only models")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if "auto_map" not in config:
        raise UnsupportedError(
            f"model type {kind!r} is not a causal language model that transformers {transformers.__version__} knows"
        )
    if not trust_remote_code:
        raise UnsupportedError(f"{kind} brings its own code", hint="read it, then add --trust-remote-code")


def conversion(skeleton: PreTrainedModel, stored: Mapping[str, TensorInfo]) -> str | None:
    """Why the weights must be loaded whole by transformers; None when they are the model's parameters one by one.

    Raises InputError, naming a tensor, when no conversion can make them fit.
    """
    if converted := _converted(skeleton, stored):
        return f"{converted} is converted while loading"
    wanted = skeleton.state_dict(keep_vars=True)
    held = {id(tensor) for name, tensor in wanted.items() if name in stored}  # under any of its tied names
    missing = [name for name, tensor in wanted.items() if id(tensor) not in held]
    left = sorted(name for name in stored.keys() - wanted.keys() if not _ignored(name, skeleton))
    if missing and (left or _optional(missing[0], skeleton)):
        return f"{missing[0]} is not stored under that name"
    if missing or left:
        raise InputError(
            _complaint("missing", missing) if missing else _complaint("unknown to the model", left), hint=MISFIT
        )
    for name, tensor in wanted.items():
        if name in stored and tuple(tensor.shape) != stored[name].shape:
            raise InputError(f"{name} is stored as {stored[name].shape}; expected {tuple(tensor.shape)}", hint=MISFIT)
    return None


def load_whole(
    checkpoint: Checkpoint, *, dtype: torch.dtype | str = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model with its weights, as transformers loads and converts them; raises InputError when they do not fit."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, in our words
        trust_remote_code=_trusted(checkpoint, trust_remote_code),
    )
    model, info = loaded
    for key, words in (
        ("missing", "missing"),
        ("mismatched", "of another shape"),
        ("unexpected", "unknown to the model"),
    ):
        names = sorted(name if isinstance(name, str) else name[0] for name in info[f"{key}_keys"])
        if names:
            raise InputError(_complaint(words, names), hint=MISFIT)
    return model.eval()


def _complaint(words: str, names: list[str]) -> str:
    many = f"{len(names)} tensors are {words}, the first is {names[0]}"
    return f"the weights do not fit config.json: {names[0] + ' is ' + words if len(names) == 1 else many}"


def _ignored(name: str, skeleton: PreTrainedModel) -> bool:
    patterns = [*(skeleton._keys_to_ignore_on_load_unexpected or ()), *LEGACY_BUFFERS]
    return any(re.search(pattern, name) for pattern in patterns)


def _optional(name: str, skeleton: PreTrainedModel) -> bool:
    return any(re.search(pattern, name) for pattern in skeleton._keys_to_ignore_on_load_missing or ())


def _converted(skeleton: PreTrainedModel, stored: Mapping[str, TensorInfo]) -> str | None:
    """The first stored tensor that transformers rewrites while loading, if any."""
    rules = [rule for rule in get_model_conversion_mapping(skeleton) if isinstance(rule, WeightConverter)]
    patterns = [re.compile(pattern) for rule in rules for pattern in rule.source_patterns]
    return next((name for name in stored if any(pattern.search(name) for pattern in patterns)), None)
