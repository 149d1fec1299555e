"""What a run did and measured."""

from typing import Any

from pydantic import Field

from prunekit.evaluate.rows import Verdict
from prunekit.plan import Frozen


class Outcome(Frozen):
    """What a run did and measured; the object that `--json` prints."""

    schema_version: int = 1
    output: str = Field(description="The folder that was written.")
    method: str
    ratio: float
    pattern: str
    sparsity: float = Field(description="Measured fraction of zeros in the pruned linears.")
    weights: int = Field(description="Number of weights in the pruned linears.")
    zeros: int = Field(description="How many of them are zero.")
    parameters: int = Field(description="Numbers in the written weight files.")
    parameters_before: int = Field(description="The same of the source.")
    blocks: int = Field(description="Decoder blocks that are left.")
    removed_blocks: tuple[int, ...] = Field(description="Those that are not, by their index in the source.")
    widths: tuple[int, ...] = Field(
        default=(), description="Neurons of every block that is left, where some were cut out."
    )
    perplexity: dict[str, Any] | None = Field(description="Quick perplexity before and after, with its protocol.")
    verification: dict[str, Any] | None
    notes: list[str]
    seconds: float
    resumed_blocks: int = Field(description="Blocks taken over from an interrupted run.")
    gates: tuple[Verdict, ...] = Field(default=(), description="What became of the recipe's limits.")
    repeat: dict[str, Any] | None = Field(
        default=None, description="How the run compares with the one whose manifest it repeats (`prune --from`)."
    )
