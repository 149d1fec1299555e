"""Every quality gate passes, fails, and is never kept where it cannot be measured."""

import math
from typing import Any

import pytest

from prunekit.errors import UsageError
from prunekit.evaluate.rows import Accuracy, Count, Perplexity, Rate, Row, Size, Speed, compared, plain
from prunekit.evaluate.verdicts import failure, judge
from prunekit.recipe.limits import Gates, Measured, refuse_unmeasurable

EVERYTHING = Measured(perplexity=True, baseline=True, kl=True, tasks=("piqa",), speed=True, how={})
RATE = Rate(value=10.0, low=9.0, high=11.0)


def perplexity(value: float = 10.0, **changes: Any) -> Perplexity:
    fixed = {"revision": None, "split": "all", "protocol": "sparsegpt", "join": "", "window": 8, "windows": 1}
    return Perplexity(**{"value": plain(value), "set": "text", "tokens": 7, "sha256": "0", **fixed, **changes})


def accuracy(value: float = 0.5, metric: str = "acc", **changes: Any) -> Accuracy:
    fixed = {"task": "piqa", "stderr": 0.01, "documents": 100, "few_shot": 0, "version": "1.0"}
    return Accuracy(**{"metric": metric, "value": plain(value), **fixed, **changes})


def speed(prefill: float | None = 1.5, decode: float | None = 1.5) -> Speed:
    def rate(ratio: float | None) -> Rate:
        return RATE.model_copy(
            update={"ratio": ratio, "ratio_low": ratio and ratio - 0.1, "ratio_high": ratio and ratio + 0.1}
        )

    return Speed(
        prefill=rate(prefill),
        decode=rate(decode),
        first_token=RATE,
        peak_memory=None,
        flops_per_token=None,
        rounds=9,
        batch_size=1,
        prompt_tokens=8,
        new_tokens=2,
        device="cpu",
        dtype="float32",
        threads=1,
        compiled=False,
    )


def row(name: str = "model", *, baseline: bool = False, size: tuple[int, int] = (1000, 4000), **parts: Any) -> Row:
    counted = Size(parameters=Count(value=size[0]), stored_bytes=Count(value=size[1]))
    return Row(model=name, baseline=baseline, size=counted, **parts)


def ppl(value: float, **changes: Any) -> dict[str, Any]:
    return {"perplexity": (perplexity(value, **changes),)}


def acc(value: float, *more: Accuracy, **changes: Any) -> dict[str, Any]:
    return {"tasks": (accuracy(value, **changes), *more)}


CASES: dict[str, Any] = {  # gate -> its limit, and what keeps it, misses it, and does not tell
    "max_ppl": (
        11,
        [ppl(11.0), ppl(3.0)],
        [ppl(11.1), ppl(math.nan), ppl(math.inf), {"perplexity": (perplexity(3.0), perplexity(12.0))}],
        [{}],
    ),
    "max_ppl_increase": (
        "15%",
        [ppl(11.5), ppl(10.0), ppl(7.0)],
        [ppl(11.6), {"perplexity": (perplexity(10.0), perplexity(12.0))}],
        [{}, ppl(10.0, sha256="1"), ppl(math.nan), ppl(math.inf), ppl(10.0, set="other")],
    ),
    "min_acc": (
        {"piqa": 0.6},
        [acc(0.6), acc(0.9), acc(0.1, accuracy(0.7), metric="acc_norm"), acc(0.6, metric="exact_match")],
        [acc(0.59), acc(math.nan), acc(0.9, accuracy(0.5), metric="acc_norm")],
        [{}, acc(0.9, task="other"), acc(9.0, metric="word_perplexity")],
    ),
    "max_acc_drop": (
        "2pt",
        [acc(0.48), acc(0.5), acc(0.9)],
        [acc(0.47), acc(0.0)],
        [{}, acc(math.nan), acc(0.5, task="other"), acc(0.5, documents=99), acc(0.5, few_shot=5)],
    ),
    "max_kl": (
        0.1,
        [ppl(10.0, kl=0.1), ppl(10.0, kl=0.0)],
        [ppl(10.0, kl=0.11), ppl(10.0, kl="nan"), ppl(10.0, kl="inf")],
        [{}, ppl(10.0, kl=None)],
    ),
    "min_speedup": (
        1.2,
        [{"speed": speed(1.2, 1.2)}, {"speed": speed(2.0, 1.3)}],
        [{"speed": speed(1.19, 2.0)}, {"speed": speed(2.0, 1.0)}],
        [{}, {"speed": speed(None, None)}],
    ),
    "max_size": ("4KB", [{"size": (1, 4000)}, {"size": (1, 10)}], [{"size": (1, 4001)}], []),
    "max_params": ("1K", [{"size": (1000, 1)}, {"size": (1, 1)}], [{"size": (1001, 1)}], []),
}
DENSE = row("dense", baseline=True, **ppl(10.0), **acc(0.5))


def verdicts(gate: str, parts: dict[str, Any], dense: Row | None = DENSE) -> list[tuple[bool, bool]]:
    """Whether each verdict is that the gate was kept, and whether it was measured."""
    gates, mine = Gates.model_validate({gate: CASES[gate][0]}), row(**parts)
    rows = [mine] if dense is None else [dense, compared(mine, dense)]
    found = judge(gates, rows)
    assert found and all(verdict.gate == gate and verdict.model == "model" and verdict.reason for verdict in found)
    return [(verdict.passed, "cannot be measured" not in verdict.reason) for verdict in found]


def test_every_gate_has_cases() -> None:
    assert set(CASES) == set(Gates.model_fields)


@pytest.mark.parametrize(("gate", "number"), [(gate, n) for gate, case in CASES.items() for n in range(len(case[1]))])
def test_a_gate_is_kept(gate: str, number: int) -> None:
    assert all(passed for passed, _ in verdicts(gate, CASES[gate][1][number]))


@pytest.mark.parametrize(("gate", "number"), [(gate, n) for gate, case in CASES.items() for n in range(len(case[2]))])
def test_a_gate_fails(gate: str, number: int) -> None:
    found = verdicts(gate, CASES[gate][2][number])
    assert any(not passed and measured for passed, measured in found)


@pytest.mark.parametrize(("gate", "number"), [(gate, n) for gate, case in CASES.items() for n in range(len(case[3]))])
def test_what_cannot_be_measured_is_never_kept(gate: str, number: int) -> None:
    assert any(not passed and not measured for passed, measured in verdicts(gate, CASES[gate][3][number]))


@pytest.mark.parametrize("gate", ["max_ppl_increase", "max_acc_drop", "max_kl", "min_speedup"])
def test_without_a_dense_model_a_comparison_is_never_kept(gate: str) -> None:
    parts = CASES[gate][1][0] | ({} if gate != "max_kl" else ppl(10.0)) | ({"speed": speed(None, None)})
    assert not any(passed for passed, _ in verdicts(gate, parts, dense=None))


@pytest.mark.parametrize(
    ("gate", "lacking"),
    [
        ("max_ppl", {"perplexity": False}),
        ("max_ppl_increase", {"perplexity": False}),
        ("max_ppl_increase", {"baseline": False}),
        ("min_acc", {"tasks": ()}),
        ("min_acc", {"tasks": ("arc_easy",)}),
        ("max_acc_drop", {"tasks": ()}),
        ("max_acc_drop", {"baseline": False}),
        ("max_kl", {"baseline": False}),
        ("max_kl", {"kl": False}),
        ("min_speedup", {"baseline": False}),
        ("min_speedup", {"speed": False}),
    ],
)
def test_a_gate_on_what_will_not_be_measured_is_refused_before_the_work(gate: str, lacking: dict[str, Any]) -> None:
    gates = Gates.model_validate({gate: CASES[gate][0]})
    refuse_unmeasurable(gates, EVERYTHING)
    with pytest.raises(UsageError, match=f"the gate {gate} cannot be measured here"):
        refuse_unmeasurable(gates, Measured(**{**vars(EVERYTHING), **lacking}))


def test_the_baseline_itself_is_not_judged_and_every_model_is() -> None:
    rows = [row("dense", baseline=True, **ppl(20.0)), row("one", **ppl(10.0)), row("two", **ppl(12.0))]
    found = judge(Gates(max_ppl=11), rows)
    assert [(verdict.model, verdict.passed) for verdict in found] == [("one", True), ("two", False)]


def test_a_metric_can_be_named() -> None:
    rows = [row(**acc(0.5, accuracy(0.7, "acc_norm")))]
    found = judge(Gates(min_acc={"piqa/acc_norm": 0.6, "piqa/acc": 0.6, "piqa/f1": 0.1}), rows)
    assert [verdict.passed for verdict in found] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "count"), [("9GB", 9e9), ("1.5 MiB", 1.5 * 2**20), ("100B", 100), ("2TB", 2e12), ("1KiB", 1024)]
)
def test_sizes_are_read_with_their_units(text: str, count: float) -> None:
    (verdict,) = judge(Gates(max_size=text), [row()])
    assert verdict.limit == count


@pytest.mark.parametrize(("text", "count"), [("5B", 5e9), ("350M", 3.5e8), (12345, 12345), ("1.5K", 1500)])
def test_numbers_of_parameters_are_read_with_their_units(text: Any, count: float) -> None:
    (verdict,) = judge(Gates.model_validate({"max_params": text}), [row()])
    assert verdict.limit == count


def test_gates_survive_json() -> None:
    gates = Gates.model_validate({gate: case[0] for gate, case in CASES.items()})
    assert Gates.model_validate_json(gates.model_dump_json()) == gates
    assert set(gates.named) == set(CASES)
    assert Gates().named == {}


def test_a_speedup_is_stated_with_its_interval() -> None:
    found = judge(Gates(min_speedup=1.2), [DENSE, row(speed=speed(1.1, 1.3))])
    assert [verdict.passed for verdict in found] == [False, True]
    assert found[0].reason == (
        "prefill is 1.10 times as fast as the dense model's (95 % interval 1.00 to 1.20); at least 1.2 is allowed"
    )


def test_nothing_failed_is_no_error_and_one_failure_is_one_line() -> None:
    assert failure(()) is None
    kept, missed = judge(Gates(max_ppl=11), [row("one", **ppl(10.0)), row("two", **ppl(12.0))])
    assert failure((kept,)) is None
    error = failure((kept, missed))
    assert error is not None and error.exit_code == 1
    assert error.message == "gate max_ppl failed for two: the perplexity on text is 12.00; at most 11 is allowed"
