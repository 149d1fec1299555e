"""LLM-Pruner: cut the neurons whose weights the loss would miss least, by its gradient in every weight of the model.

Paper: Ma et al., "LLM-Pruner: On the Structural Pruning of Large Language Models", arXiv:2305.11627.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit.api import (
    Context,
    Method,
    Moments,
    Needs,
    PrunePlan,
    allotted,
    calibration_of,
    keep_largest,
    narrow,
    neurons,
    plan_narrowing,
)
from prunekit.model.structure import FFN
from prunekit.width.neurons import per_unit


class LLMPruner(Method):
    """Cut the neurons of smallest first- and second-order Taylor importance."""

    name: ClassVar[str] = "llm-pruner"
    paper: ClassVar[str] = "Ma et al. 2023, arXiv:2305.11627"
    needs: ClassVar[Needs] = Needs(calibration=True, gradients=True, widths=True)

    taylor: Literal["mix", "first"] = Field(
        default="mix", description="Importance of a weight: |w g - w^2 F / 2| (mix) or |w g| (first)."
    )
    samples: int = Field(default=10, ge=1, description="Sequences that the gradient is taken on.")
    tokens: int = Field(default=64, ge=2, description="Tokens of each of them.")

    def plan(self, ctx: Context) -> PrunePlan:
        found = neurons(ctx)
        widths = found.widths(found.gone(ctx.ratio), found.ffns, allotted(ctx, found))
        return plan_narrowing(ctx, self.name, found, widths)

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        scores: dict[int, Tensor] = {}
        for place in narrow(ctx, plan, Moments):
            scores = scores or self._scores(ctx, ctx.model.ffns)
            place.leave(keep_largest(scores[place.block.index], place.units))

    def _scores(self, ctx: Context, ffns: Mapping[int, FFN]) -> dict[int, Tensor]:
        """Block -> importance of its neurons (neurons,): that of all weights that a neuron has, summed."""
        ids = calibration_of(ctx)[: self.samples, : self.tokens]
        model = ctx.model.load(torch.float32)
        stack = model.get_submodule(ctx.model.stack_path)
        inside = dict(stack.named_parameters())
        importances = dict(zip(inside, taylor(model, list(inside.values()), ids, self.taylor), strict=True))
        blocks = {index: stack.get_submodule(str(index)) for index in ffns}
        values = {
            index: {name: importances[f"{index}.{name}"] for name, _ in block.named_parameters()}
            for index, block in blocks.items()
        }
        return {index: per_unit(ffn, values[index], blocks[index]) for index, ffn in ffns.items()}


def taylor(model: nn.Module, weights: list[nn.Parameter], ids: Tensor, order: str) -> list[Tensor]:
    """Importance of every single weight, each of the weight's shape (equation 3 for `first`, 5 for `mix`).

    g is the gradient of the mean loss over the sequences of `ids` (samples, tokens), F the mean over the sequences of
    the squared gradient. All gradients of the model are held at once; that is this method's memory.
    """
    for weight in weights:
        weight.requires_grad_(True)
    gradient = [torch.zeros_like(weight) for weight in weights]
    fisher = [torch.zeros_like(weight) for weight in weights] if order == "mix" else []
    with torch.enable_grad():
        for sequence in ids:
            batch = sequence[None].to(weights[0].device)
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            for place, found in enumerate(torch.autograd.grad(loss, weights)):
                gradient[place] += found / len(ids)
                if fisher:
                    fisher[place] += found.square() / len(ids)
    for place, weight in enumerate(weights):
        gradient[place].mul_(weight.detach())
        if fisher:
            gradient[place] -= fisher[place].mul_(weight.detach().square()) / 2
        gradient[place].abs_()
    return gradient
