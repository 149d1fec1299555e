"""The verdict on every quality gate, for every model and everything that was measured.

What is not a number, or could not be measured, never keeps a limit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from prunekit.errors import GateFailure
from prunekit.evaluate.rows import Accuracy, Number, Perplexity, Rate, Row, Verdict
from prunekit.recipe.limits import BYTES, NUMBERS, Gates, amount

ACCURACIES = ("acc", "acc_norm", "exact_match")  # what lm-eval calls them; the first that a task has
ROUNDING = 1e-9  # 0.60 - 0.58 is a little above 0.02


@dataclass(frozen=True)
class Reading:
    """One thing that a limit is about: what was found, `shown` in words, or why nothing could be (`lacking`)."""

    subject: str
    found: Number | None
    shown: str = ""
    lacking: str = ""
    lowest: float = -inf  # where its interval begins


def judge(gates: Gates, rows: Sequence[Row]) -> tuple[Verdict, ...]:
    """The verdict on every limit, for every model but the baseline."""
    dense = next((row for row in rows if row.baseline), None)
    models = [row for row in rows if not row.baseline]
    return tuple(verdict for name in gates.named for row in models for verdict in _JUDGES[name](gates, row, dense))


def failure(verdicts: Sequence[Verdict]) -> GateFailure | None:
    """The error that names every limit that was missed; None when all were kept."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if not failed:
        return None
    words = [f"gate {verdict.gate} failed for {verdict.model}: {verdict.reason}" for verdict in failed]
    text = words[0] if len(words) == 1 else "\n  ".join([f"{len(words)} of {len(verdicts)} gates failed", *words])
    return GateFailure(text, hint="--exit-zero reports it and ends with 0")


def _verdict(gate: str, row: Row, limit: float, wanted: str, reading: Reading, *, least: bool = False) -> Verdict:
    """Whether a number keeps its limit; what is not a number never does."""
    found = reading.found
    known = isinstance(found, int | float)
    passed = known and (found >= limit - ROUNDING if least else found <= limit + ROUNDING)
    reason = f"{reading.shown}; {'at least' if least else 'at most'} {wanted} is allowed"
    return Verdict(
        gate=gate,
        limit=limit,
        model=row.model,
        subject=reading.subject,
        found=found,
        passed=passed,
        reason=f"it cannot be measured: {reading.lacking}" if reading.lacking else reason,
    )


def _max_ppl(gates: Gates, row: Row, _: Row | None) -> Iterator[Verdict]:
    assert gates.max_ppl is not None
    for part in row.perplexity or (None,):
        yield _verdict("max_ppl", row, gates.max_ppl, f"{gates.max_ppl:g}", _perplexity(part))


def _perplexity(part: Perplexity | None) -> Reading:
    if part is None:
        return Reading("perplexity", None, lacking="no perplexity was measured")
    return Reading(part.set, part.value, f"the perplexity on {part.set} is {_number(part.value)}")


def _max_ppl_increase(gates: Gates, row: Row, _: Row | None) -> Iterator[Verdict]:
    assert gates.max_ppl_increase is not None
    limit = amount(gates.max_ppl_increase, {}) / 100
    for part in row.perplexity or (None,):
        yield _verdict("max_ppl_increase", row, limit, gates.max_ppl_increase, _increase(part))


def _increase(part: Perplexity | None) -> Reading:
    if part is None or part.ratio is None:
        lacking = _perplexity(part).lacking
        if part is not None and isinstance(part.value, str):
            lacking = f"the perplexity on {part.set} is {part.value}"
        return Reading(
            part.set if part else "perplexity",
            None,
            lacking=lacking or f"no perplexity of a dense model on {part and part.set} can be compared with it",
        )
    side = "above" if part.ratio >= 1 else "below"
    shown = f"the perplexity on {part.set} is {abs(part.ratio - 1) * 100:.2f} % {side} the dense model's"
    return Reading(part.set, part.ratio - 1, shown)


def _max_kl(gates: Gates, row: Row, _: Row | None) -> Iterator[Verdict]:
    assert gates.max_kl is not None
    for part in row.perplexity or (None,):
        reading = Reading("perplexity", None, lacking="no perplexity was measured")
        if part is not None and part.kl is None:
            reading = Reading(part.set, None, lacking=f"no dense model reads {part.set} as the same tokens")
        elif part is not None:
            shown = f"the KL divergence on {part.set} is {_number(part.kl, 4)} nats"
            reading = Reading(part.set, part.kl, shown)
        yield _verdict("max_kl", row, gates.max_kl, f"{gates.max_kl:g}", reading)


def accuracy(row: Row, name: str) -> Accuracy | str:
    """A task's accuracy, or the metric that is asked for as `task/metric`; else why there is none, in words."""
    task, _, metric = name.partition("/")
    found = {part.metric: part for part in row.tasks if part.task == task}
    wanted = [metric] if metric else ACCURACIES
    there = next((found[one] for one in wanted if one in found), None)
    return there or f"{task} has no {metric or 'accuracy'}; what it has: {', '.join(found) or 'nothing'}"


def _min_acc(gates: Gates, row: Row, _: Row | None) -> Iterator[Verdict]:
    for name, limit in gates.min_acc.items():
        part = accuracy(row, name)
        if isinstance(part, str):
            reading = Reading(name, None, lacking=part)
        else:
            reading = Reading(name, part.value, f"{part.metric} of {part.task} is {_number(part.value, 4)}")
        yield _verdict("min_acc", row, limit, f"{limit:g}", reading, least=True)


def _max_acc_drop(gates: Gates, row: Row, dense: Row | None) -> Iterator[Verdict]:
    assert gates.max_acc_drop is not None
    limit = amount(gates.max_acc_drop, {}) / 100
    tasks = list(dict.fromkeys(part.task for part in (*row.tasks, *(dense.tasks if dense else ()))))
    for task in tasks or ("tasks",):
        reading = _drop(row, dense, task) if tasks else Reading(task, None, lacking="no task was run")
        yield _verdict("max_acc_drop", row, limit, gates.max_acc_drop, reading)


def _drop(row: Row, dense: Row | None, task: str) -> Reading:
    """How many points a task lost; a task that only one of both was asked in the same way cannot be compared."""
    if dense is None:
        return Reading(task, None, lacking="there is no dense model beside it")
    ours, theirs = accuracy(row, task), accuracy(dense, task)
    for part in (ours, theirs):
        if isinstance(part, str):
            return Reading(task, None, lacking=part)
        if isinstance(part.value, str):
            return Reading(task, None, lacking=f"{part.metric} of {task} is {part.value}")
    assert isinstance(ours, Accuracy) and isinstance(theirs, Accuracy)
    if (ours.documents, ours.few_shot) != (theirs.documents, theirs.few_shot):
        return Reading(task, None, lacking=f"both models were not asked the same of {task}")
    lost = float(theirs.value) - float(ours.value)
    side = "below" if lost > 0 else "above"
    return Reading(task, lost, f"{ours.metric} of {task} is {abs(lost) * 100:.2f} points {side} the dense model's")


def _min_speedup(gates: Gates, row: Row, _: Row | None) -> Iterator[Verdict]:
    assert gates.min_speedup is not None
    for name in ("prefill", "decode"):
        reading = _speedup(name, row.speed and getattr(row.speed, name))
        verdict = _verdict("min_speedup", row, gates.min_speedup, f"{gates.min_speedup:g}", reading, least=True)
        if verdict.passed and gates.min_speedup > 1 and reading.lowest <= 1:
            reason = f"{reading.shown}; an interval that holds 1 shows no speedup, more --rounds may"
            verdict = verdict.model_copy(update={"passed": False, "reason": reason})
        yield verdict


def _speedup(name: str, rate: Rate | None) -> Reading:
    if rate is None or rate.ratio is None or rate.ratio_low is None or rate.ratio_high is None:
        return Reading(name, None, lacking="its speed was not measured beside a dense model's")
    interval = f"95 % interval {rate.ratio_low:.2f} to {rate.ratio_high:.2f}"
    shown = f"{name} is {rate.ratio:.2f} times as fast as the dense model's ({interval})"
    return Reading(name, rate.ratio, shown, lowest=rate.ratio_low)


def _max_size(gates: Gates, row: Row, _: Row | None) -> Iterator[Verdict]:
    assert gates.max_size is not None
    size = row.size.stored_bytes.value
    reading = Reading("stored_bytes", size, f"the weight files have {size:,} bytes")
    yield _verdict("max_size", row, amount(gates.max_size, BYTES), gates.max_size, reading)


def _max_params(gates: Gates, row: Row, _: Row | None) -> Iterator[Verdict]:
    assert gates.max_params is not None
    count = row.size.parameters.value
    reading = Reading("parameters", count, f"there are {count:,} parameters")
    yield _verdict("max_params", row, amount(gates.max_params, NUMBERS), gates.max_params, reading)


def _number(value: Number | None, digits: int = 2) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else str(value)


_JUDGES: dict[str, Callable[[Gates, Row, Row | None], Iterator[Verdict]]] = {
    "max_ppl": _max_ppl,
    "max_ppl_increase": _max_ppl_increase,
    "min_acc": _min_acc,
    "max_acc_drop": _max_acc_drop,
    "max_kl": _max_kl,
    "min_speedup": _min_speedup,
    "max_size": _max_size,
    "max_params": _max_params,
}
