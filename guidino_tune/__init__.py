"""Hyper-parameter search for guided medical image segmentation (GuiDINO): Optuna decides, Ray runs, MLflow remembers.

From Python::

    import guidino_tune as gt

    space = gt.load_space("kvasir", {"data.root": "/data/Kvasir-SEG"})
    result = gt.run_search(space)
    trained = gt.retrain(result.best, seeds=3)

Importing the package imports nothing else: each name is found when it is first asked for.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.2.0"

_PLACES = {
    "Callback": "workflows.result",
    "StudyResult": "workflows.result",
    "TrialResult": "workflows.result",
    "UserError": "errors",
    "compare_study": "workflows.compare",
    "export_model": "workflows.export_model",
    "load_model": "workflows.predict",
    "load_space": "api",
    "open_study": "workflows.result",
    "retrain": "workflows.retrain:retrain_model",
    "run_search": "workflows.search",
}
"""Module of each name, as text: by an import a search could reach the sealed test, which a test of the layers forbids."""

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Door(ModuleType):
    """A command such as ``retrain`` is a module of that name, which Python would put in the place of the function when it is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Door
