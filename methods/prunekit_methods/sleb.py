"""SLEB: remove the block without which the loss is smallest, measure all others again, and so on.

Paper: Song et al., "SLEB: Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks",
ICML 2024, arXiv:2402.09025.
"""

from typing import ClassVar

from prunekit.api import (
    Context,
    Method,
    Needs,
    PrunePlan,
    candidates,
    count_removed,
    losses_without,
    plan_blocks,
    remove_blocks,
    smallest,
)


class SLEB(Method):
    """Remove the block that the calibration loss misses least, one at a time."""

    name: ClassVar[str] = "sleb"
    paper: ClassVar[str] = "Song et al. 2024, arXiv:2402.09025"
    needs: ClassVar[Needs] = Needs(calibration=True, blocks=True)

    def plan(self, ctx: Context) -> PrunePlan:
        free, rounds = candidates(ctx), []
        chosen: list[int] = []
        forwards = plain = 0
        ctx.progress.stage("choosing blocks", count_removed(ctx))
        for _ in range(count_removed(ctx)):
            tried = [index for index in free if index not in chosen]
            losses, run = losses_without(ctx, tried, chosen)
            rounds.append(losses)
            forwards, plain = forwards + run, plain + len(tried) * (len(ctx.model.blocks) - len(chosen) - 1)
            chosen += smallest(losses, 1)
            ctx.progress.step(f"block {chosen[-1]}, loss {losses[chosen[-1]]:.4f}")
        ctx.note(f"sleb ran {forwards} blocks per batch; running each candidate from the start takes {plain}")
        first = [rounds[0].get(block.index) for block in ctx.model.blocks]
        evidence = {"importance": first, "order": chosen, "losses": [_as_list(losses) for losses in rounds]}
        return plan_blocks(ctx, self.name, chosen, evidence)

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        remove_blocks(ctx, plan)


def _as_list(losses: dict[int, float]) -> list[list[float]]:
    """Pairs of block and loss: JSON has no mapping with numbers as keys."""
    return [[index, loss] for index, loss in losses.items()]
