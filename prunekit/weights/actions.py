"""The action of weight pruning: zeroing a fraction of one linear."""

from typing import Literal

from pydantic import Field, field_validator

from prunekit.errors import UsageError
from prunekit.plan import Action, Pattern


class Sparsify(Action):
    """Zero a fraction of the weights of one linear."""

    kind: Literal["sparsify"] = "sparsify"
    linear: str = Field(description="Full path of the linear, e.g. model.layers.3.mlp.down_proj.")
    sparsity: float = Field(ge=0, lt=1, description="Fraction of its weights to set to zero.")
    pattern: str = Field(default="unstructured", description="unstructured or N:M.")

    @property
    def place(self) -> str:
        """The path of the linear."""
        return self.linear

    @field_validator("pattern")
    @classmethod
    def _known_pattern(cls, text: str) -> str:
        try:
            pattern = Pattern.parse(text)
            if pattern.group and not pattern.kept:
                raise UsageError(f"pattern {text!r} does not say how many weights this linear keeps")
            return str(pattern)
        except UsageError as error:
            raise ValueError(error.message) from error
