"""The report of an evaluation: models side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunekit.evaluate.rows import Count, Evaluation, Row
from prunekit.formatting import change, interval, listed, megabytes, number, percent, plural
from prunekit.report.content import Passage, Report, Section, Table
from prunekit.report.figures import of_rows
from prunekit.report.of_run import gates, sample

if TYPE_CHECKING:
    from prunekit.evaluate.continuation import Continuation


def of_evaluation(done: Evaluation, command: str, said: "Sequence[Continuation]" = (), remark: str = "") -> Report:
    """What was measured of each model, in tables and figures."""
    names = [row.model for row in done.models if not row.baseline]
    return Report(
        title=f"Evaluation of {listed(names)}",
        sentence=sentence(done),
        sections=[
            Section("Measured", tables=tables(done.models)),
            Section("Figures", figures=of_rows(done.models)),
            gates(done.gates),
            sample(said, remark),
            Section("Repeat", passages=[Passage("Command", command)]),
            Section("Record", folded=Passage("as JSON", done.model_dump_json(indent=2))),
        ],
    )


def sentence(done: Evaluation) -> str:
    """The first figure of each model, in one sentence."""
    parts: list[str] = []
    for row in done.models:
        if row.baseline:
            continue
        first = row.perplexity[0] if row.perplexity else None
        size = f"{row.size.parameters.value:,} parameters"
        if first is None:
            parts.append(f"{row.model} has {size}")
            continue
        more = f" ({change(first.ratio)} to the baseline)" if first.ratio is not None else ""
        parts.append(f"{row.model} has {size} and perplexity {number(first.value)} on {first.set}{more}")
    failed = len(done.failed)
    limits = f"; {failed} of {len(done.gates)} limits failed" if failed else "; every limit is kept"
    return f"{listed(parts)}{limits if done.gates else ''}."


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table for each kind of figure there is."""
    made = [_perplexities(rows), _accuracies(rows), _speeds(rows), _sizes(rows)]
    return [table for table in made if table.rows]


def _table(caption: str, headers: list[str], rows: list[list[str]]) -> Table:
    words = {"model", "text", "protocol", "windows", "task", "metric"}
    return Table(caption, headers, rows, frozenset(name for name in headers if name not in words))


def _perplexities(rows: Sequence[Row]) -> Table:
    headers = ["model", "text", "protocol", "windows", "perplexity", "to baseline", "KL", "same choice"]
    cells = [
        [
            row.model,
            part.set,
            part.protocol,
            f"{part.windows} x {part.window}",
            number(part.value),
            change(part.ratio),
            "-" if part.kl is None else f"{part.kl:.4f}" if isinstance(part.kl, float) else part.kl,
            percent(part.agreement),
        ]
        for row in rows
        for part in row.perplexity
    ]
    return _table("Perplexity, and how far predictions are from the baseline's", headers, cells)


def _accuracies(rows: Sequence[Row]) -> Table:
    headers = ["model", "task", "metric", "accuracy", "standard error", "to baseline", "documents", "few-shot"]
    cells = [
        [
            row.model,
            part.task,
            part.metric,
            _percent(part.value),
            _percent(part.stderr),
            change(part.ratio),
            "-" if part.documents is None else f"{part.documents:,}",
            "-" if part.few_shot is None else str(part.few_shot),
        ]
        for row in rows
        for part in row.tasks
    ]
    return _table("Accuracy", headers, cells)


def _percent(value: Any) -> str:
    return percent(value, 2) if isinstance(value, int | float) else str(value or "-")


def _speeds(rows: Sequence[Row]) -> Table:
    headers = ["model", "decoding, tokens/s", "x baseline", "95 % interval", "prefill, tokens/s", "x baseline"]
    headers += ["95 % interval", "first token, ms", "peak memory", "FLOPs per token"]
    cells: list[list[str]] = []
    for row in rows:
        if (speed := row.speed) is None:
            continue
        rates = [cell for rate in (speed.decode, speed.prefill) for cell in (number(rate.value), *_times(rate))]
        memory, work = speed.peak_memory, speed.flops_per_token
        more = [number(1000 * speed.first_token.value), megabytes(memory.value) if memory else "-"]
        cells.append([row.model, *rates, *more, f"{work.value:,}" if work else "-"])
    return _table(_conditions(rows), headers, cells)


def _times(rate: Any) -> tuple[str, str]:
    if rate.ratio is None:
        return "-", "-"
    return f"{rate.ratio:.2f}", interval(rate.ratio_low, rate.ratio_high)


def _conditions(rows: Sequence[Row]) -> str:
    speed = next((row.speed for row in reversed(rows) if row.speed), None)  # the baseline's has the rounds of all
    if speed is None:
        return "Speed"
    size = f"batch {speed.batch_size}, {speed.prompt_tokens} prompt tokens, {speed.new_tokens} new tokens"
    how = f"in {speed.dtype}, {plural(speed.threads, 'thread')}{', compiled' if speed.compiled else ''}"
    return f"Speed on {speed.device} {how}: {size}, median of {speed.rounds} rounds"


def _sizes(rows: Sequence[Row]) -> Table:
    cells = [
        [
            row.model,
            f"{row.size.parameters.value:,}",
            _added(row.size.parameters),
            megabytes(row.size.stored_bytes.value),
            _added(row.size.stored_bytes),
        ]
        for row in rows
    ]
    return _table("Size", ["model", "parameters", "to baseline", "weight files", "to baseline"], cells)


def _added(count: Count) -> str:
    return change(count.ratio)
