"""`prunekit apply`: carry out a plan that was made earlier."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit import distributed
from prunekit.cli import options, outcome, reporting
from prunekit.cli.command import Run, command
from prunekit.cli.models import read_model, read_stdin
from prunekit.errors import UsageError

if TYPE_CHECKING:
    from prunekit.plan import PrunePlan

EXAMPLES = """
prunekit apply plan.json
prunekit apply plan.json ./my-model -o pruned --device cuda
"""
PlanFile = Annotated[
    str, typer.Argument(metavar="PLAN", help="File that prunekit plan wrote, or - for standard input.")
]


@command(
    options.WALKING,
    options.MEASURING,
    options.LIMITS,
    options.JUDGING,
    options.WRITING,
    options.REPORTING,
    shared_work=True,
)
def apply(
    run: Run,
    plan: PlanFile,
    model: options.Model = None,
    output: options.Output = None,
    force: options.Force = False,
    restart: options.Restart = False,
) -> None:
    """Carry out a plan that was made earlier.

    MODEL says where the plan's model is now, if it has moved. Options that are given win over the plan's.
    Code that comes with the model runs only with --trust-remote-code, whatever the plan says.
    """
    reporting.check(run)
    if plan == model == "-":
        raise UsageError("PLAN and MODEL cannot both be read from standard input", hint="give one a path")
    made = _overridden(read_plan(plan), run)
    source = None if model is None else read_model(model)
    from prunekit.run import pipeline, ranks

    if not distributed.is_first():
        ranks.follow(pipeline.recipe_of(made, source), offline=run.offline)
        return
    if made.sparsify():
        run.screen.say(outcome.SAME_SIZE)
    how = pipeline.RunOptions(force, restart, run.offline)
    done = pipeline.apply_plan(made, source, output, progress=run.screen.progress(), options=how)
    run.screen.done()
    reporting.of_run(run, done, pipeline.recipe_of(made, source))
    outcome.show(run, done, source or str(made.recipe.get("model")))


def read_plan(name: str) -> "PrunePlan":
    """A plan from a file, or from standard input for `-`."""
    from prunekit.plan import PrunePlan

    if name == "-":
        return PrunePlan.from_json(read_stdin("a plan"), name="standard input")
    return PrunePlan.read(Path(name))


def _overridden(made: "PrunePlan", run: Run) -> "PrunePlan":
    """The plan with the options of this command put into its recipe."""
    from prunekit.recipe import settings

    given = {name: value for name, value in run.values.items() if name in settings.SETTINGS and value is not None}
    given.pop("model", None)
    recipe = settings.override(made.recipe, given)
    return made.model_copy(update={"recipe": recipe.model_dump(mode="json")})
