"""Docstrings in Google's style, read as text: a summary and named sections, as Markdown."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field

ENTRIES = ("Attributes", "Args", "Raises")
"""Sections of which each entry begins with a name and a colon."""

OTHERS = ("Returns", "Yields", "Example", "Examples")


@dataclass(frozen=True)
class Docstring:
    """A docstring in parts.

    Attributes:
        text: All that stands before the first section, as Markdown.
        sections: By title. Of ``ENTRIES`` a mapping from name to text, of the others the text.
    """

    text: str = ""
    sections: dict[str, dict[str, str] | str] = field(default_factory=dict)

    def entries(self, title: str) -> dict[str, str]:
        """The entries of a section; none where it is missing."""
        found = self.sections.get(title, {})
        return found if isinstance(found, dict) else {}


def read(doc: str | None) -> Docstring:
    """Parses a docstring; of none an empty one."""
    heads = re.compile(rf"^({'|'.join((*ENTRIES, *OTHERS))}):\n", re.MULTILINE)
    text, *parts = heads.split(inspect.cleandoc(doc or "") + "\n")
    sections: dict[str, dict[str, str] | str] = {}
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        inner = inspect.cleandoc("\n" + body)
        sections[title] = _entries(inner) if title in ENTRIES else inner if title.startswith("Example") else markdown(inner)
    return Docstring(markdown(text.strip()), sections)


def _entries(body: str) -> dict[str, str]:
    found = {}
    for part in re.split(r"\n(?=\S)", body):
        names, _, text = part.partition(":")
        for name in names.split(", "):  # `width, height: In pixels.`
            found[name] = markdown(" ".join(line.strip() for line in text.splitlines()).strip())
    return found


def markdown(text: str) -> str:
    """What reST writes in two backticks is code in Markdown too; pages of the documentation become links, and ``<`` stays what it is."""
    parts = re.split(r"(``.+?``|`.+?`)", text, flags=re.DOTALL)
    for place in range(0, len(parts), 2):
        parts[place] = parts[place].replace("<", "&lt;").replace("*", r"\*")
    return re.sub(r"``docs/([\w-]+\.md)``", r"[\1](../\1)", "".join(parts))
