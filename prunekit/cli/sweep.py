"""`prunekit sweep`: a recipe with lists as a grid of runs, and one table of them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli import options, reporting, verdicts
from prunekit.cli.asking import questions
from prunekit.cli.command import Run, command
from prunekit.cli.failures import end_with
from prunekit.cli.models import read_model
from prunekit.cli.runs_table import tabled
from prunekit.errors import PrunekitError, UsageError

if TYPE_CHECKING:
    from prunekit.run.sweep import CellResult

EXAMPLES = """
prunekit sweep recipes/sweeps/depth.yaml sample
prunekit sweep recipes/sweeps/depth.yaml sample --jobs 2 -o sweep --json
"""
PLANNING = {name: entry for name, entry in options.PLANNING.items() if name != "recipe"}
File = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe in which settings are lists of values to try.")]


@command(
    PLANNING,
    options.MEASURING,
    options.TASKING,
    options.TIMING,
    options.LIMITS,
    options.JUDGING,
    options.WRITING,
    options.REPORTING,
)
def sweep(
    run: Run,
    file: File,
    model: options.Model = None,
    output: options.SweepOutput = None,
    jobs: options.Jobs = 1,
    force: options.SweepForce = False,
    restart: options.SweepRestart = False,
) -> None:
    """Run the grid of a recipe with lists, and compare the results.

    Every cell is an ordinary model folder in OUT. The dense model's perplexity is measured once, the work per token
    is counted, and --speed times it. When it was interrupted, the same command goes on where it stopped. A cell that
    cannot be run is named, the others are run all the same, and the command ends with that cell's exit code.
    """
    reporting.check(run)
    from prunekit.recipe import settings
    from prunekit.recipe.grid import expand
    from prunekit.run import sweep

    flags = run.flags() | ({} if model is None else {"model": read_model(model)})
    cells = expand(settings.collect(flags, run.values["set"] or (), os.environ, file), file)
    if any(cell.recipe.model is None for cell in cells):
        raise UsageError("no model is given", hint=f"prunekit sweep {file} sample")
    if any(cell.recipe.calibration.source == "-" for cell in cells):
        raise UsageError("a sweep cannot calibrate on standard input, which is read once", hint="give --calib a path")
    chosen = sweep.Options(output or Path(f"{file.stem}-sweep"), force, restart, run.offline)
    asked = questions(run, texts=False)
    done = sweep.sweep(cells, chosen, jobs=jobs, questions=asked, progress=run.screen.progress())
    run.screen.done()
    for note in done.table.notes:
        run.screen.say(f"note: {note}")
    if run.values["report"]:
        from prunekit.report.of_runs import of_sweep

        reporting.write(run, of_sweep(done, reporting.typed()), done.model_dump(mode="json"))
    run.screen.result(done.model_dump(mode="json"), *([tabled(done.table)] if done.table.runs else []))
    if done.failed:
        end_with(_failure(done.failed), done.failed[0].code)
    verdicts.report(run, done.gates)


def _failure(failed: "list[CellResult]") -> PrunekitError:
    """The first cell that could not be run, and how many others there are."""
    more = len(failed) - 1
    others = f", and {more} more cell{'s' * (more > 1)} failed" if more else ""
    return PrunekitError(f"{failed[0].name} failed: {failed[0].error}{others}")
