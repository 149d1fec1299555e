"""The action of depth pruning: removing one decoder block."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from prunekit.plan import Action

if TYPE_CHECKING:
    from prunekit.model.prunable import PrunableModel


class RemoveBlock(Action):
    """Take one decoder block out of the model."""

    kind: Literal["remove_block"] = "remove_block"
    block: int = Field(ge=0, description="Index of the block in the source model.")

    @property
    def place(self) -> str:
        """The block, by its index."""
        return f"block {self.block}"

    @classmethod
    def applied(cls, model: "PrunableModel", actions: Sequence[Any]) -> "PrunableModel":
        """The model without these blocks."""
        return model.without(action.block for action in actions)
