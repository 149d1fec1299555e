"""Magnitude, Wanda and SparseGPT on a whole Hugging Face model in memory, with hooks and ordinary loops.

Written from the formulas of the papers (arXiv 2306.11695, arXiv 2301.00774) and from nothing else: it imports
nothing of prunekit, so that two independent readings of the same page can be compared. `pruned` counts the
weights of every `m` that are PRUNED, as the papers do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Setting:
    """How much to prune: the fraction `s` of the entries, or `pruned` of every `m` consecutive inputs."""

    s: float
    pruned: int = 0
    m: int = 0


Inputs = list[Tensor]  # one (tokens, inputs) matrix per calibration sequence
Pruner = Callable[[Tensor, Inputs, Setting], Tensor]  # weight (out, in), inputs, setting -> new weight


def prune_model(
    folder: str,
    ids: Tensor,
    setting: Setting,
    pruner: Pruner,
    blocks_at: str,
    stages: Sequence[Sequence[str]] | None = None,
) -> nn.Module:
    """The model of `folder` after the sequential procedure; `ids` is (sequences, tokens).

    For block after block, the whole model runs with hooks on that block's linears: earlier blocks are pruned by
    then, the block itself is not. `stages` lists the endings of linear names that are pruned together, in order,
    with fresh statistics for each; the default is one stage of all linears.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for block in model.get_submodule(blocks_at).children():
        linears = {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear | Conv1D)}
        for stage in stages or [list(linears)]:
            chosen = {name: linear for name, linear in linears.items() if name.endswith(tuple(stage))}
            inputs = record_inputs(model, chosen, ids)
            for name, linear in chosen.items():
                stored = linear.weight.data
                weight = stored.T if isinstance(linear, Conv1D) else stored  # a view, (out, in)
                weight.copy_(pruner(weight.clone(), inputs[name], setting))
    return model


@torch.no_grad()
def record_inputs(model: nn.Module, linears: Mapping[str, nn.Module], ids: Tensor) -> dict[str, Inputs]:
    """What enters each of `linears` when the model reads the rows of `ids`, one row at a time."""
    inputs: dict[str, Inputs] = {name: [] for name in linears}
    hooks = []
    for name, linear in linears.items():

        def hook(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            inputs[name].append(args[0].reshape(-1, args[0].shape[-1]).float().clone())

        hooks.append(linear.register_forward_pre_hook(hook))
    for row in ids:
        model(row[None], use_cache=False)
    for hook_handle in hooks:
        hook_handle.remove()
    return inputs


def magnitude(weight: Tensor, inputs: Inputs, setting: Setting) -> Tensor:
    """Per matrix: the threshold is sorted|W|[int(numel * s)]; prune what is not above it."""
    size = weight.abs()
    if setting.m:
        return weight.masked_fill(smallest_of_groups(size, setting.pruned, setting.m), 0.0)
    threshold = size.flatten().sort().values[int(size.numel() * setting.s)]
    return weight.masked_fill(size <= threshold, 0.0)


def wanda_score(weight: Tensor, inputs: Inputs) -> Tensor:
    """|W_ij| * sqrt((1/B) sum_b ||X_b[:, j]||^2) with B sequences."""
    mean = torch.zeros(weight.shape[1])
    for sequence in inputs:
        mean += sequence.pow(2).sum(0) / len(inputs)
    return weight.abs() * mean.sqrt()


def wanda(weight: Tensor, inputs: Inputs, setting: Setting) -> Tensor:
    """In every output row prune the int(inputs * s) smallest scores."""
    score = wanda_score(weight, inputs)
    if setting.m:
        return weight.masked_fill(smallest_of_groups(score, setting.pruned, setting.m), 0.0)
    new = weight.clone()
    count = int(weight.shape[1] * setting.s)
    for i in range(weight.shape[0]):
        order = score[i].sort(stable=True).indices
        new[i, order[:count]] = 0.0
    return new


def wanda_variant(weight: Tensor, inputs: Inputs, setting: Setting) -> Tensor:
    """Per row prune the smallest scores that hold a share alpha of the row; bisect alpha for the sparsity s."""
    score = wanda_score(weight, inputs)
    ordered = score.sort(dim=1).values
    running = ordered.cumsum(dim=1)
    total = score.sum(dim=1)

    def mask_at(alpha: float) -> Tensor:
        mask = torch.zeros_like(score, dtype=torch.bool)
        for i in range(score.shape[0]):
            within = ordered[i][running[i] <= alpha * total[i]]
            if len(within):
                mask[i] = score[i] <= within[-1]
        return mask

    low, high, alpha = 0.0, 0.8, 0.4
    mask = mask_at(alpha)
    while abs(mask.float().mean().item() - setting.s) > 0.001 and high - low >= 0.001:
        if mask.float().mean().item() > setting.s:
            high = alpha
        else:
            low = alpha
        alpha = (low + high) / 2
        mask = mask_at(alpha)
    return weight.masked_fill(mask, 0.0)


def smallest_of_groups(score: Tensor, pruned: int, m: int) -> Tensor:
    """True at the `pruned` smallest of every `m` consecutive columns of a row."""
    mask = torch.zeros_like(score, dtype=torch.bool)
    for start in range(0, score.shape[1], m):
        order = score[:, start : start + m].sort(dim=1, stable=True).indices
        mask[:, start : start + m].scatter_(1, order[:, :pruned], True)
    return mask


@dataclass
class Closest:
    """The smallest relative distance of a kept score from a pruned one that it competed with, of all that were seen.

    Where it is as small as a rounding error, correct implementations may part there, and in all that follows.
    """

    margin: float = inf

    def see(self, score: Tensor, mask: Tensor) -> None:
        """Take in scores that competed within each row, and which of them were pruned."""
        kept, pruned = score.masked_fill(mask, inf).amin(1), score.masked_fill(~mask, 0.0).amax(1)
        self.margin = min(self.margin, float(((kept - pruned) / kept).min()))


def sparsegpt(
    weight: Tensor,
    inputs: Inputs,
    setting: Setting,
    damp: float = 0.01,
    width: int = 128,
    closest: Closest | None = None,
) -> Tensor:
    """Prune column after column and let the later columns make up for the error (optimal brain surgeon).

    In float64: two float32 readings of the formulas differ by their rounding, amplified by the Hessian's condition.
    """
    w = weight.double()
    columns = w.shape[1]
    h = torch.zeros(columns, columns, dtype=torch.float64)
    for sequence in inputs:
        h += 2.0 / len(inputs) * sequence.T.double() @ sequence.double()
    for j in range(columns):
        if h[j, j] == 0:
            h[j, j] = 1.0
            w[:, j] = 0.0
    h += damp * h.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for first in range(0, columns, width):
        last = min(first + width, columns)
        mask = torch.zeros(w.shape[0], last - first, dtype=torch.bool)
        if not setting.m:
            score = w[:, first:last] ** 2 / u.diagonal()[first:last] ** 2
            threshold = score.flatten().sort().values[int(score.numel() * setting.s)]
            mask = score <= threshold
            if closest:
                closest.see(score.reshape(1, -1), mask.reshape(1, -1))
        errors = torch.zeros(w.shape[0], last - first, dtype=torch.float64)
        for i in range(first, last):
            if setting.m and (i - first) % setting.m == 0:
                end = min(i + setting.m, last)
                score = w[:, i:end] ** 2 / u.diagonal()[i:end] ** 2
                chosen = smallest_of_groups(score, setting.pruned, setting.m)
                mask[:, i - first : end - first] = chosen
                if closest:
                    closest.see(score, chosen)
            kept = w[:, i].masked_fill(mask[:, i - first], 0.0)
            error = (w[:, i] - kept) / u[i, i]
            w[:, i:last] -= error[:, None] * u[i, i:last][None, :]
            w[:, i] = kept
            errors[:, i - first] = error
        w[:, last:] -= errors @ u[first:last, last:]
    return w.to(weight.dtype)
