"""`prunekit inspect`: what a model is made of, how sparse it is, and what will load where."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from prunekit.cli import options
from prunekit.cli.command import Run, command
from prunekit.cli.models import read_model
from prunekit.cli.plan import kind_of, span
from prunekit.cli.screen import facts, table

if TYPE_CHECKING:
    from prunekit.inspection import Inspection, LinearReport

EXAMPLES = """
prunekit inspect sample
prunekit inspect ./pruned --json
prunekit inspect meta-llama/Llama-2-7b-hf --no-sparsity
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


@command(options.LOADING)
def inspect(run: Run, model: options.OneModel, sparsity: Sparsity = True) -> None:
    """Show what a model is made of, and what will load it."""
    spec = read_model(model)
    from prunekit import inspection

    found = inspection.inspect(
        spec,
        sparsity=sparsity,
        offline=run.offline,
        trust_remote_code=bool(run.values["trust_remote_code"]),
        progress=run.screen.progress(),
    )
    run.screen.done()
    linears = table(
        "linear",
        "blocks",
        "shape",
        "dtype",
        "sparsity",
        "pattern",
        rows=_rows(found),
        right="blocks,shape,sparsity",
    )
    loads = table("program", "loads it", "because", rows=((d.name, d.loads, d.because) for d in found.destinations))
    run.screen.result(found.model_dump(mode="json"), facts(_facts(found)), linears, loads)


def _facts(found: "Inspection") -> Iterator[tuple[str, str]]:
    dtypes = ", ".join(f"{dtype} {count / found.parameters:.0%}" for dtype, count in found.dtypes.items())
    yield "model", f"{found.model} ({found.architecture})"
    yield "parameters", f"{found.parameters:,} in {size(found.bytes)}, {dtypes.replace('%', ' %')}"
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


def size(count: float) -> str:
    """Bytes in decimal units: `10.6 MB`."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
