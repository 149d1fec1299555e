"""What `compare` and `sweep` are to measure of runs, from their options."""

from typing import TYPE_CHECKING

from prunekit.cli.command import Run

if TYPE_CHECKING:
    from prunekit.compare.measure import Questions


def questions(run: Run, *, texts: bool) -> "Questions":
    """The questions that options ask; `texts` where the command has --ppl for them."""
    from prunekit.compare.measure import Questions
    from prunekit.evaluate.side_by_side import Texts
    from prunekit.evaluate.speed import SpeedOptions
    from prunekit.evaluate.tasks import TaskOptions

    given = run.values
    names = [name for part in given["tasks"] or () for name in part.split(",") if name]
    sets = given["ppl"] if texts else None
    timing = SpeedOptions(prompt_tokens=given["prompt_tokens"], new_tokens=given["new_tokens"], rounds=given["rounds"])
    return Questions(
        texts=Texts(sets, given["protocol"] or "sparsegpt", given["ppl_column"], given["windows"]) if sets else None,
        tasks=TaskOptions(names, given["include_path"] or (), given["limit"], given["num_fewshot"]) if names else None,
        speed=timing if given["speed"] else None,
        device=given["device"] or "auto",
        dtype=given["dtype"] or "auto",
        offload=given["offload"] or "memory",
        offline=run.offline,
        trust_remote_code=bool(given["trust_remote_code"]),
    )
