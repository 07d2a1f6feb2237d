"""The report as one HTML file that needs nothing else: styles, script, drawings and pictures are inside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from html import escape
from importlib import resources

from guidino_tune.reporting.document import (
    Block,
    Cell,
    Chart,
    Charts,
    Code,
    Document,
    Facts,
    Folded,
    Picture,
    Section,
    Table,
    Text,
)

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the browser may load for the page: nothing."""

LONG = 40
"""Letters in a cell, from which it needs room."""


def html(document: Document) -> str:
    """The file; every text of the document is escaped here."""
    parts = resources.files("guidino_tune.reporting")
    style, script = ((parts / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    title = escape(document.title)
    figures = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd><dd class="remark">{escape(remark)}</dd></div>'
        for name, value, remark in document.figures
    )
    links = "".join(f'<a href="#{section.id}">{escape(section.title)}</a>' for section in document.sections)
    running = " running" if document.is_running else ""
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}: report</title>",
            f"<style>{style}</style><script>{script}</script></head><body>",
            f'<header><button id="theme" type="button" title="Light or dark">Dark</button><h1>{title}</h1>',
            f'<p class="subtitle">{escape(document.subtitle)}</p><span class="badge{running}">{escape(document.state)}</span>',
            f'<dl class="figures">{figures}</dl></header>',
            f'<nav aria-label="Sections"><div>{links}</div></nav>',
            f"<main>{''.join(map(_section, document.sections))}</main>",
            f"<footer>{escape(document.colophon)}</footer></body></html>\n",
        )
    )


def _section(section: Section) -> str:
    blocks = _blocks(section.blocks)
    return f'<section id="{section.id}"><h2>{escape(section.title)}</h2><p class="lead">{escape(section.lead)}</p>{blocks}</section>'


def _blocks(blocks: Iterable[Block]) -> str:
    return "".join(map(_block, blocks))


def _block(block: Block) -> str:
    match block:
        case Text():
            question = f"<b>{escape(block.question)}</b> " if block.question else ""
            return f'<p class="{block.kind}">{question}{escape(block.text)}</p>'
        case Table():
            return _table(block)
        case Chart():
            return _chart(block)
        case Charts():
            return f'<div class="charts{" small" if block.small else ""}">{_blocks(block.charts)}</div>'
        case Picture():
            data = base64.b64encode(block.data).decode()
            image = f'<div class="frame"><img src="data:{block.kind};base64,{data}" alt="{escape(block.alt)}"></div>'
            return f'<figure class="photo">{image}<figcaption>{escape(block.caption)}</figcaption></figure>'
        case Code():
            label = f'<p class="code">{escape(block.label)}</p>' if block.label else ""
            return f"{label}<pre>{escape(block.text)}</pre>"
        case Facts():
            rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in block.rows)
            return f'<dl class="facts">{rows}</dl>'
        case Folded():
            return f"<details><summary>{escape(block.summary)}</summary>{_blocks(block.blocks)}</details>"


def _chart(chart: Chart) -> str:
    kind = ' class="wide"' if chart.wide else ""
    caption = f"<figcaption><b>{escape(chart.title)}.</b> {escape(chart.caption)}</figcaption>"
    return f'<figure{kind}><div class="frame">{chart.svg}</div>{caption}</figure>'


def _table(table: Table) -> str:
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    numeric = [any(isinstance(row[n], Cell) and row[n].value is not None for row in table.rows) for n in range(len(table.headings))]  # type: ignore[union-attr]
    heads = "".join(
        f'<th scope="col"{_number(numeric[n])}>'
        + (f'<button type="button">{_breakable(name)}</button>' if table.sortable else _breakable(name))
        + "</th>"
        for n, name in enumerate(table.headings)
    )
    rows = "".join(
        f"<tr{' class=marked' if number in table.marked else ''}>{''.join(_cells(row, numeric))}</tr>"
        for number, row in enumerate(table.rows)
    )
    frame = f'<div class="scroll{" tall" if table.tall else ""}" tabindex="0">'
    return f"{frame}<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"


def _breakable(name: str) -> str:
    """A heading that may be broken within the path of a setting, where paper is narrow."""
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _cells(row: Iterable[str | Cell], numeric: list[bool]) -> Iterator[str]:
    for number, cell in enumerate(row):
        text, value = cell if isinstance(cell, Cell) else (cell, None)
        data = "" if value is None else f' data-value="{value!r}"'
        kind = ' class="long"' if len(text) > LONG else _number(numeric[number])
        yield f"<td{kind}{data}>{escape(text)}</td>"


def _number(numeric: bool) -> str:
    return ' class="number"' if numeric else ""
