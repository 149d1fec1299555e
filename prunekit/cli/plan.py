"""`prunekit plan`: what would be done to a model, as data that can be read, saved and applied."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit import distributed
from prunekit.cli import options
from prunekit.cli.command import Run, command
from prunekit.cli.screen import facts, table
from prunekit.errors import UsageError

if TYPE_CHECKING:
    from prunekit.plan import PrunePlan
    from prunekit.weights.actions import Sparsify

EXAMPLES = """
prunekit plan sample -m wanda -r 0.5 -o plan.json
prunekit plan sample -m wanda -r 0.5 -q | prunekit apply - -o pruned
"""
BAR = 40  # characters that stand for all weights of a block


@command(options.PLANNING, options.MEASURING, options.LIMITS, options.WRITING, shared_work=True)
def plan(
    run: Run,
    model: options.Model = None,
    output: options.PlanOutput = None,
    force: options.PlanForce = False,
) -> None:
    """Decide what would be done to a model, and touch nothing.

    Prints the plan as JSON, or with -o the path of the file that holds it. Settings of evaluation and export
    are kept in the plan for the time it is applied.
    """
    if output is not None:
        check_output(output, force)
    recipe = run.recipe(model)
    from prunekit.files import storage_errors, write_atomically
    from prunekit.run import pipeline, ranks

    if not distributed.is_first():
        ranks.follow(recipe, apply=False, offline=run.offline)
        return
    made = pipeline.make_plan(recipe, progress=run.screen.progress(), offline=run.offline)
    run.screen.done()
    _show(run, made)
    if output is None:
        run.screen.result(made.model_dump(mode="json"), made.to_json().rstrip("\n"))
        return
    with storage_errors(output):
        write_atomically(output, made.to_json())
    run.screen.result({"output": str(output)}, str(output))


def _show(run: Run, made: "PrunePlan") -> None:
    """What will be removed, zeroed and narrowed."""
    if removed := made.removed_blocks():
        run.screen.show(facts([("removes", f"blocks {', '.join(map(str, removed))}")]))
    if made.sparsify():
        run.screen.show(table("linear", "blocks", "sparsity", "pattern", rows=rows(made), right="blocks,sparsity"))
        if uneven := list(bars(made, "█" if _draws_blocks(run.screen.console.encoding) else "#")):
            run.screen.show(table("block", "sparsity", "of its linears", rows=uneven, right="block,sparsity"))
    if widths := made.widths():
        filled = "█" if _draws_blocks(run.screen.console.encoding) else "#"
        most = max(widths.values())
        lines = [
            (f"block {block}", f"{units:,}", filled * round(BAR * units / most))
            for block, units in sorted(widths.items())
        ]
        run.screen.show(table("block", "neurons left", "", rows=lines, right="neurons left"))


def check_output(file: Path, force: bool) -> None:
    """Raise UsageError where the plan would replace something else than a plan."""
    if file.exists() and not file.is_file():
        raise UsageError(f"{file} is not a file that can be replaced", hint="choose another file with -o")
    if file.exists() and not force and not _is_plan(file):
        raise UsageError(
            f"{file} exists already and is not a plan",
            hint="choose another file with -o, or add --force to replace it",
        )


def _is_plan(file: Path) -> bool:
    """Whether a file is a plan and nothing more; a manifest is not, although its plan can be applied."""
    from prunekit.plan import PrunePlan

    try:
        PrunePlan.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def rows(made: "PrunePlan") -> Iterable[tuple[str, int, str, str]]:
    """One row per kind of linear: how many blocks have it, and the sparsity they get."""
    kinds: dict[str, list[Sparsify]] = {}
    for action in made.sparsify().values():
        kinds.setdefault(kind_of(action.linear), []).append(action)
    for kind, actions in kinds.items():
        patterns = ", ".join(sorted({action.pattern for action in actions}))
        yield kind, len(actions), span(action.sparsity for action in actions), patterns


def bars(made: "PrunePlan", filled: str) -> Iterable[tuple[str, str, str]]:
    """One row with a bar per block, when not all blocks get the same."""
    blocks: dict[str, list[float]] = {}
    for action in made.sparsify().values():
        blocks.setdefault(block_of(action.linear), []).append(action.sparsity)
    if len({(min(found), max(found)) for found in blocks.values()}) < 2:
        return
    for block, found in blocks.items():
        mean = sum(found) / len(found)
        yield block, span(found), filled * round(BAR * mean)


def _draws_blocks(encoding: str) -> bool:
    try:
        return bool("█".encode(encoding))
    except (UnicodeEncodeError, LookupError):
        return False


def block_of(path: str) -> str:
    """The number of the block in a linear's path, or what comes before its name."""
    return next((part for part in path.split(".") if part.isdigit()), path.rpartition(".")[0])


def kind_of(path: str) -> str:
    """What a linear is called in every block: `model.layers.3.mlp.down_proj` -> `mlp.down_proj`."""
    parts = path.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[0] + 1 :]) if numbers else path


def span(values: Iterable[float]) -> str:
    """`50.0 %`, or `41.2 - 58.8 %` when they differ."""
    known = list(values)
    low, high = f"{min(known):.1%}".rstrip("%"), f"{max(known):.1%}".rstrip("%")
    return f"{low} %" if low == high else f"{low} - {high} %"
