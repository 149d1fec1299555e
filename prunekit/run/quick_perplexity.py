"""The perplexity that a run measures of its model before and after, on one text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunekit import cache
from prunekit.errors import InputError
from prunekit.evaluate.perplexity import COLUMN, Perplexity, Windows, cut, find_protocol, read_text
from prunekit.files import storage_errors, write_atomically
from prunekit.model.checkpoint import read_json
from prunekit.model.prunable import PrunableModel
from prunekit.run.job import Job
from prunekit.text.calibration import default_source
from prunekit.text.sources import NAMES, evaluation_for
from prunekit.versions import versions


@dataclass
class QuickPerplexity:
    """What a run measures; with `kept`, a folder, the dense model's perplexity is shared with other runs."""

    job: Job
    kept: Path | None = None

    def dense(self, offload: Path | None) -> Perplexity | None:
        """Perplexity of the dense model; None when it is not measured."""
        if self.windows is None:
            return None
        if self.kept is None:
            return self._measured(self.windows, self.job.model, offload, "perplexity before")
        return self._remembered(self.kept, self.windows, offload)

    def pruned(self, model: PrunableModel, offload: Path | None) -> Perplexity | None:
        """Perplexity of the pruned model; None when it is not measured."""
        return None if self.windows is None else self._measured(self.windows, model, offload, "perplexity after")

    def share_dense(self) -> None:
        """Measure the dense model for the runs that share `kept`, unless that was done."""
        if self.windows is not None and self.kept is not None:
            disk = self.job.recipe.compute.offload == "disk"
            self._remembered(self.kept, self.windows, self.kept / "hidden" if disk else None)

    def _measured(self, windows: Windows, model: PrunableModel, offload: Path | None, title: str) -> Perplexity:
        return windows.measure(model, self.job.progress, offload, title)

    def _remembered(self, folder: Path, windows: Windows, offload: Path | None) -> Perplexity:
        """The dense model's perplexity from a file of the folder, which is written if it is missing."""
        model = self.job.model
        depends = {"dtype": str(model.dtype), "device": model.device.type, "versions": versions()}
        ids = [*windows.ids.shape, cache.ids_digest(windows.ids)]
        key = cache.key(source=self.job.source, ids=ids, join=windows.join, **depends)
        path = folder / f"{windows.protocol}-{key[:16]}.json"
        if path.is_file():
            return Perplexity.read(read_json(path))
        measured = self._measured(windows, model, offload, "perplexity before")
        with storage_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(measured.record(), indent=2) + "\n")
        return measured

    @cached_property
    def windows(self) -> Windows | None:
        """What is measured on; None when that is not wanted, or its text cannot be had.

        Raises InputError for the second when the recipe names that text.
        """
        wanted = self.job.recipe.evaluation
        if not wanted.quick or self.job.tokenizer is None:
            return None
        try:
            windows = self._cut()
        except InputError as error:
            if wanted.set is not None:
                raise InputError(error.message, hint=_without_measuring(error.hint)) from error
            cure = "--ppl FILE chooses a text, --no-eval-quick silences this"
            self.job.remark(f"perplexity was not measured: {error.message}; {cure}")
            return None
        if self.on_calibration_text:
            self.job.remark(
                f"perplexity is measured on the calibration text itself, {windows.set}; --ppl chooses another"
            )
        return windows

    def _cut(self) -> Windows:
        job, wanted, name = self.job, self.job.recipe.evaluation, self._text
        assert job.tokenizer is not None
        column = job.recipe.calibration.column if name == job.recipe.calibration.source else None
        text = read_text(name, column=column, offline=job.offline, progress=job.progress)
        return cut(text, job.model.config, job.tokenizer, find_protocol(wanted.protocol), wanted.windows)

    @property
    def _text(self) -> str:
        calibration = self.job.recipe.calibration.source or default_source(self.job.recipe.model or "")
        return self.job.recipe.evaluation.set or evaluation_for(calibration)

    @property
    def on_calibration_text(self) -> bool:
        """Whether it is measured on the calibration text; named texts have another part for it."""
        name = self._text
        return self.job.calibration is not None and name == self.job.recipe.calibration.source and name not in NAMES

    def compared(self, before: Perplexity | None, after: Perplexity | None) -> dict[str, Any] | None:
        """Both perplexities under one description of what was measured."""
        if before is None or after is None:
            return None
        first, second = before.record(), after.record()
        shared: Mapping[str, Any] = {key: value for key, value in first.items() if key != "value"}
        return {
            **shared,
            "calibration_text": self.on_calibration_text,
            "before": first["value"],
            "after": second["value"],
        }


def _without_measuring(hint: str | None) -> str:
    """What to do when the text that was asked for cannot be had; only `eval` can name a column."""
    if hint and COLUMN in hint:
        return f"--no-eval-quick here, and then: prunekit eval OUT --ppl FILE {COLUMN} NAME"
    return "; ".join(filter(None, (hint, "--no-eval-quick leaves the measurement out")))
