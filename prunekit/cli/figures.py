"""How an evaluation is shown: a table for each kind of figure, and a line for each model in it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prunekit.cli.outcome import number
from prunekit.cli.screen import table

if TYPE_CHECKING:
    from prunekit.evaluate.rows import Count, Evaluation, Row

DASH = "-"


def tables(done: "Evaluation") -> list[Any]:
    """The tables of what was measured."""
    compared = any(row.baseline for row in done.models)
    made = [sizes(done.models, compared)]
    if any(row.perplexity for row in done.models):
        made.insert(0, perplexities(done.models, compared))
    return made


def perplexities(rows: "tuple[Row, ...]", compared: bool) -> Any:
    """A line for each model and text."""
    headers = ["model", "text", "protocol", "windows", "perplexity"]
    more = ["to baseline", "KL", "same choice"] if compared else []
    cells = [cell for row in rows for cell in _perplexity(row, compared)]
    return table(*headers, *more, rows=cells, right="perplexity,to baseline,KL,same choice")


def _perplexity(row: "Row", compared: bool) -> Iterator[list[str]]:
    for part in row.perplexity:
        cells = [row.model, part.set, part.protocol, f"{part.windows} x {part.window}", number(part.value)]
        kl = DASH if part.kl is None else f"{part.kl:.4f}" if isinstance(part.kl, float) else part.kl
        more = [change(part.ratio), kl, percent(part.agreement)]
        yield [*cells, *more] if compared else cells


def sizes(rows: "tuple[Row, ...]", compared: bool) -> Any:
    """A line for each model: what lies on the disk."""
    headers = ["model", "parameters", "bytes"]
    numbers = ",".join(["parameters", "bytes", "to baseline"])
    cells = [
        [row.model, *_count(row.size.parameters, compared), *_count(row.size.stored_bytes, compared)] for row in rows
    ]
    if compared:
        headers = ["model", "parameters", "to baseline", "bytes", "to baseline"]
    return table(*headers, rows=cells, right=numbers)


def _count(count: "Count", compared: bool) -> list[str]:
    return [f"{count.value:,}", *([change(count.ratio)] if compared else [])]


def change(ratio: float | None) -> str:
    """A ratio as what it adds: 1.25 is `+25.0 %`."""
    return DASH if ratio is None else f"{ratio - 1:+.1%}".replace("%", " %")


def percent(share: float | None) -> str:
    """A share of one: `97.5 %`."""
    return DASH if share is None else f"{share:.1%}".replace("%", " %")
