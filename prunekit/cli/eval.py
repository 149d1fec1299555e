"""`prunekit eval`: how good models are, side by side."""

from prunekit.cli import options, reporting, verdicts
from prunekit.cli.command import Run, command
from prunekit.cli.figures import tables
from prunekit.cli.models import read_models
from prunekit.errors import UsageError

EXAMPLES = """
prunekit eval sample-wanda-50 --baseline sample
prunekit eval meta-llama/Llama-2-7b-hf --ppl wikitext2 --ppl c4 --protocol wanda
prunekit eval sample --ppl notes.jsonl --ppl-column body
prunekit eval sample-trsp-30 --baseline sample --tasks sample --speed --min-speedup 1.2 --max-acc-drop 5pt
prunekit eval pruned --ppl none --tasks piqa,arc_easy,my-task.yaml --limit 200
prunekit prune sample -m wanda -r 0.5 -q | prunekit eval - --baseline sample --max-ppl-increase 15% --json
"""


@command(
    options.WALKING, options.PROTOCOL, options.LIMITS, options.EVALUATION_LIMITS, options.JUDGING, options.REPORTING
)
def eval(
    run: Run,
    models: options.Models,
    baseline: options.Baseline = None,
    ppl: options.Ppls = None,
    ppl_column: options.PplColumn = None,
    windows: options.Windows = None,
    tasks: options.TaskNames = None,
    include_path: options.IncludePath = None,
    limit: options.TaskLimit = None,
    num_fewshot: options.FewShot = None,
    speed: options.SpeedOption = False,
    batch_size: options.SpeedBatch = 1,
    prompt_tokens: options.PromptTokens = 128,
    new_tokens: options.NewTokens = 32,
    rounds: options.Rounds = 15,
    compile: options.Compile = False,
) -> None:
    """Measure models side by side, and judge them by limits.

    Perplexity reads one decoder block at a time, so a model may be larger than memory; tasks and speed load it
    whole. A perplexity depends on the text, the protocol and the window; the table states all three.
    """
    named = [*models, baseline or ""]
    if "-" in named and "-" in (ppl or ()):
        raise UsageError("MODEL and --ppl cannot both be read from standard input", hint="give one a path")
    reporting.check(run)
    from prunekit.recipe import settings

    gates = settings.gates(run.values)
    *specs, reference = read_models(named)
    from prunekit.evaluate import side_by_side
    from prunekit.evaluate.speed import SpeedOptions
    from prunekit.evaluate.tasks import TaskOptions

    timing = SpeedOptions(batch_size, prompt_tokens, new_tokens, rounds, compile)
    names = [name for part in tasks or () for name in part.split(",") if name]
    done = side_by_side.evaluate(
        specs,
        baseline=reference or None,
        texts=side_by_side.Texts(ppl or (), run.values["protocol"] or "sparsegpt", ppl_column, windows),
        tasks=TaskOptions(names, include_path or (), limit, num_fewshot, batch_size) if names else None,
        speed=timing if speed else None,
        gates=gates,
        device=run.values["device"] or "auto",
        dtype=run.values["dtype"] or "auto",
        offload=run.values["offload"] or "memory",
        offline=run.offline,
        trust_remote_code=bool(run.values["trust_remote_code"]),
        progress=run.screen.progress(),
    )
    run.screen.done()
    reporting.of_evaluation(run, done, ppl_column)
    run.screen.result(done.model_dump(mode="json"), *tables(done))
    verdicts.report(run, done.gates)
