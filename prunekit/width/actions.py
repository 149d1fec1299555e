"""The action of width pruning: leaving fewer neurons in the feed-forward layer of a block."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from prunekit.plan import Action

if TYPE_CHECKING:
    from prunekit.model.prunable import PrunableModel


class Narrow(Action):
    """Leave fewer units in one part of a block; which ones is found while the plan is applied."""

    kind: Literal["narrow"] = "narrow"
    block: int = Field(ge=0, description="Index of the block in the source model.")
    part: Literal["mlp"] = Field(default="mlp", description="mlp: the feed-forward layer, whose units are neurons.")
    units: int = Field(ge=1, description="How many stay.")

    @property
    def place(self) -> str:
        """The part of the block."""
        return f"the {self.part} of block {self.block}"

    @classmethod
    def applied(cls, model: "PrunableModel", actions: Sequence[Any]) -> "PrunableModel":
        """The model with blocks that may be narrower than the source's."""
        from prunekit.width.neurons import find_ffns

        return model.narrowed(find_ffns(model))
