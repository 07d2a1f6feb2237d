"""All sources of the site: what people wrote in ``docs/``, files from beside it, and what is made from the code."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from . import commands, configuration, interface, notebook, spaces

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent

NOTEBOOK = "tutorial.ipynb"
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "guidino_tune/simulation/recorded/README.md": "recorded.md",
}
"""Files of the repository outside ``docs/`` that are pages of the site, and where."""


def made_pages() -> Iterator[tuple[str, str | bytes]]:
    """Path and content of everything that no file in ``docs/`` holds."""
    yield "reference/configuration.md", configuration.page()
    yield "reference/commands.md", commands.page()
    yield "reference/spaces.md", spaces.page(ROOT / "search_spaces")
    yield "reference/python.md", interface.page()
    text, pictures = notebook.page((DOCS / NOTEBOOK).read_text(encoding="utf-8"), "tutorial")
    yield "tutorial.md", text
    yield from pictures.items()
    for file, place in ELSEWHERE.items():
        yield place, (ROOT / file).read_text(encoding="utf-8").replace("](docs/", "](")


def assemble(folder: Path) -> None:
    """Writes all sources into a folder, which is emptied before.

    Links that are right on the repository's own pages are turned to where their targets are in the site.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("builder", "*.ipynb"))
    for path, content in made_pages():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content.encode() if isinstance(content, str) else content)
    for page in folder.rglob("*.md"):
        text = page.read_text(encoding="utf-8").replace(f"]({NOTEBOOK}", "](tutorial.md")
        for file, place in ELSEWHERE.items():
            text = text.replace(f"](../{file}", f"]({place}")
        page.write_text(text, encoding="utf-8")
