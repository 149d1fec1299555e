"""A run that trains, killed from outside again and again: the same command goes on, to the same plan and bytes.

The moments are drawn: some while after a run begins, or after it has saved something new.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from forks import Ended, Server
from prunekit.testing import bytes_of

pytestmark = pytest.mark.slow

STAGED = ".out.prunekit"
STATES = ("plan.json", "work/gates.json", "work/stage2/training.safetensors")
DELAY = 0.3  # seconds at most; the whole run takes a few times as long on an idle machine


def words(inputs: Path, train: str) -> list[str]:
    """A command that writes `out` by TRSP: three rounds of gates, then a training with many checkpoints."""
    options = {"train": train, "gate_steps": 4, "epochs": 4, "batch": 2, "checkpoint_every": 4}
    settings = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    calibration = ["--calib", str(inputs / "text.txt"), "--samples", "16", "--seq-len", "48", "--batch-size", "2"]
    source = ["prune", str(inputs / "source"), "-m", "trsp", "--ratio", "0.75", "--protect-blocks", "none"]
    return [*source, *settings, *calibration, "--verify", "off", "--no-eval-quick", "--json", "-o", "out"]


def saved(folder: Path) -> list[int]:
    """When each state of an unfinished run was last saved; 0 for never."""
    found = []
    for name in STATES:
        found.append(0)
        with suppress(FileNotFoundError):
            found[-1] = (folder / STAGED / name).stat().st_mtime_ns
    return found


def killed(server: Server, command: list[str], folder: Path, moments: Random) -> Ended:
    """Run a command up to a moment that is drawn, unless it ends sooner."""
    before, process = saved(folder), server.start(*command, cwd=folder)
    with suppress(ProcessLookupError):
        if moments.random() < 0.7:
            while saved(folder) == before:
                os.kill(process, 0)  # raises when it has ended
                time.sleep(0.002)
        time.sleep(moments.uniform(0, DELAY))
        os.kill(process, signal.SIGKILL)
    return server.wait()


@pytest.mark.parametrize(("train", "seed"), [("all", 0), ("lora", 1)])
def test_a_run_that_is_killed_wherever_it_is_makes_the_same_plan_and_the_same_bytes(
    train: str, seed: int, server: Server, inputs: Path, tmp_path: Path
) -> None:
    command, moments, stages = words(inputs, train), Random(seed), []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = server.run(*command, cwd=tmp_path / "whole")
    assert whole.code == 0, whole.stderr
    while not (tmp_path / "killed" / "out").exists():
        ended = killed(server, command, tmp_path / "killed", moments)
        assert ended.code in (0, -signal.SIGKILL), ended.stderr
        plan, gates, training = saved(tmp_path / "killed")
        stages.append("training" if training else "begun" if plan else "gates" if gates else "none")
    assert stages.count("training") >= 2 and {"none", "gates"} & set(stages), stages
    assert bytes_of(tmp_path / "killed" / "out") == bytes_of(tmp_path / "whole" / "out")
