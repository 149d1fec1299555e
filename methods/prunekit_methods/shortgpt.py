"""ShortGPT: remove the blocks that turn the hidden states least, all at once, after one pass over the text.

Paper: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", arXiv:2403.03853.
"""

from typing import ClassVar

from prunekit.api import (
    Context,
    Method,
    Needs,
    PrunePlan,
    candidates,
    count_removed,
    influences,
    plan_blocks,
    remove_blocks,
    smallest,
)


class ShortGPT(Method):
    """Remove the blocks of smallest block influence, one minus the cosine of input and output."""

    name: ClassVar[str] = "shortgpt"
    paper: ClassVar[str] = "Men et al. 2024, arXiv:2403.03853"
    needs: ClassVar[Needs] = Needs(calibration=True, blocks=True)

    def plan(self, ctx: Context) -> PrunePlan:
        free, found = candidates(ctx), influences(ctx)
        chosen = smallest({index: found[index] for index in free}, count_removed(ctx))
        return plan_blocks(ctx, self.name, chosen, {"importance": found, "order": chosen})

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        remove_blocks(ctx, plan)
