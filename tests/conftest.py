"""What all tests share: a home folder of their own, so that no test reads or writes the user's."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``$GUIDINO_TUNE_HOME``, and no tracking server from the environment."""
    folder = tmp_path / "guidino_home"
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder
