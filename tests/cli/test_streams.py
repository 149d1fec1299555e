"""The command line as a shell sees it: two real processes and a pipe between them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TEXT = "The cat sat on the mat, and the dog sat on the log; 0123456789 is a number.\n" * 60


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a bash line in an empty folder, where `prunekit` is the one under test."""
    program = tmp_path / "bin" / "prunekit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m prunekit "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def run(line: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-o", "pipefail", "-c", line]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


def test_prune_and_eval_work_through_a_pipe_and_nothing_leaks(
    shell: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path, tiny_llama: Callable[..., Path]
) -> None:
    tiny_llama(name="model")
    (tmp_path / "text.txt").write_text(TEXT)
    prune = "prunekit prune model -m wanda -r 0.5 --calib text.txt --samples 4 --seq-len 32 --no-eval-quick -o out"
    done = shell(f"{prune} -q | tee path | prunekit eval - --ppl text.txt --windows 2 --json -q")

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "path").read_text() == "out\n"
    [row] = json.loads(done.stdout)["models"]
    assert row["model"] == "out"
    assert row["perplexity"][0]["value"] > 1


def test_a_command_that_fails_leaves_the_next_one_with_nothing_to_read(
    shell: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    done = shell("prunekit prune model -m wnda -r 0.5 | prunekit eval - --json")

    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["kind"] == "input"
    assert "did you mean wanda?" in done.stderr
