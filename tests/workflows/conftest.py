"""What people do, from the command to what it leaves behind, with trials in the test's own process: no cluster starts."""

from __future__ import annotations

import pytest
from in_process import without_ray


@pytest.fixture(autouse=True)
def in_process(shared_views: None, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
