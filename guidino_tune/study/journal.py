"""Optuna's journal file, brought to disk once for each decision instead of once for each line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from guidino_tune.data import locking
from guidino_tune.data.file_server import STALE, outlast
from guidino_tune.errors import UserError, redacted
from guidino_tune.study import optuna_private
from guidino_tune.study.mirror import flush
from guidino_tune.study.patient_storage import open_database
from guidino_tune.training.folder import append_whole, named


class Journal(JournalFileBackend):
    """Lines are written at once, so that nothing is lost when a process dies and every reader sees them.

    Only what a machine that loses power may forget differs from Optuna's own: lines since the last ``sync_to_disk``. Asking for a trial
    writes some fifteen lines, and a disk, or a server of files, needs milliseconds for each.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """See ``JournalFileBackend``."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        append_whole(self.path, text.encode("utf-8"), self._lock_file)

    def _lock_file(self, file: FileIO) -> None:
        # The kernel frees this lock when its holder dies. Optuna's is a file: left behind, it would hold up the next command for half a
        # minute. One driver works on a study, so a file system without locks does no harm.
        if locking.wait_for(file, self.path, locking.PATIENCE) == "no":
            raise UserError(
                f"another process has kept a lock on the journal for {locking.PATIENCE:.0f} s",
                where=str(self.path),
                todo="end that process, and run this again: nothing of the study is lost",
            )

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """See ``JournalFileBackend``."""
        return iter(outlast(self.path, lambda: list(super(Journal, self).read_logs(log_number_from))))

    def sync(self) -> None:
        """Returns when all lines are on the disk."""
        # Not after an error of the device: the kernel forgets what it could not write, and says so once.
        outlast(self.path, self._sync, STALE)

    def _sync(self) -> None:
        with named(self.path), open(self.path, "rb") as file:
            os.fsync(file.fileno())


def open_journal(path: Path) -> JournalStorage:
    """The storage of a study in a journal file, made if missing.

    Raises:
        UserError: A line of it, other than an unfinished last one, is damaged.
    """
    try:
        return optuna_private.ListedJournal(Journal(path))
    except (ValueError, KeyError, TypeError) as error:
        line = _damaged_line(path)
        if not line:
            raise
        raise UserError(
            f"the journal of the study is damaged in line {line} ({error}), and what comes after it cannot be told",
            where=str(path),
            todo=f"restore the file from a copy, or keep the lines before {line} only: the trials after them are run again",
        ) from None


def database(url: str | None = None) -> str | None:
    """The database in which studies are kept: ``url``, else that of ``GUIDINO_TUNE_STORAGE``; ``None`` for a journal in each folder."""
    return url or os.environ.get("GUIDINO_TUNE_STORAGE") or None


def open_storage(journal: Path, url: str | None, *, name: str, new: bool = False) -> BaseStorage:
    """Where the trials of a study are kept: the database in force, else the journal in its folder.

    Args:
        journal: Its journal, if it has one.
        url: Of a database; ``None`` looks at the environment.
        name: Of the study.
        new: It was never opened before, so that it may begin in either place.

    Raises:
        UserError: The place cannot be opened; or the study's trials are in the other one, and would be done again over their files.
    """
    url = database(url)
    if url is None:
        if not new and not journal.exists():
            raise UserError(
                "the study's trials are not here: they are kept in a database, or the journal is gone",
                where=str(journal),
                todo="name the database as GUIDINO_TUNE_STORAGE or storage, or restore the file from a copy",
            )
        journal.parent.mkdir(parents=True, exist_ok=True)
        return open_journal(journal)
    try:
        storage = open_database(url)
    except Exception as error:  # Optuna, SQLAlchemy and every database driver have errors of their own; all mean the same here
        reason = redacted(" ".join(str(error).split()), url)[:400]
        raise UserError(
            f"the study's database cannot be opened ({type(error).__name__}: {reason})",
            where=url,
            todo="correct storage or GUIDINO_TUNE_STORAGE, start the database, or install its driver",
        ) from None
    begun = journal.exists() or not new
    if begun and name not in (study.study_name for study in storage.get_all_studies()):
        place = f"they are in {journal}" if journal.exists() else "they are in another one, or were removed"
        raise UserError(
            f"this database does not have the trials of study {name!r}: {place}",
            where=url,
            todo="go on without storage and GUIDINO_TUNE_STORAGE, or with the right ones, or start another study with another study.name",
        )
    return storage


def mend_journal(journal: Path) -> None:
    """Cuts off a last line that a crash left unfinished; with the next one glued to it, the whole study could not be read."""
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        tail = b""
        while size and b"\n" not in tail:
            start = max(0, size - 65536)
            file.seek(start)
            tail, size = file.read(size - start) + tail, start
        whole = size + tail.rfind(b"\n") + 1
        if whole < size + len(tail):
            file.truncate(whole)


def _damaged_line(path: Path) -> int:
    """Number of the first line, from 1, that is no entry of a journal; 0 when all are."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                json.loads(line)["op_code"]
            except (ValueError, KeyError, TypeError):
                return number
    return 0


def sync_to_disk(study: optuna.Study) -> None:
    """Returns when everything told to the study would survive a power failure; a database sees to that by itself."""
    if isinstance(journal := optuna_private.backend(study), Journal):
        journal.sync()
    flush(study)
