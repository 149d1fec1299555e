"""`prunekit eval`: how good models are, side by side."""

from typing import Any

from prunekit.cli import options
from prunekit.cli.command import Run, command
from prunekit.cli.models import read_models
from prunekit.cli.outcome import number
from prunekit.cli.screen import table
from prunekit.errors import UsageError

EXAMPLES = """
prunekit eval sample-wanda-50 --baseline sample
prunekit eval meta-llama/Llama-2-7b-hf --ppl wikitext2 --ppl c4 --protocol wanda
prunekit eval sample --ppl notes.jsonl --ppl-column body
prunekit prune sample -m wanda -r 0.5 -q | prunekit eval - --json
"""


@command(options.WALKING, {"protocol": options.MEASURING["protocol"]})
def eval(
    run: Run,
    models: options.Models,
    baseline: options.Baseline = None,
    ppl: options.Ppls = None,
    ppl_column: options.PplColumn = None,
    windows: options.Windows = None,
) -> None:
    """Measure the perplexity of models, side by side.

    Models larger than memory are read one decoder block at a time. A perplexity depends on the text,
    the protocol and the window; the table states all three.
    """
    named = [*models, baseline or ""]
    if "-" in named and "-" in (ppl or ()):
        raise UsageError("MODEL and --ppl cannot both be read from standard input", hint="give one a path")
    *specs, reference = read_models(named)
    from prunekit import pipeline

    rows = pipeline.evaluate(
        specs,
        baseline=reference or None,
        sets=ppl or (),
        protocol=run.values["protocol"] or "sparsegpt",
        device=run.values["device"] or "auto",
        dtype=run.values["dtype"] or "auto",
        offload=run.values["offload"] or "memory",
        column=ppl_column,
        windows=windows,
        offline=run.offline,
        trust_remote_code=bool(run.values["trust_remote_code"]),
        progress=run.screen.progress(),
    )
    run.screen.done()
    run.screen.result({"models": rows}, _table(rows))


def _table(rows: list[dict[str, Any]]) -> Any:
    headers = ["model", "text", "protocol", "windows", "perplexity"]
    compared = any("ratio" in found for row in rows for found in row["perplexity"])
    cells = [_cells(row["model"], found, compared) for row in rows for found in row["perplexity"]]
    return table(*headers, *(["to baseline"] if compared else []), rows=cells, right="perplexity,to baseline")


def _cells(model: str, found: dict[str, Any], compared: bool) -> list[str]:
    cells = [
        model,
        found["set"],
        found["protocol"],
        f"{found['windows']} x {found['window']}",
        number(found["value"]),
    ]
    return [*cells, _ratio(found.get("ratio"))] if compared else cells


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio - 1:+.1%}".replace("%", " %")
