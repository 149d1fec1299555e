"""Models side by side: everything is found first, then perplexity, tasks and speed are measured, then the gates judged.

The result is described in `evaluate.rows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase

from prunekit import settings
from prunekit.calibration import check_vocabulary, default_source
from prunekit.checkpoint import Checkpoint
from prunekit.compute import choose_device
from prunekit.errors import InputError
from prunekit.evaluate.agreement import Baseline, measure
from prunekit.evaluate.gates import Gates, Measured, refuse_unmeasurable
from prunekit.evaluate.perplexity import Protocol, Windows, cut, find_protocol, read_text
from prunekit.evaluate.rows import Count, Evaluation, Perplexity, Row, Size, compared
from prunekit.evaluate.verdicts import judge
from prunekit.job import load_tokenizer, open_model
from prunekit.locate import locate
from prunekit.manifest import MANIFEST, Manifest
from prunekit.model import PrunableModel
from prunekit.progress import Progress, Silent
from prunekit.recipe import ComputeRecipe
from prunekit.skeleton import load_config
from prunekit.text_hub import NAMED
from prunekit.texts import Text

NO_SET = "none"  # as a set: no perplexity
HOW = {"perplexity": "--ppl SET", "baseline": "--baseline DENSE", "tasks": "--tasks NAME", "speed": "--speed"}


@dataclass(frozen=True)
class Candidate:
    """One model of an evaluation, found, with the windows that it will read; no weight is read yet."""

    spec: str
    is_baseline: bool
    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase | None
    windows: tuple[Windows, ...]


def evaluate(
    models: Sequence[str],
    *,
    baseline: str | None = None,
    sets: Sequence[str] = (),
    protocol: str = "sparsegpt",
    column: str | None = None,
    windows: int | None = None,
    gates: Gates | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offload: str = "memory",
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """One row per model, the baseline first, and the verdict on every gate.

    All models and texts are found before the first is measured; raises UsageError for a gate that cannot be measured
    by what is asked for. Ratios and divergences are null where a model reads a text as other tokens than the baseline
    does. With `offload` disk, hidden states wait in the system's folder for temporary files. A baseline that is alone,
    or the only model, is measured a second time as a model, so that it is compared with itself.
    """
    compute, cutting = settings.compute(device=device, dtype=dtype, offload=offload), find_protocol(protocol)
    choose_device(compute.device)
    progress, gates = progress or Silent(), gates or Gates()
    others = [spec for spec in dict.fromkeys(models) if spec != baseline] or list(models[:1])
    wanted = _sets(sets, others[0], offline)
    refuse_unmeasurable(gates, Measured(bool(wanted), baseline is not None, bool(wanted), (), False, HOW))
    texts = [read_text(name, column=column, offline=offline, progress=progress) for name in wanted]
    specs = [(baseline, True)] if baseline else []
    specs += [(spec, False) for spec in others]
    found = [
        _find(spec, first, texts, cutting, windows, offline=offline, trust_remote_code=trust_remote_code)
        for spec, first in specs
    ]
    figures = _perplexities(found, Opener(compute, trust_remote_code, progress))
    rows = [
        Row(model=one.spec, baseline=one.is_baseline, size=size_of(one.checkpoint), perplexity=tuple(figures[number]))
        for number, one in enumerate(found)
    ]
    rows = [compared(row, rows[0]) for row in rows] if baseline else rows
    return Evaluation(models=tuple(rows), gates=judge(gates, rows))


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
    spec: str,
    is_baseline: bool,
    texts: Sequence[Text],
    protocol: Protocol,
    limit: int | None,
    *,
    offline: bool,
    trust_remote_code: bool,
) -> Candidate:
    """One model, and the windows of every text for it; none of its weights is read."""
    checkpoint = Checkpoint.open(locate(spec, offline=offline))
    tokenizer = load_tokenizer(checkpoint, trust_remote_code)
    if not texts:
        return Candidate(spec, is_baseline, checkpoint, tokenizer, ())
    config = load_config(checkpoint, trust_remote_code)
    if tokenizer is None:
        raise InputError(f"{spec} has no tokenizer", hint="copy the tokenizer's files into the folder")
    windows = tuple(cut(text, config, tokenizer, protocol, limit) for text in texts)
    for part in windows:
        check_vocabulary(part.ids, config.get_text_config().vocab_size)
    return Candidate(spec, is_baseline, checkpoint, tokenizer, windows)


@dataclass(frozen=True)
class Opener:
    """How the models of an evaluation are opened, and who listens."""

    compute: ComputeRecipe
    trust_remote_code: bool
    progress: Progress

    def open(self, one: Candidate) -> PrunableModel:
        """The structure of a model, whose weights are read as they are needed."""
        return open_model(str(one.checkpoint.folder), self.compute, True, self.trust_remote_code)[0]


def _perplexities(found: Sequence[Candidate], opener: Opener) -> list[list[Perplexity]]:
    """For every model its figure on every text; a text at a time, so that the baseline goes through it once."""
    with TemporaryDirectory(prefix="prunekit-", ignore_cleanup_errors=True) as place:
        hidden = Path(place) if opener.compute.offload == "disk" else None
        texts = [_on_one_text(found, number, opener, hidden) for number in range(len(found[0].windows))]
    return [[text[number] for text in texts] for number in range(len(found))]


def _on_one_text(found: Sequence[Candidate], number: int, opener: Opener, hidden: Path | None) -> list[Perplexity]:
    """The figures of all models on one text; the baseline's hidden states wait for the others."""
    figures: list[Perplexity] = []
    dense = None
    for one in found:
        model, windows = opener.open(one), one.windows[number]
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
