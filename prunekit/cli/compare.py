"""`prunekit compare`: finished runs in one table, from the manifests they left."""

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli import options, reporting
from prunekit.cli.asking import questions
from prunekit.cli.command import Run, command
from prunekit.cli.runs_table import tabled
from prunekit.errors import InputError

EXAMPLES = """
prunekit compare sample-wanda-50 sample-shortgpt-25
prunekit compare depth-sweep/*-20 --tasks sample --speed --report compare.html
"""
Folders = Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders that prunekit prune wrote.")]


MEASURED: options.Group = {
    "ppl": (options.Ppls, None),
    "ppl_column": (options.PplColumn, None),
    "windows": (options.Windows, None),
}


@command(options.WALKING, MEASURED, options.PROTOCOL, options.TASKING, options.TIMING, options.REPORTING)
def compare(run: Run, folders: Folders, baseline: options.Baseline = None) -> None:
    """Compare finished runs, from the manifests that they left.

    Perplexities are those that each run measured; a note says where they cannot be compared. With --ppl, --tasks or
    --speed the runs are measured anew, side by side with the dense model they came from, or with --baseline.
    """
    reporting.check(run)
    from prunekit.compare.table import table_of

    places = named(folders)
    asked = questions(run, texts=True)
    if asked.asked:
        from prunekit.compare.measure import Measurement, dense_of

        measurement = Measurement(places, dense_of(places, baseline), progress=run.screen.progress())
        known = measurement.answers(asked, count=False)
        run.screen.done()
        found = table_of(places, known.rows, known.baseline)
    else:
        found = table_of(places)
    for note in found.notes:
        run.screen.say(f"note: {note}")
    if run.values["report"]:
        from prunekit.report.of_runs import report_of_runs

        reporting.write(run, report_of_runs(found, reporting.typed()), found.model_dump(mode="json"))
    run.screen.result(found.model_dump(mode="json"), tabled(found))


def named(folders: list[Path]) -> dict[str, Path]:
    """The folders by their names, or by their paths where names are shared; raises InputError for anything else."""
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder", hint="give folders that prunekit prune wrote")
    names = [folder.resolve().name for folder in folders]
    short = len(set(names)) == len(names)
    return {name if short else str(folder): folder for name, folder in zip(names, folders, strict=True)}
