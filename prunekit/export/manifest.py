"""The manifest, `prunekit.json`: what was done, to what, with what, and what came out of it.

It holds no time, no host and no path of the machine, so the same run on the same machine writes the same
bytes, interrupted or not.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from prunekit import __version__
from prunekit.errors import InputError
from prunekit.files import MANIFEST, write_atomically
from prunekit.plan import Frozen, PrunePlan
from prunekit.recipe.command import portable
from prunekit.versions import libraries

SCHEMA_VERSION = 2  # 1, of prunekit 0.1, has no stages


class Source(Frozen):
    """The model that was pruned."""

    name: str = Field(description="`sample`, a hub id, or the name of a local folder without the path to it.")
    kind: Literal["sample", "hub", "folder"]
    revision: str | None = Field(default=None, description="Commit or revision of a hub model.")
    files: dict[str, str] = Field(description="sha256 of config.json and of every weight file.")

    @classmethod
    def of(cls, spec: str, folder: Path, files: Mapping[str, str]) -> Self:
        """The source as the user named it, found in `folder`, with the fingerprint of its files."""
        if spec == "sample":
            return cls(name=spec, kind="sample", files=dict(files))
        if Path(spec).exists():
            return cls(name=Path(spec).resolve().name, kind="folder", files=dict(files))
        name, _, asked = spec.partition("@")
        commit = folder.name if folder.parent.name == "snapshots" else None  # in the hub's cache
        return cls(name=name, kind="hub", revision=commit or asked or None, files=dict(files))

    @property
    def spec(self) -> str:
        """What to type to get this model again."""
        return f"{self.name}@{self.revision}" if self.revision else self.name


class LinearResult(Frozen):
    """One linear of the result."""

    weights: int
    zeros: int
    sparsity: float


class Counted(Frozen):
    """What the written weights are, counted."""

    parameters: int = Field(description="All numbers in the weight files.")
    parameters_before: int = Field(description="The same of the source.")
    blocks: int = Field(description="Decoder blocks that are left.")
    removed_blocks: tuple[int, ...] = Field(default=(), description="Removed blocks, by their index in the source.")
    widths: tuple[int, ...] = Field(
        default=(), description="Neurons of every block that is left, if some were removed; else empty."
    )
    weights: int = Field(description="Weights in the linears of the decoder blocks, or of those that were chosen.")
    zeros: int = Field(description="How many of those weights are zero.")
    sparsity: float = Field(description="zeros / weights.")

    def counts(self) -> dict[str, Any]:
        """These numbers by name."""
        return {name: getattr(self, name) for name in Counted.model_fields}


class Result(Counted):
    """The same, also for each linear."""

    linears: dict[str, LinearResult] = Field(description="Weights, zeros and sparsity by full path.")


class StageRecord(Frozen):
    """One stage of a run: which plug-in edited the weights, with which options, and what there was to remark."""

    kind: Literal["prune", "recover"]
    name: str = Field(description="Name of the plug-in.")
    options: dict[str, Any] = Field(default={}, description="Its options, as far as they were given.")
    notes: tuple[str, ...] = Field(default=(), description="What the stage had to remark.")


class Manifest(Frozen):
    """Everything that `prunekit.json` holds; docs/export.md explains each field."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    prunekit: str = Field(default=__version__, description="Version of prunekit.")
    versions: dict[str, str] = Field(description="Versions of the libraries that computed and wrote the weights.")
    plug_ins: dict[str, str] = Field(default={}, description="Method and allocator -> distribution and its version.")
    computed: dict[str, str | int] = Field(
        default={}, description="What rounding depends on beside the versions: device, dtype, threads, processes."
    )
    source: Source
    recipe: dict[str, Any] = Field(description="Every setting of the run, defaults included.")
    plan: PrunePlan = Field(description="What was decided, place by place.")
    calibration: dict[str, Any] | None = Field(default=None, description="The calibration set, if one was used.")
    stages: tuple[StageRecord, ...] = Field(default=(), description="What edited the weights, one after the other.")
    result: Result
    perplexity: dict[str, Any] | None = Field(
        default=None, description="Quick perplexity before and after, with its protocol."
    )
    notes: tuple[str, ...] = Field(default=(), description="What the run had to remark.")
    logit_tolerance: float | None = Field(
        default=None,
        description="Largest difference of logits, relative to the largest logit, that verification allowed.",
    )

    @classmethod
    def of(cls, *, source: Source, recipe: Mapping[str, Any], plan: PrunePlan, **rest: Any) -> Self:
        """A manifest with the installed versions and without machine paths; `rest` fills the other fields."""
        settings: dict[str, Any] = portable(dict(recipe)) | {"model": source.spec}
        plan = plan.model_copy(update={"recipe": settings})
        kept = {key: portable(value) if isinstance(value, dict) else value for key, value in rest.items()}
        return cls(
            versions=libraries(),
            source=source,
            recipe=settings,
            plan=plan,
            **kept,
        )

    def to_json(self) -> str:
        """Indented JSON with sorted keys and a final newline."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"

    def write(self, folder: Path) -> None:
        """Write `prunekit.json` into a model folder."""
        write_atomically(folder / MANIFEST, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a model folder; raises InputError when it is missing or not one."""
        path = folder / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
            _refuse_newer(text, path)
            return cls.model_validate_json(text)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path}: {error}", hint="give a folder that prunekit wrote") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "top level"
            raise InputError(f"{path} is not a prunekit manifest: {where}: {first['msg']}") from error


def _refuse_newer(text: str, path: Path) -> None:
    """Raise InputError for a manifest of a version that came after this one."""
    found = re.search(r'^  "schema_version": (\d+)', text, re.MULTILINE)
    if found and int(found[1]) > SCHEMA_VERSION:
        raise InputError(
            f"{path} was written by a newer prunekit: its schema is {found[1]}, and this one reads {SCHEMA_VERSION}",
            hint="pip install --upgrade prunekit",
        )


def changes(first: Any, second: Any, path: str = "") -> dict[str, str]:
    """Dotted path of every leaf in which two records differ -> `new, was old`; a list counts as a leaf."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted(first.keys() | second.keys())
        parts = [changes(first.get(key), second.get(key), f"{path}.{key}".lstrip(".")) for key in keys]
        return {name: change for part in parts for name, change in part.items()}
    return {} if first == second else {path: f"{_short(second)}, was {_short(first)}"}


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"
