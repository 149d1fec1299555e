import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from prunekit import cache
from prunekit.cli.app import app, known_options
from prunekit.cli.failures import Call, Terminated, explain
from prunekit.errors import PrunekitError, ResourceError

from .conftest import Run

WANDA = ("prune", "sample", "-m", "wanda", "-r", "0.5")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`failing(error)` lets the pipeline raise it."""
    from prunekit.run import pipeline

    def use(error: BaseException) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(pipeline, "prune", fail)

    return use


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 5, "out of memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 5, "out of memory: CUDA"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), 5, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/out/x"), 5, "no space left on the disk of /out/x"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "out of memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/out/x"), 4, "cannot use /out/x: permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/out/x"), 4, "read-only file system"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/in"), 4, "cannot use /in"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (ZeroDivisionError("division by zero"), 70, "internal error: ZeroDivisionError: division by zero"),
        (ValueError(), 70, "internal error: ValueError: no message"),
    ],
)
def test_every_exception_has_its_exit_code_and_one_line(
    run: Run, failing: Any, error: BaseException, code: int, said: str
) -> None:
    failing(error)
    result = run(*WANDA, "-q")
    as_json = run(*WANDA, "-q", "--json")

    assert (result.exit_code, as_json.exit_code) == (code, code)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert said in result.stderr.splitlines()[0]
    assert len(result.stderr.splitlines()) <= 2
    assert json.loads(as_json.stdout)["error"]["code"] == code


CUT_SHORT = (KeyboardInterrupt, Terminated, MemoryError, lambda: OSError(errno.ENOSPC, "full"))
KEPT = "the finished blocks are kept; the same command continues from them"


@pytest.mark.parametrize("make", [*CUT_SHORT, lambda: ResourceError("the disk of /out is full", hint="free some")])
def test_a_run_that_was_cut_short_says_that_the_same_command_goes_on_where_something_is_kept(
    run: Run, failing: Any, make: Callable[[], BaseException]
) -> None:
    error = make()
    failing(error)
    assert "kept" not in run(*WANDA, "-q").stderr
    vars(error)["kept"] = False  # as the working folder leaves it
    assert "kept" not in run(*WANDA, "-q").stderr
    vars(error)["kept"] = True
    assert KEPT in run(*WANDA, "-q").stderr
    assert "are kept; the same command without --restart continues" in run(*WANDA, "-q", "--restart").stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("prune", "sample"), "--batch-size 1 or --offload disk needs less memory"),
        (("prune", "sample", "--batch-size=1"), "--offload disk needs less memory"),
        (("prune", "sample", "--batch-size", "16"), "--batch-size 1 or --offload disk needs less memory"),
        (("eval", "sample"), "--offload disk needs less memory"),
        (("eval", "sample", "--batch-size", "8"), "--batch-size 1 or --offload disk needs less memory"),
        (("apply", "plan.json"), "--offload disk needs less memory"),
        (("eval", "sample", "--offload", "disk"), "repeat it where more memory is free"),
        (("verify", "out"), "--mode streaming needs less memory"),
        (("inspect", "sample"), "--no-sparsity needs less memory"),
        (("methods",), "repeat it where more memory is free"),
    ],
)
def test_options_that_need_less_memory_are_those_of_the_command(words: tuple[str, ...], hint: str) -> None:
    options = known_options(typer.main.get_command(app).commands)[words[0]]  # type: ignore[attr-defined]
    assert explain(MemoryError(), Call(words, options)).hint == hint


def test_memory_of_a_device_is_saved_by_other_options() -> None:
    known = ("--batch-size", "--offload", "--device")
    assert explain(OutOfMemoryError("CUDA out of memory"), Call((), known)).hint == (
        "--batch-size 1 or --device cpu needs less memory"
    )


def test_an_internal_error_leaves_its_traceback_in_a_file_and_on_stderr_only_with_debug(run: Run, failing: Any) -> None:
    failing(ZeroDivisionError("division by zero"))
    plain, debug = run(*WANDA, "-q"), run(*WANDA, "-q", "--debug")
    log = Path(plain.stderr.split("the details are in ")[1].partition(";")[0])

    assert log.parent == cache.folder() / "logs"
    assert "ZeroDivisionError: division by zero" in log.read_text()
    assert "Traceback" in log.read_text()
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


def test_a_log_that_cannot_be_written_is_no_second_error(run: Run, failing: Any, tmp_path: Path) -> None:
    failing(ZeroDivisionError("division by zero"))
    (tmp_path / "file").touch()
    result = run(*WANDA, "-q", PRUNEKIT_CACHE=str(tmp_path / "file"))

    assert result.exit_code == 70
    assert "hint: repeat with --debug" in result.stderr


def test_a_mistyped_command_or_option_is_refused_in_the_same_form(run: Run) -> None:
    command, option = run("prun"), run("eval", "--zzz", "--json")

    assert command.exit_code == option.exit_code == 2
    assert command.stderr.splitlines() == [
        "error: no such command 'prun'. Did you mean 'prune'?",
        "hint: prunekit --help",
    ]
    assert json.loads(option.stdout)["error"] == {
        "code": 2,
        "kind": "usage",
        "message": "no such option: --zzz",
        "hint": "prunekit eval --help",
    }


def test_no_command_shows_the_help_on_stderr(run: Run) -> None:
    result = run()

    assert (result.exit_code, result.stdout) == (2, "")
    assert "Commands:" in result.stderr


def test_a_variable_asks_for_json_as_the_flag_does(run: Run) -> None:
    assert json.loads(run("prun", PRUNEKIT_JSON="1").stdout)["error"]["code"] == 2
    assert run("prun", PRUNEKIT_JSON="0").stdout == ""


def test_errors_of_prunekit_pass_unchanged() -> None:
    error = PrunekitError("as it is")
    assert explain(error) is error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_its_code(tmp_path: Path, number: signal.Signals, code: int) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from prunekit.cli import main\n"
        "import prunekit.cli.methods as methods\n"
        "methods.registry.plugins = lambda: (print('ready', file=sys.stderr, flush=True), time.sleep(60))\n"
        "main()"
    )
    environment = {**os.environ, "PRUNEKIT_CACHE": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, "methods"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)

    assert process.returncode == code
    assert out == ""
    assert err == f"error: {'interrupted' if code == 130 else 'terminated'}\n"
