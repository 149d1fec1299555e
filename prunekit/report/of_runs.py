"""The report of runs side by side, for `compare` and `sweep`."""

from collections.abc import Sequence

from prunekit.compare.table import Run, Runs
from prunekit.evaluate.rows import Row, Verdict
from prunekit.formatting import change, interval, listed, megabytes, multiple, number, percent, plural
from prunekit.report.content import Cell, Passage, Report, Section, Table
from prunekit.report.figures import of_rows, of_runs
from prunekit.report.of_evaluation import tables
from prunekit.report.of_run import gates
from prunekit.run.sweep import Sweep

NUMBERS = frozenset(
    ("ratio", "parameters", "size", "blocks", "zeros", "perplexity", "to dense", "work", "speed", "95 % interval")
)


def of_sweep(done: Sweep, command: str) -> Report:
    """The report of a grid: that of its cells, and those that failed."""
    rows = [[cell.name, cell.error or ""] for cell in done.failed]
    failed = [Table("Cells that could not be run", ["cell", "why"], rows)] if rows else []
    return report_of_runs(done.table, command, "Sweep", done.model_dump_json(indent=2), failed, done.gates)


def report_of_runs(
    found: Runs,
    command: str,
    kind: str = "Comparison",
    record: str = "",
    failed: Sequence[Table] = (),
    verdicts: Sequence[Verdict] = (),
) -> Report:
    """One table, the pictures with their Pareto fronts, and what was measured of each run."""
    measured = [row for row in (found.baseline, *(run.measured for run in found.runs)) if row]
    sources = list(dict.fromkeys(run.source for run in found.runs))
    return Report(
        title=f"{kind} of {plural(len(found.runs), 'run')} on {listed(sources)}" if found.runs else kind,
        sentence=sentence(found),
        sections=[
            Section("Runs", text=found.notes, tables=[table(found.runs), *failed] if found.runs else failed),
            Section("Quality against cost", figures=of_runs(found.runs, found.baseline)),
            gates(verdicts),
            Section("Measured", tables=tables(measured), figures=of_rows(_first(measured))),
            Section("Repeat", passages=[Passage("Command", command)]),
            Section("Record", folded=Passage("as JSON", record or found.model_dump_json(indent=2))),
        ],
    )


def _first(rows: Sequence[Row]) -> Sequence[Row]:
    """Figures of many models are longer than they are good for: the table holds them all."""
    return rows if len(rows) <= 8 else ()


def sentence(found: Runs) -> str:
    """How many runs there are, and which of them no other beats."""
    if not found.runs:
        return "No run was finished."
    methods = listed(list(dict.fromkeys(run.method for run in found.runs)))
    best = [run.name for run in found.runs if "size" in run.fronts]
    text = f"{plural(len(found.runs), 'run')} of {methods}"
    return f"{text}; for its size, none is better than {listed(best)}." if best else f"{text}."


def table(runs: Sequence[Run]) -> Table:
    """All runs, numbered as in the pictures; columns that say nothing are left out."""
    worst = max((run.quality for run in runs if isinstance(run.quality, int | float)), default=1.0)
    rows = [_cells(place, run, float(worst)) for place, run in enumerate(runs, 1)]
    used = [name for name in rows[0] if any(row[name] not in ("", "-") for row in rows)]
    good = frozenset(place for place, run in enumerate(runs) if run.fronts)
    return Table(
        "Coloured: on a Pareto front",
        used,
        [[row[name] for name in used] for row in rows],
        NUMBERS,
        good,
    )


def _cells(place: int, run: Run, worst: float) -> dict[str, Cell]:
    last = run.measured.perplexity[0] if run.measured and run.measured.perplexity else None
    value, ratio = (last.value, last.ratio) if last else (None, None)
    if last is None and run.perplexity:
        value, ratio = run.perplexity.after, run.perplexity.ratio
    quality, timing = run.quality, run.timing
    return {
        "run": f"{place}. {run.name}",
        "method": run.method if run.method not in run.name else "",
        "pattern": run.pattern if run.pattern not in (None, "unstructured") else "",
        "allocator": run.allocator if run.allocator not in (None, "uniform") else "",
        "settings": ", ".join(f"{path.rpartition('.')[2]} = {value}" for path, value in run.settings.items()),
        "ratio": f"{run.ratio:g}",
        "parameters": f"{run.parameters:,} ({change(run.parameters_ratio)})",
        "size": megabytes(run.stored_bytes),
        "blocks": str(run.blocks),
        "neurons": run.neurons,
        "zeros": percent(run.sparsity) if run.sparsity else "",
        "perplexity": "-" if value is None else number(value),
        "to dense": change(ratio),
        "drawn": float(quality) / worst if isinstance(quality, int | float) else "",
        "work": change(run.work_ratio),
        "speed": multiple(timing.ratio) if timing else "-",
        "95 % interval": interval(timing.ratio_low, timing.ratio_high) if timing else "-",
        "best for": ", ".join(run.fronts),
    }
