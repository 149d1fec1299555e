"""Blocks that fade out of a model while it is trained, and how far its hidden states are from the dense model's."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prunekit.blockwise.capture import HIDDEN, Pack, Proxy, hidden_of
from prunekit.depth.gates import gated

Course = Callable[[int], dict[int, "Fade"]]  # update -> every fading block's part in it


@dataclass(frozen=True)
class Fade:
    """How far a block is still there, from 1 to 0, and whether what it does is penalised."""

    gate: float
    penalised: bool = False


def course(gone: Sequence[int], updates: int, *, within: float, to: float, one_by_one: bool) -> Course:
    """The gates of the blocks in `gone` over some updates: from 1 linearly to `to` in the first part, `within`, of it.

    `one_by_one` each has its own share of the updates, in that order, and is bypassed after it (the authors' code);
    else all have the whole time (the paper's formula). A block is penalised from the beginning of its time until its
    gate closes.
    """
    shares = len(gone) if one_by_one else 1

    def at(update: int) -> dict[int, Fade]:
        fades: dict[int, Fade] = {}
        for place, index in enumerate(gone):
            time = shares * update / updates - place % shares  # from 0 to 1 within the block's share
            passed = min(1.0, max(0.0, time / within)) if within else float(time >= 0)
            gate = 1 - (1 - to) * passed if time < 1 or not one_by_one else 0.0
            fades[index] = Fade(gate, penalised=gate > 0 and time >= 0)
        return fades

    return at


class Fading(Proxy):
    """A block between 1, itself, and 0, where it is not run; and, if wanted, run again on the way back."""

    def __init__(self, block: nn.Module, pack: Pack, again: bool) -> None:
        super().__init__(block)
        self.__dict__.update(pack=pack, again=again, gate=1.0, norm=0, distance=None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs[HIDDEN]
        self.__dict__["distance"] = None
        if self.gate == 0:
            return self.pack(given)
        if self.again and torch.is_grad_enabled():
            result = checkpoint(self.block, *args, use_reentrant=False, **kwargs)
        else:
            result = self.block(*args, **kwargs)
        output = hidden_of(result)
        if self.norm:
            self.__dict__["distance"] = _distance(output - given, self.norm)
        mixed = output if self.gate == 1 else gated(output, given, self.gate, "branch")
        return mixed if isinstance(result, Tensor) else (mixed, *result[1:])


def fade(blocks: Mapping[int, Fading], fades: Mapping[int, Fade], norm: int = 0) -> None:
    """Set how far each block is still there; those that are penalised measure their distance in this norm."""
    for index, block in blocks.items():
        part = fades[index]
        block.__dict__.update(gate=part.gate, norm=norm if part.penalised else 0)


@contextmanager
def outputs_of(blocks: Iterable[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """The hidden states (batch, tokens, width) that leave each block while inside, by its place."""
    seen: dict[int, Tensor] = {}

    def see(place: int, _: nn.Module, __: Any, result: Any) -> None:
        seen[place] = hidden_of(result)

    with ExitStack() as hooks:
        for place, block in enumerate(blocks):
            hooks.callback(block.register_forward_hook(partial(see, place)).remove)
        yield seen


def mismatch(found: Mapping[int, Tensor], dense: Mapping[int, Tensor], without: Collection[int]) -> Tensor:
    """Mean of ||h - h_dense||^2 / ||h_dense||^2 over tokens and over the blocks that stay.

    Relative for each token: a few tokens of a language model have hidden states a thousand times as long as the rest.
    """
    return torch.stack([_relative(found[place], dense[place]) for place in found if place not in without]).mean()


def _relative(found: Tensor, dense: Tensor) -> Tensor:
    """Mean of ||h - h_dense||^2 / ||h_dense||^2 over tokens; a dense state of zero is compared as it is."""
    dense = dense.float()
    size = dense.square().sum(-1)
    apart = (found.float() - dense).square().sum(-1)
    return (apart / size.where(size > 0, 1)).mean()


def _distance(difference: Tensor, norm: int) -> Tensor:
    """Mean over sequences of R_q: the Frobenius norm, or the sum of magnitudes over the root of their number.

    The scale of R_1 is ours: it keeps R_1 below R_2, so that one lambda suits both.
    """
    each = difference.float().flatten(1)
    if norm == 2:
        return each.norm(dim=1).mean()
    return (each.abs().sum(dim=1) / math.sqrt(each.shape[1])).mean()
