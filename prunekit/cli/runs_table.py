"""Runs side by side in the terminal: one table for `compare` and `sweep`."""

from typing import TYPE_CHECKING, Any

from prunekit.cli.bars import bar
from prunekit.cli.screen import table
from prunekit.formatting import change, interval, megabytes, multiple, number, percent

if TYPE_CHECKING:
    from prunekit.compare.table import Run, Runs

MARK = "*"


def tabled(found: "Runs") -> Any:
    """The table; columns that would say the same in every row, or nothing, are left out."""
    rows = [cells(run, found) for run in found.runs]
    headers = [name for name in rows[0] if any(row[name] not in ("", "-") for row in rows)] if rows else []
    right = "ratio,parameters,size,blocks,neurons,zeros,perplexity,to dense,work,speed,95 % interval"
    return table(*headers, rows=[[row[name] for name in headers] for row in rows], right=right)


def cells(run: "Run", found: "Runs") -> dict[str, str]:
    """Column -> what stands in it for one run."""
    qualities = [each.quality for each in found.runs]
    worst = max((value for value in qualities if isinstance(value, int | float)), default=0.0)
    quality, known, timing = run.quality, run.perplexity, run.timing
    value = run.measured.perplexity[0].value if run.measured and run.measured.perplexity else known and known.after
    ratio = run.measured.perplexity[0].ratio if run.measured and run.measured.perplexity else known and known.ratio
    return {
        "run": run.name,
        "model": run.source if len({each.source for each in found.runs}) > 1 else "",
        "method": run.method if any(each.method not in each.name for each in found.runs) else "",
        "pattern": run.pattern or "" if len({each.pattern for each in found.runs} - {None}) > 1 else "",
        "allocator": run.allocator or "" if any(each.allocator not in (None, "uniform") for each in found.runs) else "",
        "settings": ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in run.settings.items()),
        "ratio": f"{run.ratio:g}",
        "parameters": f"{run.parameters:,} ({change(run.parameters_ratio)})",
        "size": megabytes(run.stored_bytes),
        "blocks": str(run.blocks),
        "neurons": run.neurons,
        "zeros": percent(run.sparsity) if run.sparsity else "",
        "perplexity": "-" if value is None else number(value),
        "to dense": change(ratio),
        "": bar(quality, worst) if isinstance(quality, int | float) else "",
        "work": change(run.work_ratio),
        "speed": multiple(timing.ratio) if timing else "-",
        "95 % interval": interval(timing.ratio_low, timing.ratio_high) if timing else "-",
        "best": " ".join(run.fronts),
    }
