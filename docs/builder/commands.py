"""The page of every command: what its parser says of itself."""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Iterator
from unittest import mock

from guidino_tune.__main__ import COMMANDS, module_of

INTRODUCTION = """\
# Commands

`guidino-tune NAME` and `python -m guidino_tune.NAME` are the same command. Exit codes: 0; 2 for a mistake or a disk that cannot be written;
130 for a stop by Ctrl-C, SIGTERM or a closed terminal; of a search 75 when it gave up after some results and 1 without any; or what is said
below. This page is what `--help` prints.

| command | what it does |
|---|---|
"""


class _Found(BaseException):
    """Carries a command's parser out of it, past all that a command catches."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command, which is started and stopped before it reads anything."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Found(parser)

    module = importlib.import_module(f"guidino_tune.{module_of(command)}")
    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), mock.patch.object(module, "run", _parse, create=True):
        try:
            module.main([])
        except _Found as found:
            return found.parser
    raise RuntimeError(f"{command} parses no arguments")


def _parse(_: object, parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    """In the place of ``cli.run``, which would also change how this process ends."""
    parser.parse_args(argv)
    return 0


def page() -> str:
    """The page as Markdown."""
    rows = "".join(f"| [`{name}`](#{name}) | {about} |\n" for name, about in COMMANDS.items())
    return INTRODUCTION + rows + "\n" + "\n".join(part for name in COMMANDS for part in _section(name))


def _section(name: str) -> Iterator[str]:
    parser = parser_of(name)
    parser.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, width=104, max_help_position=28)
    vars(parser)["color"] = False  # newer Pythons colour it
    about, examples = parser.description or "", parser.epilog or ""
    parser.description = parser.epilog = None
    yield f"## {name}\n"
    yield about.strip() + "\n"
    yield f"```text\n{parser.format_help().strip()}\n```\n"
    if examples:
        yield f"```text\n{examples.strip()}\n```\n"
