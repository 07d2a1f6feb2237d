"""Where cases come from: one file per layout, and the registry that ``data.kind`` chooses from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from guidino_tune import paths
from guidino_tune.config.data import Data
from guidino_tune.data.cases import Listing
from guidino_tune.data.sources import folder, isic2017, kvasir, tn3k


def _demo(root: Path, on_bad: str = "error") -> Listing:
    from guidino_tune.data.sources.demo import find  # needs scipy, which the others do not

    return find(root)


SOURCES: dict[str, Callable[[Path, str], Listing]] = {
    "kvasir": kvasir.find,
    "isic2017": isic2017.find,
    "tn3k": tn3k.find,
    "folder": folder.find,
    "demo": _demo,
}
"""``data.kind`` -> ``find(root, on_bad)``: lists the cases under ``root`` by name; ``on_bad="skip"`` leaves out files without a partner."""


def find_cases(data: Data) -> Listing:
    """Lists the cases of a data set. The listing names test files too: it is for
    ``opening``, ``sealed``, the evaluation and for counting, and nobody opens those files but through ``sealed``.

    Raises:
        UserError: The folder or its layout is not there, or files have no partner.
    """
    root = Path(data.root).expanduser() if data.root else paths.datasets() / data.kind
    return SOURCES[data.kind](root, data.bad_cases)
