"""The decision as data: which places of a model get what, and why; it can be read, saved and applied later.

A plan never holds masks: which weights go in block i depends on the blocks before it being pruned already.
"""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prunekit.errors import InputError, UsageError

Part = Literal["mlp"]
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


class Sparsify(Frozen):
    """Zero a fraction of the weights of one linear."""

    kind: Literal["sparsify"] = "sparsify"
    linear: str = Field(description="Full path of the linear, e.g. model.layers.3.mlp.down_proj.")
    sparsity: float = Field(ge=0, lt=1, description="Fraction of its weights to set to zero.")
    pattern: str = Field(default="unstructured", description="unstructured or N:M.")

    @property
    def place(self) -> str:
        """What the action is done to."""
        return self.linear

    @field_validator("pattern")
    @classmethod
    def _known_pattern(cls, text: str) -> str:
        try:
            found = Pattern.parse(text)
            if found.group and not found.kept:
                raise UsageError(f"pattern {text!r} does not say how many weights this linear keeps")
            return str(found)
        except UsageError as error:
            raise ValueError(error.message) from error


class RemoveBlock(Frozen):
    """Take one decoder block out of the model."""

    kind: Literal["remove_block"] = "remove_block"
    block: int = Field(ge=0, description="Index of the block in the source model.")

    @property
    def place(self) -> str:
        """What the action is done to."""
        return f"block {self.block}"


class Narrow(Frozen):
    """Leave fewer units in one part of a block; which ones is found while the plan is applied."""

    kind: Literal["narrow"] = "narrow"
    block: int = Field(ge=0, description="Index of the block in the source model.")
    part: Part = Field(default="mlp", description="mlp: the feed-forward layer, whose units are neurons.")
    units: int = Field(ge=1, description="How many stay.")

    @property
    def place(self) -> str:
        """What the action is done to."""
        return f"the {self.part} of block {self.block}"


KINDS = ("sparsify", "remove_block", "narrow")
Action = Annotated[Sparsify | RemoveBlock | Narrow, Field(discriminator="kind")]


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
    actions: tuple[Action, ...]
    notes: tuple[str, ...] = ()
    digest: str | None = None
    evidence: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    source: dict[str, str] = {}

    @model_validator(mode="after")
    def _one_action_per_place(self) -> Self:
        for place, times in Counter(action.place for action in self.actions).items():
            if times > 1:
                raise ValueError(f"{place} has {times} actions; expected one")
        if both := sorted(set(self.removed_blocks()) & self.widths().keys()):
            raise ValueError(f"block {both[0]} is removed and narrowed; expected one of them")
        return self

    def sparsify(self) -> dict[str, Sparsify]:
        """Linear path -> what to do with it."""
        return {action.linear: action for action in self.actions if isinstance(action, Sparsify)}

    def removed_blocks(self) -> tuple[int, ...]:
        """Source indices of the blocks that go, ascending."""
        return tuple(sorted(action.block for action in self.actions if isinstance(action, RemoveBlock)))

    def widths(self) -> dict[int, int]:
        """Source index of a block -> how many neurons stay there."""
        return {action.block: action.units for action in self.actions if isinstance(action, Narrow)}

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
            where = ".".join(str(part) for part in first["loc"] if part not in KINDS) or "top level"
            problem = first["msg"].removeprefix("Value error, ")
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
