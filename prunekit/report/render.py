"""A report as one HTML file that needs nothing else, or as Markdown.

Whatever comes from a model, a file or a data set stays text: Jinja2 escapes all of it in HTML, `_inline` in Markdown.
"""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prunekit import __version__
from prunekit.export.card import indented
from prunekit.report.content import Figure, Report, Section, Table

MARK = "prunekit report"
LONG = 40  # letters of a cell that is not to become narrow and high
BAR = 20  # letters of the longest bar in Markdown
SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$-])")


def html(report: Report) -> str:
    """The page."""
    found = _environment().get_template("report.html.j2").render(report=report, mark=MARK, version=__version__)
    return "\n".join(line.rstrip() for line in found.splitlines() if line.strip()) + "\n"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("prunekit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.tests["bar"] = lambda cell: isinstance(cell, float)
    made.tests["long"] = lambda cell: isinstance(cell, str) and len(cell) > LONG
    return made


def markdown(report: Report) -> str:
    """The same without drawings; their numbers stand in tables."""
    parts = [f"<!-- {MARK}, prunekit {__version__} -->", f"# {_inline(report.title)}", _inline(report.sentence)]
    for section in report.filled:
        parts += [f"## {_inline(section.title)}", *_section(section)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> list[str]:
    parts = [_inline(text) for text in section.text]
    parts += [_table(table) for table in section.tables]
    parts += [part for figure in section.figures for part in _figure(figure)]
    passages = [*section.passages, *([section.folded] if section.folded else [])]
    return parts + [part for passage in passages for part in (f"**{_inline(passage.name)}**", indented(passage.text))]


def _figure(figure: Figure) -> list[str]:
    table = [_table(figure.values)] if figure.values else []
    return [f"**{_inline(figure.title)}**", _inline(figure.summary), *table]


def _table(table: Table) -> str:
    rule = ["---:" if header in table.right else "---" for header in table.headers]
    lines = [[_inline(header) for header in table.headers], rule]
    lines += [[_cell(cell) for cell in row] for row in table.rows]
    return f"**{_inline(table.caption)}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Any) -> str:
    return "█" * round(BAR * cell) if isinstance(cell, float) else _inline(cell)


def _inline(text: str) -> str:
    """Text on one line in which nothing is markup."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))
