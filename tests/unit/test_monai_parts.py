"""MONAI is imported without the packages that it looks for, and those can be imported afterwards, and meanwhile by others."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading

import pytest

from guidino_tune.monai_parts import UNUSED, _without

CODE = """
import sys
import guidino_tune.running.executors
print(*sorted({"monai", "transformers", "mlflow"} & sys.modules.keys()))
before = set(sys.modules)
import guidino_tune.training.loop, guidino_tune.data.views
print(*sorted({"monai"} & sys.modules.keys()))
import guidino_tune.monai_parts
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
import pandas, optuna
print(pandas.DataFrame({"dice": [1.0]}).shape)
"""


def test_what_a_process_does_not_use_is_not_imported_and_can_be_later() -> None:
    """One that waits for a worker group needs no networks, one that trains no MONAI, and MONAI needs nothing of what it looks for."""
    waiting, training, loaded, later = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert waiting == ""
    assert training == ""
    assert "monai" in loaded.split()
    assert not UNUSED & set(loaded.split())
    assert later == "(1, 1)"


def test_packages_are_hidden_from_the_imports_of_one_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    finders, found = list(sys.meta_path), []
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with _without(frozenset({"colorsys"})):
        with pytest.raises(ModuleNotFoundError, match="colorsys"):
            importlib.import_module("colorsys")
        other = threading.Thread(target=lambda: found.append(importlib.import_module("colorsys")))
        other.start()
        other.join()
        assert importlib.import_module("colorsys") is found[0]  # what is loaded stays at hand
    assert sys.meta_path == finders
