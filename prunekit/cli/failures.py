"""How a run ends when it does not end well: one line, a hint, an exit code, and, if wished, JSON."""

import contextlib
import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

import typer

from prunekit.cli.screen import to_json, write
from prunekit.errors import InputError, PrunekitError, ResourceError, UsageError

RESUMABLE = ("prune", "apply")
KEPT = "the finished blocks are kept; the same command goes on from them"
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
FALSE = ("", "0", "false", "no", "off", "n", "f")


class Interrupted(PrunekitError):
    """The user pressed Ctrl-C."""

    exit_code = 130
    kind = "interrupted"


class Terminated(BaseException):
    """The process was asked to end (SIGTERM)."""


class Ended(PrunekitError):
    """What a termination is reported as."""

    exit_code = 143
    kind = "terminated"


@contextlib.contextmanager
def reported(arguments: Sequence[str]) -> Iterator[None]:
    """Report whatever is raised inside, and leave with its exit code."""
    try:
        with _terminable():
            yield
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        failure = explain(error, resumable=bool(set(arguments[:1]) & set(RESUMABLE)))
        debug = _asked("--debug", arguments) and failure.exit_code == PrunekitError.exit_code
        report(failure, as_json=_asked("--json", arguments), details=_traceback(error) if debug else "")
        sys.exit(failure.exit_code)


def report(failure: PrunekitError, *, as_json: bool, details: str = "") -> None:
    """The JSON object on standard output if it was asked for, and the lines for people on standard error."""
    if as_json:
        write(sys.stdout, to_json(failure.as_json()))
    hint = f"{_coloured('hint:', 36)} {failure.hint}\n" if failure.hint else ""
    with contextlib.suppress(ValueError):
        write(sys.stderr, f"{details}{_coloured('error:', 31)} {failure.message}\n{hint}")


def explain(error: BaseException, *, resumable: bool = False) -> PrunekitError:
    """Any exception as one of prunekit's, with a message for the person at the terminal."""
    if isinstance(error, PrunekitError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted", hint=KEPT if resumable else None)
    if isinstance(error, Terminated):
        return Ended("terminated", hint=KEPT if resumable else None)
    if _is_out_of_memory(error):
        less = "--batch-size 1 and --offload disk need less memory"
        return ResourceError(f"out of memory: {_first_line(error)}", hint=f"{KEPT}; {less}" if resumable else less)
    if isinstance(error, OSError) and error.errno is not None:
        return _storage(error, resumable) or _internal(error)
    return _internal(error)


def _usage(error: typer.TyperException) -> UsageError:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return UsageError(message[:1].lower() + message[1:], hint=f"{context.command_path} --help" if context else None)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text)


def _storage(error: OSError, resumable: bool) -> PrunekitError | None:
    """What the operating system says about files; None for its other complaints."""
    where = f" {error.filename}" if error.filename else ""
    if error.errno in FULL:
        return ResourceError(
            f"no space left on the disk{where and f' of{where}'}",
            hint=f"free some; {KEPT}" if resumable else None,
        )
    if error.errno == errno.ENOMEM:
        return ResourceError("out of memory", hint=KEPT if resumable else None)
    if error.filename is None:
        return None
    return InputError(
        f"cannot use{where}: {(error.strerror or str(error)).lower()}",
        hint="check the path and its permissions",
    )


def _internal(error: BaseException) -> PrunekitError:
    log = _write_log(error)
    message = f"internal error: {type(error).__name__}: {_first_line(error)}"
    return PrunekitError(
        message, hint=f"the details are in {log}; please report them" if log else "repeat with --debug"
    )


def _write_log(error: BaseException) -> str | None:
    """Keep the traceback in a file; None when none can be written."""
    from prunekit import __version__

    with contextlib.suppress(OSError, ImportError):
        from prunekit.token_cache import folder as cache

        folder = cache() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        head = f"prunekit {__version__}, Python {sys.version}\n{sys.argv}\n\n"
        path.write_text(head + _traceback(error), encoding="utf-8")
        return str(path)
    return None


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _asked(flag: str, arguments: Sequence[str]) -> bool:
    """Whether a flag was typed or set by its variable; needed also when the arguments cannot be parsed."""
    variable = f"PRUNEKIT_{flag.lstrip('-').upper()}"
    return flag in arguments or os.environ.get(variable, "").lower() not in FALSE


def _coloured(text: str, code: int) -> str:
    plain = "NO_COLOR" in os.environ or not sys.stderr.isatty()
    return text if plain else f"\033[1;{code}m{text}\033[0m"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that it is reported and files are closed."""

    def end(*_: object) -> None:
        raise Terminated

    with _handling(signal.SIGTERM, end):
        yield


@contextlib.contextmanager
def _handling(number: signal.Signals, handler: Callable[..., None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
