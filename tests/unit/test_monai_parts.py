"""MONAI is imported without the packages that it looks for, and those can be imported afterwards, and meanwhile by others."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading

import pytest

from guidino_tune.monai_parts import UNUSED, _without


def test_what_monai_looks_for_is_not_imported_and_can_be_later() -> None:
    code = (
        "import sys, guidino_tune.data.augmentation; print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
        "import pandas, optuna; print(pandas.DataFrame({'dice': [1.0]}).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    loaded = set(done[0].split())
    assert "monai" in loaded
    assert not loaded & UNUSED
    assert done[1] == "(1, 1)"


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
