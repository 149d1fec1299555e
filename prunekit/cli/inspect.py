"""`prunekit inspect`: what a model is made of, how sparse it is, and what will load where."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from prunekit.cli import options
from prunekit.cli.command import Run, command
from prunekit.cli.models import read_model
from prunekit.cli.plan import kind_of, span
from prunekit.cli.screen import facts, table
from prunekit.formatting import megabytes

if TYPE_CHECKING:
    from prunekit.compare.inspection import Inspection, LinearReport, SpectrumReport

EXAMPLES = """
prunekit inspect sample
prunekit inspect ./pruned --json
prunekit inspect meta-llama/Llama-2-7b-hf --no-sparsity
prunekit inspect sample --spectra --figure spectra.svg
prunekit inspect sample --bits 4 --json
"""
Sparsity = Annotated[
    bool,
    options.option(
        options.SHOWING,
        None,
        "Read the weights and count their zeros (default yes).",
        "--sparsity/--no-sparsity",
    ),
]

Spectra = Annotated[
    bool, options.option(options.SHOWING, None, "Show the tail exponent of every weight's spectrum.", "--spectra")
]
Figure = Annotated[
    Path | None,
    options.option(options.SHOWING, "FILE", "Draw the spectra: .svg, .png or .pdf; implies --spectra.", "--figure"),
]
Bits = Annotated[
    float | None,
    options.option(
        options.SHOWING,
        "N",
        "Suggest bits per linear with this mean, more for heavier tails; implies --spectra.",
        "--bits",
        min=1,
        max=16,
    ),
]


@command(options.LOADING)
def inspect(
    run: Run,
    model: options.OneModel,
    sparsity: Sparsity = True,
    spectra: Spectra = False,
    figure: Figure = None,
    bits: Bits = None,
) -> None:
    """Show what a model is made of, and what will load it."""
    spec = read_model(model)
    from prunekit.compare import inspection

    if figure is not None:
        from prunekit.spectra.plot import check_figure

        check_figure(figure)

    found = inspection.inspect(
        spec,
        sparsity=sparsity,
        offline=run.offline,
        trust_remote_code=bool(run.values["trust_remote_code"]),
        progress=run.screen.progress(),
    )
    reports = _spectra(run, spec, figure, bits) if spectra or figure or bits is not None else ()
    run.screen.done()
    heads = ("linear", "blocks", "shape", "dtype", "sparsity", "pattern")
    linears = table(*heads, rows=_rows(found), right="blocks,shape,sparsity")
    loads = table("program", "loads it", "because", rows=((d.name, d.loads, d.because) for d in found.destinations))
    shown = [linears, *_tables(reports), loads]
    data = found.model_dump(mode="json") | (
        {"spectra": [report.model_dump(mode="json") for report in reports]} if reports else {}
    )
    run.screen.result(data, facts(_facts(found)), *shown)


def _spectra(run: Run, spec: str, figure: Path | None, bits: float | None) -> "tuple[SpectrumReport, ...]":
    """What the spectra say, and a picture of them if one is wanted."""
    from prunekit.compare import inspection

    found = inspection.inspect_spectra(
        spec,
        offline=run.offline,
        trust_remote_code=bool(run.values["trust_remote_code"]),
        progress=run.screen.progress(),
    )
    if figure is not None:
        from prunekit.spectra.plot import draw

        kinds = dict.fromkeys(kind_of(spectrum.linear.path) for spectrum in found)
        by_kind = {kind: [part for part in found if kind_of(part.linear.path) == kind] for kind in kinds}
        draw(by_kind, figure, title=f"Spectra of the weights of {spec}")
        run.screen.say(f"note: the figure is in {figure}")
    return inspection.describe_spectra(found, bits)


def _tables(reports: "Sequence[SpectrumReport]") -> Iterator[object]:
    """The exponent, and if asked the bits, of every block (down) and kind of matrix (across); then what is odd."""
    if not reports:
        return
    yield _grid("alpha_peak", reports, {report.path: report.metrics["alpha_peak"] for report in reports})
    if all(report.bits is not None for report in reports):
        yield _grid("bits", reports, {report.path: float(report.bits or 0) for report in reports})
    if odd := [(report.path, report.remark) for report in reports if report.remark]:
        yield table("linear", "remark", rows=odd)


def _grid(title: str, reports: "Sequence[SpectrumReport]", values: dict[str, float]) -> object:
    kinds = list(dict.fromkeys(kind_of(report.path) for report in reports))
    blocks: dict[int, dict[str, float]] = {}
    for report in reports:
        blocks.setdefault(report.block, {})[kind_of(report.path)] = values[report.path]
    rows = [
        (block, *(_number(found.get(kind), title) for kind in kinds), f"{sum(found.values()) / len(found):.2f}")
        for block, found in blocks.items()
    ]
    names = [kind.rpartition(".")[2] for kind in kinds]
    heads = names if len(set(names)) == len(names) else kinds
    return table(title, *heads, "mean", rows=rows, right=",".join((title, *heads, "mean")))


def _number(value: float | None, title: str) -> str:
    if not value:
        return "-"
    return f"{value:.0f}" if title == "bits" else f"{value:.2f}"


def _facts(found: "Inspection") -> Iterator[tuple[str, str]]:
    dtypes = ", ".join(f"{dtype} {count / found.parameters:.0%}" for dtype, count in found.dtypes.items())
    yield "model", f"{found.model} ({found.architecture})"
    yield "parameters", f"{found.parameters:,} in {megabytes(found.bytes)}, {dtypes.replace('%', ' %')}"
    yield "blocks", f"{len(found.blocks)} at {found.stack}, {found.block_parameters:,} parameters"
    yield "width", f"hidden {found.hidden_size}, vocabulary {found.vocabulary}, context {found.context}"
    yield "embeddings", "tied to the head" if found.tied_embeddings else "separate from the head"
    if found.sparsity is not None:
        yield "sparsity", f"{found.sparsity:.2%} of the blocks' linears".replace("%", " %")
    yield "is read", "block by block" if found.streams else f"whole, since {found.whole_because}"
    if others := [name for block in found.blocks for name in block.other_matrices]:
        yield "no linears", f"{len(others)} matrices that weight methods do not reach, such as {others[0]}"


def _rows(found: "Inspection") -> Iterator[tuple[str, int, str, str, str, str]]:
    kinds: dict[str, list[LinearReport]] = {}
    for linear in (linear for block in found.blocks for linear in block.linears):
        kinds.setdefault(kind_of(linear.path), []).append(linear)
    for kind, linears in kinds.items():
        known = [linear.sparsity for linear in linears if linear.sparsity is not None]
        shapes = _unique(f"{linear.shape[0]} x {linear.shape[1]}" for linear in linears)
        patterns = _unique(linear.pattern or "-" for linear in linears)
        yield (
            kind,
            len(linears),
            shapes,
            _unique(linear.dtype for linear in linears),
            span(known) if known else "-",
            patterns,
        )


def _unique(values: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(values))
