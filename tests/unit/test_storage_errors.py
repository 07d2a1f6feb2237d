"""What a person is told of a disk that refuses: only what helps there."""

from __future__ import annotations

from pathlib import Path

import pytest

from guidino_tune.errors import storage_error


def test_only_errors_of_storage_are_the_users() -> None:
    assert storage_error(FileNotFoundError(2, "No such file or directory")) is None
    assert storage_error(ConnectionRefusedError(111, "Connection refused")) is None
    known = storage_error(OSError(28, "No space left on device"), "/there")
    assert known is not None
    assert (known.what, known.where) == ("the disk is full", "/there")


def test_another_home_is_advised_only_where_it_would_help(tmp_path: Path, home: Path) -> None:
    def todo(place: Path) -> str:
        known = storage_error(PermissionError(13, "Permission denied", str(place)))
        assert known is not None
        return known.todo

    assert todo(tmp_path / "images" / "a.png") == "make it readable and writable"
    assert "GUIDINO_TUNE_HOME" in todo(home / "studies")
    assert "GUIDINO_TUNE_HOME" in todo(home.parent)


def test_a_file_is_in_the_way_only_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError) as caught:
        (tmp_path / "file").mkdir(exist_ok=True)
    known = storage_error(caught.value)
    assert known is not None
    assert known.what == "here is a file where a folder must be"
    with pytest.raises(FileExistsError) as caught:
        (tmp_path / "file").open("x")
    assert storage_error(caught.value) is None
