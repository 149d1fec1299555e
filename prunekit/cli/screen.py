"""The two streams: standard output carries exactly the result, everything else goes to standard error."""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from prunekit.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SCHEMA_VERSION = 1
UNBOUNDED = 10_000  # columns where no terminal cuts the lines


class Screen:
    """What a command prints on; inside `with`, what others print to stdout goes to stderr."""

    def __init__(self, as_json: bool = False, *, quiet: bool = False, progress: bool = True) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out: TextIO = sys.stdout
        self._wants_progress = progress
        self._console: Console | None = None
        self._stray = contextlib.redirect_stdout(sys.stderr)
        self._drawing = contextlib.ExitStack()

    def __enter__(self) -> "Screen":
        self._stray.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self.done()
        self._stray.__exit__(*details)

    def done(self) -> None:
        """Stop drawing progress; what is shown from now on stays below it."""
        self._drawing.close()

    @property
    def console(self) -> "Console":
        """A rich console on standard error."""
        if self._console is None:
            self._console = console_on(sys.stderr)
        return self._console

    def progress(self) -> Progress:
        """A listener for long work that suits the stream; it draws until `done`."""
        from prunekit.cli.progress import listener

        return self._drawing.enter_context(listener(self.console, self.quiet, self._wants_progress))

    def say(self, text: str) -> None:
        """One line on standard error."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, *parts: "RenderableType") -> None:
        """Tables and the like on standard error, after an empty line."""
        if not self.quiet:
            write(sys.stderr, "\n" + rendered(self.console, parts))

    def result(self, data: Mapping[str, Any], *parts: "RenderableType") -> None:
        """The result on standard output: one JSON object under `--json`, else texts and tables."""
        if self.as_json:
            write(self.out, to_json(data))
            return
        write(self.out, rendered(console_on(self.out), parts))


def rendered(console: "Console", parts: Iterable["RenderableType"]) -> str:
    """Texts and tables as they look on a console, with an empty line between them and no space at line ends."""
    blocks: list[str] = []
    for part in parts:
        with console.capture() as captured:
            console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))
        blocks.append("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    return "\n".join(blocks) if any(not isinstance(part, str) for part in parts) else "".join(blocks)


def to_json(data: Mapping[str, Any]) -> str:
    """One line of JSON that begins with the version of its schema."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **data}, default=str) + "\n"


def write(stream: TextIO, text: str) -> None:
    """Write and flush; a reader that has closed the pipe is not an error and does not change the exit code."""
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:  # a path whose bytes are not text
            stream.buffer.write(os.fsencode(text))
        stream.flush()
    except BrokenPipeError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Redirect a stream whose reader has closed to nothing, so that the interpreter can close it in peace."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def console_on(stream: TextIO) -> "Console":
    """A console as wide as its terminal, or unbounded where there is none; colours only for a terminal."""
    from rich.console import Console

    class Patient(Console):
        def on_broken_pipe(self) -> None:
            silence(stream)

    narrow = stream.isatty() or "COLUMNS" in os.environ
    return Patient(file=stream, width=None if narrow else UNBOUNDED, highlight=False, emoji=False)


def table(*headers: str, rows: Iterable[Sequence[object]], right: str = "") -> "RenderableType":
    """A plain table; `right` names the columns that hold numbers, separated by commas."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in headers:
        numbers = header in right.split(",")
        made.add_column(header, justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    for row in rows:
        made.add_row(*(_plain(cell) for cell in row))
    return made


def facts(pairs: Iterable[tuple[str, object]]) -> "RenderableType":
    """Names and what they stand for, in two columns."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(_plain(name), _plain(value))
    return grid


def _plain(value: object) -> Any:
    from rich.text import Text

    return Text(str(value))
