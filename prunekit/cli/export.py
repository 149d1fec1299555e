"""`prunekit export`: a finished run again, in another layout."""

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli import options
from prunekit.cli.command import Run, command
from prunekit.cli.models import read_model
from prunekit.cli.outcome import parameters, verification
from prunekit.cli.screen import facts
from prunekit.errors import UsageError

EXAMPLES = """
prunekit export sample-comp-20 --layout padded
prunekit prune sample -m comp -r 0.3 --layout per-layer -q | prunekit export - --layout padded -o even
"""
LAYOUTS = ("per-layer", "padded")
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="Folder that prunekit prune wrote, or - for its path.")]


@command(options.COMPUTING, options.WRITING)
def export(
    run: Run,
    folder: RunFolder,
    layout: options.LayoutName = None,
    output: options.Output = None,
    force: options.Force = False,
) -> None:
    """Write a finished run again, in another layout.

    For runs whose blocks are of different widths. Nothing is scored and no neuron is lost; the new folder is verified.
    Prints its path, by default ./RUN-LAYOUT.
    """
    if layout not in LAYOUTS:
        found = "no layout is given" if layout is None else f"--layout is {layout}"
        raise UsageError(f"{found}; expected {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}", hint="--layout padded")
    place = Path(read_model(folder))
    from prunekit.recipe import settings
    from prunekit.run.relayout import relayout

    values = run.values
    done = relayout(
        place,
        layout,
        output,
        compute=settings.compute(device=values["device"], dtype=values["dtype"]),
        export=settings.writing(max_shard_size=values["max_shard_size"], verify=values["verify"]),
        force=force,
        trust_remote_code=bool(values["trust_remote_code"]),
        progress=run.screen.progress(),
    )
    run.screen.done()
    if not run.screen.quiet:
        spread = f"{min(done.widths)} to {max(done.widths)} neurons in {len(done.widths)} blocks"
        rows = [("layout", f"{done.layout}, {spread}"), ("parameters", parameters(done))]
        rows += [("verified", verification(done.verification)), ("output", done.output)]
        run.screen.show(facts(rows))
    run.screen.result(done.model_dump(mode="json"), done.output)
