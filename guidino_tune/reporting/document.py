"""What a report consists of, before it is written as HTML or Markdown. All text is plain: whoever writes it down escapes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["plain", "good", "bad", "open", "absent"]


class Cell(NamedTuple):
    """What stands in a table, and the number that it is sorted by; ``None`` stands last, whichever way."""

    text: str
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        headings: Of its columns.
        rows: Text or cells; a cell with a value stands at the right.
        caption: What it shows, in a sentence.
        sortable: Whether a click on a heading sorts it.
        tall: Whether it scrolls in a frame of its own, below a heading that stays.
        marked: Indices of rows that stand out.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    sortable: bool = False
    tall: bool = False
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawing.

    Attributes:
        title: What it shows; also for those who do not see it.
        svg: The drawing, whole and safe.
        caption: How to read it.
        wide: Whether it needs the whole width.
        numbers: The same as a table, for Markdown.
    """

    title: str
    svg: str
    caption: str = ""
    wide: bool = False
    numbers: Table | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A photograph: the encoded file, such as ``image/jpeg``, and what it shows."""

    data: bytes
    kind: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph: ``good``, ``bad`` or ``open`` answers its ``question``; an ``absent`` one says what is not here and why."""

    text: str
    kind: Kind = "plain"
    question: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Commands or a file, to be copied."""

    text: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with what is to be said of them."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Folded:
    """What is unfolded by who wants it."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Charts:
    """Drawings and tables side by side, where there is room; ``small`` ones in more columns."""

    charts: Sequence[Chart | Table]
    small: bool = False


Block: TypeAlias = "Text | Table | Chart | Charts | Picture | Code | Facts | Folded"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report: its ``id`` for links, its title, one sentence that says what one sees, and its blocks."""

    id: str
    title: str
    lead: str
    blocks: Sequence[Block] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A report.

    Attributes:
        title: The study's name.
        subtitle: What it is, in a line.
        state: How the study stands, in words.
        is_running: Whether that is not the end.
        figures: The numbers that one sees first: name, value, remark.
        sections: In the order in which they are read.
        colophon: When and by what it was made.
    """

    title: str
    subtitle: str
    state: str
    is_running: bool
    figures: Sequence[tuple[str, str, str]]
    sections: Sequence[Section] = field(default_factory=tuple)
    colophon: str = ""
