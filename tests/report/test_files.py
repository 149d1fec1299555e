"""The suffix says what is written, and nothing but a report is replaced."""

import json
from pathlib import Path

import pytest

from prunekit.errors import InputError, UsageError
from prunekit.report.content import Report, Section
from prunekit.report.files import check, write

REPORT = Report("Title", "A sentence.", [Section("Part", ["text"]), Section("Empty")])


@pytest.mark.parametrize("name", ["a.html", "a.md", "a.json", "A.HTML"])
def test_a_report_is_written_replaced_and_of_the_kind_its_suffix_says(name: str, tmp_path: Path) -> None:
    for _ in range(2):
        check(tmp_path / name)
        write(tmp_path / name, REPORT, {"schema_version": 1, "found": [1]})
    text = (tmp_path / name).read_text()
    assert {"html": text.startswith("<!DOCTYPE"), "md": "# Title" in text, "json": '"found"' in text}[
        name.rpartition(".")[2].lower()
    ]
    assert "Empty" not in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("report", "has no suffix that says what to write"),
        ("report.pdf", r"expected \.html, \.md, \.json"),
        ("no/report.html", "is not a folder"),
        ("README.md", "exists already and is not a report"),
        ("data.json", "exists already and is not a report"),
        ("folder.html", "exists already and is not a report"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    (tmp_path / "data.json").write_text(json.dumps([1]))
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UsageError, match=said):
        check(tmp_path / name)


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write(tmp_path / "gone" / "report.html", REPORT, {})
