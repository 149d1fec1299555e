"""Models as they are named on the command line: also by what the command before printed."""

import json
import sys

from prunekit import distributed
from prunekit.errors import InputError, UsageError


def read_model(spec: str) -> str:
    """A model's name as given, or for `-` the path that standard input brings.

    Takes the first line, or the `output` of a JSON object as `prune --json` prints it. Raises InputError when
    nothing usable comes.
    """
    return _from_text(read_stdin("the path of a model")) if spec == "-" else spec


def read_models(specs: list[str]) -> list[str]:
    """Several models, at most one of which is `-`."""
    if specs.count("-") > 1:
        raise UsageError("standard input can name one model only, and - stands twice")
    return [read_model(spec) for spec in specs]


def read_stdin(what: str) -> str:
    """All of standard input; raises InputError when nobody writes to it."""
    distributed.refuse_standard_input()
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(f"- reads {what} from standard input, which is a terminal", hint="pipe a command into it")
    text = sys.stdin.read().strip()
    if not text:
        raise InputError(
            f"- reads {what} from standard input, and the command before it wrote nothing",
            hint="see what that command says on its own; bash -o pipefail stops at its failure",
        )
    return text


def _from_text(text: str) -> str:
    if not text.startswith("{"):
        return text.splitlines()[0].strip()
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("output"), str):
        return found["output"]
    if isinstance(found, dict) and "error" in found:
        raise InputError(f"the command before failed: {found['error'].get('message', 'no message')}")
    raise InputError(
        f"standard input holds {text[:40]!r}; expected a path, or JSON with an output",
        hint="prunekit prune … -q",
    )
