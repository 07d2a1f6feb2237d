"""A table of plain values as CSV or Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def csv_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Comma-separated values with their headings; ``None`` is an empty cell, and numbers are not rounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    return text.getvalue()


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; what would end a cell or a line in it is written otherwise."""
    lines = [[_cell(value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (list(map(_cell, headings)), ["---"] * len(headings), *lines)) + "\n"


def _cell(value: object) -> str:
    return "" if value is None else " ".join(str(value).replace("\\", "\\\\").replace("|", "\\|").split())
