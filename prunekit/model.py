"""A causal language model whose structure is known and whose weights stay on disk until they are asked for.

The structure is found from the model itself: it is built on the meta device from its config, and its decoder blocks are
the one `ModuleList` as long as `num_hidden_layers`. Nothing here knows the name of a model family.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import WeightConverter, get_model_conversion_mapping
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from prunekit.checkpoint import STORED_DTYPES, Checkpoint, TensorInfo
from prunekit.errors import InputError, UnsupportedError, UsageError
from prunekit.staging import Staging

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class Linear:
    """One weight matrix inside a block; `shape` is (outputs, inputs) whichever way it is stored."""

    path: str
    shape: tuple[int, int]
    transposed: bool = False

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Block:
    """One decoder layer, named as in the source model, e.g. `model.layers.3`."""

    index: int
    path: str
    linears: tuple[Linear, ...]


class PrunableModel:
    """A model on the meta device with the means to bring parts of it into memory.

    `tensors` describes what is stored under the model's own parameter names. `edits` is the staging folder of a run;
    blocks that are finished there are read from it instead of from the source.
    """

    def __init__(self, checkpoint: Checkpoint, skeleton: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.skeleton = skeleton.eval()
        self.skeleton.tie_weights()
        self.config: PretrainedConfig = skeleton.config
        self.device = device
        self.dtype = dtype
        self.edits: Staging | None = None
        self.whole: PreTrainedModel | None = None
        self.whole_because: str | None = None
        self.stack_path, self.stack = find_stack(skeleton)
        self.blocks = [
            Block(index, f"{self.stack_path}.{index}", find_linears(module, f"{self.stack_path}.{index}"))
            for index, module in enumerate(self.stack)
        ]
        self.tensors: Mapping[str, TensorInfo] = checkpoint.tensors

    @classmethod
    def open(
        cls, checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
    ) -> Self:
        """Build the structure of a checkpoint without its weights.

        Raises UnsupportedError for anything but a decoder-only language model, InputError when tensors are missing.
        """
        config = _load_config(checkpoint, trust_remote_code)
        place = choose_device(device)
        with init_empty_weights(include_buffers=False):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        model = cls(checkpoint, skeleton, place, choose_dtype(dtype, place, checkpoint))
        if problem := model._naming_problem():
            model._load_whole(problem, trust_remote_code)
        return model

    @property
    def streaming(self) -> bool:
        """Whether weights are read from the files block by block (else the model was loaded whole)."""
        return self.whole is None

    def linears(self) -> dict[str, Linear]:
        """Path -> linear, for all blocks in order."""
        return {linear.path: linear for block in self.blocks for linear in block.linears}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors in their stored dtype on the CPU; those of finished blocks come from the staging folder."""
        edited: dict[int, list[str]] = {}
        plain: list[str] = []
        for name in names:
            index = self._edited_block(name)
            plain.append(name) if index is None else edited.setdefault(index, []).append(name)
        tensors = self._read_source(plain)
        for index, wanted in edited.items():
            assert self.edits is not None
            tensors |= self.edits.read_block(index, wanted)
        return tensors

    def block_tensors(self, index: int) -> list[str]:
        """Names of the stored tensors that are parameters or buffers of one block."""
        prefix = f"{self.blocks[index].path}."
        return [prefix + name for name in self.stack[index].state_dict() if prefix + name in self.tensors]

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """One block with its weights, on the run's device in the compute dtype; freed on leaving."""
        module = self.stack[index]
        prefix = f"{self.blocks[index].path}."
        stored = self.read(self.block_tensors(index))
        self._fill(module, {name.removeprefix(prefix): stored.pop(name) for name in list(stored)})
        try:
            yield module
        finally:
            _empty(module)

    @contextmanager
    def outside(self, *, head: bool = True) -> Iterator[PreTrainedModel]:
        """The model with everything but its blocks in memory: embeddings, final norm and, if asked, head; freed on leaving."""
        left_out = (f"{self.stack_path}.", *(() if head else self._head_prefix()))
        names = [name for name in self.skeleton.state_dict() if not name.startswith(left_out) and name in self.tensors]
        self._fill(self.skeleton, self.read(names))
        if head and any(parameter.is_meta for parameter in self._outer_parameters()):
            self.skeleton.tie_weights()
        try:
            yield self.skeleton
        finally:
            _empty(self.skeleton)

    def commit(self, index: int) -> None:
        """Write a pruned block to the staging folder in its stored dtypes, and let the block in memory equal what was written."""
        module, prefix = self.stack[index], f"{self.blocks[index].path}."
        state = module.state_dict()
        stored: dict[str, Tensor] = {}
        for name in self.block_tensors(index):
            tensor = state[name.removeprefix(prefix)]
            rounded = tensor.to(self.stored_dtype(name)).cpu()
            stored[name] = rounded
            tensor.copy_(rounded)
        if self.edits is None:
            raise RuntimeError("a run without a staging folder cannot commit blocks")
        self.edits.write_block(index, stored)

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype under which a tensor is stored, whatever the dtype it is computed in."""
        return STORED_DTYPES.get(self.tensors[name].dtype, torch.float32)

    def _fill(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        placed = {name: self._place(tensors.pop(name)) for name in list(tensors)}
        module.load_state_dict(placed, strict=False, assign=True)
        for part in module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, buffer.to(self.device))

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def _outer_parameters(self) -> Iterator[nn.Parameter]:
        inside = f"{self.stack_path}."
        return (part for name, part in self.skeleton.named_parameters() if not name.startswith(inside))

    def _head_prefix(self) -> tuple[str, ...]:
        head = self.skeleton.get_output_embeddings()
        return tuple(f"{name}." for name, part in self.skeleton.named_modules() if part is head and name)

    def _edited_block(self, name: str) -> int | None:
        """Index of the finished block that holds this tensor, if any."""
        if self.edits is None or not name.startswith(f"{self.stack_path}."):
            return None
        index = int(name.removeprefix(f"{self.stack_path}.").partition(".")[0])
        return index if self.edits.has_block(index) else None

    def _read_source(self, names: list[str]) -> dict[str, Tensor]:
        if self.whole is None:
            return self.checkpoint.read(names)
        state = self.whole.state_dict()
        return {name: state[name].clone() for name in names}

    def _naming_problem(self) -> str | None:
        """Why the stored tensors are not one-to-one with the model's parameters, or None when they are."""
        wanted, stored = self.skeleton.state_dict(keep_vars=True), self.checkpoint.tensors
        held = {id(tensor) for name, tensor in wanted.items() if name in stored}
        for name, tensor in wanted.items():
            if name not in stored and id(tensor) not in held:
                return f"{name} is not stored under that name"
            if name in stored and tuple(tensor.shape) != stored[name].shape:
                return f"{name} is stored as {stored[name].shape}, the model has {tuple(tensor.shape)}"
        ignored = [*(self.skeleton._keys_to_ignore_on_load_unexpected or ()), r"inv_freq$", r"\.(masked_)?bias$"]
        for name in stored.keys() - wanted.keys():
            if not any(re.search(pattern, name) for pattern in ignored):
                return f"{name} is stored, and the model has no such parameter"
        return self._conversion()

    def _conversion(self) -> str | None:
        """The stored tensor that transformers rewrites while loading, if any."""
        for rule in get_model_conversion_mapping(self.skeleton):
            if isinstance(rule, WeightConverter):
                for name in self.checkpoint.tensors:
                    if any(re.search(pattern, name) for pattern in rule.source_patterns):
                        return f"{name} is converted while loading"
        return None

    def _load_whole(self, problem: str, trust_remote_code: bool) -> None:
        whole, info = AutoModelForCausalLM.from_pretrained(
            self.checkpoint.folder, dtype="auto", output_loading_info=True, trust_remote_code=trust_remote_code
        )
        for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            if info[kind]:
                names = sorted(str(name) for name in info[kind])
                raise InputError(
                    f"the weights do not fit config.json: {len(names)} {kind.replace('_', ' ')}, the first is {names[0]}",
                    hint="fetch the model again, or check that config.json belongs to these weights",
                )
        self.whole, self.whole_because = whole.eval(), problem
        self.tensors = {
            name: TensorInfo(STORED_NAMES.get(tensor.dtype, "I64"), tuple(tensor.shape), "")
            for name, tensor in whole.state_dict().items()
        }


def find_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and module of the decoder stack: the one outermost ModuleList as long as `num_hidden_layers`.

    Raises UnsupportedError naming what was found when there is none, or more than one.
    """
    depth = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr]
    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    found = {
        name: part
        for name, part in lists.items()
        if len(part) == depth and not any(name.startswith(f"{other}.") for other in lists)
    }
    if len(found) != 1:
        names = ", ".join(f"{name} ({len(part)})" for name, part in lists.items()) or "none"
        raise UnsupportedError(
            f"expected one list of {depth} decoder blocks in {type(model).__name__}, found {len(found)}; its lists: {names}"
        )
    return next(iter(found.items()))


def find_linears(block: nn.Module, path: str) -> tuple[Linear, ...]:
    """Every `Linear` and `Conv1D` of a block, in the order of its modules."""
    linears: list[Linear] = []
    for name, part in block.named_modules(prefix=path):
        if isinstance(part, Conv1D):
            inputs, outputs = part.weight.shape
            linears.append(Linear(name, (outputs, inputs), transposed=True))
        elif isinstance(part, nn.Linear):
            linears.append(Linear(name, (part.out_features, part.in_features)))
    return tuple(linears)


def find_other_matrices(block: nn.Module, path: str) -> tuple[str, ...]:
    """Names of the parameters of two or more dimensions that belong to no linear, such as fused experts."""
    weights = {f"{linear.path}.weight" for linear in find_linears(block, path)}
    named = ((f"{path}.{name}", parameter) for name, parameter in block.named_parameters())
    return tuple(name for name, parameter in named if parameter.dim() >= 2 and name not in weights)


def choose_device(name: str) -> torch.device:
    """The device a run computes on: `auto` takes the first accelerator there is, else the CPU."""
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {name!r} is not available here: {str(error).splitlines()[0]}", hint="prunekit doctor lists the devices") from error
    return device


def choose_dtype(name: str, device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype blocks are computed in: `auto` is the stored one on an accelerator and float32 on a CPU."""
    if name != "auto":
        if name not in DTYPES:
            raise UsageError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    sizes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return STORED_DTYPES.get(max(sizes, key=lambda dtype: sizes[dtype]), torch.float32)


def _load_config(checkpoint: Checkpoint, trust_remote_code: bool) -> PretrainedConfig:
    """The transformers config, refused by name when it is not a decoder-only language model's."""
    kind = checkpoint.config.get("model_type")
    architectures: list[str] = checkpoint.config.get("architectures") or []
    if architectures and not any(name.endswith(CAUSAL) for name in architectures):
        raise UnsupportedError(f"{architectures[0]} is not a causal language model; prunekit prunes decoder-only models")
    if checkpoint.config.get("is_encoder_decoder"):
        raise UnsupportedError(f"{kind} is an encoder-decoder; prunekit prunes decoder-only models")
    custom = "auto_map" in checkpoint.config
    if custom and not trust_remote_code and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedError(f"{kind} brings its own code", hint="read it, then add --trust-remote-code")
    if not custom and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedError(f"model type {kind!r} is not a causal language model that transformers {transformers.__version__} knows")
    try:
        return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=trust_remote_code)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"transformers cannot read {checkpoint.folder / 'config.json'}: {error}") from error


def _empty(module: nn.Module) -> None:
    """Put every parameter back on the meta device, so that its memory is free; buffers stay."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))
