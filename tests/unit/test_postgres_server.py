"""The server that tests of databases share leaves nothing behind, whatever happens to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from postgres_server import Server, needs_postgres, newest_server, started


def test_a_client_alone_is_no_server(tmp_path: Path) -> None:
    assert newest_server(tmp_path) is None
    (tmp_path / "17" / "bin").mkdir(parents=True)
    (tmp_path / "17" / "bin" / "psql").touch()
    assert newest_server(tmp_path) is None
    for version in ("9.6", "15"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "initdb").touch()
    assert newest_server(tmp_path) == tmp_path / "15" / "bin"


@needs_postgres
def test_a_test_that_fails_while_it_is_down_says_why_and_leaves_nothing() -> None:
    made: list[Server] = []

    def fail() -> None:
        with started() as server:
            made.append(server)
            server.stop()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [server.data.parent.exists() for server in made] == [False]


@needs_postgres
def test_a_server_that_does_not_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def fails(self: Server) -> None:
        made.append(self.data.parent)
        raise ZeroDivisionError

    monkeypatch.setattr(Server, "start", fails)
    with pytest.raises(ZeroDivisionError), started():
        pass
    assert [folder.exists() for folder in made] == [False]
