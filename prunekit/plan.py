"""The decision as data: which places of a model get what, and why; it can be read, saved and applied later.

A plan never holds masks: which weights are zeroed in block i depends on the blocks before it being pruned already.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from prunekit.errors import InputError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prunekit.model.changes import FolderChanges
    from prunekit.model.prunable import PrunableModel
    from prunekit.weights.actions import Sparsify

ACTIONS = "prunekit.actions"  # the entry-point group: kind -> class
Layout = Literal["uniform", "per-layer", "padded"]
SCHEMA_VERSION = 1
HINT = "prunekit plan MODEL -o plan.json"


@dataclass(frozen=True)
class Pattern:
    """Where zeros may fall: anywhere (`unstructured`), or N kept of every M consecutive inputs (`N:M`).

    In a request, `*:M` leaves N open: every linear gets its own, by the budget. A linear's own pattern has no `*`.
    """

    kept: int | None = None
    group: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `unstructured`, `N:M` with 1 <= N < M, or `*:M`; raises UsageError with the form that was expected."""
        if text == "unstructured":
            return cls()
        if mixed := re.fullmatch(r"\*:(\d+)", text):
            if int(mixed[1]) < 2:
                raise UsageError(
                    f"pattern {text!r} has groups of one weight", hint="*:8 lets every linear have its N:8"
                )
            return cls(None, int(mixed[1]))
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if not match or not 1 <= int(match[1]) < int(match[2]):
            raise UsageError(
                f"pattern {text!r} is not 'unstructured', N:M with 1 <= N < M, or *:M",
                hint="2:4 keeps 2 weights of every 4 consecutive inputs",
            )
        return cls(int(match[1]), int(match[2]))

    @property
    def sparsity(self) -> float | None:
        """The fraction of zeros that the pattern implies; None when any fraction is possible."""
        return None if self.group is None or self.kept is None else 1 - self.kept / self.group

    def __str__(self) -> str:
        return "unstructured" if self.group is None else f"{self.kept or '*'}:{self.group}"


class Frozen(BaseModel):
    """A pydantic model that cannot change and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Action(Frozen):
    """One thing that is done to one place of a model.

    A kind of action is a subclass whose `kind` is a literal of its own, registered under that name in the entry-point
    group `prunekit.actions`. The method that planned it edits the weights; what the kind itself knows, for all its
    actions in one plan, is what else follows: `applied`, `exported`, `problems`, `removed`, `summary`.
    """

    kind: Any  # a literal of its own in every subclass

    @property
    def place(self) -> str:
        """What the action is done to; a plan has one action of a kind per place."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it is done to")

    @classmethod
    def applied(cls, model: "PrunableModel", actions: Sequence[Any]) -> "PrunableModel":
        """The model as the actions shape it, before any weight is edited: without some blocks, for example."""
        return model

    @classmethod
    def exported(cls, model: "PrunableModel", actions: Sequence[Any], changes: "FolderChanges") -> "FolderChanges":
        """What changes in the written folder beyond the tensors' values, added to what other kinds change."""
        return changes

    @classmethod
    def problems(cls, model: "PreTrainedModel", actions: Sequence[Any]) -> Sequence[str]:
        """What is not as planned in the exported model, which a fresh process has loaded; empty if all is well."""
        return ()

    @classmethod
    def removed(cls, model: "PrunableModel", actions: Sequence[Any]) -> float:
        """The fraction of the decoder blocks' weights that the actions remove or zero."""
        return 0.0

    @classmethod
    def summary(cls, actions: Sequence[Any]) -> str:
        """A note for the user and the manifest; empty if the result is told elsewhere."""
        return ""


@cache
def action_class(kind: str) -> type[Action]:
    """The class of a kind of action; raises ValueError if no installed package brings it."""
    for entry in entry_points(group=ACTIONS, name=kind):
        return entry.load()
    known = ", ".join(sorted(entry.name for entry in entry_points(group=ACTIONS)))
    raise ValueError(f"actions of kind {kind!r} come with a plug-in that is not installed; known are {known}")


def _read_action(value: Any) -> Any:
    """An action from what JSON says of it, as the class of its kind."""
    if not isinstance(value, Mapping):
        return value
    try:
        return action_class(str(value.get("kind"))).model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problem = {"where": where, "problem": first["msg"].removeprefix("Value error, ")}
        raise PydanticCustomError("action", "{where}: {problem}", problem) from error


class PrunePlan(Frozen):
    """What will be done to one model: a list of actions, and everything needed to do it again.

    `digest` is that of the actions as they were planned, so that a plan which was edited since is known as such.
    `evidence` is what method and allocator decided from, for people and reports: `importance` holds a number per block,
    `spectra` what `prunekit.spectra.spectrum.sketch` made of them, and the rest is their own. `recipe` is the run's
    recipe and `source` the identity of the model (`{file name: sha256}`); both are filled in by the pipeline, so that
    `prunekit apply` can refuse a plan made for another model.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    method: str
    ratio: float = Field(gt=0, lt=1)
    actions: tuple[Annotated[SerializeAsAny[Action], BeforeValidator(_read_action)], ...]
    notes: tuple[str, ...] = ()
    digest: str | None = None
    evidence: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    source: dict[str, str] = {}

    @model_validator(mode="after")
    def _one_action_per_place(self) -> Self:
        for (_, place), times in Counter((action.kind, action.place) for action in self.actions).items():
            if times > 1:
                raise ValueError(f"{place} has {times} actions; expected one")
        if both := sorted(set(self.removed_blocks()) & self.widths().keys()):
            raise ValueError(f"block {both[0]} is removed and narrowed; expected one of them")
        return self

    def kinds(self) -> dict[type[Action], list[Any]]:
        """The actions by their kind, in the order in which the kinds first occur."""
        found: dict[type[Action], list[Any]] = {}
        for action in self.actions:
            found.setdefault(type(action), []).append(action)
        return found

    def of(self, kind: str) -> list[Any]:
        """The actions of one kind."""
        return [action for action in self.actions if action.kind == kind]

    def sparsify(self) -> "dict[str, Sparsify]":
        """Linear path -> what is done to its weights."""
        return {action.linear: action for action in self.of("sparsify")}

    def removed_blocks(self) -> tuple[int, ...]:
        """Source indices of the removed blocks, ascending."""
        return tuple(sorted(action.block for action in self.of("remove_block")))

    def widths(self) -> dict[int, int]:
        """Source index of a block -> how many neurons stay there."""
        return {action.block: action.units for action in self.of("narrow")}

    def applied_to(self, model: "PrunableModel") -> "PrunableModel":
        """The model as the plan shapes it, before any weight is edited."""
        for kind, actions in self.kinds().items():
            model = kind.applied(model, actions)
        return model

    def fingerprint(self) -> str:
        """sha256 of the actions."""
        actions = [action.model_dump(mode="json") for action in self.actions]
        return hashlib.sha256(json.dumps(actions, sort_keys=True).encode()).hexdigest()

    @property
    def edited(self) -> bool:
        """Whether the actions are others than those that were planned."""
        return self.digest is not None and self.digest != self.fingerprint()

    def to_json(self) -> str:
        """The plan as indented JSON with a final newline; stable from run to run."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, *, name: str = "the plan") -> Self:
        """Read a plan, or the manifest that holds one; raises InputError naming the first thing that is wrong."""
        try:
            content = json.loads(text)
        except ValueError as error:
            raise InputError(f"{name} is not a prunekit plan: {error}", hint=HINT) from error
        try:
            return cls.model_validate_json(json.dumps(content["plan"]) if _holds_a_plan(content) else text)
        except ValidationError as error:
            first = error.errors()[0]
            inside = first.get("ctx", {}) if first["type"] == "action" else {}
            where = ".".join(str(part) for part in (*first["loc"], *filter(None, [inside.get("where")]))) or "top level"
            problem = inside.get("problem") or first["msg"].removeprefix("Value error, ")
            raise InputError(f"{name} is not a prunekit plan: {where}: {problem}", hint=HINT) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan file; raises InputError when it is missing or not a plan."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"), name=str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the plan {path}: {error}", hint=HINT) from error


def _holds_a_plan(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("plan"), dict)
