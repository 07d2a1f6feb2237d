"""The report as Markdown, for the supplement of a paper: the same sentences and numbers, without drawings and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from guidino_tune.reporting.document import Block, Cell, Chart, Charts, Code, Document, Facts, Folded, Picture, Table, Text

ROWS = 40
"""Of a table of trials; the page has more."""

MARKS = {"good": "Yes: ", "bad": "No: ", "open": "Open: "}


def markdown(document: Document) -> str:
    """The file; what Markdown would take for its own in the document's texts is escaped here."""
    lines = [f"# {_text(document.title)}", "", _text(document.subtitle), "", f"**{_text(document.state)}**", ""]
    lines += ["| | | |", "|---|--:|---|", *(f"| {_text(n)} | {_text(v)} | {_text(r)} |" for n, v, r in document.figures), ""]
    for section in document.sections:
        lines += [f"## {_text(section.title)}", "", f"*{_text(section.lead)}*", "", *_blocks(section.blocks)]
    return "\n".join([*lines, _text(document.colophon), ""])


def _blocks(blocks: Iterable[Block]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Text():
                question = f"**{_text(block.question)}** " if block.question else ""
                yield from (
                    f"- {question}{MARKS[block.kind]}{_text(block.text)}"
                    if question and block.kind in MARKS
                    else question + _text(block.text),
                    "",
                )
            case Table():
                yield from _table(block)
            case Chart():
                yield from _chart(block)
            case Charts(small=True):
                names = ", ".join(chart.title for chart in block.charts if isinstance(chart, Chart))
                yield from (f"*{len(block.charts)} figures in the HTML report: {_text(names)}*", "")
            case Charts():
                yield from _blocks(block.charts)
            case Picture():
                yield from (f"*Picture in the HTML report: {_text(block.alt)}*", "")
            case Code():
                fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", block.text)), default=0))
                yield from ([_text(block.label), ""] if block.label else [])
                yield from (fence, block.text.rstrip("\n"), fence, "")
            case Facts():
                yield from (*(f"- {_text(name)}: {_text(text)}" for name, text in block.rows), "")
            case Folded():
                yield from (f"**{_text(block.summary)}**", "", *_blocks(block.blocks))


def _chart(chart: Chart) -> Iterator[str]:
    if chart.numbers:
        yield from _table(chart.numbers)
    else:
        yield from (f"*Figure in the HTML report: {_text(chart.title)}. {_text(chart.caption)}*", "")


def _table(table: Table) -> Iterator[str]:
    if table.caption:
        yield from (_text(table.caption), "")
    numeric = [any(isinstance(row[n], Cell) for row in table.rows) for n in range(len(table.headings))]
    yield f"| {' | '.join(map(_text, table.headings))} |"
    yield f"|{'|'.join('--:' if number else '---' for number in numeric)}|"
    for number, row in enumerate(table.rows[:ROWS]):
        strong = "**" if number in table.marked else ""
        texts = (_text(cell.text if isinstance(cell, Cell) else cell) for cell in row)
        yield f"| {' | '.join(f'{strong}{text}{strong}' if text else text for text in texts)} |"
    if len(table.rows) > ROWS:
        yield from ("", f"{len(table.rows) - ROWS} more rows are in the HTML report.")
    yield ""


def _text(text: str) -> str:
    """One line, in which nothing is markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
