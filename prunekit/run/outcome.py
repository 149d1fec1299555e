"""What a run did and measured."""

from typing import Any

from pydantic import Field

from prunekit.evaluate.rows import Verdict
from prunekit.export.manifest import Counted


class Outcome(Counted):
    """What a run did and measured; the object that `--json` prints."""

    schema_version: int = 1
    output: str = Field(description="The folder that was written.")
    method: str
    ratio: float
    pattern: str
    perplexity: dict[str, Any] | None = Field(description="Quick perplexity before and after, with its protocol.")
    verification: dict[str, Any] | None
    notes: list[str]
    seconds: float
    resumed_blocks: int = Field(description="Blocks taken over from an interrupted run.")
    gates: tuple[Verdict, ...] = Field(default=(), description="What became of the recipe's limits.")
    repeat: dict[str, Any] | None = Field(
        default=None, description="How the run compares with the one whose manifest it repeats (`prune --from`)."
    )
