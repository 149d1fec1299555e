"""Figures of a run and of measured models: importance, sparsity and width per block, spectra, quality, speed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunekit.compare.table import Run
from prunekit.evaluate.rows import Rate, Row
from prunekit.export.manifest import Manifest
from prunekit.formatting import interval, multiple, number, percent, plural
from prunekit.report import svg
from prunekit.report.content import Figure, Table

SPECTRA = "spectra"  # in a plan's evidence: `prunekit.spectra.spectrum.sketch`


def of_blocks(manifest: Manifest) -> list[Figure]:
    """What a plan was decided from, and what became of each block; a figure for each thing there is."""
    gone = manifest.result.removed_blocks
    count = manifest.result.blocks + len(gone)
    figures = [
        _per_block(f"{name.replace('_', ' ').capitalize()} per block", values, range(count), gone)
        for name, values in manifest.plan.evidence.items()
        if _one_each(values, count)
    ]
    kept = [index for index in range(count) if index not in gone]
    sparsity = _mean_per_block(manifest)
    if manifest.result.zeros and len(sparsity) == len(kept):
        figures.append(_per_block("Zeros per block, in percent", [100 * value for value in sparsity], kept, ()))
    if widths := manifest.result.widths:
        figures.append(_per_block("Neurons per block", widths, kept, ()))
    return figures + _spectra(manifest.plan.evidence.get(SPECTRA))


def _one_each(values: Any, count: int) -> bool:
    numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
    return numbers and len(values) == count


def _per_block(title: str, values: Sequence[float], labels: Sequence[int], gone: Sequence[int]) -> Figure:
    smallest = min(zip(values, labels, strict=True), default=(0, 0))
    largest = max(zip(values, labels, strict=True), default=(0, 0))
    summary = f"From {smallest[0]:.4g} in block {smallest[1]} to {largest[0]:.4g} in block {largest[1]}."
    if smallest[0] == largest[0]:
        summary = f"{largest[0]:.4g} in every block."
    if gone:
        summary += f" Hatched and crossed: {plural(len(gone), 'block')} that went, {', '.join(map(str, gone))}."
    rows = [
        [str(label), f"{value:.6g}", "removed" if label in gone else "kept"]
        for value, label in zip(values, labels, strict=True)
    ]
    headers = ["block", "value", "what became of it"]
    table = Table(title, headers if gone else headers[:2], rows if gone else [row[:2] for row in rows], _right("value"))
    return Figure(title, svg.block_bars(list(values), list(labels), list(gone)), summary, table)


def _mean_per_block(manifest: Manifest) -> list[float]:
    """Fraction of zeros in the linears of each block that is left, by the numbers in their paths."""
    weights, zeros = dict[int, int](), dict[int, int]()
    for path, found in manifest.result.linears.items():
        index = next((int(part) for part in path.split(".") if part.isdigit()), -1)
        weights[index] = weights.get(index, 0) + found.weights
        zeros[index] = zeros.get(index, 0) + found.zeros
    return [zeros[index] / max(1, weights[index]) for index in sorted(weights)]


def _spectra(found: Any) -> list[Figure]:
    if not isinstance(found, Mapping):
        return []
    curves = {
        str(name): [float(value) for value in values if isinstance(value, int | float)]
        for name, values in found.items()
        if isinstance(values, list | tuple)
    }
    curves = {name: curve for name, curve in curves.items() if curve}
    if not curves:
        return []
    rows = [[name, f"{curve[0]:.4g}", f"{curve[-1]:.4g}"] for name, curve in curves.items()]
    table = Table("Spectra", ["matrix", "largest", "smallest"], rows, _right("largest", "smallest"))
    across = "rank (logarithmic scales)"
    drawing = svg.lines(list(curves.values()), across, "eigenvalue", ("largest", "smallest"))
    summary = f"Eigenvalues of W Wᵀ, one line for each of {plural(len(curves), 'matrix')}, darker with depth."
    return [Figure("Spectra of the weights", drawing, summary, table)]


def of_rows(rows: Sequence[Row]) -> list[Figure]:
    """Perplexity, accuracy and speed of models beside each other."""
    return [*_perplexities(rows), *_accuracies(rows), *_speeds(rows)]


def _perplexities(rows: Sequence[Row]) -> list[Figure]:
    figures: list[Figure] = []
    for name, protocol in dict.fromkeys((part.set, part.protocol) for row in rows for part in row.perplexity):
        found = [
            (row, part) for row in rows for part in row.perplexity if (part.set, part.protocol) == (name, protocol)
        ]
        bars = [
            svg.Bar(row.model, float(part.value), number(part.value), reference=row.baseline) for row, part in found
        ]
        title = f"Perplexity on {name}, protocol {protocol}"
        figures.append(Figure(title, svg.named_bars(bars), "Shorter is better. " + _read_out(bars)))
    return figures


def _accuracies(rows: Sequence[Row]) -> list[Figure]:
    figures: list[Figure] = []
    for task, metric in dict.fromkeys((part.task, part.metric) for row in rows for part in row.tasks):
        found = [(row, part) for row in rows for part in row.tasks if (part.task, part.metric) == (task, metric)]
        bars: list[svg.Bar] = []
        for row, part in found:
            value, error = float(part.value), part.stderr if isinstance(part.stderr, float) else None
            low, high = (value - error, value + error) if error and math.isfinite(error) else (None, None)
            bars.append(svg.Bar(row.model, value, percent(value), low, high, row.baseline))
        summary = "Longer is better; the thin line is one standard error to both sides. "
        figures.append(Figure(f"{task}, {metric}", svg.named_bars(bars), summary + _read_out(bars)))
    return figures


def _speeds(rows: Sequence[Row]) -> list[Figure]:
    """Relative to the baseline, where there is one: models are timed one after another, and ratios compare them."""
    figures: list[Figure] = []
    for title, name in (("Decoding", "decode"), ("Prefill", "prefill")):
        found = [(row, getattr(row.speed, name)) for row in rows if row.speed]
        compared = any(row.baseline for row, _ in found)
        bars = [_relative(row, rate) if compared else _absolute(row, rate) for row, rate in found]
        if bars:
            unit = "speed relative to the baseline" if compared else "in tokens per second"
            line = "is the 95 % interval" if compared else "joins the quartiles"
            summary = f"Longer is better; the thin line {line}. {_read_out(bars)}"
            figures.append(Figure(f"{title}, {unit}", svg.named_bars(bars), summary))
    return figures


def _relative(row: Row, rate: Rate) -> svg.Bar:
    if rate.ratio is None:  # of the baseline
        return svg.Bar(row.model, 1.0, "x 1", reference=True)
    shown = f"{multiple(rate.ratio)} ({interval(rate.ratio_low, rate.ratio_high)})"
    return svg.Bar(row.model, rate.ratio, shown, rate.ratio_low, rate.ratio_high)


def _absolute(row: Row, rate: Rate) -> svg.Bar:
    return svg.Bar(row.model, rate.value, f"{number(rate.value)} tokens/s", rate.low, rate.high)


def _read_out(bars: Sequence[svg.Bar]) -> str:
    return "; ".join(f"{bar.name} {bar.shown}" for bar in bars) + "."


SIZE = ("Quality against size", "size of the weight files, in MB", "further left")
SPEED = ("Quality against speed", "decoding speed, relative to the dense model", "further right")
WORK = ("Quality against work", "operations per token, relative to the dense model", "further left")


def of_runs(runs: Sequence[Run], baseline: Row | None = None) -> list[Figure]:
    """Quality against size, and against speed, or where nothing was timed against the counted work per token."""
    size = baseline and baseline.size.stored_bytes.value / 1e6
    found = [_picture(runs, "size", [run.stored_bytes / 1e6 for run in runs], size, *SIZE)]
    if any(run.timing for run in runs):
        found.append(_picture(runs, "speed", [run.timing and run.timing.ratio for run in runs], 1.0, *SPEED))
    else:
        found.append(_picture(runs, "speed", [run.work_ratio for run in runs], 1.0, *WORK))
    return [figure for figure in found if figure]


def _picture(
    runs: Sequence[Run],
    kind: str,
    costs: Sequence[float | None],
    dense: float | None,
    title: str,
    across: str,
    better: str,
) -> Figure | None:
    """Points are numbered as in the table; timed ones have their interval."""
    points: list[svg.Point] = []
    for place, (run, x) in enumerate(zip(runs, costs, strict=True), 1):
        y, timing = run.quality, run.timing if title == SPEED[0] else None
        if x is not None and isinstance(y, int | float) and math.isfinite(y):
            ends = (timing.ratio_low, timing.ratio_high) if timing else (None, None)
            points.append(svg.Point(str(place), x, y, kind in run.fronts, False, *ends))
    if not points:
        return None
    if dense is not None:
        points.append(svg.Point("dense", dense, 1.0, reference=True))
    best = [f"{place} {run.name}" for place, run in enumerate(runs, 1) if kind in run.fronts]
    summary = f"Lower and {better} is better. No other run is better in both than {', '.join(best)}."
    if title == SPEED[0]:
        summary += " The thin line is the 95 % interval; a speed whose interval holds 1 counts as 1."
    return Figure(title, svg.scatter(points, across, "perplexity, relative to the dense model"), summary)


def _right(*names: str) -> frozenset[str]:
    return frozenset(names)
