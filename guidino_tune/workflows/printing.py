"""Studies on a terminal, in a pipe, or as JSON, CSV and Markdown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from guidino_tune.analysis.plain_tables import csv_table, markdown_table
from guidino_tune.space.space import Space
from guidino_tune.workflows.overview import Overview
from guidino_tune.workflows.progress import columns, leaderboard
from guidino_tune.workflows.study_page import StudyPage, trial_rows

Format = Literal["table", "json", "csv", "markdown"]
FORMATS: tuple[Format, ...] = get_args(Format)

UNLIMITED = 10_000
"""Characters in a line that goes into a pipe: whoever reads it there can cut it."""

NARROW, FOLDED = 6, 24
"""Characters in a line of a cell of text, at least and at most; the rest of it follows below."""

HEADINGS = ("study", "data", "state", "complete", "stopped", "failed", "running", "best", "last trial")
COUNTS = ("complete", "stopped", "failed", "running", "best", "rank", "trial", "epochs")
FIELDS = (
    "study",
    "data",
    "state",
    "driver",
    "since",
    "complete",
    "stopped",
    "failed",
    "running",
    "left",
    "best_val_dice",
    "last_trial",
    "problem",
)


def terminal() -> Console:
    """Standard output: as wide as ``COLUMNS`` or the terminal says, and without limit in a pipe."""
    return Console(width=shutil.get_terminal_size((UNLIMITED, 25)).columns, soft_wrap=True, markup=False, emoji=False, highlight=False)


# ------------------------------------------------------------------------------------------------------------------- all studies


def print_list(studies: Sequence[Overview], place: str, form: Format, console: Console) -> None:
    """A row for each study; below a table who drives which, and what cannot be read."""
    rows = [_fields(study) for study in studies]
    if form == "json":
        _raw(console, json.dumps([dict(zip(FIELDS, row, strict=True)) for row in rows], indent=1, ensure_ascii=False))
    elif form == "csv":
        _raw(console, csv_table(FIELDS, rows))
    elif form == "markdown":
        _raw(console, markdown_table(HEADINGS, [_cells(study) for study in studies]))
    elif not studies:
        console.print(f"no studies in {place}; a search makes one")
    else:
        table = _table(HEADINGS)
        for study in studies:
            table.add_row(*map(Text, _cells(study)), style="green" if study.state == "running" else "red" if study.problem else None)
        _print_table(console, table)
        for study in studies:
            if study.driver:
                console.print(f"{study.name}: {'was' if study.driver.is_dead else 'is'} driven by {study.driver}")
            if study.problem:
                console.print(f"{study.name}: {study.problem}", style="red")


def _cells(study: Overview) -> list[str]:
    if study.problem:
        return [study.name, "", study.state, *[""] * (len(HEADINGS) - 3)]
    counts = (study.complete, study.stopped, study.failed, study.running)
    return [study.name, study.data, study.state, *map(str, counts), _dice(study.best), _time(study)]


def _fields(study: Overview) -> list[Any]:
    driver = study.driver
    return [
        study.name, study.data, study.state, driver and driver.who, driver and driver.since, study.complete, study.stopped, study.failed,
        study.running, study.left, study.best, study.latest and study.latest.isoformat(timespec="seconds"), study.problem or None,
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------- one study


def print_study(page: StudyPage, form: Format, console: Console, rows: int = 10) -> None:
    """Everything of a study; CSV has its trials alone."""
    headings, trials = trial_rows(page)
    if form == "json":
        found = dict(zip(FIELDS, _fields(page.overview), strict=True)) | {
            "searched": page.searched, "over": page.data, "objective": page.objective, "settings": page.settings,
            "trials": [dict(zip(headings, row, strict=True)) for row in trials],
            "failures": [asdict(failure) for failure in page.failures],
            "commands": page.commands, "commands_on": page.where or None, "links": page.links,
        }  # fmt: skip
        _raw(console, json.dumps(found, indent=1, ensure_ascii=False))
    elif form == "csv":
        _raw(console, csv_table(headings, trials))
    elif form == "markdown":
        shown = headings[: len(headings) - 4]  # what nobody reads in a table: the whole message, node and times
        _raw(console, "\n".join([f"# {_title(page)}", "", *(f"- {line}" for line in _about(page)), "", "## Trials", "", ""]))
        _raw(console, markdown_table(shown, [row[: len(shown)] for row in trials]))
        _raw(console, "\n".join(["", "## Next", "", *(f"- {line}" for line in (*_failures(page), *_next(page)))]))
    else:
        console.print(_title(page), style="bold")
        for line in _about(page):
            console.print(f"  {line}")
        table, hidden = fitted(page, rows, console)
        if table.row_count:
            _print_table(console, table)
        if hidden:
            what = "1 searched parameter does" if len(hidden) == 1 else f"{len(hidden)} searched parameters do"
            console.print(f"{what} not fit ({', '.join(hidden)}): --format csv has all", style="dim")
        for line in (*_failures(page), *_next(page)):
            console.print(line)


def fitted(page: StudyPage, rows: int, console: Console) -> tuple[Table, list[str]]:
    """The leaderboard with as many of the searched parameters as fit, from the left, and the headings of those that do not."""
    searched = headings_of(page.stored.space)
    for number in range(len(searched), -1, -1):
        some = dict(list(searched.items())[:number])
        table = leaderboard(page.stored.study, page.stored.space, rows, some)
        _laid_out(table)
        if _width(console, table) <= console.width:
            break
    return table, list(searched.values())[number:]


def headings_of(space: Space) -> dict[str, str]:
    """A heading for every searched parameter: its own, or the end of its path where that is no other's."""
    own = columns(space)
    ends = [path.rpartition(".")[2] for path in space.parameters]
    return {p: own.get(p) or (end if ends.count(end) == 1 else p) for p, end in zip(space.parameters, ends, strict=True)}


def _title(page: StudyPage) -> str:
    about = page.overview
    left = f", {about.left} {'trial is' if about.left == 1 else 'trials are'} left" if about.left else ""
    driver = f"; {'was' if about.driver.is_dead else 'is'} driven by {about.driver}" if about.driver else ""
    return f"{about.name}: {about.state}{left}{driver}"


def _about(page: StudyPage) -> list[str]:
    about = page.overview
    counts = f"{about.complete} complete, {about.stopped} stopped early, {about.failed} failed, {about.running} running or to go on"
    widest = max(map(len, page.searched), default=0)
    best = f"; best val Dice {_dice(about.best)}" if about.best is not None else ""
    return [
        f"trials: {counts}{best}" + (f"; last one {_time(about)}" if about.latest else ""),
        f"data: {page.data}",
        f"objective: {page.objective}",
        f"settings: {page.settings}",
        *(f"searched: {path:<{widest}}  {what}" for path, what in page.searched.items()),
    ]


def _failures(page: StudyPage) -> list[str]:
    return [
        f"{failure.count} {failure.kind}, first trial {failure.trial}{f' on {failure.node}' if failure.node else ''}: "
        f"{failure.message.rstrip('.')[:300]} -> {failure.todo}"
        for failure in page.failures
    ]


def _next(page: StudyPage) -> list[str]:
    there = f" (on {page.where})" if page.where else ""
    commands = [f"{what}{there}: {command}" for what, command in page.commands.items()]
    return [*commands, *(f"{what}: {where}" for what, where in page.links.items())]


# ------------------------------------------------------------------------------------------------------------------------ tables


def _table(headings: Sequence[str]) -> Table:
    table = Table(header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in COUNTS else "left")
    _laid_out(table)
    return table


def _laid_out(table: Table) -> None:
    """Lean, with numbers whole and texts folded: nothing is cut."""
    table.title, table.box, table.pad_edge, table.collapse_padding = None, None, False, False
    table.padding = (0, 1)
    for column in table.columns:
        heading = str(column.header)
        column.overflow, column.min_width = "fold", max(len(heading), NARROW)
        column.no_wrap = column.justify == "right" or heading == "state"
        if not column.no_wrap:
            column.max_width = max(FOLDED, len(heading))


def _print_table(console: Console, table: Table) -> None:
    """As wide as the console at most, or where its numbers need more than that, as they need; texts are folded, the widest first."""
    excess = _width(console, table) - console.width
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


def _width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(max_width=UNLIMITED), table).maximum


def _raw(console: Console, text: str) -> None:
    console.file.write(text if text.endswith("\n") else f"{text}\n")


def _dice(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _time(study: Overview) -> str:
    return f"{study.latest:%Y-%m-%d %H:%M}" if study.latest else "-"
