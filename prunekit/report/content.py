"""What a report says, before it is HTML or Markdown: sections of facts, tables, figures and texts.

Every string here is plain text, whatever it came from; escaping is the renderers' business. Only drawings are markup,
made by `svg`, which escapes what it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from prunekit.report.svg import Drawing

Cell = str | float  # a float is a bar, as a share of the longest


@dataclass(frozen=True)
class Table:
    """Columns whose name is in `right` hold numbers, and are set flush right; rows in `good` and `bad` stand out."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    right: frozenset[str] = frozenset()
    good: frozenset[int] = frozenset()
    bad: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A drawing; `summary` says in words what it shows, `values` holds its numbers as a table."""

    title: str
    drawing: Drawing
    summary: str
    values: Table | None = None


@dataclass(frozen=True)
class Passage:
    """A text under a name, set as it is: a command, or what a model wrote."""

    name: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of a report under a heading; parts that are empty are left out."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    passages: Sequence[Passage] = ()
    folded: Passage | None = None  # long, and shown when it is asked for

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.text or self.tables or self.figures or self.passages or self.folded)


@dataclass(frozen=True)
class Report:
    """The whole of it: what was done in one sentence, then the sections."""

    title: str
    sentence: str
    sections: Sequence[Section] = field(default_factory=list)

    @property
    def filled(self) -> list[Section]:
        """The sections that show something."""
        return [section for section in self.sections if not section.empty]
