"""The page of every command: what its ``--help`` prints."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Iterator

from guidino_tune.__main__ import COMMANDS, module_of

INTRODUCTION = """\
# Commands

`guidino-tune NAME` and `python -m guidino_tune.NAME` are the same command. Exit codes: 0; 2 for a mistake or a disk that cannot be written;
130 for a stop by Ctrl-C, SIGTERM or a closed terminal; of a search 75 when it gave up after some results and 1 without any; or what is said
below. This page is what `--help` prints.

| command | what it does |
|---|---|
"""

COLUMNS = "106"
"""Of the terminal for which it is printed: what fits on a page."""


def page() -> str:
    """The page as Markdown."""
    rows = "".join(f"| [`{name}`](#{name}) | {about} |\n" for name, about in COMMANDS.items())
    return INTRODUCTION + rows + "\n" + "\n".join(part for name in COMMANDS for part in _section(name))


def help_of(command: str) -> str:
    """What a command prints of itself."""
    printed, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            importlib.import_module(f"guidino_tune.{module_of(command)}").main(["--help"])
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return printed.getvalue()


def _section(name: str) -> Iterator[str]:
    usage, about, *rest = help_of(name).split("\n\n")
    options, _, examples = "\n\n".join([usage, *rest]).partition("\nexamples:\n")
    yield f"## {name}\n"
    yield about.strip() + "\n"
    yield f"```text\n{options.strip()}\n```\n"
    if examples:
        yield f"```text\n{examples.rstrip()}\n```\n"
