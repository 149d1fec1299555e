"""Quality gates: the limits that a result must keep; `verdicts` says whether it does.

A limit that cannot be measured is never kept: what can be known before the work begins is refused here with a
UsageError, the rest is a verdict that failed. Nothing here imports torch, so a recipe can hold them.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, field_validator

from prunekit.errors import UsageError
from prunekit.plan import Frozen
from prunekit.recipe.fields import described

BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BYTES |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGT", 1)}
NUMBERS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
WORDS = {
    "perplexity": "a perplexity",
    "baseline": "the dense model beside it",
    "tasks": "a task",
    "kl": "the dense model's predictions",
    "speed": "the speed",
}
Limit = Annotated[float, Field(allow_inf_nan=False)]


class Gates(Frozen):
    """Limits that the result must keep; null is no limit."""

    max_ppl: Limit | None = described("max_ppl", gt=0)
    max_ppl_increase: str | None = described("max_ppl_increase", pattern=r"^\d+(\.\d+)? ?%$", examples=["15%"])
    min_acc: dict[str, Annotated[float, Field(ge=0, le=1)]] = described("min_acc")
    max_acc_drop: str | None = described("max_acc_drop", pattern=r"^\d+(\.\d+)? ?pt$", examples=["2pt"])
    max_kl: Limit | None = described("max_kl", ge=0)
    min_speedup: Limit | None = described("min_speedup", gt=0)
    max_size: str | None = described("max_size", pattern=r"^\d+(\.\d+)? ?([KMGT]i?)?B$", examples=["500MB", "9GB"])
    max_params: str | None = described(
        "max_params", pattern=r"^\d+(\.\d+)? ?[KMBT]?$", examples=["350M", "5B"], coerce_numbers_to_str=True
    )

    @field_validator("min_acc", mode="before")
    @classmethod
    def _read_pairs(cls, value: Any) -> Any:
        """`task=0.6`, once or in a list, as it is typed on the command line."""
        if not isinstance(value, str | list | tuple):
            return value
        pairs = [
            text.partition("=") for part in ([value] if isinstance(value, str) else value) for text in part.split()
        ]
        if any(not (name and equals and number) for name, equals, number in pairs):
            raise ValueError(f"{value!r} is not task=accuracy; expected such as piqa=0.6")
        return {name: number for name, _, number in pairs}

    @property
    def named(self) -> dict[str, Any]:
        """The limits that are set, by name."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) not in (None, {})}


def amount(text: str, units: dict[str, int]) -> float:
    """`9GB`, `2pt`, `15%` or `5B` without what stands behind the number and is not a unit."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(.*)", text)
    assert found is not None, text  # the field's pattern
    return float(found[1]) * units.get(found[2].removesuffix("B") if units is BYTES else found[2], 1)


@dataclass(frozen=True)
class Measured:
    """What a run will measure, as far as limits depend on it; `how` says in a hint how to get each."""

    perplexity: bool
    baseline: bool
    kl: bool
    tasks: Collection[str] | None  # their names, empty where none is run; None: not known yet
    speed: bool
    how: dict[str, str]


def refuse_unmeasurable(gates: Gates, measured: Measured) -> None:
    """Raise UsageError for the first limit on something that will not be measured."""
    needs: dict[str, tuple[tuple[str, bool], ...]] = {
        "max_ppl": (("perplexity", measured.perplexity),),
        "max_ppl_increase": (("perplexity", measured.perplexity), ("baseline", measured.baseline)),
        "min_acc": (("tasks", measured.tasks is None or bool(measured.tasks)),),
        "max_acc_drop": (("tasks", measured.tasks is None or bool(measured.tasks)), ("baseline", measured.baseline)),
        "max_kl": (("baseline", measured.baseline), ("kl", measured.kl)),
        "min_speedup": (("baseline", measured.baseline), ("speed", measured.speed)),
    }
    for name in gates.named:
        for need, there in needs.get(name, ()):
            if not there:
                hint = measured.how.get(need)
                raise UsageError(f"the gate {name} cannot be measured here: it needs {WORDS[need]}", hint=hint)
    tasks = measured.tasks
    for name in gates.min_acc if tasks else ():
        if tasks and name.partition("/")[0] not in tasks:
            raise UsageError(
                f"the gate min_acc cannot be measured here: {name} is not among the tasks",
                hint=f"the tasks are {', '.join(sorted(tasks))}",
            )
