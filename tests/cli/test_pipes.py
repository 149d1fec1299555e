"""Commands in a pipeline, as a shell runs them: a result on standard output, and not a word that nobody asked for."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from families import config
from prunekit.export.manifest import MANIFEST

Shell = Callable[[str], subprocess.CompletedProcess[str]]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run a script in an empty folder by `bash -o pipefail`, with this Python's `prunekit` on the path."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"OMP_NUM_THREADS": "1"}
    folder = tmp_path / "work"
    folder.mkdir()

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run


def test_eval_measures_what_prune_has_written_and_nothing_else_is_said(
    shell: Shell, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    # GPT-NeoX is loaded whole through transformers, which draws bars and warns on the way in and on the way out
    tiny_model(config("gpt_neox"))
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog sat on the log.\n" * 60)
    prune = "prunekit prune ../source -m wanda -r 0.5 --calib ../text.txt --samples 4 --seq-len 32 --eval-windows 2"
    ended = shell(f"{prune} -q 2> prune.err | tee prune.out | prunekit eval - --ppl ../text.txt --json 2> eval.err")
    work = tmp_path / "work"
    said = {name: (work / name).read_text() for name in ("prune.out", "prune.err", "eval.err")}
    assert (ended.returncode, ended.stderr) == (0, ""), said
    assert (said["prune.out"], said["prune.err"]) == ("source-wanda-50\n", "")
    assert all(line.startswith("perplexity ") for line in said["eval.err"].splitlines()), "progress and nothing else"
    assert ended.stdout.count("\n") == 1
    (row,) = json.loads(ended.stdout)["models"]
    recorded = json.loads((work / "source-wanda-50" / MANIFEST).read_text())["perplexity"]
    assert row["model"] == "source-wanda-50" and row["perplexity"][0]["windows"] > recorded["windows"] == 2


def test_a_left_side_that_fails_is_named_on_both_sides(shell: Shell, tmp_path: Path) -> None:
    prune = "prunekit prune sample -m wandaa -r 0.5"
    plain = shell(f"{prune} -q 2> prune.err | prunekit eval - --json; echo ${{PIPESTATUS[*]}} >&2")
    assert (tmp_path / "work" / "prune.err").read_text().startswith("error: no method or allocator is called 'wandaa'")
    error = json.loads(plain.stdout)["error"]
    assert error["code"] == 4 and "the command before it wrote nothing" in error["message"]
    assert plain.stderr.splitlines()[-1] == "2 4" and "Traceback" not in plain.stderr
    as_json = shell(f"{prune} --json 2> prune.err | prunekit eval -")
    assert as_json.returncode == 4 and as_json.stdout == ""
    assert as_json.stderr.startswith("error: the command before failed: no method or allocator is called 'wandaa'")


def test_a_reader_that_goes_away_is_no_error(shell: Shell) -> None:
    ended = shell("prunekit recipe schema | true; echo ${PIPESTATUS[*]}")
    assert (ended.stdout, ended.stderr) == ("0 0\n", "")
