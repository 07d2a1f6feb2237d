"""The record of when the test cases were opened and why; to read it opens nothing."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import uuid
from collections import Counter
from pathlib import Path

from guidino_tune import paths

OPENINGS = "test-openings.jsonl"
"""Beside the split file: one line for each time that the test cases were opened."""

SOURCE = "split-source.json"
"""Beside a copy of a split: the file that it was taken from, whose record has the copy's openings too."""


def record_opening(split_file: Path, reason: str, cases: int) -> None:
    """Adds a line beside the split and, for a copy, beside those that it was taken from, where they are on this machine.

    Args:
        split_file: The split whose test cases are opened.
        reason: Why.
        cases: How many.
    """
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = json.dumps({"time": time, "reason": reason, "cases": cases, "split": str(split_file.absolute())})
    with open(split_file.parent / OPENINGS, "a", encoding="utf-8") as file:  # one short append is whole, also with several writers
        file.write(line + "\n")
    for source in _sources(split_file):
        # The study's folder may be gone, or of a person who lets others only read it: the record of the copy is there in any case.
        with contextlib.suppress(OSError):
            if source.parent.is_dir():
                with open(source.parent / OPENINGS, "a", encoding="utf-8") as file:
                    file.write(line + "\n")


def copied_from(copy: Path, source: Path) -> None:
    """Remembers which split a copy was taken from, and adds openings that only the copy has recorded to the record of the original."""
    place, text = copy.parent / SOURCE, json.dumps({"split": str(source.absolute())}) + "\n"
    if not place.is_file() or place.read_text(encoding="utf-8") != text:
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, place)
    new = Counter(_lines(copy)) - Counter(_lines(source))
    with contextlib.suppress(OSError):  # as in record_opening
        if new:
            with open(source.parent / OPENINGS, "a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in new.elements()))


def openings(split_file: Path) -> list[dict[str, str]]:
    """Every known opening of these test cases, oldest first: of this split, of those it was taken from, and of their copies.

    Returns:
        ``time`` (ISO 8601, UTC) and ``reason`` of each; torn lines are left out.
    """
    lines: dict[str, dict[str, str]] = {}
    for file in (*reversed(_sources(split_file)), split_file):  # the source's record has the order of what happened within a second
        known: dict[str, int] = {}
        for line in _lines(file):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                values = json.loads(line)
                known[line] = known.get(line, 0) + 1  # the same reason twice within a second is two openings
                lines[f"{known[line]} {line}"] = {"time": str(values["time"]), "reason": str(values["reason"])}
    return sorted(lines.values(), key=lambda opening: opening["time"])


def earlier_openings(before: list[dict[str, str]]) -> str:
    """What a reader of test scores must know about earlier openings; empty where there was none."""
    if not before:
        return ""
    times = "once" if len(before) == 1 else f"{len(before)} times"
    listed = "; ".join(f"{opening['time']}: {opening['reason']}" for opening in before)
    opened = f"opened {times} before, as far as is recorded here ({listed})"
    return f"the test cases were {opened}: what was chosen since then may have been chosen on them"


def _lines(split_file: Path) -> list[str]:
    """The record beside a split, without what a writer left unfinished."""
    record = split_file.parent / OPENINGS
    text = record.read_text(encoding="utf-8") if record.is_file() else ""
    return [line for line in text.splitlines() if line.endswith("}")]


def _sources(split_file: Path) -> list[Path]:
    """The split that this one was copied from, the one before that, and so on."""
    known = [split_file]
    while True:
        try:
            source = paths.rebased(Path(json.loads((known[-1].parent / SOURCE).read_text(encoding="utf-8"))["split"]))
        except (OSError, ValueError, KeyError, TypeError):
            return known[1:]
        if source.parent in (file.parent for file in known):
            return known[1:]  # copies in a circle, made by hand
        known.append(source)
