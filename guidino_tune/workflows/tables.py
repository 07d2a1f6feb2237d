"""Tables in a terminal: what is searched gets headings, an order and as many columns as fit; numbers are never cut."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Literal, get_args

import numpy as np
from optuna.trial import FrozenTrial
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from guidino_tune.analysis.plain_tables import csv_table, markdown_table
from guidino_tune.config.experiment import KNOWN
from guidino_tune.space.encoding import columns as places
from guidino_tune.space.encoding import encode
from guidino_tune.space.space import Space
from guidino_tune.study.objectives import SHORT

Format = Literal["table", "json", "csv", "markdown"]
FORMATS: tuple[Format, ...] = get_args(Format)

UNLIMITED = 10_000
"""Characters in a line that goes into a pipe: whoever reads it there can cut it."""

NARROW, FOLDED = 6, 24
"""Characters in a line of a cell of text, at least and at most; the rest of it follows below."""

COUNTS = ("complete", "stopped", "failed", "running", "best", "rank", "trial", "epochs", "epoch", "Dice", *SHORT.values())
"""Headings of columns that hold numbers."""

OWN = ("rank", "trial", "system", "epochs", "epoch", "state", "Dice", *SHORT.values())
"""Headings that no searched parameter gets."""


def headings(space: Space) -> dict[str, str]:
    """A heading for every searched parameter, by its path: what is known as its heading, else the shortest end of the path that tells it
    apart."""
    own = {path: KNOWN[short].heading for path in space.parameters if (short := path.removesuffix(".kind")) in KNOWN}
    taken = Counter([*OWN, *filter(None, own.values())])
    ends = Counter(end for path in space.parameters for end in _ends(path))

    def heading(path: str) -> str:
        known = own.get(path, "")
        free = (end for end in _ends(path) if ends[end] == 1 and end not in taken)
        return known if known and taken[known] == 1 else next(free, path)

    return {path: heading(path) for path in space.parameters}


def _ends(path: str) -> list[str]:
    """``a.b.c`` has ``c``, ``b.c`` and itself; that of a kind is the part that is of this kind."""
    parts = path.removesuffix(".kind").split(".")
    return [".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1)]


def most_telling(space: Space, trials: Sequence[FrozenTrial]) -> list[str]:
    """The paths of all searched parameters: first those whose values differ most between these trials, in the scale of the space."""
    if len(trials) < 2:
        return list(space.parameters)
    values = np.array([encode(space, trial.params) for trial in trials])

    def spread(path: str) -> float:
        at = values[:, places(space)[path]]
        apart = np.abs(at[:, None] - at[None]).sum(2) / (2 if space.parameters[path].type == "choice" else 1)
        return float(np.minimum(apart, 1.0).mean())

    spreads = {path: spread(path) for path in space.parameters}
    return sorted(spreads, key=lambda path: -round(spreads[path], 6))


def fitting(fixed: Iterable[Sequence[str]], more: Iterable[Sequence[str]], width: int) -> int:
    """How many more columns fit beside the fixed ones; each is its heading and its cells."""
    free, count = width - sum(_needed(column) + 1 for column in fixed) + 1, 0
    for column in more:
        free -= _needed(column) + 1
        if free < 0:
            break
        count += 1
    return count


def _needed(column: Sequence[str]) -> int:
    heading, *cells = map(cell_len, column)
    return max(heading, min(max(cells, default=0), FOLDED), 0 if column[0] in COUNTS else NARROW)


def plain_table(headings: Sequence[str], numbers: Container[str] = COUNTS) -> Table:
    """A table without rows and without lines, of columns with ``numbers`` and others."""
    table = Table(box=None, pad_edge=False, collapse_padding=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in headings:
        number = heading in numbers
        wide = None if number or heading == "state" else max(FOLDED, len(heading))
        table.add_column(
            heading, justify="right" if number else "left", overflow="fold", no_wrap=wide is None, max_width=wide,
            min_width=max(len(heading), 0 if number else NARROW),
        )  # fmt: skip
    return table


def print_table(console: Console, table: Table) -> None:
    """As wide as the console at most, or where its numbers need more than that, as they need; texts are folded, the widest first."""
    excess = table_width(console, table) - console.width
    texts = [column for column in table.columns if not column.no_wrap]
    widths = [min(column.max_width or 0, max([column.min_width or 0, *(cell_len(str(c)) for c in column.cells)])) for column in texts]
    while excess > 0 and (wide := [n for n, column in enumerate(texts) if widths[n] > (column.min_width or 0)]):
        widths[max(wide, key=lambda n: widths[n])] -= 1
        excess -= 1
    for column, width in zip(texts, widths, strict=True):
        column.max_width = width
    if excess > 0:
        table.width = console.width + excess
    console.print(table)


def table_width(console: Console, table: Table) -> int:
    """Characters that a table takes where it is not limited."""
    return Measurement.get(console, console.options.update(max_width=UNLIMITED), table).maximum


def terminal() -> Console:
    """Standard output: as wide as ``COLUMNS`` or the terminal says, and without limit in a pipe."""
    return Console(width=shutil.get_terminal_size((UNLIMITED, 25)).columns, soft_wrap=True, markup=False, emoji=False, highlight=False)


def print_data(form: Format, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows on standard output for a program: as JSON a list of objects; see ``csv_table`` and ``markdown_table``."""
    if form == "json":
        known = ([None if isinstance(v, float) and not math.isfinite(v) else v for v in row] for row in rows)  # JSON has no NaN
        text = json.dumps([dict(zip(headings, row, strict=True)) for row in known], indent=1, ensure_ascii=False) + "\n"
    else:
        text = csv_table(headings, rows) if form == "csv" else markdown_table(headings, rows)
    sys.stdout.write(text)
