"""How a run ends when it does not end well: one line, a hint, an exit code, and, if wished, JSON."""

import contextlib
import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import typer

from prunekit import distributed
from prunekit.cli.screen import to_json, write
from prunekit.errors import GateFailure, InputError, PrunekitError, ResourceError, UsageError

LESS_MEMORY = ("--batch-size 1", "--offload disk", "--mode streaming", "--no-sparsity")
LESS_DEVICE_MEMORY = ("--batch-size 1", "--device cpu")
DEFAULT = ("eval", "--batch-size 1")  # what a command does anyway need not be said
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
FALSE = ("", "0", "false", "no", "off", "n", "f")


class Interrupted(PrunekitError):
    """The user pressed Ctrl-C."""

    exit_code = 130
    kind = "interrupted"


class Terminated(BaseException):
    """The process was asked to end (SIGTERM)."""


class Stopped(BaseException):
    """Ctrl-C under a name that typer does not know: of a KeyboardInterrupt it would leave nothing but an exit code."""

    @classmethod
    def by(cls, interrupt: KeyboardInterrupt) -> "Stopped":
        """The same interruption, with what is known about it."""
        stopped = cls()
        vars(stopped).update(vars(interrupt))
        return stopped


class Ended(PrunekitError):
    """What a termination is reported as."""

    exit_code = 143
    kind = "terminated"


@dataclass(frozen=True)
class Call:
    """What was typed, and the options of the command that it names."""

    words: Sequence[str] = ()
    options: Collection[str] = ()

    def could_add(self, choice: str) -> bool:
        """Whether `--option value` is something that the command takes and that was not typed."""
        typed, option = " ".join(self.words).replace("=", " "), choice.partition(" ")[0]
        is_default = (*self.words[:1], choice) == DEFAULT and option not in typed.split()
        return option in self.options and f" {choice} " not in f" {typed} " and not is_default


@contextlib.contextmanager
def reported(arguments: Sequence[str], commands: Mapping[str, Collection[str]]) -> Iterator[None]:
    """Report whatever is raised inside, and leave with its exit code; `commands` holds the options of each."""
    try:
        with _terminable():
            yield
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        failure = explain(error, Call(arguments, commands.get("".join(arguments[:1]), ())))
        debug = _asked("--debug", arguments) and failure.exit_code == PrunekitError.exit_code
        answered = isinstance(failure, GateFailure)  # the result is out, and names the gates
        as_json = _asked("--json", arguments) and distributed.is_first() and not answered
        report(failure, as_json=as_json, details=_traceback(error) if debug else "")
        sys.exit(failure.exit_code)


def report(failure: PrunekitError, *, as_json: bool, details: str = "") -> None:
    """The JSON object on standard output if it was asked for, and the lines for people on standard error."""
    if as_json:
        write(sys.stdout, to_json(failure.as_json()))
    hint = f"{_coloured('hint:', 36)} {failure.hint}\n" if failure.hint else ""
    with contextlib.suppress(ValueError):
        write(sys.stderr, f"{details}{_coloured('error:', 31)} {distributed.speaker()}{failure.message}\n{hint}")


def end_with(failure: PrunekitError, code: int | None = None) -> NoReturn:
    """End with a failure's exit code where the result has been printed already: one line, and no second JSON object."""
    report(failure, as_json=False)
    raise typer.Exit(failure.exit_code if code is None else code)


def explain(error: BaseException, call: Call | None = None) -> PrunekitError:
    """Any exception as one of prunekit's, with a message for the person at the terminal."""
    call = call or Call()
    kept = _what_is_kept(error, call)
    if isinstance(error, ResourceError):
        return ResourceError(error.message, hint=_joined(error.hint, kept)) if kept else error
    if isinstance(error, PrunekitError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, KeyboardInterrupt | Stopped):
        return Interrupted("interrupted", hint=kept)
    if isinstance(error, Terminated):
        return Ended("terminated", hint=kept)
    if _is_out_of_memory(error):
        return ResourceError(f"out of memory: {_first_line(error)}", hint=_joined(kept, _less_memory(error, call)))
    if isinstance(error, OSError) and error.errno is not None:
        return _storage(error, kept) or _internal(error)
    return _internal(error)


def _what_is_kept(error: BaseException, call: Call) -> str | None:
    """How the run can be continued, where the working folder says that it keeps something (see `staging`)."""
    if not (kept := getattr(error, "kept", False)):
        return None
    what = kept if isinstance(kept, str) else "finished blocks"
    same = "the same command without --restart" if _asked("--restart", call.words) else "the same command"
    return f"the {what} are kept; {same} continues from them"


def _less_memory(error: BaseException, call: Call) -> str:
    """What can be typed to need less of the memory that ran out."""
    on_device = type(error).__name__ == "OutOfMemoryError" or "MPS" in str(error)
    choices = [part for part in (LESS_DEVICE_MEMORY if on_device else LESS_MEMORY) if call.could_add(part)]
    return f"{' or '.join(choices)} needs less memory" if choices else "repeat it where more memory is free"


def _joined(*hints: str | None) -> str | None:
    return "; ".join(filter(None, hints)) or None


def _usage(error: typer.TyperException) -> UsageError:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return UsageError(message[:1].lower() + message[1:], hint=f"{context.command_path} --help" if context else None)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text)


def _storage(error: OSError, kept: str | None) -> PrunekitError | None:
    """What the operating system says about files; None for its other complaints."""
    where = f" {error.filename}" if error.filename else ""
    if error.errno in FULL:
        return ResourceError(
            f"no space left on the disk{where and f' of{where}'}",
            hint=_joined("free some space, then repeat the command", kept),
        )
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
        from prunekit.cache import folder as cache

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
    """Turn SIGTERM into an exception, so that it is reported and files are closed.

    A process beside the first has none open, and may be waiting for one that is gone: both signals just end it.
    """

    def end(*_: object) -> None:
        raise Terminated

    ends = dict.fromkeys((signal.SIGTERM, signal.SIGINT), signal.SIG_DFL)
    with contextlib.ExitStack() as handled:
        for number, handler in ({signal.SIGTERM: end} if distributed.is_first() else ends).items():
            handled.enter_context(_handling(number, handler))
        yield


@contextlib.contextmanager
def _handling(number: signal.Signals, handler: Callable[..., None] | signal.Handlers) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
