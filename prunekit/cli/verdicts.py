"""What is said about quality gates, and the exit code that they lead to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit.cli.command import Run

if TYPE_CHECKING:
    from prunekit.evaluate.rows import Verdict


def report(run: Run, verdicts: "Sequence[Verdict]") -> None:
    """Say what became of the gates; raises GateFailure, once the result is out, when one failed.

    With `--exit-zero` the same words are a note.
    """
    if not verdicts:
        return
    from prunekit.evaluate.verdicts import failure

    failed = failure(verdicts)
    if failed is None:
        run.screen.say(f"gates: {len(verdicts)} of {len(verdicts)} kept")
    elif run.values["exit_zero"]:
        run.screen.say(f"note: {failed.message}")
    else:
        raise failed
