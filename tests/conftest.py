"""What all tests share: a home folder of their own, so that no test reads or writes the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

ONE_BY_ONE = ("ray", "browser", "real_data")
"""Folders whose tests need the machine, or the only Ray cluster that may be on it, to themselves."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several test processes, one of them runs all of those, and each other file stays in one process: its imports are slow."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("one by one" if item.path.parent.name in ONE_BY_ONE else item.path.stem))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``$GUIDINO_TUNE_HOME``, and no tracking server from the environment."""
    folder = tmp_path / "guidino_home"
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder
