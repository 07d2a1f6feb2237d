"""The connection to Ray, without one: who waits for whom, what its processes inherit, and what is said of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from guidino_tune.config import Resources
from guidino_tune.errors import UserError
from guidino_tune.running import connection
from guidino_tune.running.cluster import note_own
from guidino_tune.running.environment import SEAL
from guidino_tune.space.space import load_space
from guidino_tune.workflows import search


@pytest.fixture
def own() -> Iterator[None]:
    note_own(True)
    yield
    note_own(False)


def test_ray_is_started_when_the_test_cases_are_sealed(space_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inherited = list[str]()

    def connecting(resources: Resources) -> None:
        inherited.append(os.environ[SEAL])
        raise UserError("this is enough")

    monkeypatch.setattr(search, "connecting", connecting)
    with pytest.raises(UserError, match="this is enough"):
        search.run_search(load_space(str(space_file)))
    assert inherited == ["1"]
    assert os.environ[SEAL] == "0"


def test_another_threads_end_does_not_break_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = list[bool]()

    class Ends:
        """Is ended by another thread as soon as somebody has looked whether it is there."""

        def __bool__(self) -> bool:
            connection._starting = None
            return True

        def wait(self) -> None:
            waited.append(True)

    monkeypatch.setattr(connection, "_starting", Ends())
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with connection.connected():
        assert waited == [True]


def test_a_dashboard_is_offered_only_where_it_would_start(own: None) -> None:
    assert connection.DASHBOARD in connection.no_dashboard()
    note_own(False)  # a cluster of others
    assert connection.no_dashboard() == "none"
