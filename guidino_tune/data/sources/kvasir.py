"""Kvasir-SEG, polyps in colonoscopy (Jha et al., MMM 2020): 1,000 images of various sizes; masks are JPEG; no official split."""

from __future__ import annotations

from pathlib import Path

from guidino_tune.data.cases import Listing
from guidino_tune.data.sources.pairs import pair, require, with_lists


def find(root: Path, on_bad: str = "error") -> Listing:
    """Lists ``images/ID.jpg`` with ``masks/ID.jpg``; optional ``train.txt``, ``validation.txt`` and ``test.txt`` publish a split.

    Raises:
        UserError: As ``pairs.pair`` and ``pairs.with_lists``.
    """
    require(root, ("images", "masks"), "kvasir")
    cases, notes = pair(root / "images", root / "masks", on_bad=on_bad, suffixes=("",))
    return with_lists(root, cases, notes)
