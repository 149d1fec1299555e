"""Text by name: what `--calib` and `--ppl` accept, turned into documents and the way they are joined.

    wikitext2 c4 ptb alpaca pile                named sets, pinned to one commit of their data set
    sample                                      the standard library's own source, which every Python carries
    hf:REPO[@REVISION][:CONFIG]:SPLIT:COLUMN    any data set on the hub
    FILE, FOLDER, -                             .txt .jsonl .json .parquet, folders of them, standard input

Which text, split and separator each of them means is in `docs/calibration.md` and `docs/perplexity.md`.
"""

import difflib
import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prunekit.errors import InputError
from prunekit.progress import Progress, Silent
from prunekit.text.datasets import FORM, NAMED, PARAGRAPH, HubSpec, Sampling, Split, part_of, read_hub, read_named
from prunekit.text.local import read_documents, read_stdin

NAMES = [*NAMED, "sample"]


@dataclass(frozen=True)
class Text:
    """Documents and how they become tokens.

    `sampling` says whether calibration crops are cut from all documents joined by `separator` (stream), or
    each from one document. `split` is the data set's own name for the part that was read, `max_windows` a
    bound that belongs to its evaluation. `pinned` identifies the text when a commit does; otherwise its
    content does.
    """

    source: str
    revision: str | None
    documents: Sequence[str]
    separator: str = PARAGRAPH
    sampling: Sampling = "documents"
    split: str = "all"
    max_windows: int | None = None
    pinned: str | None = None

    def joined(self) -> str:
        """All documents as one string."""
        return self.separator.join(self.documents)

    def identity(self) -> str:
        """The text's name in a cache: its pinned origin, or a hash of all its documents."""
        if self.pinned:
            return self.pinned
        digest = hashlib.sha256(f"{self.sampling} {self.separator!r}\n".encode())
        for document in self.documents:
            data = document.encode("utf-8", "surrogatepass")
            digest.update(f"{len(data)}\n".encode() + data)
        return f"sha256:{digest.hexdigest()}"


def load_text(
    source: str,
    *,
    split: Split,
    column: str | None = None,
    offline: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Text:
    """Read a text for calibration or evaluation; `limit` keeps the first documents only.

    A named set wins over a file of the same name (`./c4` is the file). With `offline`, nothing but the hub's
    cache on this machine is asked. Raises InputError for a text that cannot be had, UsageError for a source
    that is malformed or has no part for this use.
    """
    text = _load(source, split, column, offline, progress or Silent())
    if not len(text.documents):
        raise InputError(f"{source} holds no documents", hint="choose another split or file")
    return text if limit is None else _first(text, limit)


def pinned_identity(source: str, *, split: Split, column: str | None = None) -> str | None:
    """What `load_text(...).identity()` will be, before reading anything; None when only the content tells."""
    if source in NAMED:
        return NAMED[source].identity(part_of(source, split), column)
    return HubSpec.parse(source).identity(column) if source.startswith("hf:") else None


def evaluation_for(source: str) -> str:
    """The text to measure on when only the calibration text was named: its own held-out part where it has one.

    A file stands for itself: no part of it is held out. Standard input is read only once, so `sample` stands for it.
    """
    if source == "-":
        return "sample"
    held_out = NAMED[source].evaluation is not None if source in NAMED else not source.startswith("hf:")
    return source if held_out else "wikitext2"


def _load(source: str, split: Split, column: str | None, offline: bool, progress: Progress) -> Text:
    if source == "sample":
        return _sample(split)
    if source in NAMED:
        return _named(source, split, column, offline, progress)
    if source.startswith("hf:"):
        return _hub(source, column, offline)
    if source == "-":
        return Text(source, None, read_stdin(), sampling="stream")
    path = Path(source).expanduser()
    if not path.exists():
        raise _unknown(source)
    one = path.suffix.lower() == ".txt" and path.is_file()
    return Text(source, None, read_documents(path, column), sampling="stream" if one else "documents")


def _sample(split: Split) -> Text:
    from prunekit.sample.text import documents

    part = "train" if split == "calibration" else "held-out"
    revision = f"{platform.python_implementation()} {platform.python_version()}"
    return Text("sample", revision, [document.text for document in documents(part)], split=part)


def _named(name: str, split: Split, column: str | None, offline: bool, progress: Progress) -> Text:
    part = part_of(name, split)
    text = Text(
        source=name,
        revision=NAMED[name].revision,
        documents=read_named(name, part, column, offline, progress),
        separator=part.separator,
        sampling=part.sampling,
        split=part.split,
        max_windows=part.max_windows,
        pinned=NAMED[name].identity(part, column),
    )
    return text if part.documents is None else replace(text, documents=text.documents[: part.documents])


def _hub(source: str, column: str | None, offline: bool) -> Text:
    spec = HubSpec.parse(source)
    documents, revision = read_hub(spec, column, offline)
    return Text(source, revision, documents, split=spec.split, pinned=spec.identity(column))


def _first(text: Text, limit: int) -> Text:
    pinned = text.pinned and f"{text.pinned} first {limit}"
    return replace(text, documents=text.documents[:limit], pinned=pinned)


def _unknown(source: str) -> InputError:
    if Path(source).suffix or "/" in source or "\\" in source:
        return InputError(f"no such text file or folder: {source}", hint=f"or a named text: {' '.join(NAMES)}")
    near = difflib.get_close_matches(source.lower(), NAMES, n=1, cutoff=0.5)
    expected = f"expected {', '.join(NAMES)}, a file, a folder, - or {FORM}"
    return InputError(
        f"no text is called {source!r} and there is no such file",
        hint=f"did you mean {near[0]}?" if near else expected,
    )
