import io

import pytest
from rich.console import Console

from prunekit.cli.progress import INTERVAL, Bar, Lines, Remarks, duration, listener
from prunekit.progress import Silent


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def run(seconds_per_step: float, steps: int) -> list[str]:
    clock, drawn = Clock(), console()
    lines = Lines(drawn, clock)
    lines.stage("pruning", steps)
    for index in range(steps):
        clock.now += seconds_per_step
        lines.step(f"model.layers.{index}")
    return text(drawn).splitlines()


def test_slow_steps_each_get_a_line_with_the_time_left() -> None:
    assert run(30, 3) == [
        "pruning 1/3 model.layers.0, 30 s, about 1 min 00 s left",
        "pruning 2/3 model.layers.1, 1 min 00 s, about 30 s left",
        "pruning 3/3 model.layers.2, 1 min 30 s",
    ]


def test_quick_steps_get_a_line_at_most_every_ten_seconds_the_first_and_the_last_always() -> None:
    spoken = [line.split()[1] for line in run(1, 25)]

    assert INTERVAL == 10
    assert spoken == ["1/25", "11/25", "21/25", "25/25"]
    assert [line.split()[1] for line in run(0.01, 100)] == ["1/100", "100/100"]


def test_notes_are_lines_of_their_own_without_markup() -> None:
    drawn = console()
    Lines(drawn).note("[bold] words")
    assert text(drawn) == "note: [bold] words\n"


def test_a_bar_shows_stages_counts_and_notes() -> None:
    drawn = console(terminal=True)
    with listener(drawn, quiet=False, wanted=True) as progress:
        assert isinstance(progress, Bar)
        for title in ("reading", "pruning"):
            progress.stage(title, 2)
            progress.step("model.layers.0")
            progress.note("a remark")
            progress.step("model.layers.1")
    for words in ("reading", "pruning", "2/2", "note: a remark", "model.layers.1"):
        assert words in text(drawn)


@pytest.mark.parametrize(
    ("quiet", "wanted", "terminal", "kind"),
    [
        (True, True, True, Silent),
        (False, False, True, Remarks),
        (False, True, True, Bar),
        (False, True, False, Lines),
    ],
)
def test_the_listener_suits_the_stream_and_the_options(quiet: bool, wanted: bool, terminal: bool, kind: type) -> None:
    with listener(console(terminal), quiet, wanted) as progress:
        assert type(progress) is kind
        progress.stage("pruning", 1)
        progress.step()


def test_times_are_put_into_words() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 60, 80, 3700)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "1 min 20 s",
        "1 h 01 min",
    ]
