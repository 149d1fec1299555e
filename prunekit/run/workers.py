"""Work in processes of its own, several at a time, none of which outlives the process that started it.

A worker imports what it needs itself, so that this file stays light, and ends as soon as its starter is gone, however
that ended: it waits on a pipe whose other end only the starter holds.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from prunekit.errors import PrunekitError, ResourceError
from prunekit.quiet import QUIET


def run_all(function: str, orders: Mapping[str, Any], jobs: int) -> Iterator[tuple[str, Any]]:
    """The name of each order and what `function`, written `module:name`, answers to it, as they come in.

    At most `jobs` processes run at once. An error of prunekit's is an answer, too; any other is raised here, and one
    that ends a process is a ResourceError: the system ends those that take too much memory. If the caller stops
    iterating, all processes are terminated.
    """
    waiting, running = list(orders), dict[Connection, tuple[str, BaseProcess]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                link, process = _start(function, orders[name], jobs)
                running[link] = (name, process)
            for link in wait(list(running)):
                assert isinstance(link, Connection)
                name, process = running.pop(link)
                yield name, _answer(link, name, process)
    finally:
        for link, (_, process) in running.items():
            process.terminate()
            process.join()
            link.close()


def _start(function: str, order: Any, jobs: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))}
    process = context.Process(target=work, args=(theirs, function, order, QUIET | threads), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _answer(link: Connection, name: str, process: BaseProcess) -> Any:
    try:
        kind, content = link.recv()
    except EOFError:
        process.join()
        raise ResourceError(
            f"the process at work on {name} was ended (code {process.exitcode})",
            hint="where memory ran out: fewer --jobs",
        ) from None
    finally:
        link.close()
    process.join()
    if kind == "error":
        raise RuntimeError(content)
    return content


def work(link: Connection, function: str, order: Any, environment: Mapping[str, str]) -> None:
    """What a worker does: answer one order. What others print goes to standard error."""
    os.environ.update(environment)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter hears it, too, and ends the workers
    threading.Thread(target=_end_with_starter, args=(link,), daemon=True).start()
    module, _, name = function.partition(":")
    try:
        link.send(("done", getattr(importlib.import_module(module), name)(order)))
    except PrunekitError as error:
        link.send(("done", error))
    except MemoryError:
        sys.exit(1)
    except BaseException as error:
        link.send(("error", "".join(traceback.format_exception(error))))


def _end_with_starter(link: Connection) -> None:
    """Wait for the end of the pipe, which comes when the starter is gone."""
    try:
        link.recv()
    except (EOFError, OSError):
        os._exit(143)
