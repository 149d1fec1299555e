"""A grid is run once: a sweep that is killed goes on, and ends with the table of one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forks import Ended, Server
from prunekit.testing import bytes_of

pytestmark = pytest.mark.slow

RECIPE = """
method: [magnitude, shortgpt]
ratio: [0.25, 0.3, 0.5]
calibration: {samples: 4, seq_len: 32}
evaluation: {protocol: llm-pruner, windows: 2}
export: {verify: off}
"""
CELLS = [f"{method}-{percent}" for method in ("magnitude", "shortgpt") for percent in (25, 30, 50)]
DENSE = "perplexity before 12/12"  # what an evaluation of the dense sample ends with
Sweep = Callable[..., Ended]


@pytest.fixture
def sweep(server: Server, inputs: Path, tmp_path: Path) -> Sweep:
    """`sweep(*words, at=None, recipe=RECIPE)` runs the grid on a small model into `out`."""

    def call(*words: str, at: int | None = None, recipe: str = RECIPE) -> Ended:
        (tmp_path / "grid.yaml").write_text(recipe)
        given = [f"--calib={inputs / 'text.txt'}", "-o", "out"]
        return server.run("sweep", "grid.yaml", inputs / "source", *given, *words, cwd=tmp_path, at=at)

    return call


def measured(*runs: Ended) -> int:
    """How often the dense model's perplexity was measured."""
    return sum(run.stderr.count("perplexity before 4/4") for run in runs)


def states(ended: Ended) -> dict[str, str]:
    return {cell["name"]: cell["state"] for cell in ended.json()["cells"]}


@pytest.fixture(scope="module")
def whole(server: Server, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted sweep; `sweep.json` in it is what it printed."""
    place = tmp_path_factory.mktemp("whole")
    (place / "grid.yaml").write_text(RECIPE)
    words = ("sweep", "grid.yaml", inputs / "source", f"--calib={inputs / 'text.txt'}", "-o", "out", "--json")
    ended = server.run(*words, cwd=place)
    assert ended.code == 0, ended.stderr
    assert states(ended) == dict.fromkeys(CELLS, "done") and measured(ended) == 1
    assert json.loads((place / "out" / "sweep.json").read_text()) == ended.json()
    return place / "out"


def table(folder: Path) -> Any:
    return json.loads((folder / "sweep.json").read_text())["table"]


def test_a_sweep_that_is_killed_twice_ends_with_the_same_table_and_one_dense_evaluation(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "grid.yaml").write_text(RECIPE)

    def run(place: str, at: int | None = None) -> Ended:
        return server.run("sweep", "grid.yaml", "sample", "--offline", "-o", place, "--json", cwd=tmp_path, at=at)

    whole = run("whole")
    assert whole.code == 0 and whole.stderr.count(DENSE) == 1, whole.stderr
    third = len(whole.changes) // 3
    killed = [run("out", at=third), run("out", at=third)]
    assert [each.code for each in killed] == [-signal.SIGKILL] * 2
    kept = [name for name in CELLS if (tmp_path / "out" / name).is_dir()]
    assert 0 < len(kept) < len(CELLS), "the kills hit the grid in its midst"

    ended = run("out")
    assert (ended.code, ended.json()["table"]) == (0, whole.json()["table"]), ended.stderr
    assert states(ended) == {name: "kept" if name in kept else "done" for name in CELLS}
    assert f"{len(kept)} of 6 cells finished before, and kept" in ended.stderr
    assert sum(each.stderr.count(DENSE) for each in (*killed, ended)) == 1
    for name in CELLS:
        assert bytes_of(tmp_path / "out" / name) == bytes_of(tmp_path / "whole" / name)


def test_a_finished_sweep_is_only_read_and_a_larger_grid_goes_on_from_it(sweep: Sweep, whole: Path) -> None:
    small = sweep("--json", recipe=RECIPE.replace("[magnitude, shortgpt]", "shortgpt"))
    assert list(states(small)) == CELLS[3:]
    ended = sweep("--json")
    assert ended.json()["table"] == table(whole) and measured(small, ended) == 1
    assert states(ended) == {name: "done" if name.startswith("magnitude") else "kept" for name in CELLS}
    again = sweep("--json")
    assert (again.json()["table"], measured(again)) == (table(whole), 0)
    assert "pruning" not in again.stderr and set(states(again).values()) == {"kept"}


def test_a_cell_of_another_run_is_no_cell_of_this_one(sweep: Sweep, tmp_path: Path) -> None:
    assert sweep("-q", recipe=RECIPE.replace("[0.25, 0.3, 0.5]", "0.5")).code == 0
    other = RECIPE.replace("[0.25, 0.3, 0.5]", "0.5").replace("samples: 4", "samples: 5")
    refused = sweep(recipe=other)
    assert refused.code == 2
    assert "shortgpt-50 holds the result of another run: calibration" in refused.stderr
    ended = sweep("--force", "--json", recipe=other)
    assert states(ended) == {"magnitude-50": "kept", "shortgpt-50": "done"}
    (tmp_path / "out" / "notes.txt").touch()
    restarted = sweep("--restart", "--json", recipe=other)
    assert set(states(restarted).values()) == {"done"} and measured(restarted) == 1


def test_a_cell_that_cannot_be_run_stops_no_other_and_gives_its_exit_code(sweep: Sweep, tmp_path: Path) -> None:
    ended = sweep("--json", recipe=RECIPE.replace("0.5]", "0.9]"))
    assert ended.code == 2
    assert states(ended) == dict.fromkeys(CELLS[:2], "done") | {"magnitude-90": "done"} | dict.fromkeys(
        CELLS[3:5], "done"
    ) | {"shortgpt-90": "failed"}
    assert "error: shortgpt-90 failed: " in ended.stderr
    assert [run["name"] for run in ended.json()["table"]["runs"]] == [*CELLS[:2], "magnitude-90", *CELLS[3:5]]
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == ended.json()


def test_limits_are_judged_for_every_cell_also_for_those_that_were_kept(sweep: Sweep) -> None:
    small = RECIPE.replace("[magnitude, shortgpt]", "shortgpt")
    first = sweep("--max-params", "1K", "--json", recipe=small)
    gates = {verdict["model"]: verdict["passed"] for verdict in first.json()["gates"]}
    assert first.code == 1 and gates == dict.fromkeys(CELLS[3:], False)
    again = sweep("--max-params", "1K", "--exit-zero", "--json", recipe=small)
    assert (again.code, again.json()["gates"]) == (0, first.json()["gates"])
    assert set(states(again).values()) == {"kept"}


def test_processes_that_run_cells_at_once_write_the_same(sweep: Sweep, whole: Path, tmp_path: Path) -> None:
    two = RECIPE.replace("[magnitude, shortgpt]", "shortgpt").replace("[0.25, 0.3, 0.5]", "[0.25, 0.5]")
    ended = sweep("--jobs", "2", "--json", recipe=two)
    assert (ended.code, measured(ended)) == (0, 1), ended.stderr
    assert states(ended) == dict.fromkeys((CELLS[3], CELLS[5]), "done")
    for name in (CELLS[3], CELLS[5]):
        assert bytes_of(tmp_path / "out" / name) == bytes_of(whole / name)


def test_a_folder_of_something_else_and_a_sweep_at_work_are_refused(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    ended = sweep()
    assert ended.code == 2 and "is not the folder of a sweep: it holds thesis.tex" in ended.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    program = (
        "import sys, tests_worker\nfrom prunekit.run.workers import run_all\n"
        "if __name__ == '__main__':\n    print(*run_all('tests_worker:wait', {'a': sys.argv[1], 'b': sys.argv[1]}, 2))"
    )
    (tmp_path / "starter.py").write_text(program)
    worker = "import os, time\ndef wait(place):\n    open(f'{place}/{os.getpid()}', 'w').close()\n    time.sleep(600)\n"
    (tmp_path / "tests_worker.py").write_text(worker)
    place = tmp_path / "started"
    place.mkdir()
    starter = subprocess.Popen([sys.executable, "starter.py", str(place)], cwd=tmp_path)
    wait_until(lambda: len(list(place.iterdir())) == 2)
    starter.kill()
    starter.wait()
    wait_until(lambda: not any(alive(int(path.name)) for path in place.iterdir()))


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to pass in a minute")


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    ("models", "words", "said"),
    [
        (("source", "other"), ("--speed",), "runs that pruned 2 models"),
        (("source",), ("--speed", "--prompt-tokens", "4000"), "tokens are more than the"),
        (("source",), ("--tasks", "no_such_task"), "no_such_task"),
    ],
)
def test_what_cannot_be_measured_of_the_cells_is_refused_before_any_is_run(
    models: tuple[str, ...], words: tuple[str, ...], said: str, server: Server, inputs: Path, tmp_path: Path
) -> None:
    for name in models:
        shutil.copytree(inputs / "source", tmp_path / name)
    (tmp_path / "grid.yaml").write_text(f"model: [{', '.join(models)}]\n{RECIPE}")
    ended = server.run("sweep", "grid.yaml", *words, "-o", "out", cwd=tmp_path)
    assert ended.code == 2 and said in ended.stderr
    assert not (tmp_path / "out").exists()
