"""How a finished run is shown, whether it came from `prune` or from `apply`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.cli import verdicts
from prunekit.cli.bars import columns
from prunekit.cli.command import Run
from prunekit.cli.progress import duration
from prunekit.cli.screen import facts
from prunekit.formatting import number

if TYPE_CHECKING:
    from prunekit.run.outcome import Outcome
    from prunekit.run.relayout import Relaid

SAME_SIZE = "note: zeroed weights stay in dense files: file size, memory and speed will not change"


def show(run: Run, outcome: "Outcome", model: str) -> None:
    """A summary for people on standard error, and the output path or the whole outcome on standard output.

    Raises GateFailure, once that is out, when a gate failed.
    """
    screen = run.screen
    if not screen.quiet:
        screen.show(facts(summary(outcome, model)))
    screen.result(outcome.model_dump(mode="json"), outcome.output)
    verdicts.report(run, outcome.gates)


def summary(outcome: "Outcome", model: str) -> list[tuple[str, str]]:
    """What was done and measured, in a few words each."""
    rows = [("pruned", f"{outcome.method}{pruned(outcome)}")]
    if outcome.parameters != outcome.parameters_before:
        rows.append(("parameters", parameters(outcome)))
    if drawn := importance(outcome):
        rows.append(("importance", drawn))
    if outcome.perplexity:
        rows.append(("perplexity", perplexity(outcome.perplexity)))
    rows.append(("verified", verification(outcome.verification)))
    count = outcome.resumed_blocks
    resumed = f", {count} block{'s' * (count > 1)} taken over from before" if count else ""
    rows.append(("time", duration(outcome.seconds) + resumed))
    rows.append(("output", outcome.output))
    rows.append(("next", f"prunekit eval {outcome.output} --baseline {model}"))
    return rows


def importance(outcome: "Outcome") -> str:
    """A letter per block of the source, the higher the more it matters, x where it was removed; empty if unknown."""
    from prunekit.export.manifest import MANIFEST, Manifest

    if not (Path(outcome.output) / MANIFEST).is_file():
        return ""
    values = Manifest.read(Path(outcome.output)).plan.evidence.get("importance")
    if not isinstance(values, list) or len(values) != outcome.blocks + len(outcome.removed_blocks):
        return ""
    return columns(values, outcome.removed_blocks)


def pruned(outcome: "Outcome") -> str:
    """`, unstructured: 50.00 % of 4,718,592 weights are zero` or `: blocks 1, 4 and 5 of 12 were removed`."""
    parts = [removed_blocks(outcome)] if outcome.removed_blocks else []
    if widths := outcome.widths:
        spread = f"{min(widths)}" if len(set(widths)) == 1 else f"{min(widths)} to {max(widths)}"
        parts.append(f"{spread} neurons are left in {'every block' if len(set(widths)) == 1 else 'a block'}")
    if parts:
        return f": {'; '.join(parts)}"
    zeros = f"{outcome.sparsity:.2%} of {outcome.weights:,} weights are zero".replace("%", " %")
    return f", {outcome.pattern}: {zeros}"


def removed_blocks(outcome: "Outcome") -> str:
    """`blocks 1, 4 and 5 of 12 were removed`."""
    gone = outcome.removed_blocks
    last = f" and {gone[-1]}" if len(gone) > 1 else ""
    named = ", ".join(map(str, gone[:-1] or gone)) + last
    return f"block{'s' * (len(gone) > 1)} {named} of {outcome.blocks + len(gone)} {'are' if last else 'is'} removed"


def parameters(outcome: "Outcome | Relaid") -> str:
    """`5,117,184 -> 3,937,536 (-23.1 %)`."""
    before, after = outcome.parameters_before, outcome.parameters
    return f"{before:,} -> {after:,}{change(before, after)}"


def perplexity(measured: dict[str, Any]) -> str:
    """`12.31 -> 14.02 (+13.9 %) on sample, protocol sparsegpt, 32 windows of 512 tokens`."""
    before, after = measured["before"], measured["after"]
    itself = ", the calibration text itself" if measured.get("calibration_text") else ""
    where = f"on {measured['set']}{itself}, protocol {measured['protocol']}"
    text = f"{number(before)} -> {number(after)}{change(before, after)} {where}"
    return f"{text}, {measured['windows']} windows of {measured['window']} tokens"


def change(before: float | str, after: float | str) -> str:
    """The relative change in brackets; nothing when one of them is not a number."""
    if isinstance(before, str) or isinstance(after, str) or not before:
        return ""
    return f" ({after / before - 1:+.1%})".replace("%", " %")


def verification(found: dict[str, Any] | None) -> str:
    """How the folder was checked, or that it was not."""
    return "no (--verify off)" if found is None else f"yes, {found.get('mode', 'full')}"
