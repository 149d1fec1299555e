"""How a finished run is shown, whether it came from `prune` or from `apply`."""

from typing import TYPE_CHECKING, Any

from prunekit.cli.progress import duration
from prunekit.cli.screen import Screen, facts

if TYPE_CHECKING:
    from prunekit.pipeline import Outcome

SAME_SIZE = "note: zeroed weights stay in dense files: file size, memory and speed will not change"


def show(screen: Screen, outcome: "Outcome", model: str) -> None:
    """A summary for people on standard error, and the output path or the whole outcome on standard output."""
    if not screen.quiet:
        screen.show(facts(summary(outcome, model)))
    screen.result(outcome.model_dump(mode="json"), outcome.output)


def summary(outcome: "Outcome", model: str) -> list[tuple[str, str]]:
    """What was done and measured, in a few words each."""
    zeros = f"{outcome.sparsity:.2%} of {outcome.weights:,} weights are zero".replace("%", " %")
    rows = [("pruned", f"{outcome.method}, {outcome.pattern}: {zeros}")]
    if outcome.perplexity:
        rows.append(("perplexity", perplexity(outcome.perplexity)))
    rows.append(("verified", verification(outcome.verification)))
    count = outcome.resumed_blocks
    resumed = f", {count} block{'s' * (count > 1)} taken over from before" if count else ""
    rows.append(("time", duration(outcome.seconds) + resumed))
    rows.append(("output", outcome.output))
    rows.append(("next", f"prunekit eval {outcome.output} --baseline {model}"))
    return rows


def perplexity(measured: dict[str, Any]) -> str:
    """`12.31 -> 14.02 (+13.9 %) on sample, protocol sparsegpt, 32 windows of 512 tokens`."""
    before, after = measured["before"], measured["after"]
    where = f"on {measured['set']}, protocol {measured['protocol']}"
    text = f"{number(before)} -> {number(after)}{change(before, after)} {where}"
    return f"{text}, {measured['windows']} windows of {measured['window']} tokens"


def number(value: float | str) -> str:
    """A perplexity with four digits or more; `inf` and `nan` as they are."""
    return f"{value:,.2f}" if isinstance(value, int | float) else str(value)


def change(before: float | str, after: float | str) -> str:
    """The relative change in brackets; nothing when one of them is no number."""
    if isinstance(before, str) or isinstance(after, str) or not before:
        return ""
    return f" ({after / before - 1:+.1%})".replace("%", " %")


def verification(found: dict[str, Any] | None) -> str:
    """How the folder was checked, or that it was not."""
    return "no (--verify off)" if found is None else f"yes, {found.get('mode', 'full')}"
