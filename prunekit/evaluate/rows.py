"""What an evaluation gives: one row per model, the baseline first, every figure also as a ratio to the baseline's.

    Evaluation
    ├── models: Row, ...           the baseline's first
    │   ├── size        Size         parameters, bytes on disk                       always
    │   ├── perplexity  Perplexity   one per text; KL and agreement with a baseline
    │   ├── tasks       Accuracy     one per task and metric                         with tasks
    │   └── speed       Speed        prefill, decode, first token, memory, FLOPs     with speed
    └── gates: Verdict, ...        one per limit, model and thing that was measured

A ratio is this model's figure divided by the baseline's: null without a baseline, and where the two cannot be compared.
A figure that is not a number stays visible, as the word "nan", "inf" or "-inf". Nothing here imports torch.
"""

import math
from typing import Any, Literal

from pydantic import Field

from prunekit.plan import Frozen

Number = float | Literal["nan", "inf", "-inf"]


class Count(Frozen):
    """Something that was counted."""

    value: int
    ratio: float | None = Field(default=None, description="Divided by the baseline's.")


class Size(Frozen):
    """What lies on the disk."""

    parameters: Count = Field(description="All numbers in the weight files.")
    stored_bytes: Count = Field(description="Bytes of the weight files.")


class Perplexity(Frozen):
    """A perplexity, all that it depends on, and how far the predictions are from the baseline's on the same tokens."""

    value: Number
    ratio: float | None = Field(default=None, description="Divided by the baseline's.")
    kl: Number | None = Field(
        default=None,
        description="KL divergence of the baseline's next-token distribution from this model's, KL(baseline || model): "
        "mean over the predicted tokens, in nats; null without a baseline that reads the same tokens.",
    )
    agreement: float | None = Field(
        default=None, description="Fraction of the predicted tokens whose most likely token is the baseline's."
    )
    set: str
    revision: str | None
    split: str
    protocol: str
    join: str
    window: int = Field(description="Tokens in a window.")
    windows: int
    tokens: int = Field(description="How many were predicted.")
    sha256: str = Field(description="Of the token ids: where it differs, perplexities cannot be compared.")


class BeforeAndAfter(Frozen):
    """The quick perplexity of a run, as `prune --json` and the manifest hold it."""

    before: Number
    after: Number
    calibration_text: bool = Field(description="Whether it is on the text that was calibrated on.")
    set: str
    revision: str | None
    split: str
    protocol: str
    join: str
    window: int
    windows: int
    tokens: int


class Accuracy(Frozen):
    """One metric of one lm-eval task."""

    task: str
    metric: str = Field(description="acc, acc_norm, ... as lm-eval calls it.")
    value: Number
    ratio: float | None = Field(default=None, description="Divided by the baseline's.")
    stderr: Number | None = Field(description="Standard error, as lm-eval computes it.")
    documents: int | None = Field(description="How many were asked.")
    few_shot: int | None = Field(description="Solved examples before each.")
    version: str | None = Field(description="Version of the task.")


class Rate(Frozen):
    """What was timed, over all rounds: the median and the quartiles; and the median of the rounds' ratios."""

    value: float = Field(description="Median.")
    low: float = Field(description="First quartile.")
    high: float = Field(description="Third quartile.")
    ratio: float | None = Field(
        default=None, description="Median over the rounds of this model's figure divided by the baseline's."
    )
    ratio_low: float | None = Field(default=None, description="Where its 95 % interval begins.")
    ratio_high: float | None = Field(default=None, description="Where its 95 % interval ends.")


class Speed(Frozen):
    """Speed and memory; the baseline and the model were timed in turn, in one process."""

    prefill: Rate = Field(description="Prompt tokens per second.")
    decode: Rate = Field(description="New tokens per second.")
    first_token: Rate = Field(description="Seconds from the prompt to the first new token.")
    peak_memory: Count | None = Field(
        description="Most bytes that loading and running took in a process of its own, libraries not counted."
    )
    flops_per_token: Count | None = Field(description="Floating-point operations of the prefill per prompt token.")
    rounds: int
    batch_size: int
    prompt_tokens: int
    new_tokens: int
    device: str
    dtype: str
    threads: int = Field(description="Of the CPU.")
    compiled: bool


class Row(Frozen):
    """One model."""

    model: str
    baseline: bool
    size: Size
    perplexity: tuple[Perplexity, ...] = ()
    tasks: tuple[Accuracy, ...] = ()
    speed: Speed | None = None


class Verdict(Frozen):
    """What became of one limit, for one model and one thing that was measured."""

    gate: str = Field(description="Its name in a recipe, such as max_ppl_increase.")
    limit: float
    model: str
    subject: str = Field(description="The text, task or speed that it is about, or what was counted.")
    found: Number | None = Field(description="What was measured; null where nothing could be.")
    passed: bool
    reason: str = Field(description="In words: what was found and what was expected.")


class Evaluation(Frozen):
    """All rows and what became of the limits; what `prunekit eval --json` prints."""

    schema_version: Literal[1] = 1
    models: tuple[Row, ...]
    gates: tuple[Verdict, ...] = ()

    @property
    def failed(self) -> list[Verdict]:
        """The limits that were missed, or could not be measured."""
        return [verdict for verdict in self.gates if not verdict.passed]


def plain(value: float) -> Number:
    """A number as JSON can hold it."""
    return float(value) if math.isfinite(value) else str(float(value))  # pyright: ignore[reportReturnType]


def ratio(value: Any, dense: Any) -> float | None:
    """How many times the baseline's; None when one of them is not a number or the baseline's is 0."""
    numbers = isinstance(value, int | float) and isinstance(dense, int | float)
    return value / dense if numbers and dense else None


def compared(row: Row, dense: Row) -> Row:
    """A row with its ratios to the baseline's row; those of speeds are taken while they are measured."""
    size = Size(
        parameters=_with_ratio(row.size.parameters, dense.size.parameters),
        stored_bytes=_with_ratio(row.size.stored_bytes, dense.size.stored_bytes),
    )
    texts = {(part.set, part.protocol, part.sha256): part for part in dense.perplexity}
    scores = {(part.task, part.metric, part.documents, part.few_shot, part.version): part for part in dense.tasks}
    return row.model_copy(
        update={
            "size": size,
            "perplexity": tuple(
                _with_ratio(part, texts.get((part.set, part.protocol, part.sha256))) for part in row.perplexity
            ),
            "tasks": tuple(
                _with_ratio(part, scores.get((part.task, part.metric, part.documents, part.few_shot, part.version)))
                for part in row.tasks
            ),
        }
    )


def _with_ratio(figure: Any, dense: Any) -> Any:
    """The same figure with its ratio; null where the baseline has none to compare it with."""
    return figure.model_copy(update={"ratio": None if dense is None else ratio(figure.value, dense.value)})
