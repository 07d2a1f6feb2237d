"""Every command line that README, CONTRIBUTING, the pages of docs/ and the commands' own examples show is one that the command takes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guidino_tune.__main__ import COMMANDS, module_of

ROOT = Path(__file__).parents[2]
CALL = re.compile(r"(?<!-n )(?:guidino-tune|python -m guidino_tune\.)\s*(?P<name>[a-z_-]+)\b(?!`)(?P<words>[^`\n]*)")
MADE_UP = {"N": "3", "NUMBER": "3"}
"""What stands for a number there; other capitals may be any text."""


def command_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Name and words of each command in a text, without comments and what is told beside it; not where only its name is quoted."""
    for found in CALL.finditer(re.sub(r"\s*\\\n\s*", " ", text)):
        name = found["name"].replace("_", "-")
        if name in COMMANDS:
            yield name, [MADE_UP.get(word, word) for word in shlex.split(re.split("  +| > ", found["words"])[0], comments=True)]


PAGES = {
    page.name: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
}
PAGES |= {name: getattr(importlib.import_module(f"guidino_tune.{module_of(name)}"), "EXAMPLES", "") for name in COMMANDS}


def test_pages_show_every_command() -> None:
    shown = {name for text in PAGES.values() for name, _ in command_lines(text)}
    assert shown == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_commands_take_what_the_pages_show(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def parse(command: Any, arguments: argparse.ArgumentParser, argv: list[str]) -> int:
        taken.append("help" if "--help" in argv else arguments.parse_args(argv))
        return 0

    lines = list(command_lines(PAGES[page]))
    for name, words in lines:
        module = importlib.import_module(f"guidino_tune.{module_of(name)}")
        monkeypatch.setattr(module, "run", parse)
        with contextlib.suppress(SystemExit):  # of words that are not taken
            module.main(words)
        assert taken, f"{name} does not take: {shlex.join(words)}"
        taken.clear()


def test_scripts_that_the_pages_name_are_there() -> None:
    named = {file for text in PAGES.values() for file in re.findall(r"\bcluster/[\w/-]+\.(?:sh|yaml)", text)}
    assert named
    assert {file for file in named if not (ROOT / file).exists()} == set()
