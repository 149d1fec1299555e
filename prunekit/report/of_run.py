"""The report of one run, from its outcome and the manifest it wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.compare.table import allocated, stored_bytes
from prunekit.evaluate.rows import Verdict
from prunekit.export.manifest import Manifest
from prunekit.formatting import change, listed, megabytes, number, percent, plural, span
from prunekit.recipe.command import repeat_command
from prunekit.recipe.recipe import Recipe
from prunekit.report.content import Passage, Report, Section, Table
from prunekit.report.figures import of_blocks

if TYPE_CHECKING:
    from prunekit.evaluate.continuation import Continuation
    from prunekit.run.outcome import Outcome

GREEDY = "Each model goes on from the same beginning, always with its most likely token."


def of_run(done: "Outcome", source: Path, said: "Sequence[Continuation]" = (), remark: str = "") -> Report:
    """What a run did, measured and wrote; `source` is the folder of the dense model.

    `said` is what the dense and the pruned model made of one beginning; `remark` says why it is empty, if it is.
    """
    folder = Path(done.output)
    manifest = Manifest.read(folder)
    return Report(
        title=f"{manifest.source.name}, pruned with {manifest.plan.method}",
        sentence=sentence(manifest),
        sections=[
            Section("Result", tables=[_result(manifest, source, folder)]),
            Section("Blocks", figures=of_blocks(manifest)),
            gates(done.gates),
            sample(said, remark),
            Section("Verification", text=[_verified(done.verification)], tables=_checks(done.verification)),
            repeated(done.repeat),
            Section("Notes", text=done.notes),
            Section("Repeat", text=[_with(manifest)], passages=[Passage("Command", command(manifest))]),
            Section("Manifest", folded=Passage("prunekit.json", manifest.to_json().rstrip())),
        ],
    )


def sentence(manifest: Manifest) -> str:
    """What was done and what it cost, in one sentence."""
    result, plan = manifest.result, manifest.plan
    lost = 1 - result.parameters / max(1, result.parameters_before)
    parts: list[str] = []
    if result.removed_blocks:
        total = result.blocks + len(result.removed_blocks)
        parts.append(f"took {len(result.removed_blocks)} of {plural(total, 'decoder block')} out")
    if plan.sparsify():
        parts.append(f"set {percent(result.sparsity)} of the weights in the decoder blocks to zero")
    if result.widths:
        parts.append(f"left {span(result.widths)} neurons in each of the decoder blocks")
    allocator = allocated(manifest)
    who = plan.method if allocator in (None, "uniform") else f"{plan.method} (allocator {allocator})"
    text = f"Of {manifest.source.spec}, {who} {listed(parts) or 'rewrote the weights'}"
    text += f", which leaves {result.parameters:,} parameters ({percent(lost)} less)" if lost > 0 else ""
    found = manifest.perplexity
    if not found:
        return f"{text}; perplexity was not measured."
    before, after = found["before"], found["after"]
    return f"{text}; perplexity on {found['set']} went from {number(before)} to {number(after)}{_by(before, after)}."


def _by(before: Any, after: Any) -> str:
    ratio = _ratio(before, after)
    return "" if ratio is None else f" ({change(ratio)})"


def _ratio(before: Any, after: Any) -> float | None:
    numbers = isinstance(before, int | float) and isinstance(after, int | float)
    return after / before if numbers and before else None


def _result(manifest: Manifest, source: Path, folder: Path) -> Table:
    """Before and after."""
    result, found = manifest.result, manifest.perplexity
    blocks = result.blocks + len(result.removed_blocks)
    rows = [
        _row("parameters", result.parameters_before, result.parameters, "{:,}"),
        _row("decoder blocks", blocks, result.blocks, "{}"),
    ]
    if result.zeros:
        rows.append(["zeros in the blocks' weights", "-", percent(result.sparsity), "-"])
    before, after = stored_bytes(source), stored_bytes(folder)
    rows.append(["weight files", megabytes(before), megabytes(after), _changed(before, after)])
    if found:
        size = f"{found['windows']} windows of {found['window']} tokens"
        name = f"perplexity on {found['set']}, protocol {found['protocol']}, {size}"
        name += ", the calibration text itself" if found.get("calibration_text") else ""
        ratio = change(_ratio(found["before"], found["after"]))
        rows.append([name, number(found["before"]), number(found["after"]), ratio])
    return Table("Before and after", ["", "before", "after", "change"], rows, frozenset({"before", "after", "change"}))


def _row(name: str, before: int, after: int, form: str) -> list[str]:
    return [name, form.format(before), form.format(after), _changed(before, after)]


def _changed(before: int, after: int) -> str:
    return "-" if before == after else change(after / max(1, before))


def gates(verdicts: Sequence[Verdict]) -> Section:
    """What became of the limits."""
    rows = [["kept" if one.passed else "FAILED", one.gate, one.model, one.subject, one.reason] for one in verdicts]
    failed = frozenset(place for place, one in enumerate(verdicts) if not one.passed)
    headers = ["verdict", "gate", "model", "about", "why"]
    return Section("Gates", tables=[Table("Limits that were set", headers, rows, bad=failed)] if rows else [])


def repeated(found: Mapping[str, Any] | None) -> Section:
    """How a run compares with the one it repeats."""
    if found is None:
        return Section("Repeated")
    kinds = ("environment", "settings", "record")
    rows = [[name, kind, change] for kind in kinds for name, change in found[kind].items()]
    differing = [Table("What is not the same", ["", "kind", "now, and then"], rows)] if rows else []
    weights = {"equal": "equal to the byte", "differ": "different", "absent": "not compared, since there were none"}
    text = f"It repeats {found['manifest']}; the weights are {weights[found['weights']]}."
    return Section("Repeated", text=[text, *filter(None, [found["difference"]])], tables=differing)


def sample(said: "Sequence[Continuation]", remark: str) -> Section:
    """What models made of the same beginning, side by side."""
    if not said:
        return Section("Sample", text=[remark] if remark else [])
    passages = [Passage("the beginning", said[0].prompt), *(Passage(one.model, one.text) for one in said)]
    return Section("Sample", text=[GREEDY], passages=passages)


def _verified(found: Any) -> str:
    if not found:
        return "The folder was not verified."
    whole = {"full": "loaded it whole", "streaming": "read it one block at a time"}[found["mode"]]
    return f"Before the folder was moved into place, a fresh process {whole}; every check passed."


def _checks(found: Any) -> list[Table]:
    rows = [
        [check["name"], "passed" if check["passed"] else "FAILED", check["detail"]]
        for check in (found or {}).get("checks", ())
    ]
    return [Table("Checks", ["check", "result", "found"], rows)] if rows else []


def command(manifest: Manifest) -> str:
    """What is typed to do it again."""
    changed = Recipe.model_validate(manifest.recipe).model_dump(mode="json", exclude_defaults=True)
    return repeat_command(manifest.source.spec, changed, edited=manifest.plan.edited)


def _with(manifest: Manifest) -> str:
    names = [f"{name} {version}" for name, version in sorted(manifest.versions.items())]
    where = ", ".join(f"{name} {value}" for name, value in manifest.computed.items())
    text = f"With prunekit {manifest.prunekit}, {listed(names)}" + (f"; computed on: {where}." if where else ".")
    local = " Local files are named without their folders." if manifest.source.kind == "folder" else ""
    return f"{text}{local} prunekit prune --from prunekit.json does it again, and compares."
