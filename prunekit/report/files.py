"""Reports as files: the suffix says which kind; nothing but another report is ever replaced."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.errors import UsageError
from prunekit.files import storage_errors, write_atomically
from prunekit.report.content import Report
from prunekit.report.render import MARK, html, markdown

SUFFIXES = (".html", ".md", ".json")


def check(path: Path) -> None:
    """Raise UsageError, before any work, for a file that a report cannot be written to."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--report {path} has no suffix that says what to write; expected {', '.join(SUFFIXES)}",
            hint=f"--report {path.stem or 'report'}.html",
        )
    if path.is_dir() or (path.exists() and not _is_report(path)):
        raise UsageError(f"{path} exists already and is not a report", hint="choose another file for --report")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder", hint=f"mkdir -p {path.parent}")


def write(path: Path, report: Report, data: Mapping[str, Any]) -> None:
    """Write a report; as JSON it is `data`, what `--json` prints. Raises InputError where it cannot be written."""
    if path.suffix.lower() == ".json":
        text = json.dumps(data, indent=2) + "\n"
    else:
        text = html(report) if path.suffix.lower() == ".html" else markdown(report)
    with storage_errors(path):
        write_atomically(path, text)


def _is_report(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    if path.suffix.lower() != ".json":
        return MARK in text[:1000]
    try:
        return "schema_version" in json.loads(text)
    except (ValueError, TypeError):
        return False
