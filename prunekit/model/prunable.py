"""A causal language model whose structure is known and whose weights stay on disk until they are asked for.

The structure is found from the model itself: it is built on the meta device from its config, and its decoder blocks
are the one `ModuleList` as long as `num_hidden_layers`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy as shallow_copy
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from prunekit import distributed
from prunekit.model.checkpoint import STORED_DTYPES, Checkpoint, Copy, TensorInfo, finite
from prunekit.model.device import choose_device, choose_dtype, give_back_memory
from prunekit.model.edits import Edits, Piece
from prunekit.model.selection import Selection
from prunekit.model.skeleton import build_skeleton, conversion, load_whole
from prunekit.model.structure import FFN, Block, Linear, find_blocks, fit_features

STORED_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}


class PrunableModel:
    """A model on the meta device with the means to bring parts of it into memory.

    `tensors` describes what is stored, under the model's own parameter names. `edits` is a run's store of finished
    blocks, which are read from there instead of from the source. `removed` holds the indices of blocks that are taken
    out: the model computes and is exported without them; `kept` are the others. `ffns` says where finished blocks may
    be narrower than the source's. These three never change: `with_edits`, `without` and `narrowed` give the same model,
    sharing its skeleton and its memory, under other ones. `targeting` gives it with fewer linears: those a method may
    touch. A checkpoint whose tensors transformers converts while
    loading is kept `whole` in memory; `whole_because` names one of them.
    """

    def __init__(
        self, checkpoint: Checkpoint, skeleton: PreTrainedModel, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.checkpoint = checkpoint
        self.skeleton = skeleton
        self.config: PretrainedConfig = skeleton.config
        self.device = device
        self.dtype = dtype
        self.edits: Edits | None = None
        self.removed: frozenset[int] = frozenset()
        self.ffns: dict[int, FFN] = {}
        self.selection = Selection()
        self.trust_remote_code = False
        self._resident = False
        self.whole: PreTrainedModel | None = None
        self.whole_because: str | None = None
        self.tensors: Mapping[str, TensorInfo] = checkpoint.tensors
        self.stack_path, self.stack, self.blocks = find_blocks(skeleton)

    @classmethod
    def open(
        cls,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
    ) -> Self:
        """Build the structure of a checkpoint without its weights.

        Raises UnsupportedError for anything but a decoder-only language model, InputError when tensors are missing.
        """
        place = choose_device(device)
        skeleton = build_skeleton(checkpoint, trust_remote_code=trust_remote_code)
        model = cls(checkpoint, skeleton, place, choose_dtype(dtype, place, checkpoint))
        model.trust_remote_code = trust_remote_code
        if problem := conversion(skeleton, checkpoint.tensors):
            model._hold(load_whole(checkpoint, trust_remote_code=trust_remote_code), problem)
        return model

    def _hold(self, whole: PreTrainedModel, because: str) -> None:
        self.whole, self.whole_because = whole, because
        self.tensors = {
            name: TensorInfo(STORED_NAMES.get(tensor.dtype, "I64"), tuple(tensor.shape), "")
            for name, tensor in whole.state_dict().items()
        }

    def with_edits(self, edits: Edits | None) -> Self:
        """This model with finished blocks in `edits`: they are read from there, and others are committed to it."""
        return self._with(edits=edits)

    def without(self, removed: Iterable[int]) -> Self:
        """This model without these blocks, given by their indices in the source, and no others."""
        return self._with(removed=frozenset(removed))

    def narrowed(self, ffns: Mapping[int, FFN]) -> Self:
        """This model with blocks that may be narrower than the source's: source index -> where."""
        return self._with(ffns=dict(ffns))

    def targeting(self, selection: Selection) -> Self:
        """This model with only the selected linears, as if its blocks had no others.

        Raises UsageError for a pattern that matches no linear, or if none is left.
        """
        selection.check(list(self.linears()))
        transposed = self._transposed  # of all linears, since tensors of the others are still read and written
        blocks = [
            replace(block, linears=tuple(linear for linear in block.linears if linear.path in selection))
            for block in self.blocks
        ]
        return self._with(blocks=blocks, selection=selection, _transposed=transposed)

    def twin(self) -> Self:
        """This model with modules of its own, so that it can have a block in memory while the other has one."""
        skeleton = deepcopy(self.skeleton)
        return self._with(skeleton=skeleton, stack=skeleton.get_submodule(self.stack_path), config=skeleton.config)

    def _with(self, **attributes: object) -> Self:
        view = shallow_copy(self)
        vars(view).update(attributes)
        return view

    @property
    def streaming(self) -> bool:
        """Whether weights are read from the files block by block (else the model was loaded whole)."""
        return self.whole is None

    @property
    def kept(self) -> list[Block]:
        """The blocks that are not removed."""
        return [block for block in self.blocks if block.index not in self.removed]

    def is_transposed(self, name: str) -> bool:
        """Whether a tensor, known by its name in the model, is of a linear that is stored as (inputs, outputs)."""
        return name.rpartition(".")[0] in self._transposed

    @cached_property
    def _transposed(self) -> frozenset[str]:
        return frozenset(path for path, linear in self.linears().items() if linear.transposed)

    def linears(self) -> dict[str, Linear]:
        """Path -> linear, for all blocks of the source in order."""
        return {linear.path: linear for block in self.blocks for linear in block.linears}

    def stored(self, names: Iterable[str]) -> dict[str, TensorInfo]:
        """What is stored under these names; of finished blocks what they are now, which may be narrower."""
        wanted = list(names)
        edited: set[Piece] = {part for name in wanted if (part := self._edited_part(name)) is not None}
        now = {name: info for part in edited for name, info in self._edits.block_infos(part).items()}
        return {name: replace(self.tensors[name], shape=now.get(name, self.tensors[name]).shape) for name in wanted}

    def read(self, names: Iterable[str], copy: Copy = Tensor.clone) -> dict[str, Tensor]:
        """Tensors in their stored dtype on the CPU, or what `copy` makes of them; finished blocks as they are now."""
        edited: dict[Piece, list[str]] = {}
        plain: list[str] = []
        for name in names:
            part = self._edited_part(name)
            plain.append(name) if part is None else edited.setdefault(part, []).append(name)
        tensors = self._read_source(plain, copy)
        for part, wanted in edited.items():
            tensors |= self._edits.read_block(part, wanted, copy)
        return tensors

    def block_tensors(self, index: int) -> list[str]:
        """Names of the stored tensors that are parameters or buffers of one block."""
        prefix = f"{self.blocks[index].path}."
        return [prefix + name for name in self.stack[index].state_dict() if prefix + name in self.tensors]

    @contextmanager
    def resident(self) -> Iterator[None]:
        """Keep all weights in memory meanwhile: `block` and `outside` hand out what is there."""
        try:
            with ExitStack() as parts:
                parts.enter_context(self.outside())
                for block in self.kept:
                    parts.enter_context(self.block(block.index))
                self._resident = True
                yield
        finally:
            self._resident = False

    @property
    def is_resident(self) -> bool:
        """Whether all weights are in memory, so that reading a block costs nothing."""
        return self._resident

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """A copy of the source model, whole, for methods that train.

        It is on the run's device; where several processes will share it out, in main memory.
        """
        loaded = load_whole(self.checkpoint, dtype=dtype, trust_remote_code=self.trust_remote_code)
        if distributed.size() == 1:
            loaded.to(self.device)  # pyright: ignore[reportArgumentType]
        return loaded.requires_grad_(False)

    @contextmanager
    def block(self, index: int, *, source: bool = False) -> Iterator[nn.Module]:
        """One block with its weights, on the run's device in the compute dtype; freed on leaving.

        With `source` it is the source's block, also where it is finished.
        """
        module = self.stack[index]
        if self._resident:
            yield module
            return
        origin = self.with_edits(None) if source else self
        try:
            origin._fill(module, self.block_tensors(index), prefix=f"{self.blocks[index].path}.")
            yield module
        finally:
            _empty(module)
            give_back_memory()

    @contextmanager
    def outside(self, *, head: bool = True) -> Iterator[PreTrainedModel]:
        """The model with all but its blocks in memory: embeddings, final norm and, if asked, head; freed on leaving."""
        if self._resident:
            yield self.skeleton
            return
        left_out = (f"{self.stack_path}.", *(() if head else self._head_prefix()))
        names = [name for name in self.skeleton.state_dict() if name in self.tensors and not name.startswith(left_out)]
        try:
            self._fill(self.skeleton, names)
            if head and any(parameter.is_meta for parameter in self._outer_parameters()):
                self.skeleton.tie_weights()
            yield self.skeleton
        finally:
            _empty(self.skeleton)

    def commit(self, index: int, notes: Sequence[str] = ()) -> None:
        """Write the pruned block that is in memory to the store of edits, in its stored dtypes.

        Afterwards the block in memory equals what was written.
        """
        state, prefix = self.stack[index].state_dict(), f"{self.blocks[index].path}."
        stored: dict[str, Tensor] = {}
        for name in self.block_tensors(index):
            tensor = state[name.removeprefix(prefix)]
            stored[name] = self._as_stored(name, tensor)
            tensor.copy_(stored[name])
        self._edits.write_block(index, stored, notes)

    def commit_state(self, state: Mapping[str, Tensor], notes: Sequence[str] = ()) -> None:
        """Write a whole model's parameters, by name, to the store of edits in their stored dtypes.

        What no block holds comes last and carries the notes, so that its presence means that all is there.
        """
        for block in self.kept:
            names = self.block_tensors(block.index)
            self._edits.write_block(block.index, {name: self._as_stored(name, state[name]) for name in names})
        outside = [name for name in self.tensors if not name.startswith(f"{self.stack_path}.") and name in state]
        tensors = {name: self._as_stored(name, state[name]).clone() for name in outside}  # tied ones must not be shared
        self._edits.write_block("outside", tensors, notes)

    @property
    def _edits(self) -> Edits:
        if self.edits is None:
            raise RuntimeError("a model without a store of edits has no finished blocks and can commit none")
        return self.edits

    def _as_stored(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor in its stored dtype; what the compute dtype could not hold and nobody changed is the source's."""
        dtype = STORED_DTYPES.get(self.tensors[name].dtype)
        if dtype is None:
            return tensor.cpu()
        if torch.promote_types(dtype, self.dtype) == self.dtype or tensor.shape != self.tensors[name].shape:
            return tensor.to("cpu", dtype)
        source = self._read_source([name])[name]
        return torch.where(source.to(self.dtype) == tensor.cpu(), source, tensor.to("cpu", dtype))

    def _fill(self, module: nn.Module, names: list[str], prefix: str = "") -> None:
        tensors = self.read(names, self._place)
        state = {name.removeprefix(prefix): tensors[name] for name in names}
        fit(module, state)
        module.load_state_dict(state, strict=False, assign=True)
        for part in module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, buffer.to(self.device))

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None, copy=True)

    def _outer_parameters(self) -> Iterator[nn.Parameter]:
        inside = f"{self.stack_path}."
        return (part for name, part in self.skeleton.named_parameters() if not name.startswith(inside))

    def _head_prefix(self) -> tuple[str, ...]:
        head = self.skeleton.get_output_embeddings()
        return tuple(f"{name}." for name, part in self.skeleton.named_modules() if part is head and name)

    def _edited_part(self, name: str) -> Piece | None:
        """The finished part that holds this tensor, if any."""
        if self.edits is None:
            return None
        part: Piece = "outside"
        if name.startswith(f"{self.stack_path}."):
            part = int(name.removeprefix(f"{self.stack_path}.").partition(".")[0])
        return part if self.edits.holds(part) else None

    def _read_source(self, names: list[str], copy: Copy = Tensor.clone) -> dict[str, Tensor]:
        if self.whole is None:
            return self.checkpoint.read(names, copy)
        state = self.whole.state_dict()
        return {name: copy(finite(name, state[name])) for name in names}


def fit(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every parameter the shape that it has in `state`, on the meta device, so that it can be loaded."""
    for name, tensor in state.items():
        path, _, kind = name.rpartition(".")
        part = module.get_submodule(path)
        parameter = part._parameters.get(kind)
        if parameter is not None and parameter.shape != tensor.shape:
            setattr(part, kind, nn.Parameter(tensor.to("meta"), requires_grad=False))
            if kind == "weight":
                fit_features(part)


def _empty(module: nn.Module) -> None:
    """Put every parameter back on the meta device, so that its memory is free; buffers stay."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))
