"""`--report FILE`: what a command did, as a page."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.cli.command import Run
from prunekit.cli.screen import SCHEMA_VERSION

if TYPE_CHECKING:
    from prunekit.evaluate.rows import Evaluation
    from prunekit.recipe.recipe import Recipe
    from prunekit.report.content import Report
    from prunekit.run.outcome import Outcome


def check(run: Run) -> Path | None:
    """The file that `--report` names; raises UsageError, before any work, when no report can be written to it."""
    wanted: Path | None = run.values.get("report")
    if wanted is not None:
        from prunekit.report.files import check

        check(wanted)
    return wanted


def typed() -> str:
    """The command as it was typed, fit to be typed again."""
    return shlex.join(["prunekit", *sys.argv[1:]])


def write(run: Run, report: "Report", data: Mapping[str, Any]) -> None:
    """Write the report where `--report` says, and say so."""
    from prunekit.report import files

    files.write(run.values["report"], report, {"schema_version": SCHEMA_VERSION, **data})
    run.screen.say(f"report: {run.values['report']}")


def of_run(run: Run, done: "Outcome", recipe: "Recipe") -> None:
    """The report of `prune` and `apply`, if one is wanted; its sample is written now."""
    if run.values["report"] is None:
        return
    from prunekit.model.hub import locate
    from prunekit.report import of_run, said

    texts, remark = said.of_recipe(recipe, done.output, offline=run.offline, progress=run.screen.progress())
    run.screen.done()
    source = locate(recipe.model or "", offline=run.offline)
    write(run, of_run.of_run(done, source, texts, remark), done.model_dump(mode="json"))


def of_evaluation(run: Run, done: "Evaluation", column: str | None) -> None:
    """The report of `eval`, if one is wanted."""
    if run.values["report"] is None:
        return
    from prunekit.report import of_evaluation, said

    sets = [part.set for row in done.models for part in row.perplexity]
    texts, remark = said.side_by_side(
        {row.model: row.model for row in done.models},
        sets[0] if sets else "sample",
        device=run.values["device"] or "auto",
        dtype=run.values["dtype"] or "auto",
        offline=run.offline,
        trust_remote_code=bool(run.values["trust_remote_code"]),
        column=column,
        progress=run.screen.progress(),
    )
    run.screen.done()
    write(run, of_evaluation.of_evaluation(done, typed(), texts, remark), done.model_dump(mode="json"))
