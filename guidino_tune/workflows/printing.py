"""Studies on a terminal, in a pipe, or as JSON, CSV and Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from guidino_tune.analysis.plain_tables import csv_table, markdown_table
from guidino_tune.workflows.overview import Overview
from guidino_tune.workflows.progress import dice_cell, hidden_line, leaderboard
from guidino_tune.workflows.study_page import StudyPage, trial_rows
from guidino_tune.workflows.tables import Format, plain_table, print_table

HEADINGS = ("study", "data", "state", "complete", "stopped", "failed", "running", "best", "last trial")
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
        table = plain_table(HEADINGS)
        for study in studies:
            table.add_row(*map(Text, _cells(study)), style="green" if study.state == "running" else "red" if study.problem else None)
        print_table(console, table)
        for study in studies:
            if study.driver:
                console.print(f"{study.name}: {'was' if study.driver.is_dead else 'is'} driven by {study.driver}")
            if study.problem:
                console.print(f"{study.name}: {study.problem}", style="red")


def _cells(study: Overview) -> list[str]:
    if study.problem:
        return [study.name, "", study.state, *[""] * (len(HEADINGS) - 3)]
    counts = (study.complete, study.stopped, study.failed, study.running)
    return [study.name, study.data, study.state, *map(str, counts), dice_cell(study.best), _time(study)]


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
        table, hidden = leaderboard(page.stored.study, page.stored.space, rows, console.width)
        if table.row_count:
            print_table(console, table)
            if line := hidden_line(hidden, page.overview.name):
                console.print(line, style="dim")
        for line in (*_failures(page), *_next(page)):
            console.print(line)


def _title(page: StudyPage) -> str:
    about = page.overview
    left = f", {about.left} {'trial is' if about.left == 1 else 'trials are'} left" if about.left else ""
    driver = f"; {'was' if about.driver.is_dead else 'is'} driven by {about.driver}" if about.driver else ""
    return f"{about.name}: {about.state}{left}{driver}"


def _about(page: StudyPage) -> list[str]:
    about = page.overview
    counts = f"{about.complete} complete, {about.stopped} stopped early, {about.failed} failed, {about.running} running or to go on"
    widest = max(map(len, page.searched), default=0)
    best = f"; best val Dice {dice_cell(about.best)}" if about.best is not None else ""
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


def _raw(console: Console, text: str) -> None:
    console.file.write(text if text.endswith("\n") else f"{text}\n")


def _time(study: Overview) -> str:
    return f"{study.latest:%Y-%m-%d %H:%M}" if study.latest else "-"
