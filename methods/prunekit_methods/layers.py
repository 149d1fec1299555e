"""Layers: remove exactly the decoder blocks that the user names.

Paper: none; to repeat a published selection, or to try one's own.
"""

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from prunekit.api import Context, Method, Needs, PrunePlan, UsageError, plan_blocks, remove_blocks
from prunekit.depth.removal import parse_blocks


def _as_text(value: Any) -> Any:
    """`30` and `[21, 22]`, as YAML reads them, in the form of `21-28,30`."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, int) else value


class Layers(Method):
    """Remove exactly the blocks that are named."""

    name: ClassVar[str] = "layers"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs(ratio=False)

    blocks: Annotated[str, BeforeValidator(_as_text)] = Field(
        default="", description="Blocks to remove, counted from 0, such as 21-28,30."
    )

    def plan(self, ctx: Context) -> PrunePlan:
        if not self.blocks.strip():
            raise UsageError("layers is not told which blocks to remove", hint="--set blocks=21-28,30")
        return plan_blocks(ctx, self.name, parse_blocks(self.blocks, len(ctx.model.blocks)))

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        remove_blocks(ctx, plan)
