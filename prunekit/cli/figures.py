"""How an evaluation is shown: a table for each kind of figure, and a line for each model in it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prunekit.cli.bars import bar
from prunekit.cli.screen import table
from prunekit.formatting import change, interval, multiple, number, percent, plural

if TYPE_CHECKING:
    from prunekit.evaluate.rows import Count, Evaluation, Number, Rate, Row

DASH = "-"
RATIO = "to baseline"


def tables(done: "Evaluation") -> list[Any]:
    """The tables of what was measured; a ratio stands beside its figure where there is a baseline."""
    rows, compared = done.models, any(row.baseline for row in done.models)
    made = [perplexities(rows, compared)] if any(row.perplexity for row in rows) else []
    made += [scores(rows, compared)] if any(row.tasks for row in rows) else []
    made += [sizes(rows, compared)]
    return made + (speeds(rows, compared) if any(row.speed for row in rows) else [])


def perplexities(rows: "tuple[Row, ...]", compared: bool) -> Any:
    """A line for each model and text, and a bar as long as its perplexity."""
    headers = ["model", "text", "protocol", "windows", "perplexity"]
    more = [RATIO, "KL", "same choice"] if compared else []
    largest = _largest(rows)
    cells = [cell for row in rows for cell in _perplexity(row, compared, largest)]
    return table(*headers, *more, "", rows=cells, right=f"perplexity,{RATIO},KL,same choice")


def _perplexity(row: "Row", compared: bool, largest: dict[str, float]) -> Iterator[list[str]]:
    for part in row.perplexity:
        cells = [row.model, part.set, part.protocol, f"{part.windows} x {part.window}", number(part.value)]
        more = [change(part.ratio), fixed(part.kl), percent(part.agreement)]
        drawn = bar(part.value, largest[part.set]) if isinstance(part.value, float) else ""
        yield [*cells, *(more if compared else []), drawn]


def _largest(rows: "tuple[Row, ...]") -> dict[str, float]:
    """The largest perplexity on each text, which has the longest bar."""
    found: dict[str, float] = {}
    for part in (part for row in rows for part in row.perplexity):
        value = part.value if isinstance(part.value, float) else 0.0
        found[part.set] = max(found.get(part.set, 0.0), value)
    return found


def scores(rows: "tuple[Row, ...]", compared: bool) -> Any:
    """A line for each model, task and metric."""
    headers = ["model", "task", "metric", "questions", "value", "+-"]
    cells = [
        [row.model, part.task, part.metric, _known(part.documents), fixed(part.value), fixed(part.stderr)]
        + ([change(part.ratio)] if compared else [])
        for row in rows
        for part in row.tasks
    ]
    return table(*headers, *([RATIO] if compared else []), rows=cells, right=f"questions,value,+-,{RATIO}")


def sizes(rows: "tuple[Row, ...]", compared: bool) -> Any:
    """A line for each model: what lies on the disk."""
    cells = [
        [row.model, *_count(row.size.parameters, compared), *_count(row.size.stored_bytes, compared)] for row in rows
    ]
    headers = ["model", *_with_ratio("parameters", compared), *_with_ratio("bytes", compared)]
    return table(*headers, rows=cells, right=",".join(headers[1:]))


def speeds(rows: "tuple[Row, ...]", compared: bool) -> list[Any]:
    """A line for each model and timing, with how it was taken; and what was counted."""
    measured = [(row, row.speed) for row in rows if row.speed is not None]
    cells = [
        [row.model, name, *_rate(rate, digits, compared and not row.baseline)][: 4 + 2 * compared]
        for row, speed in measured
        for name, rate, digits in (
            ("prefill, tokens/s", speed.prefill, 1),
            ("decode, tokens/s", speed.decode, 1),
            ("first token, s", speed.first_token, 4),
        )
    ]
    headers = ["model", "speed", "median", "quartiles", *([RATIO, "95 % interval"] if compared else [])]
    counted = [
        [row.model, *_count(speed.peak_memory, compared), *_count(speed.flops_per_token, compared)]
        for row, speed in measured
    ]
    names = ["model", *_with_ratio("peak memory, bytes", compared), *_with_ratio("FLOPs per token", compared)]
    return [
        table(*headers, rows=cells, right="median,quartiles,95 % interval," + RATIO),
        table(*names, rows=counted, right="peak memory, bytes,FLOPs per token," + RATIO),
        conditions(measured[-1][1]),  # the baseline's has the rounds of all
    ]


def conditions(speed: Any) -> str:
    """How speeds were taken, in one line."""
    compiled = ", compiled" if speed.compiled else ""
    return (
        f"speed: {speed.batch_size} x {speed.prompt_tokens} prompt tokens, {speed.new_tokens} new ones, "
        f"{speed.rounds} rounds, {speed.device}, {speed.dtype}, {plural(speed.threads, 'thread')}{compiled}"
    )


def _rate(rate: "Rate", digits: int, compared: bool) -> list[str]:
    spread = f"{rate.low:,.{digits}f} to {rate.high:,.{digits}f}"
    return [
        f"{rate.value:,.{digits}f}",
        spread,
        *([multiple(rate.ratio), interval(rate.ratio_low, rate.ratio_high)] if compared else [DASH, DASH]),
    ]


def _with_ratio(name: str, compared: bool) -> list[str]:
    return [name, *([RATIO] if compared else [])]


def _count(count: "Count | None", compared: bool) -> list[str]:
    value = DASH if count is None else f"{count.value:,}"
    return [value, *([change(count and count.ratio)] if compared else [])]


def _known(value: object) -> str:
    return DASH if value is None else str(value)


def fixed(value: "Number | None") -> str:
    """A number with four digits behind the point; `nan` and `inf` as they are."""
    return DASH if value is None else value if isinstance(value, str) else f"{value:.4f}"
