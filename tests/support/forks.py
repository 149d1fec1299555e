"""Runs of the command line in processes of their own, without the seconds that importing torch takes each time.

A server imports everything once and forks a child for each command. The child is a whole `prunekit` process: it has
its own streams, and it can be killed. To hit an exact moment it can send itself a signal just before its n-th change
of the disk (a rename, a sync, a deletion), which leaves on the disk what any kill at that moment leaves.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = ("replace", "fsync", "unlink", "rmdir")


@dataclass(frozen=True)
class Ended:
    """How a process ended (a signal is a negative code), what it wrote, and its changes of the disk: `replace a/b`."""

    code: int
    stdout: str
    stderr: str
    changes: list[str]

    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        return json.loads(self.stdout)


class Server:
    """The process that forks; commands are given to `run`. Needs a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # a fork copies no threads
        )

    def run(
        self,
        *words: object,
        cwd: Path,
        at: int | None = None,
        number: int = signal.SIGKILL,
        env: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run `prunekit` to its end, or until it sends itself a signal before its change `at` of the disk, from 0.

        `env` is its whole environment, of which PYTHONPATH counts.
        """
        self.start(*words, cwd=cwd, at=at, number=number, env=env)
        return self.wait()

    def start(
        self,
        *words: object,
        cwd: Path,
        at: int | None = None,
        number: int = signal.SIGKILL,
        module: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Begin to run `prunekit`, or another module, one at a time; the id of its process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        order = {"words": [str(word) for word in words], "cwd": str(cwd), "at": at, "number": int(number)}
        order |= {"module": module, "env": None if env is None else dict(env)}
        print(json.dumps(order | {"folder": str(self.folder)}), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def run_module(self, module: str, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """What `launch.run_module` does, in a child that has imported what it needs already."""
        from prunekit import distributed
        from prunekit.quiet import OFFLINE, QUIET

        self.start(*words, cwd=Path.cwd(), module=module, env=distributed.environment() | QUIET | OFFLINE)
        ended = self.wait()
        return subprocess.CompletedProcess([module, *words], ended.code, ended.stdout, ended.stderr)

    def wait(self) -> Ended:
        """The end of what was started."""
        assert self.process.stdout is not None
        status = int(self.process.stdout.readline())
        out, err, changes = ((self.folder / name).read_text(encoding="utf-8") for name in ("out", "err", "changes"))
        return Ended(os.waitstatus_to_exitcode(status), out, err, changes.splitlines())

    def close(self) -> None:
        """End the server."""
        self.process.communicate(timeout=60)


def serve() -> None:
    """Read orders from standard input, one JSON object a line; answer each with its child's id, then its status."""
    import rich.table  # noqa: F401

    from prunekit.cli import app, progress  # noqa: F401
    from prunekit.evaluate import memory  # noqa: F401
    from prunekit.export import verify  # noqa: F401
    from prunekit.model.checkpoint import Checkpoint
    from prunekit.model.prunable import PrunableModel
    from prunekit.recipe import (
        registry,
        settings,  # noqa: F401
    )
    from prunekit.run import pipeline  # noqa: F401
    from prunekit.sample import PATH

    for name in registry.names("method"):
        registry.load(name)
    PrunableModel.open(Checkpoint.open(PATH))  # imports what transformers puts off
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    orders, answers = os.fdopen(os.dup(0)), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for line in orders:
        if (child := os.fork()) == 0:
            os.close(answers)
            os._exit(_obey(json.loads(line)))
        os.write(answers, f"{child}\n".encode())
        os.write(answers, f"{os.waitpid(child, 0)[1]}\n".encode())


def _obey(order: dict[str, Any]) -> int:
    from prunekit.cli import main

    for number, name in ((1, "out"), (2, "err")):
        os.dup2(_open(order, name), number)
    _watch(_open(order, "changes"), order["at"], order["number"])
    os.chdir(order["cwd"])
    sys.argv = ["prunekit", *order["words"]]
    if order["env"] is not None:
        os.environ.clear()
        os.environ.update(order["env"])
        sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    warnings.resetwarnings()
    warnings.simplefilter("ignore" if os.environ.get("PYTHONWARNINGS") == "ignore" else "default")
    try:
        return importlib.import_module(order["module"]).main() or 0 if order["module"] else main() or 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _open(order: dict[str, Any], name: str) -> int:
    return os.open(Path(order["folder"]) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def _watch(log: int, at: int | None, number: int) -> None:
    """Write down this process's changes of the disk, and send it a signal before one of them."""
    count = -1

    def watched(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **rest: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), number)
            os.write(log, f"{name} {args[0]}\n".encode())
            return change(*args, **rest)

        return call

    for name in CHANGES:
        setattr(os, name, watched(name, getattr(os, name)))


if __name__ == "__main__":
    serve()
