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
prunekit prune sample -m wanda -r 0.5 -q | prunekit eval - --baseline sample --max-ppl-increase 15% --json
"""
PROTOCOL: options.Group = {"protocol": options.MEASURING["protocol"]}


@command(options.WALKING, PROTOCOL, options.LIMITS, options.EVALUATION_LIMITS, options.JUDGING, options.REPORTING)
def eval(
    run: Run,
    models: options.Models,
    baseline: options.Baseline = None,
    ppl: options.Ppls = None,
    ppl_column: options.PplColumn = None,
    windows: options.Windows = None,
) -> None:
    """Measure models side by side, and judge them by limits.

    Models larger than memory are read one decoder block at a time. A perplexity depends on the text,
    the protocol and the window; the table states all three.
    """
    named = [*models, baseline or ""]
    if "-" in named and "-" in (ppl or ()):
        raise UsageError("MODEL and --ppl cannot both be read from standard input", hint="give one a path")
    reporting.check(run)
    from prunekit import settings

    gates = settings.gates(run.values)
    *specs, reference = read_models(named)
    from prunekit import assessment

    done = assessment.evaluate(
        specs,
        baseline=reference or None,
        sets=ppl or (),
        protocol=run.values["protocol"] or "sparsegpt",
        column=ppl_column,
        windows=windows,
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
