"""Documents from the hub: the named sets, each pinned to a commit, and any other data set by `hf:`."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from prunekit.errors import InputError, ResourceError, UsageError
from prunekit.progress import Progress
from prunekit.text.local import ArrowDocuments, choose_column

Split = Literal["calibration", "evaluation"]
Sampling = Literal["stream", "documents"]

COMMIT = re.compile(r"[0-9a-f]{40}")
FORM = "hf:REPO[@REVISION][:CONFIG]:SPLIT:COLUMN"
PARAGRAPH = "\n\n"
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(frozen=True)
class Part:
    """One file of a data set, and how it is read: the first `documents` of it, joined by `separator`."""

    file: str
    split: str
    separator: str
    sampling: Sampling = "stream"
    documents: int | None = None
    max_windows: int | None = None


@dataclass(frozen=True)
class NamedSet:
    """A data set on the hub at one commit, and its parts for the two uses."""

    repo: str
    revision: str
    column: str
    calibration: Part
    evaluation: Part | None = None

    def identity(self, part: Part, column: str | None) -> str:
        """What decides the text: the same identity means the same documents, joined in the same way."""
        where = f"{self.repo}@{self.revision}/{part.file}#{column or self.column}"
        return f"{where} {part.sampling} {part.separator!r}"


# Splits and separators as in the SparseGPT and Wanda code.
NAMED = {
    "wikitext2": NamedSet(
        "Salesforce/wikitext",
        "b08601e04326c79dfdd32d625aee71d232d685c3",
        "text",
        Part("wikitext-2-raw-v1/train-00000-of-00001.parquet", "train", " "),
        Part("wikitext-2-raw-v1/test-00000-of-00001.parquet", "test", PARAGRAPH),
    ),
    "c4": NamedSet(
        "allenai/c4",
        "1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        "text",
        Part("en/c4-train.00000-of-01024.json.gz", "train", PARAGRAPH, "documents"),
        Part("en/c4-validation.00000-of-00008.json.gz", "validation", " ", documents=1100, max_windows=256),
    ),
    "ptb": NamedSet(
        "ptb-text-only/ptb_text_only",  # a commit of its refs/convert/parquet: the main branch is a script
        "6003d540889b95fc8c8403a3f04619f3b943fc8d",
        "sentence",
        Part("penn_treebank/train/0000.parquet", "train", " "),
        Part("penn_treebank/test/0000.parquet", "test", " "),
    ),
    "alpaca": NamedSet(
        "tatsu-lab/alpaca",
        "dce01c9b08f87459cf36a430d809084718273017",
        "text",
        Part("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet", "train", PARAGRAPH, "documents"),
    ),
    "pile": NamedSet(
        "NeelNanda/pile-10k",
        "127bfedcd5047750df5ccf3a12979a47bfa0bafa",
        "text",
        Part("data/train-00000-of-00001-4746b8785c874cc7.parquet", "train", PARAGRAPH, "documents"),
    ),
}


def part_of(name: str, split: Split) -> Part:
    """The part of a named set for a use; raises UsageError when it has none held out for evaluation."""
    part = NAMED[name].calibration if split == "calibration" else NAMED[name].evaluation
    if part is None:
        able = [each for each, named in NAMED.items() if named.evaluation]
        raise UsageError(
            f"{name} has no part held out for evaluation; it is for calibration only",
            hint=f"evaluate on {' '.join(able)} sample or a file",
        )
    return part


def read_named(name: str, part: Part, column: str | None, offline: bool, progress: Progress) -> ArrowDocuments:
    """The documents of a part of a named set, memory-mapped; raises InputError when they cannot be had."""
    named = NAMED[name]
    with _library(name, offline) as datasets:
        file = _fetch(named, part.file, offline, progress)
        builder = "parquet" if part.file.endswith(".parquet") else "json"
        rows = datasets.load_dataset(builder, data_files=str(file), split="train")
    return _documents(rows, column or named.column, name)


def _fetch(named: NamedSet, file: str, offline: bool, progress: Progress) -> str:
    """One file at one commit, from the hub's cache or the hub.

    Not `load_dataset(repo, revision=...)`: offline it takes whatever commit it has in its cache, and it does
    not find what it loaded by `data_files` (huggingface/datasets issue 6837).
    """
    import huggingface_hub

    pin: dict[str, Any] = {"repo_type": "dataset", "revision": named.revision}
    cached = huggingface_hub.try_to_load_from_cache(named.repo, file, **pin)
    if not offline and not isinstance(cached, str):
        progress.note(f"downloading {file} of {named.repo}")
    return huggingface_hub.hf_hub_download(named.repo, file, local_files_only=offline, **pin)


@dataclass(frozen=True)
class HubSpec:
    """`hf:REPO[@REVISION][:CONFIG]:SPLIT:COLUMN`, taken apart."""

    repo: str
    revision: str | None
    config: str | None
    split: str
    column: str

    @classmethod
    def parse(cls, source: str) -> Self:
        """Take a source apart; colons in brackets (`train[:1000]`) belong to the split. Raises UsageError."""
        parts = re.split(r":(?![^\[\]]*\])", source.removeprefix("hf:"))
        repo, _, revision = parts[0].partition("@")
        if len(parts) not in (3, 4) or not all([*parts, repo]):
            raise UsageError(f"{source} is not {FORM}", hint="for example hf:roneneldan/TinyStories:train:text")
        return cls(repo, revision or None, parts[1] if len(parts) == 4 else None, parts[-2], parts[-1])

    def identity(self, column: str | None) -> str | None:
        """What decides the text, when the revision is a commit; None otherwise."""
        if not self.revision or not COMMIT.fullmatch(self.revision):
            return None
        return f"{self.repo}@{self.revision}:{self.config}:{self.split}#{column or self.column}"


def read_hub(spec: HubSpec, column: str | None, offline: bool) -> tuple[ArrowDocuments, str | None]:
    """The documents of a data set and the revision they were read at, a commit where it can be told.

    Raises InputError when they cannot be had, or when the cache has another commit than the one asked for.
    """
    with _library(spec.repo, offline) as datasets:
        rows = datasets.load_dataset(spec.repo, spec.config, split=spec.split, revision=spec.revision)
    found = _commit_of(rows)
    if found and spec.identity(column) and found != spec.revision:
        raise InputError(
            f"the cache on this machine holds {spec.repo} at commit {found}, not {spec.revision}",
            hint="run once where the hub can be reached, or name the cached commit",
        )
    return _documents(rows, column or spec.column, spec.repo), found or spec.revision


def _documents(rows: Any, column: str, name: str) -> ArrowDocuments:
    kinds = {key: getattr(kind, "dtype", None) in ("string", "large_string") for key, kind in rows.features.items()}
    return ArrowDocuments(rows[choose_column(column, kinds, name)])


def _commit_of(rows: Any) -> str | None:
    """The commit a data set was read at: `datasets` names its cache folder after it."""
    files = [Path(file["filename"]) for file in rows.cache_files]
    return next((part for file in files[:1] for part in reversed(file.parts) if COMMIT.fullmatch(part)), None)


@contextmanager
def _library(name: str, offline: bool) -> Iterator[Any]:
    """The `datasets` module, silent and offline if asked to; what goes wrong inside becomes an InputError."""
    import datasets.config
    import huggingface_hub.utils

    was_offline = datasets.config.HF_HUB_OFFLINE
    try:
        datasets.config.HF_HUB_OFFLINE = was_offline or offline
        with _silence(datasets), _silence(huggingface_hub.utils):
            yield datasets
    except Exception as error:
        raise _trouble(name, error) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


@contextmanager
def _silence(library: Any) -> Iterator[None]:
    """No progress bars and no warnings (of retries, say) from one of the two libraries."""
    bars, verbosity = not library.are_progress_bars_disabled(), library.logging.get_verbosity()
    library.disable_progress_bars()
    library.logging.set_verbosity_error()
    try:
        yield
    finally:
        library.logging.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bars()


def _trouble(name: str, error: Exception) -> InputError | ResourceError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return ResourceError(f"the disk is full while fetching {name}", hint="free some, or move HF_HOME")
        cause = cause.__cause__ or cause.__context__
    return InputError(
        f"cannot get the data set {name}: {_reason(error)}",
        hint="run once where the hub can be reached, or give a local text: --calib FILE, --ppl FILE",
    )


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, ConnectionError | LocalEntryNotFoundError):
        return "it is not in the cache on this machine, and the hub is out of reach"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
