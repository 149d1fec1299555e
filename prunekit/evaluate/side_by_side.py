"""Models side by side: everything is found first, then perplexity, tasks and speed are measured, then the gates judged.

The result is described in `evaluate.rows`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from prunekit.errors import InputError
from prunekit.evaluate.agreement import Baseline, measure
from prunekit.evaluate.compiling import refuse_without_compiler
from prunekit.evaluate.perplexity import Protocol, Windows, cut, find_protocol, read_text
from prunekit.evaluate.results_cache import Label, ResultsCache
from prunekit.evaluate.rows import Accuracy, Count, Evaluation, Perplexity, Row, Size, Speed, compared
from prunekit.evaluate.speed import Place, SpeedOptions
from prunekit.evaluate.tasks import TaskOptions, Tasks
from prunekit.evaluate.timing import Sessions, Subject
from prunekit.evaluate.verdicts import judge
from prunekit.export.manifest import MANIFEST, Manifest
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.device import choose_device, choose_dtype, computed_on
from prunekit.model.hub import locate
from prunekit.model.loading import Opening
from prunekit.model.skeleton import load_config
from prunekit.progress import Progress, Silent
from prunekit.recipe import settings
from prunekit.recipe.limits import Gates, Measured, refuse_unmeasurable
from prunekit.text.calibration import check_vocabulary, default_source
from prunekit.text.datasets import NAMED
from prunekit.text.sources import Text

NO_SET = "none"  # as a set: no perplexity
HOW = {"perplexity": "--ppl SET", "baseline": "--baseline DENSE", "tasks": "--tasks NAME", "speed": "--speed"}


@dataclass(frozen=True)
class Candidate:
    """One model of an evaluation, found, with the windows that it will read; no weight is read yet."""

    spec: str
    is_baseline: bool
    checkpoint: Checkpoint
    windows: tuple[Windows, ...]


@dataclass(frozen=True)
class Opener:
    """How the models of an evaluation are opened and where they compute, who listens, and what is kept of them."""

    opening: Opening
    device: torch.device
    progress: Progress
    results: ResultsCache

    def place(self, one: Candidate) -> Place:
        """Where a model computes when it is loaded whole."""
        dtype = choose_dtype(self.opening.dtype, self.device, one.checkpoint)
        return Place(self.device, dtype, self.opening.trust_remote_code)


@dataclass(frozen=True)
class Texts:
    """What perplexity is measured on, and how the texts are cut; no set means the model's own, `none` means none."""

    sets: Sequence[str] = ()
    protocol: str = "sparsegpt"
    column: str | None = None
    windows: int | None = None


@dataclass(frozen=True)
class Questions:
    """What is asked of models, how they are opened, and where hidden states wait (`memory` or `disk`)."""

    texts: Texts | None = None
    tasks: TaskOptions | None = None
    speed: SpeedOptions | None = None
    gates: Gates = field(default_factory=Gates)
    opening: Opening = field(default_factory=Opening)
    offload: str = "memory"

    @property
    def asked(self) -> bool:
        """Whether anything is."""
        return bool(self.texts or self.tasks or self.speed)


def evaluate(
    models: Sequence[str],
    questions: Questions | None = None,
    *,
    baseline: str | None = None,
    progress: Progress | None = None,
    results: ResultsCache | None = None,
) -> Evaluation:
    """One row per model, the baseline first, and the verdict on every gate.

    All models, texts and tasks are found before anything is measured; raises UsageError for a gate that cannot be
    measured by what is asked for. Ratios and divergences are null where a model reads a text as other tokens than the
    baseline does. With `offload` disk, hidden states wait in the system's folder for temporary files. A baseline that
    is the only model is measured a second time as a model, so that it is compared with itself.
    """
    questions = questions or Questions()
    opening, speed = questions.opening, questions.speed
    settings.compute(device=opening.device, dtype=opening.dtype, offload=questions.offload)
    opener = Opener(opening, choose_device(opening.device), progress or Silent(), results or ResultsCache())
    with TemporaryDirectory(prefix="prunekit-", ignore_cleanup_errors=True) as name:
        place, others = Path(name), [spec for spec in dict.fromkeys(models) if spec != baseline] or list(models[:1])
        specs = [*([(baseline, True)] if baseline else []), *((spec, False) for spec in others)]
        found = _found(specs, others[0], questions, opener)
        if speed:
            speed.refuse_senseless([one.checkpoint for one in found], opening.trust_remote_code)
            if speed.compile:
                refuse_without_compiler(opener.device)
        asked = Tasks.find(questions.tasks, place) if questions.tasks else None
        _refuse_gates(questions, baseline, bool(found[0].windows), asked.names if asked else ())
        hidden = place / "hidden" if questions.offload == "disk" else None
        rows = _measured(found, asked, speed, opener, hidden)
    return Evaluation(models=rows, gates=judge(questions.gates, rows))


def _found(specs: Sequence[tuple[str, bool]], first: str, questions: Questions, opener: Opener) -> list[Candidate]:
    """The models with the windows of every text; refuses gates that cannot be measured before texts are read."""
    texts, offline = questions.texts or Texts(), questions.opening.offline
    sets, cutting = _sets(texts.sets, first, offline), find_protocol(texts.protocol)
    _refuse_gates(questions, specs[0][0] if specs[0][1] else None, bool(sets), None if questions.tasks else ())
    loaded = [read_text(name, column=texts.column, offline=offline, progress=opener.progress) for name in sets]
    return [_find(spec, dense, loaded, cutting, texts.windows, opener) for spec, dense in specs]


def _refuse_gates(questions: Questions, baseline: str | None, texts: bool, tasks: Collection[str] | None) -> None:
    measured = Measured(texts, baseline is not None, texts, tasks, questions.speed is not None, HOW)
    refuse_unmeasurable(questions.gates, measured)


def _measured(
    found: Sequence[Candidate], tasks: Tasks | None, speed: SpeedOptions | None, opener: Opener, hidden: Path | None
) -> tuple[Row, ...]:
    """All figures of all models, with their ratios."""
    figures = _perplexities(found, opener, hidden)
    scores = [_scores(one, tasks, opener) if tasks else () for one in found]
    speeds = _speeds(found, speed, opener) if speed else [None] * len(found)
    rows = [
        Row(
            model=one.spec,
            baseline=one.is_baseline,
            size=size_of(one.checkpoint),
            perplexity=figures[number],
            tasks=scores[number],
            speed=speeds[number],
        )
        for number, one in enumerate(found)
    ]
    return tuple(compared(row, rows[0]) for row in rows) if rows[0].baseline else tuple(rows)


def _scores(one: Candidate, tasks: Tasks, opener: Opener) -> tuple[Accuracy, ...]:
    where = opener.place(one)

    def measure() -> tuple[Accuracy, ...]:
        return tasks.run(
            one.checkpoint.folder,
            device=where.device,
            dtype=where.dtype,
            trust_remote_code=where.trust_remote_code,
            progress=opener.progress,
        )

    depends = {"tasks": tasks.identity, "where": computed_on(where.device, where.dtype)}
    return opener.results.figure(Label("tasks", (one.spec,), depends), tuple[Accuracy, ...], measure)


def _speeds(found: Sequence[Candidate], options: SpeedOptions, opener: Opener) -> list[Speed]:
    """Speed and memory of every model, the baseline's first."""
    subjects = [Subject(one.spec, one.checkpoint, opener.place(one)) for one in found]
    dense = subjects.pop(0) if found[0].is_baseline else None
    return Sessions(dense, options, opener.results, opener.progress).speeds(subjects)


def _sets(asked: Sequence[str], spec: str, offline: bool) -> list[str]:
    """The texts that were asked for, the model's own when none was, or none at all."""
    if list(asked) == [NO_SET]:
        return []
    return list(asked) or [default_set(spec, locate(spec, offline=offline))]


def size_of(checkpoint: Checkpoint) -> Size:
    """What the weight files of a model hold, and how large they are."""
    files = {info.file for info in checkpoint.tensors.values()}
    return Size(
        parameters=Count(value=sum(info.elements for info in checkpoint.tensors.values())),
        stored_bytes=Count(value=sum((checkpoint.folder / file).stat().st_size for file in files)),
    )


def default_set(spec: str, folder: Path) -> str:
    """The set `prunekit eval` takes by default: the named one of the model's manifest, else that of its source."""
    if not (folder / MANIFEST).is_file():
        return default_source(spec)
    known = Manifest.read(folder)
    named = known.perplexity["set"] if known.perplexity else None
    return named if named in {"sample", *NAMED} else default_source(known.source.name)


def _find(
    spec: str, is_baseline: bool, texts: Sequence[Text], protocol: Protocol, limit: int | None, opener: Opener
) -> Candidate:
    """One model, and the windows of every text for it; none of its weights is read."""
    checkpoint = opener.opening.checkpoint(spec)
    if not texts:
        return Candidate(spec, is_baseline, checkpoint, ())
    config = load_config(checkpoint, opener.opening.trust_remote_code)
    tokenizer = opener.opening.tokenizer(checkpoint)
    if tokenizer is None:
        raise InputError(f"{spec} has no tokenizer", hint="copy the tokenizer's files into the folder")
    windows = tuple(cut(text, config, tokenizer, protocol, limit) for text in texts)
    for part in windows:
        check_vocabulary(part.ids, config.get_text_config().vocab_size)
    return Candidate(spec, is_baseline, checkpoint, windows)


def _perplexities(found: Sequence[Candidate], opener: Opener, hidden: Path | None) -> list[tuple[Perplexity, ...]]:
    """For every model its figure on every text; a text at a time, so that the baseline goes through it once."""
    texts = [_on_one_text(found, number, opener, hidden) for number in range(len(found[0].windows))]
    return [tuple(text[number] for text in texts) for number in range(len(found))]


def _on_one_text(found: Sequence[Candidate], number: int, opener: Opener, hidden: Path | None) -> list[Perplexity]:
    """The figures of all models on one text; the baseline's hidden states wait for the others."""
    figures: list[Perplexity] = []
    dense = None
    for one in found:
        model, windows = opener.opening.of(one.checkpoint), one.windows[number]
        if one.is_baseline:
            dense = Baseline(model, windows, opener.progress, hidden and hidden / "baseline")
            figures.append(dense.measure())
            continue
        if dense is not None and not dense.comparable(model, windows):
            opener.progress.note(
                f"{one.spec} reads {windows.set} as other tokens or windows than {found[0].spec}, "
                "so their perplexities cannot be compared"
            )
        figures.append(measure(model, windows, dense, opener.progress, hidden and hidden / "model"))
    return figures
