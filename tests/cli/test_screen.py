import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prunekit.cli.screen import Screen, console_on, facts, rendered, table, to_json, write


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, *parts: object) -> list[str]:
    return rendered(console_on(stream), parts).splitlines()  # type: ignore[arg-type]


def test_a_table_without_a_terminal_is_plain_and_as_wide_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "a/path/" * 40
    lines = shown(io.StringIO(), table("name", "count", rows=[(long, 3), ("[bold]", 12)], right="count"))

    assert lines[0].split() == ["name", "count"]
    assert lines[2].split() == [long, "3"]
    assert lines[3].split() == ["[bold]", "12"]
    assert lines[2].endswith(" 3") and lines[3].endswith("12")
    assert "\033" not in "".join(lines)


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_lines_fit_and_colours_are_used_unless_no_color(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    parts = (facts([("name", "words " * 60)]), table("one", "two", rows=[("words " * 30, "words " * 30)]))
    coloured = shown(Terminal(), *parts)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(Terminal(), *parts)

    assert any("\033[1m" in line for line in coloured)
    assert all(len(re.sub(r"\033\[[\d;]*m", "", line)) <= width for line in plain)
    assert not any("\033[3" in line for line in plain)


def test_parts_are_apart_by_one_empty_line_and_texts_are_not() -> None:
    assert shown(io.StringIO(), "one", "two") == ["one", "two"]
    assert shown(io.StringIO(), facts([("a", 1)]), "two") == ["a  1", "", "two"]


def test_json_is_one_line_that_begins_with_its_schema() -> None:
    assert to_json({"b": Path("x"), "a": "é"}) == '{"schema_version": 1, "b": "x", "a": "\\u00e9"}\n'
    assert json.loads(to_json({"schema_version": 2}))["schema_version"] == 2


def test_a_quiet_screen_has_nothing_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(quiet=True) as screen:
        screen.say("a remark")
        screen.show(facts([("a", 1)]))
        screen.progress().note("another")
        screen.result({}, "result")
    assert capsys.readouterr() == ("result\n", "")


def test_a_path_that_is_no_text_keeps_its_bytes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8", errors="strict")
    write(stream, os.fsdecode(b"a/\xff\n"))
    assert raw.getvalue() == b"a/\xff\n"


def test_a_reader_that_went_away_is_no_error() -> None:
    program = "import sys, time; from prunekit.cli.screen import write; time.sleep(0.5); write(sys.stdout, 'x' * 9)"
    command = f"'{sys.executable}' -c \"{program}\" | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n", "")
