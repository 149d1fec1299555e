"""`sweep --speed`: what was timed whole is kept, whatever ended the sweep; the clock is a fake one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunekit.evaluate import timing
from prunekit.evaluate.speed import Round, Runner

from .conftest import Run

pytestmark = pytest.mark.slow

RECIPE = """
method: shortgpt
ratio: [0.25, 0.5]
calibration: {samples: 2, seq_len: 16}
evaluation: {protocol: llm-pruner, windows: 2}
export: {verify: off}
"""
ROUNDS, WARM_UP = 6, 2
EACH = 2 * (ROUNDS + WARM_UP)  # generations of one session, half of them of the dense model
SPEED = ("--speed", "--rounds", str(ROUNDS), "--prompt-tokens", "8", "--new-tokens", "2")


class Clock:
    """Generations that take a time for each block, a little more every time, and end the sweep before the n-th."""

    def __init__(self) -> None:
        self.generations, self.blocks, self.end = 0, list[int](), -1

    def run(self, runner: Runner) -> Round:
        if self.generations == self.end:
            raise KeyboardInterrupt
        self.generations += 1
        blocks = runner.model.config.get_text_config().num_hidden_layers
        self.blocks.append(blocks)
        return Round(blocks * 0.01 + 1e-6 * (len(self.blocks) % EACH), blocks * 0.02)

    def again(self, end: int = -1) -> None:
        """Count from nothing, up to another end."""
        self.generations, self.end = 0, end
        self.blocks.clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all generations; memory and operations are made up, too."""
    found = Clock()
    monkeypatch.setattr(Runner, "run", lambda runner: found.run(runner))
    monkeypatch.setattr(timing, "peak_memory", lambda *_: 1000)
    monkeypatch.setattr(timing, "flops_per_token", lambda *_: 1000)
    return found


@pytest.fixture
def sweep(run: Run, tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`sweep("out")` runs the grid of two cells of a Llama of four blocks."""
    tiny_llama()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog sat on the log.\n" * 60)
    (tmp_path / "grid.yaml").write_text(RECIPE)
    return lambda out, *more: run("sweep", "grid.yaml", "source", "--calib", "text.txt", "-o", out, "--json", *more)


def table(printed: Any) -> Any:
    assert printed.exit_code == 0, printed.stderr
    return json.loads(printed.stdout)["table"]


def test_a_sweep_that_is_ended_while_it_times_keeps_the_cells_that_were_timed_whole(sweep: Run, clock: Clock) -> None:
    whole = table(sweep("whole", *SPEED))
    assert [each["measured"]["speed"]["decode"]["ratio"] for each in whole["runs"]] == pytest.approx([4 / 3, 2])
    assert (clock.generations, clock.blocks[:2]) == (2 * EACH, [3, 4])

    clock.again(end=EACH + EACH // 2)
    ended = sweep("out", *SPEED)
    assert ended.exit_code == 130 and "the cells and what was measured of them are kept" in ended.stderr
    clock.again()
    resumed = sweep("out", *SPEED)
    assert table(resumed) == whole
    assert f"timed before, and kept: {Path('out') / 'shortgpt-25'}" in resumed.stderr
    assert sorted(set(clock.blocks)) == [2, 4] and clock.generations == EACH, "the session that was broken off, anew"


def test_what_was_timed_holds_for_a_larger_grid_and_for_the_same_conditions_only(sweep: Run, clock: Clock) -> None:
    small = RECIPE.replace("[0.25, 0.5]", "0.25")
    Path("grid.yaml").write_text(small)
    alone = table(sweep("out", *SPEED))["runs"][0]
    Path("grid.yaml").write_text(RECIPE)
    both = table(sweep("out", *SPEED))
    assert clock.generations == 2 * EACH
    assert both["runs"][0]["measured"] == alone["measured"]
    assert both["baseline"]["speed"]["rounds"] == 2 * ROUNDS
    table(sweep("out", *SPEED[:-1], "3"))
    assert clock.generations == 4 * EACH, "other numbers of tokens are another question"
