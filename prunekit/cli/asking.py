"""What models and runs are asked, from the options of `eval`, `compare` and `sweep`."""

from typing import TYPE_CHECKING

from prunekit.cli.command import Run

if TYPE_CHECKING:
    from prunekit.evaluate.side_by_side import Questions


def questions(run: Run, *, texts: bool) -> "Questions":
    """The questions that options ask; `texts` if the command has --ppl for them."""
    from prunekit.evaluate.side_by_side import Questions, Texts
    from prunekit.evaluate.speed import SpeedOptions
    from prunekit.evaluate.tasks import TaskOptions
    from prunekit.model.loading import Opening

    given, batch = run.values, run.values.get("batch_size") or 1
    names = [name for part in given["tasks"] or () for name in part.split(",") if name]
    sets = given["ppl"] if texts else None
    timing = SpeedOptions(
        batch, given["prompt_tokens"], given["new_tokens"], given["rounds"], bool(given.get("compile"))
    )
    asked = TaskOptions(names, given["include_path"] or (), given["limit"], given["num_fewshot"], batch)
    opening = Opening(
        given["device"] or "auto", given["dtype"] or "auto", run.offline, bool(given["trust_remote_code"])
    )
    return Questions(
        texts=Texts(sets, given["protocol"] or "sparsegpt", given["ppl_column"], given["windows"]) if sets else None,
        tasks=asked if names else None,
        speed=timing if given["speed"] else None,
        opening=opening,
        offload=given.get("offload") or "memory",
    )
