"""Documents from this machine: `.txt`, `.jsonl`, `.json`, `.parquet`, folders of them, and standard input."""

import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit import distributed
from prunekit.errors import InputError

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
KNOWN = " ".join(SUFFIXES)
BATCH = 1000  # rows of a table that become strings together


def read_documents(path: Path, column: str | None = None) -> Sequence[str]:
    """The documents of a file or, recursively and in sorted order, of a folder; `.txt` is one document.

    Raises InputError for what is missing, unreadable, empty or of another kind.
    """
    documents = _folder(path, column) if path.is_dir() else _file(path, column)
    if not any(document.strip() for document in documents):
        raise InputError(f"{path} holds no text", hint="give a file with some text in it")
    return documents


def read_stdin() -> list[str]:
    """Standard input as one document; raises InputError when nothing is piped in."""
    distributed.refuse_standard_input()
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("no text on standard input", hint="pipe one in: prunekit ... - < FILE")
    text = decode(sys.stdin.buffer.read(), "standard input")
    if not text.strip():
        raise InputError("standard input holds no text")
    return [text]


def decode(data: bytes, name: str) -> str:
    """UTF-8 bytes as text, exactly, except for a byte order mark; raises InputError naming the first bad byte."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            hint="convert it first: iconv -f ENCODING -t UTF-8 FILE > NEW",
        ) from error


def choose_column(column: str | None, columns: Mapping[str, bool], name: str) -> str:
    """The column that holds the text: as asked for, else `text`, else the only one of strings.

    `columns` says of each column whether it holds strings. Raises InputError listing the columns found.
    """
    found = ", ".join(columns) or "none"
    strings = [each for each, is_text in columns.items() if is_text]
    if column is None and ("text" in strings or len(strings) == 1):
        return "text" if "text" in strings else strings[0]
    if column is None:
        what = "several columns of text" if strings else "no column of text"
        raise InputError(f"{name} has {what}; found: {found}", hint="name one with --calib-column" if strings else None)
    if column not in columns:
        raise InputError(f"{name} has no column {column!r}; found: {found}", hint=_nearest(column, strings))
    if not columns[column]:
        raise InputError(
            f"column {column!r} of {name} does not hold text; found: {found}", hint=_nearest(column, strings)
        )
    return column


def _nearest(column: str, strings: list[str]) -> str | None:
    near = difflib.get_close_matches(column, strings, n=1) or strings[:1]
    return f"--calib-column {near[0]}" if near else None


def _folder(path: Path, column: str | None) -> list[str]:
    inside = ((file.relative_to(path), file) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    visible = [(name.as_posix(), file) for name, file in inside if not any(part[0] == "." for part in name.parts)]
    files = [file for _, file in sorted(visible) if file.is_file()]
    if not files:
        raise InputError(f"no text in the folder {path}", hint=f"expected files ending in {KNOWN}")
    return [document for file in files for document in _file(file, column)]


def _file(path: Path, column: str | None) -> Sequence[str]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path} ends in {suffix or 'no extension'}; expected one of {KNOWN}",
            hint="rename it, or pipe it in as plain text: prunekit ... - < FILE",
        )
    if suffix == ".parquet":
        return _parquet(path, column)
    text = decode(_bytes(path), str(path))
    if not text.strip():
        raise InputError(f"{path} is empty", hint="give a file with some text in it")
    if suffix == ".txt":
        return [text]
    return _texts(_lines(text, path) if suffix == ".jsonl" else _items(text, path), str(path), column)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _lines(text: str, path: Path) -> Iterable[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _parse(line, path, number)


def _items(text: str, path: Path) -> Iterable[tuple[str, Any]]:
    items = _parse(text, path, 1)
    if not isinstance(items, list):
        raise InputError(f"{path} holds a JSON {type(items).__name__}; expected a list of strings or of objects")
    return ((f"item {number}", item) for number, item in enumerate(items, 1))


def _parse(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        raise InputError(f"{path}, {where} is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {line} cannot be read as JSON: {error}") from error


def _texts(rows: Iterable[tuple[str, Any]], name: str, column: str | None) -> list[str]:
    """The text of each row, a string itself or an object with the column; the first object decides which."""
    texts: list[str] = []
    for where, row in rows:
        if isinstance(row, dict):
            column = choose_column(
                column, {key: isinstance(value, str | None) for key, value in row.items()}, f"{name}, {where}"
            )
            row = row[column] or ""
        if not isinstance(row, str):
            raise InputError(f"{name}, {where} is a JSON {type(row).__name__}; expected a string or an object")
        _check_encodable(row, f"{name}, {where}")
        texts.append(row)
    return texts


def _check_encodable(text: str, name: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} holds half of a surrogate pair at character {error.start}, which is not text"
        ) from error


def _parquet(path: Path, column: str | None) -> Sequence[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            kinds = {field.name: _holds_text(field.type) for field in file.schema_arrow}
            column = choose_column(column, kinds, str(path))
            return ArrowDocuments(file.read(columns=[column])[column])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read {path} as Parquet: {str(error).splitlines()[0]}") from error


def _holds_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


class ArrowDocuments(Sequence[str]):
    """A column of an Arrow table, or of a data set, as documents; each becomes a string when asked for."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        found = self._column[index]
        if isinstance(index, slice):
            found = found.to_pylist() if hasattr(found, "to_pylist") else found
            return [each or "" for each in found]
        return (found.as_py() if hasattr(found, "as_py") else found) or ""

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BATCH):
            yield from self[start : start + BATCH]
