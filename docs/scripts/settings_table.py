"""Write the table of settings in docs/recipes.md from what the recipe declares.

python docs/scripts/settings_table.py docs/recipes.md
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from prunekit.recipe.options import EVALUATION_GATES, OPTIONS, Option

BEGIN, END = "<!-- settings: written by docs/scripts/settings_table.py -->", "<!-- end of settings -->"
OTHERS = (
    ("`model`", "MODEL", "", "Hub id, id@revision, folder, or sample."),
    ("`options.*`", "`--set NAME=VALUE`", "", "The method's own options: `prunekit methods wanda`."),
    ("`allocator_options.*`", "`--set allocator_options.NAME=VALUE`", "", "The allocator's own options."),
)


def table() -> str:
    """The whole table, in Markdown."""
    rows = [*OTHERS, *_rows()]
    lines = ["| setting | option | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def page(text: str) -> str:
    """A page with its table written anew."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


def _rows() -> Iterator[tuple[str, str, str, str]]:
    for name, option in OPTIONS.items():
        long = next((flag for flag in option.flags if flag.startswith("--")), f"--{name.replace('_', '-')}")
        flags = [flag for flag in option.flags if not flag.startswith("--")] + long.split("/")
        yield _paths(option), " ".join(f"`{flag}`" for flag in flags), _default(option), _cell(option.text)
    for option in EVALUATION_GATES.values():
        yield _paths(option), "", "", _cell(f"{option.text} Only `prunekit eval` measures it: a run refuses it.")


def _paths(option: Option) -> str:
    return ", ".join(f"`{path}`" for path in option.paths)


def _default(option: Option) -> str:
    named = isinstance(option.default, str | int) and not isinstance(option.default, bool)
    return option.otherwise or (f"`{option.default}`" if named else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_text(page(place.read_text(encoding="utf-8")), encoding="utf-8")
