"""Long work as it is watched: a bar on a terminal, else a plain line at most every ten seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prunekit.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

INTERVAL = 10.0  # seconds between two lines


@contextmanager
def listener(console: "Console", quiet: bool, wanted: bool) -> Iterator[Progress]:
    """What `--quiet`, `--no-progress` and the stream call for."""
    if quiet:
        yield Silent()
    elif not wanted:
        yield Remarks(console)
    elif console.is_terminal:
        with bar(console) as drawn:
            yield drawn
    else:
        yield Lines(console)


class Remarks(Silent):
    """Notes only."""

    def __init__(self, console: "Console") -> None:
        self.console = console

    def note(self, text: str) -> None:
        self._line(f"note: {text}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Lines(Remarks):
    """A line for the first and the last step of a stage, and one whenever ten seconds have passed."""

    def __init__(self, console: "Console", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console)
        self.clock = clock
        self.title, self.total, self.done = "", 0, 0
        self.begun = self.spoken = clock()

    def stage(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.begun = self.clock()

    def step(self, text: str = "") -> None:
        self.done += 1
        now = self.clock()
        if self.done in (1, self.total) or now - self.spoken >= INTERVAL:
            self.spoken = now
            what = f" {text}" if text else ""
            self._line(f"{self.title} {self.done}/{self.total}{what}, {self._times(now - self.begun)}")

    def _times(self, elapsed: float) -> str:
        left = elapsed / self.done * (self.total - self.done)
        return duration(elapsed) if self.done >= self.total else f"{duration(elapsed)}, about {duration(left)} left"


class Bar(Remarks):
    """A bar per stage with the time it took and the time it will take."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        super().__init__(console)
        self.drawing = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta", style="dim"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[what]}", style="dim", markup=False),
            console=console,
            refresh_per_second=4,
        )
        self.task: TaskID | None = None

    def stage(self, title: str, total: int) -> None:
        self.task = self.drawing.add_task(title, total=total, what="")

    def step(self, text: str = "") -> None:
        if self.task is not None:
            self.drawing.update(self.task, advance=1, what=text)


@contextmanager
def bar(console: "Console") -> Iterator[Bar]:
    """A bar that is drawn until it is left."""
    drawn = Bar(console)
    with drawn.drawing:
        yield drawn


def duration(seconds: float) -> str:
    """Time in words: `8 s`, `1 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
