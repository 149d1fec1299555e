"""A picture of a model's spectra: the exponent by depth, and the eigenvalues of every kind of matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prunekit.errors import InputError, UsageError
from prunekit.spectra.spectrum import Spectrum

SUFFIXES = (".svg", ".png", ".pdf")
COLUMNS = 4
INK, PALE = "#222222", "#bbbbbb"
HUES = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALE,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "prunekit",  # the same picture is the same file
}


def check_figure(file: Path) -> None:
    """Raise UsageError unless a picture can be drawn and its format is known."""
    if file.suffix not in SUFFIXES:
        raise UsageError(f"a figure is written as {', '.join(SUFFIXES)}; {file.name} is not", hint="--figure out.svg")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "a figure needs matplotlib, which is not installed", hint='pip install "prunekit[plot]"'
        ) from error


def draw(found: Mapping[str, Sequence[Spectrum]], file: Path, *, title: str) -> None:
    """Write a picture of spectra, which are given by the kind of matrix, to a file.

    Raises UsageError as `check_figure`, InputError for a place that cannot be written.
    """
    check_figure(file)
    import matplotlib
    from matplotlib.figure import Figure

    rows = -(-len(found) // COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.4 + 2.1 * rows), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        grid = figure.add_gridspec(rows + 1, COLUMNS, height_ratios=[1.5] + [1] * rows)
        _by_depth(figure.add_subplot(grid[0, :]), found)
        lower = [figure.add_subplot(grid[1 + place // COLUMNS, place % COLUMNS]) for place in range(len(found))]
        for axes, (kind, spectra) in zip(lower, found.items(), strict=True):
            _densities(axes, spectra, kind)
        if lower:
            _scale(figure, lower, max(1, *(spectrum.block for part in found.values() for spectrum in part)))
        try:
            figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
        except OSError as error:
            raise InputError(f"cannot write {file}: {error.strerror}", hint="choose another file") from error


def _by_depth(axes: Any, found: Mapping[str, Sequence[Spectrum]]) -> None:
    """One line per kind of matrix, and their mean, from the first block to the last."""
    blocks: dict[int, list[float]] = {}
    for number, (kind, spectra) in enumerate(found.items()):
        points = [(spectrum.block, alpha) for spectrum in spectra if (alpha := spectrum.measure("alpha_peak"))]
        for block, alpha in points:
            blocks.setdefault(block, []).append(alpha)
        if points:
            axes.plot(*zip(*points, strict=True), color=HUES[number % len(HUES)], lw=1, marker="o", ms=3, label=kind)
    means = [(block, sum(alphas) / len(alphas)) for block, alphas in sorted(blocks.items())]
    if means:
        axes.plot(*zip(*means, strict=True), color=INK, lw=2.2, label="mean of the block")
    axes.set(xlabel="block", ylabel="alpha_peak")
    axes.set_title("exponent of the tail: lower is heavier, better trained, pruned less", loc="left")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=4)


def _densities(axes: Any, found: Sequence[Spectrum], kind: str) -> None:
    """The density of log10 of the eigenvalues of one kind of matrix, a line per block, darker with depth.

    The smallest hundredth, which trails off far to the left, is not drawn.
    """
    deepest = max(1, *(spectrum.block for spectrum in found))
    for spectrum in found:
        logs = spectrum.values[spectrum.values > 0].log10()
        logs = logs[len(logs) // 100 :]
        if len(logs) > 1:
            heights, edges = torch.histogram(logs, min(40, max(6, len(logs) // 12)), density=True)
            middles = (edges[1:] + edges[:-1]) / 2
            axes.plot(middles, heights, color=_shade(spectrum.block / deepest), lw=0.9, alpha=0.85)
    axes.set_title(kind, loc="left")
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.set_xlabel("log10 eigenvalue")


def _scale(figure: Any, axes: Any, deepest: int) -> None:
    """What the shades of the densities mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colours = ListedColormap([_shade(number / 255) for number in range(256)])
    bar = figure.colorbar(ScalarMappable(Normalize(0, deepest), colours), ax=axes, aspect=45, pad=0.01)
    bar.set_label("block")
    bar.outline.set_visible(False)
    bar.ax.yaxis.get_major_locator().set_params(integer=True)


def _shade(depth: float) -> Any:
    """Light for the first block, dark for the last."""
    import matplotlib

    return matplotlib.colormaps["viridis_r"](0.08 + 0.92 * depth)
