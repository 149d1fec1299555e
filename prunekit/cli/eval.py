"""`prunekit eval`: how good models are, side by side."""

from dataclasses import replace

from prunekit.cli import options, reporting, verdicts
from prunekit.cli.asking import questions
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


MEASURED: options.Group = {
    "baseline": (options.Baseline, None),
    "ppl": (options.Ppls, None),
    "ppl_column": (options.PplColumn, None),
    "windows": (options.Windows, None),
    **options.TASKING,
    "speed": (options.SpeedOption, False),
    "batch_size": (options.SpeedBatch, 1),
    **options.TIMING,
    "compile": (options.Compile, False),
}


@command(
    options.WALKING,
    MEASURED,
    options.PROTOCOL,
    options.LIMITS,
    options.EVALUATION_LIMITS,
    options.JUDGING,
    options.REPORTING,
)
def eval(run: Run, models: options.Models) -> None:
    """Measure models side by side, and judge them by limits.

    Perplexity reads one decoder block at a time, so a model may be larger than memory; tasks and speed load it
    whole. A perplexity depends on the text, the protocol and the window; the table states all three.
    """
    given = run.values
    named = [*models, given["baseline"] or ""]
    if "-" in named and "-" in (given["ppl"] or ()):
        raise UsageError("MODEL and --ppl cannot both be read from standard input", hint="give one a path")
    reporting.check(run)
    from prunekit.recipe import settings

    gates = settings.gates(given)
    *specs, reference = read_models(named)
    from prunekit.evaluate import side_by_side

    asked = replace(questions(run, texts=True), gates=gates)
    if asked.texts is None:
        own = side_by_side.Texts((), given["protocol"] or "sparsegpt", given["ppl_column"], given["windows"])
        asked = replace(asked, texts=own)
    done = side_by_side.evaluate(specs, asked, baseline=reference or None, progress=run.screen.progress())
    run.screen.done()
    reporting.of_evaluation(run, done, given["ppl_column"])
    run.screen.result(done.model_dump(mode="json"), *tables(done))
    verdicts.report(run, done.gates)
