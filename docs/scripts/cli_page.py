"""Write docs/cli.md from what the command line declares, so that the page cannot say anything else.

python docs/scripts/cli_page.py docs/cli.md
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from prunekit.cli.app import app
from prunekit.cli.options import GENERAL, PANELS

Rows = list[tuple[str, str]]
HEAD = """\
# Command line

<!-- Written by docs/scripts/cli_page.py (make docs); edit that, or the help of the command. -->

Standard output carries exactly the result: the path of the new folder, a table, or with `--json` one JSON object with a
`schema_version`. Everything else goes to standard error: a progress bar on a terminal, else a line per decoder block at
most every ten seconds. `NO_COLOR` takes the colours away, and nothing ever asks a question.

Every option but the `-o` of `plan` can also be given as a variable: `PRUNEKIT_SEQ_LEN=512` is `--seq-len 512`. Where a
setting is given more than once, a flag wins over `--set`, `--set` over a variable, a variable over the recipe, and the
recipe over the default; `prunekit recipe show` tells where each value comes from.

MODEL is a hub id, `id@revision`, a local folder, `sample`, or `-`: then the path comes from standard input, as the
first line or as the `output` of a JSON object.

`prunekit --install-completion` teaches the shell to complete commands, options, methods and texts.

## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | it worked, and a limit that was set was missed, or a repeated run gave something else |
| 2 | a flag, a recipe or an option is wrong |
| 3 | this model, method or layout is not supported; the message says why |
| 4 | an input is missing or corrupt, or the output cannot be written |
| 5 | out of memory or disk; the finished blocks are kept, and the same command goes on from them |
| 6 | the exported folder failed verification; nothing was moved into place |
| 70 | internal error: one line, and a log file with the details |
| 130, 143 | interrupted, terminated; the finished blocks are kept |

With `--json` an error is an object, too: `{"error": {"code", "kind", "message", "hint"}}`. A limit that was missed is
none: the result is printed, with the verdicts under `gates`.

## Options of every command
"""


def page() -> str:
    """The whole page."""
    found = list(commands(typer.main.get_command(app), "prunekit"))
    everywhere = panels(*found[0])[GENERAL]
    return "\n".join([HEAD, *table(everywhere), *(line for entry in found for line in section(*entry))]) + "\n"


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, after the words that call it."""
    below = getattr(command, "commands", {})
    if not below:
        yield path, command
    for name, part in below.items():
        yield from commands(part, f"{path} {name}")


def panels(path: str, command: Any) -> dict[str, Rows]:
    """A command's arguments and options as the help shows them, by what they are about."""
    context = command.make_context(path, [], resilient_parsing=True)
    found: dict[str, Rows] = {title: [] for title in PANELS}
    for part in command.get_params(context):
        is_argument = part.param_type_name == "argument"
        title = PANELS[0] if is_argument else getattr(part, "rich_help_panel", None) or GENERAL
        if "--help" not in part.opts and (record := part.get_help_record(context)):
            found[title].append(record)
    return {title: rows for title, rows in found.items() if rows}


def section(path: str, command: Any) -> Iterator[str]:
    """The lines about one command."""
    yield from ("", f"## {path}")
    for paragraph in command.help.split("\n\n"):
        yield from ("", " ".join(paragraph.split()))
    for title, rows in panels(path, command).items():
        if title != GENERAL:
            yield from ("", f"**{title}**", "", *table(rows))
    if command.epilog:
        yield from ("", "**Examples**", "", *(f"    {line}" for line in command.epilog.strip().splitlines()))


def table(rows: Rows) -> Iterator[str]:
    """Names and what they mean, without types."""
    yield from ("| | |", "|---|---|")
    for names, text in rows:
        meaning = re.sub(r" *\[required\]", "", text).replace("|", "\\|")
        yield f"| `{re.sub(r' <.*>$', '', names)}` | {meaning} |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
