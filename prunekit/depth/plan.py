"""Depth pruning: which blocks may be removed, what the model loses without each of them, and removing them.

A method that removes blocks decides their order; how many are removed follows from the ratio, and how the folder
changes from `depth.removal`.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from prunekit import distributed
from prunekit.blockwise.loss import summed_loss
from prunekit.blockwise.statistics import BlockInfluence
from prunekit.blockwise.stream import Stream, grouped, split
from prunekit.blockwise.walk import calibration_of, record_probe, transitions
from prunekit.contract import Context
from prunekit.depth.actions import RemoveBlock
from prunekit.depth.removal import blocks_to_remove, plan_removal
from prunekit.errors import InputError, UnsupportedError, UsageError
from prunekit.plan import PrunePlan


def candidates(ctx: Context, count: int | None = None) -> list[int]:
    """Indices of the blocks that may be removed, of which `count` shall be (None: as many as the ratio means).

    Raises UnsupportedError at once, and not after hours, for a model that no block can be taken out of.
    """
    free = [block.index for block in ctx.model.kept if block.index not in ctx.protected]
    if count is None:
        count_removed(ctx)
    elif count > len(free):
        raise UsageError(
            f"{count} blocks are to be removed, and {len(free)} are not protected", hint="--protect-blocks none"
        )
    refused: UnsupportedError | None = None
    for index in free:  # which blocks can be removed may depend on which are: one is enough to begin with
        try:
            plan_removal(ctx.model, [index])
            return free
        except UnsupportedError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def count_removed(ctx: Context) -> int:
    """How many blocks the ratio means; raises UsageError if fewer are unprotected."""
    return blocks_to_remove(ctx.ratio, len(ctx.model.blocks), ctx.protected)


def smallest(importance: dict[int, float], count: int) -> list[int]:
    """The blocks of smallest importance, the least important first; of equals, the earlier one."""
    return sorted(importance, key=lambda block: (importance[block], block))[:count]


def influences(ctx: Context) -> list[float]:
    """Block influence of every block, measured on the whole model in one pass (ShortGPT, equation 1)."""
    found = [BlockInfluence() for _ in ctx.model.blocks]
    ctx.progress.stage("block influence", len(found))
    for block, before, after in transitions(ctx):
        found[block.index].add(before, after)
    return [influence.value for influence in found]


def plan_blocks(ctx: Context, method: str, removed: Iterable[int], evidence: dict[str, Any] | None = None) -> PrunePlan:
    """A plan that removes these blocks; raises UnsupportedError when the config cannot say what is left."""
    gone = sorted(removed)
    plan_removal(ctx.model, gone)
    ratio = ctx.ratio or len(gone) / len(ctx.model.blocks)
    actions = tuple(RemoveBlock(block=index) for index in gone)
    return PrunePlan(method=method, ratio=ratio, actions=actions, evidence=evidence or {})


def check_removal(ctx: Context, plan: PrunePlan) -> tuple[int, ...]:
    """The blocks that a plan, which a person may have edited, takes out; raises InputError when it cannot be done."""
    gone, depth = plan.removed_blocks(), len(ctx.model.blocks)
    if len(gone) < len(plan.actions):
        other = next(action for action in plan.actions if not isinstance(action, RemoveBlock))
        raise InputError(f"the plan wants {other.kind} for {other.place}; {plan.method} only removes blocks")
    if not gone or gone[-1] >= depth:
        raise InputError(f"the plan removes blocks {list(gone)}; expected some of 0 to {depth - 1}")
    plan_removal(ctx.model, gone)
    return gone


def remove_blocks(ctx: Context, plan: PrunePlan) -> None:
    """Record what the model computes without the plan's blocks; raises InputError if it cannot do without them."""
    check_removal(ctx, plan)
    record_probe(ctx)


@torch.no_grad()
def losses_without(ctx: Context, tried: Collection[int], removed: Collection[int] = ()) -> tuple[dict[int, float], int]:
    """Mean calibration loss without each of the `tried` blocks in turn, and how many blocks were run per batch.

    One pass serves all: where the main stream meets a candidate, a branch leaves that skips it, so that no block before
    a candidate is run again for it. Every block is read once per group of batches, so many as may wait in memory.
    `removed` blocks are out already. Of several processes each runs its share of the batches.
    """
    ids, totals, forwards = calibration_of(ctx), dict.fromkeys(tried, 0.0), 0
    batches = distributed.share(split(ids, ctx.batch_size))
    width = ctx.model.config.get_text_config().hidden_size
    state = ctx.batch_size * ids.shape[1] * width * ctx.model.dtype.itemsize
    for group in grouped(batches, state * (len(totals) + 1), ctx.model.is_resident):
        forwards = _branch(ctx, group, totals, removed)
    summed = zip(totals, distributed.summed(list(totals.values())), strict=True)
    return {block: total / (ids.shape[0] * (ids.shape[1] - 1)) for block, total in summed}, forwards


def _branch(ctx: Context, batches: Sequence[Tensor], totals: dict[int, float], removed: Collection[int]) -> int:
    """Add the loss of some batches without each block of `totals` to it; returns the number of block forwards."""
    stream = Stream(ctx.model, batches)
    places, forwards = range(len(batches)), 0
    branches: dict[int, list[Tensor]] = {}
    for block in ctx.model.blocks:
        if block.index in removed:
            continue
        wanted = block.index in totals
        with ctx.model.block(block.index) as module:
            for states in branches.values():
                for batch in places:
                    states[batch] = stream.run(module, block, batch, states[batch]).cpu()
            if wanted:
                branches[block.index] = list(stream.hidden)
            main = len(branches) < len(totals)
            if main:
                stream.advance(module, block)
        forwards += len(branches) - wanted + main
    for block, states in branches.items():
        for batch, found in enumerate(stream.logits(hidden=states)):
            totals[block] += summed_loss(found, batches[batch])
    return forwards
