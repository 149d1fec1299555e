"""`prunekit prune`: from a model to a pruned, verified and measured model folder."""

from prunekit import distributed
from prunekit.cli import again, options, outcome, reporting
from prunekit.cli.command import Run, command

EXAMPLES = """
prunekit prune sample -m wanda -r 0.5
prunekit prune Qwen/Qwen3-0.6B -m sparsegpt --pattern 2:4 --calib c4 -o Qwen3-0.6B-2-4
prunekit prune Qwen/Qwen3-0.6B --recipe recipes/wanda-50.yaml --ratio 0.6
prunekit prune sample -m wanda -r 0.5 --max-ppl-increase 60%
prunekit prune sample -m wanda -r 0.5 -q | prunekit eval - --baseline sample --json
prunekit prune --from sample-wanda-50/prunekit.json
"""


@command(
    options.PLANNING,
    options.MEASURING,
    options.LIMITS,
    options.JUDGING,
    options.WRITING,
    options.REPORTING,
    shared_work=True,
)
def prune(
    run: Run,
    model: options.Model = None,
    manifest: options.From = None,
    output: options.Output = None,
    force: options.Force = False,
    restart: options.Restart = False,
) -> None:
    """Prune a model: plan, apply, measure, export and verify.

    Prints the path of the new folder. When a run was interrupted, the same command goes on where it stopped.
    With --from it repeats the run of a manifest, says what is different, and ends with 1 when the weights are.
    """
    if manifest is not None:
        again.prune(run, manifest, model, output, force=force, restart=restart)
        return
    reporting.check(run)
    recipe = run.recipe(model)
    from prunekit.recipe import recipe as recipes
    from prunekit.run import pipeline, ranks

    if not distributed.is_first():
        ranks.follow(recipe, offline=run.offline)
        return
    if recipes.method(recipe).needs.budget:
        run.screen.say(outcome.SAME_SIZE)
    how = pipeline.RunOptions(force, restart, run.offline)
    done = pipeline.prune(recipe, output, progress=run.screen.progress(), options=how)
    run.screen.done()
    reporting.of_run(run, done, recipe)
    outcome.show(run, done, str(recipe.model))
