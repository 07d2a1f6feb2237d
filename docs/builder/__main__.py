"""Puts the sources of the site together, where ``mkdocs.yml`` says that they are: ``python docs/builder FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(DOCS), str(DOCS.parent)]  # this package, and the checkout's guidino_tune before an installed one

from builder.pages import assemble  # noqa: E402

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/builder FOLDER")
    assemble(Path(sys.argv[1]))
