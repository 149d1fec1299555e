"""`prunekit verify`: prove that a folder loads as the model it claims to be, and compare it with another."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.cli import options
from prunekit.cli.command import Run, command
from prunekit.cli.models import read_model
from prunekit.cli.screen import table
from prunekit.errors import InputError, UsageError, VerificationError

if TYPE_CHECKING:
    from prunekit.compare.folders import Comparison

EXAMPLES = """
prunekit verify sample-wanda-50
prunekit verify sample-wanda-50 --against sample
"""
MODES = ("auto", "full", "streaming")
Folder = Annotated[str, typer.Argument(metavar="OUT", help="Model folder, or - to read its path from standard input.")]
Against = Annotated[
    str | None,
    options.option(options.VERIFYING, "MODEL", "Name the tensors that differ from this model's.", "--against"),
]
Mode = Annotated[
    str,
    options.option(
        options.VERIFYING,
        "HOW",
        "auto, full (load it whole) or streaming (one block at a time) (default auto).",
        "--mode",
        autocompletion=options.one_of(*MODES),
    ),
]


@command(options.COMPUTING)
def verify(run: Run, folder: Folder, against: Against = None, mode: Mode = "auto") -> None:
    """Prove in a fresh process that a folder loads as it should.

    Looks at files, loading, logits and generation. Ends with 6 when a check fails, or when a tensor
    differs from MODEL's that the folder's manifest does not name.
    """
    if mode not in MODES:
        raise UsageError(
            f"--mode is {mode}; expected {', '.join(MODES[:-1])} or {MODES[-1]}",
            hint="leave --mode out to let prunekit choose",
        )
    if folder == against == "-":
        raise UsageError("OUT and --against cannot both be read from standard input", hint="give one a path")
    place = _folder(read_model(folder))
    comparison = None if against is None else _compare(run, place, read_model(against))
    from prunekit.export.verify import verify as check

    found = check(
        place,
        mode=mode,
        device=run.values["device"] or "auto",
        dtype=run.values["dtype"] or "auto",
        trust_remote_code=bool(run.values["trust_remote_code"]),
    )
    data = {"folder": str(place), "passed": found.passed, **found.model_dump(mode="json")}
    rows = [(one.name, "passed" if one.passed else "FAILED", one.detail) for one in found.checks]
    run.screen.result(data | {"comparison": comparison}, table("check", "result", "found", rows=rows))


def _folder(name: str) -> Path:
    if not Path(name).is_dir():
        raise InputError(f"{name} is not a folder", hint="give the folder that prunekit prune wrote")
    return Path(name)


def _compare(run: Run, folder: Path, model: str) -> dict[str, Any]:
    """Show the differences on standard error; raises VerificationError for one that no plan explains."""
    from prunekit.compare.folders import compare
    from prunekit.model.hub import locate

    found = compare(folder, locate(model, offline=run.offline))
    run.screen.say(f"{found.same} tensors are equal to {model}'s, {len(found.differing)} differ")
    rows = [
        (one.name, f"{one.zeros:.2%}", f"{one.zeros_against:.2%}", f"{one.rewritten:.2%}") for one in found.differing
    ]
    if rows:
        run.screen.show(table("tensor", "zeros", "before", "rewritten", rows=rows, right="zeros,before,rewritten"))
    if unexplained := _unexplained(found, folder):
        raise VerificationError(f"{len(unexplained)} differences that the manifest does not name: {unexplained[0]}")
    return found.model_dump(mode="json")


def _unexplained(found: "Comparison", folder: Path) -> list[str]:
    """Differences beyond the weights that the folder's own plan zeroes; none where it does more, or is not known."""
    from prunekit.export.manifest import MANIFEST, Manifest

    if not (folder / MANIFEST).is_file():
        return []
    plan = Manifest.read(folder).plan
    if len(plan.sparsify()) < len(plan.actions):  # blocks or neurons are gone, and what is left may have been refitted
        return []
    planned = {f"{linear}.weight" for linear in plan.sparsify()}
    others = [f"{one.name} differs" for one in found.differing if one.name not in planned]
    others += [f"{name} is {form}" for name, form in found.reshaped.items()]
    return [
        *others,
        *(f"{name} is missing" for name in found.missing),
        *(f"{name} is new" for name in found.added),
    ]
