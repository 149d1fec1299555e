"""Figures that take long to measure, kept in a folder as JSON: each under a hash of what decides it."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prunekit import cache
from prunekit.files import storage_errors, write_atomically


@dataclass(frozen=True)
class Label:
    """What decides a figure: its kind, the models that it is of, and whatever else."""

    kind: str
    models: tuple[str, ...]
    depends: Mapping[str, object]


@dataclass(frozen=True)
class ResultsCache:
    """A folder of figures, none by default; `models` says by a hash what stands under the name of a model.

    `versions` are those of the libraries, on which every figure depends.
    """

    folder: Path | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def holds(self, label: Label) -> bool:
        """Whether the figure was kept."""
        path = self._path(label)
        return path is not None and path.is_file()

    def figure(self, label: Label, form: Any, measure: Callable[[], Any]) -> Any:
        """A figure of type `form`, from its file or else as it is measured now; None, a failure, is not kept."""
        path, adapter = self._path(label), TypeAdapter[Any](form)
        if path and path.is_file():
            with suppress(ValidationError):  # a damaged file counts as absent
                return adapter.validate_json(path.read_bytes())
        found = measure()
        if path and found is not None:
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, adapter.dump_json(found, indent=2).decode() + "\n")
        return found

    def _path(self, label: Label) -> Path | None:
        if self.folder is None:
            return None
        models = [self.models[name] for name in label.models]
        key = cache.key(models=models, depends=dict(label.depends), versions=dict(self.versions))
        return self.folder / f"{label.kind}-{key[:16]}.json"
