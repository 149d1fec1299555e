"""Low-rank adapters on some linears of a model in memory, trained while its own weights stay frozen.

    y = W x + (alpha / rank) B A x      A random and B zero, so that nothing changes at first

Paper: "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.

Switched off, they leave the dense model that they were put on; folded in, W + (alpha / rank) B A is a weight like any
other. The library peft does the work. It is an extra of prunekit's, and takes seconds to import: only `adapt` does.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.errors import UnsupportedError, UsageError
from prunekit.model.structure import Linear

if TYPE_CHECKING:
    from peft import LoraModel

SHELL = "model"  # around the model, without a config: by that peft would take shared experts for the fused ones
ALPHA = 2  # alpha / rank: what adapters add is scaled alike whatever their rank


class Adapters:
    """The adapters of one model; `adapt` puts them on."""

    def __init__(self, model: PreTrainedModel, tuner: "LoraModel") -> None:
        self.model = model
        self.tuner = tuner

    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B of every linear, under the names that they have in the model."""
        return {name: part for name, part in self.model.named_parameters() if part.requires_grad}

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model without them, for a while."""
        self.tuner.disable_adapter_layers()
        try:
            yield
        finally:
            self.tuner.enable_adapter_layers()

    def fold(self) -> None:
        """Add B A to the weights and take the adapters off; the model has its own modules and names again."""
        self.tuner.merge_and_unload()


def require_peft() -> None:
    """Raise UsageError unless peft is installed; does not import it."""
    if find_spec("peft") is None:
        raise UsageError("training adapters needs the library peft", hint="pip install 'prunekit[lora]'")


def adapt(model: PreTrainedModel, linears: Sequence[Linear], ids: Tensor, rank: int, seed: int) -> Adapters:
    """Put adapters on linears of a model whose parameters are frozen; the seed draws A.

    Those that the model does not call for token ids (samples, tokens), or that answer with more than a tensor, get
    none: where a model reads a weight by itself, an adapter would change nothing until it is folded in.

    Raises UnsupportedError when there is nothing to put them on, or peft does not know what is there.
    """
    require_peft()
    from peft import LoraConfig, LoraModel

    wanted = _called(model, linears, ids)
    if not wanted:
        raise UnsupportedError("the blocks that stay have no linears for adapters", hint="--set train=all")
    config = LoraConfig(
        r=rank,
        lora_alpha=ALPHA * rank,
        target_modules=[f"{SHELL}.{linear.path}" for linear in wanted],
        fan_in_fan_out=all(linear.transposed for linear in wanted),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            return Adapters(model, LoraModel(nn.ModuleDict({SHELL: model}), config, "default"))
        except ValueError as error:  # a kind of module that peft refuses
            raise UnsupportedError(f"adapters cannot be put on this model: {error}", hint="--set train=all") from error


@torch.no_grad()
def _called(model: PreTrainedModel, linears: Sequence[Linear], ids: Tensor) -> list[Linear]:
    """The linears that are called when the model runs on token ids, and answer with a tensor."""
    seen: set[str] = set()

    def see(path: str, _: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.add(path)

    with ExitStack() as hooks:
        for linear in linears:
            handle = model.get_submodule(linear.path).register_forward_hook(partial(see, linear.path))
            hooks.callback(handle.remove)
        model(input_ids=ids.to(model.device), use_cache=False)
    return [linear for linear in linears if linear.path in seen]
