"""The parts of MONAI that are used here.

``import monai`` tries every package that any part of it could use, and some of them take longer than MONAI itself: 15 s of a CPU where
MLflow, transformers and others are installed, 3 s without them. Whoever trains on whole images imports none of it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

UNUSED = frozenset(
    {
        "huggingface_hub", "jsonschema", "matplotlib", "mlflow", "nibabel", "optuna", "pandas", "pydicom", "requests", "scipy.signal",
        "scipy.stats", "sklearn", "tensorboardX", "transformers",
    }
)  # fmt: skip
"""Packages, or parts of them, that MONAI takes for absent, unless they are imported before it. The parts below use none of them."""


class _Absent(MetaPathFinder):
    def __init__(self, packages: frozenset[str]) -> None:
        self.packages, self.thread = packages, threading.get_ident()

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if {name, name.partition(".")[0]} & self.packages and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


@contextmanager
def _without(packages: frozenset[str]) -> Iterator[None]:
    """Hides packages, and parts of them, that are not loaded yet from the imports of this thread; others may import them meanwhile."""
    absent = _Absent(packages)
    sys.meta_path.insert(0, absent)
    try:
        yield
    finally:
        sys.meta_path.remove(absent)


with _without(UNUSED):
    from monai.inferers.utils import sliding_window_inference

__all__ = ["sliding_window_inference"]
