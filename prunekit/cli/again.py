"""`prunekit prune --from`: a run repeated from its manifest, and what is different this time."""

from pathlib import Path
from typing import TYPE_CHECKING

from prunekit import distributed
from prunekit.cli import outcome, reporting, verdicts
from prunekit.cli.command import Run
from prunekit.cli.failures import end_with
from prunekit.cli.models import read_model
from prunekit.cli.screen import facts
from prunekit.errors import DifferenceFound, UsageError

if TYPE_CHECKING:
    from prunekit.recipe.recipe import Recipe
    from prunekit.run.outcome import Outcome
    from prunekit.run.repeat import Repeat

WEIGHTS = {
    "equal": "equal to the byte",
    "differ": "DIFFERENT",
    "absent": "not compared: none lie beside the manifest",
}


def prune(run: Run, place: Path, model: str | None, output: Path | None, *, force: bool, restart: bool) -> None:
    """Repeat the run of a manifest; ends with 1 when other weights come out."""
    if run.values["recipe"] is not None:
        raise UsageError("--from and --recipe both say what to do", hint="leave --recipe out")
    reporting.check(run)
    from prunekit.recipe import settings
    from prunekit.run import ranks, repeat
    from prunekit.run.pipeline import RunOptions

    folder, manifest = repeat.read(place)
    given = {name: value for name, value in run.values.items() if name in settings.SETTINGS and value is not None}
    given.pop("model", None)
    recipe = repeat.recipe_of(manifest, model and read_model(model), given, run.values["set"] or ())
    if not distributed.is_first():
        ranks.follow(recipe, offline=run.offline)
        return
    done, found = repeat.repeat(
        folder,
        manifest,
        recipe,
        output,
        progress=run.screen.progress(),
        options=RunOptions(force, restart, run.offline),
    )
    run.screen.done()
    reporting.of_run(run, done, recipe)
    _show(run, done, found, recipe)
    if not found.equal:
        end_with(_failure(found))
    verdicts.report(run, done.gates)


def _show(run: Run, done: "Outcome", found: "Repeat", recipe: "Recipe") -> None:
    """What was done, what is different, and the result."""
    if not run.screen.quiet:
        run.screen.show(facts(outcome.summary(done, str(recipe.model))))
        run.screen.show(facts(differences(found)))
    run.screen.result(done.model_dump(mode="json"), done.output)


def differences(found: "Repeat") -> list[tuple[str, str]]:
    """One line for each thing that is different, and one for what is the same."""
    rows = [("repeats", found.manifest)]
    groups = (("environment", found.environment), ("settings", found.settings), ("record", found.record))
    for title, changes in groups:
        lines = [f"{name}: {change}" for name, change in changes.items()] or ["the same"]
        rows += [(title if first else "", line) for first, line in ((line is lines[0], line) for line in lines)]
    return [*rows, ("weights", WEIGHTS[found.weights])]


def _failure(found: "Repeat") -> DifferenceFound:
    """What differs, and what may explain it."""
    what = found.difference or f"the record differs: {next(iter(found.record))}"
    causes = [*found.settings, *found.environment]
    hint = "versions, settings, device and threads are the same; were the files changed since?"
    if causes:
        hint = f"not the same as then: {', '.join(causes)}"
    return DifferenceFound(f"the run gave something else: {what}", hint=hint)
