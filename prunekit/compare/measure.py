"""Runs measured anew beside the dense models they came from: by counting, and, where that is asked for, by evaluation.

What is measured of one run is kept in a folder, if there is one, and not measured again, whatever other runs there are.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import Field

from prunekit import cache
from prunekit.errors import UsageError
from prunekit.evaluate.results_cache import ResultsCache
from prunekit.evaluate.rows import Row
from prunekit.evaluate.side_by_side import NO_SET, Questions, Texts, evaluate
from prunekit.evaluate.tasks import Tasks
from prunekit.evaluate.timing import flops_of
from prunekit.export.manifest import MANIFEST, Manifest
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.hub import locate
from prunekit.model.loading import Opening
from prunekit.plan import Frozen
from prunekit.progress import Progress, Silent
from prunekit.versions import versions

TOKENS = 128  # of the prompt whose operations are counted


def refuse_senseless(questions: Questions, dense: Iterable[str]) -> None:
    """Raise what would be raised of runs of these dense models once they are measured; a sweep asks before them.

    UsageError for several models, an unknown task, or a text too long for the model; InputError for data that
    cannot be had.
    """
    checkpoint = questions.opening.checkpoint(the_one(dense))
    if questions.speed:
        questions.speed.refuse_senseless([checkpoint], questions.opening.trust_remote_code)
    if questions.tasks:
        with TemporaryDirectory(prefix="prunekit-") as place:
            Tasks.find(questions.tasks, Path(place))


class Answers(Frozen):
    """What was measured: a row per run by its name, and that of the dense model; and the work that is only counted."""

    rows: dict[str, Row] = Field(default_factory=dict)
    baseline: Row | None = None
    work: dict[str, float] = Field(default_factory=dict, description="FLOPs per token, divided by the dense model's.")


@dataclass
class Measurement:
    """Runs by name, the dense model of each as it is called here, and where answers are kept."""

    folders: Mapping[str, Path]
    dense: Mapping[str, str]
    keep: Path | None = None
    progress: Progress = field(default_factory=Silent)

    def answers(self, questions: Questions, *, count: bool) -> Answers:
        """Everything that is asked, with the counted work if it is wanted; from what was kept where it fits."""
        if not self.folders:
            return Answers()
        found = self._measured(questions) if questions.asked else Answers()
        work = self._work(questions.opening) if count else {}
        return found.model_copy(update={"work": work})

    @cached_property
    def _results(self) -> ResultsCache:
        """Where figures are kept. A run is known by its manifest, its dense model by the hashes in there."""
        if self.keep is None:
            return ResultsCache()
        models: dict[str, str] = {}
        for name, folder in self.folders.items():
            models[str(folder)] = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
            models[self.dense[name]] = cache.key(files=dict(Manifest.read(folder).source.files))
        return ResultsCache(self.keep, models, versions())

    def _measured(self, questions: Questions) -> Answers:
        """The rows of all runs, beside their one dense model; raises UsageError where there are several."""
        dense = the_one(self.dense.values())
        names = {str(folder): name for name, folder in self.folders.items()}
        asked = replace(questions, texts=questions.texts or Texts((NO_SET,)))
        rows = evaluate(list(names), asked, baseline=dense, progress=self.progress, results=self._results).models
        named = {
            names[row.model]: row.model_copy(update={"model": names[row.model]}) for row in rows if not row.baseline
        }
        return Answers(rows=named, baseline=next(row for row in rows if row.baseline))

    def _work(self, opening: Opening) -> dict[str, float]:
        """FLOPs per token of each run, divided by its dense model's; left out where they cannot be counted."""

        def flops(spec: str, folder: Path) -> int | None:
            return flops_of(spec, Checkpoint.open(folder), TOKENS, opening.trust_remote_code, self._results)

        dense = {spec: flops(spec, locate(spec, offline=opening.offline)) for spec in set(self.dense.values())}
        found: dict[str, float] = {}
        for name, folder in self.folders.items():
            before = dense[self.dense[name]]
            after = flops(str(folder), folder) if before else None
            if before and after:
                found[name] = after / before
        return found


def the_one(dense: Iterable[str]) -> str:
    """The one dense model of all runs, beside which they are measured; raises UsageError where there are several."""
    if len(several := sorted(set(dense))) > 1:
        raise UsageError(
            f"runs that pruned {len(several)} models, {', '.join(several)}, cannot be measured beside one",
            hint="measure those of one model at a time; prunekit compare takes --baseline",
        )
    return several[0]


def dense_of(folders: Mapping[str, Path], baseline: str | None) -> dict[str, str]:
    """The dense model of each run: the named one, else that of its manifest.

    Raises UsageError for a local model, of which a manifest keeps only the name.
    """
    if baseline:
        return dict.fromkeys(folders, baseline)
    found: dict[str, str] = {}
    for name, folder in folders.items():
        source = Manifest.read(folder).source
        if source.kind == "folder" and not Path(source.name).is_dir():
            raise UsageError(
                f"{name} was made from the local model {source.name}, whose place its manifest does not keep",
                hint=f"--baseline PATH/TO/{source.name}",
            )
        found[name] = source.spec
    return found
