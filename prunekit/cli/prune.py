"""`prunekit prune`: from a model to a pruned, verified and measured model folder."""

from prunekit import processes
from prunekit.cli import options, outcome
from prunekit.cli.command import Run, command

EXAMPLES = """
prunekit prune sample -m wanda -r 0.5
prunekit prune Qwen/Qwen3-0.6B -m sparsegpt --pattern 2:4 --calib c4 -o Qwen3-0.6B-2-4
prunekit prune Qwen/Qwen3-0.6B --recipe recipes/wanda-50.yaml --ratio 0.6
prunekit prune sample -m wanda -r 0.5 --max-ppl-increase 60%
prunekit prune sample -m wanda -r 0.5 -q | prunekit eval - --baseline sample --json
"""


@command(options.PLANNING, options.MEASURING, options.LIMITS, options.JUDGING, options.WRITING, shared_work=True)
def prune(
    run: Run,
    model: options.Model = None,
    output: options.Output = None,
    force: options.Force = False,
    restart: options.Restart = False,
) -> None:
    """Prune a model: plan, apply, measure, export and verify.

    Prints the path of the new folder. When a run was interrupted, the same command goes on where it stopped.
    """
    recipe = run.recipe(model)
    from prunekit import lockstep, pipeline
    from prunekit import recipe as recipes

    if not processes.is_first():
        lockstep.follow(recipe, offline=run.offline)
        return
    if recipes.method(recipe).needs.budget:
        run.screen.say(outcome.SAME_SIZE)
    done = pipeline.prune(
        recipe, output, progress=run.screen.progress(), force=force, restart=restart, offline=run.offline
    )
    run.screen.done()
    outcome.show(run, done, str(recipe.model))
