"""A home folder that was moved or copied: MLflow's database goes on naming the files of its runs by their former place.

Only the database in the home folder itself is looked at, and with SQLite alone: MLflow may be running.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from guidino_tune.errors import UserError
from guidino_tune.tracking.client import sqlite_uri

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
"""In the home folder."""

BACKUP = "mlflow.db.before-move"
"""The database as it was before it was mended last."""

WAIT = 30.0
"""Seconds for which a writer of the database is waited for."""

_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
"""Tables and columns of MLflow that name files."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What still names a former home.

    Attributes:
        home: Where the home is now.
        former: Where it was.
        location: The artifact folder there, as the database writes it.
        runs: How many runs name it.
        absent: Of these, those whose files lie there and not here: as long as there are any, nothing is mended.
    """

    home: Path
    former: Path
    location: str
    runs: int
    absent: int


def home_database(home: Path) -> str:
    """The URL of the database in a home folder."""
    return sqlite_uri(home / DATABASE)


def find_moved(home: Path) -> list[Moved]:
    """Former homes that the database in this one names; empty where it has none, is none, or is too busy to tell.

    Another path to this same folder (a link, a second mount) is no former home.
    """
    with contextlib.suppress(sqlite3.Error), _database(home) as database:
        locations = [row[0] for row in database.execute("SELECT artifact_location FROM experiments") if row[0]]
        found = {}
        for location in sorted({text.rstrip("/") for text in locations}):
            folder = _path(location)
            if folder is None or folder.name != ARTIFACTS or folder == home / ARTIFACTS or _same(folder.parent, home):
                continue
            uris = database.execute(
                "SELECT artifact_uri FROM runs WHERE substr(artifact_uri, 1, ?) = ?", (len(location) + 1, f"{location}/")
            )
            runs = [text.removeprefix(f"{location}/").partition("/")[0] for (text,) in uris]
            absent = sum((folder / run).exists() and not (home / ARTIFACTS / run).exists() for run in runs)
            found[location] = Moved(home, folder.parent, location, len(runs), absent)
        return list(found.values())
    return []


def why_not(moved: Moved) -> str:
    """Why MLflow is left to name the former place."""
    return (
        f"MLflow's database in {moved.home} names {moved.former} as the place of its files, and those of {moved.absent} of its "
        f"{moved.runs} runs are there and not here: they stay there, and so do new ones"
    )


def mend(moved: Moved) -> int:
    """Lets the database name the files where they are now, in one transaction; a copy of it is made before.

    An MLflow that runs meanwhile sees either all of it or nothing.

    Returns:
        How many entries were changed.

    Raises:
        UserError: The database is in use by a long transaction, or cannot be written.
    """
    try:
        with _database(moved.home, write=True) as database:
            _keep_copy(database, moved.home)
            database.execute("BEGIN IMMEDIATE")
            with database:
                return sum(_replaced(database, table, column, moved) for table, column in _PLACES)
    except sqlite3.Error as error:
        raise UserError(
            f"the home folder was moved, and MLflow's database cannot be told so: {error}",
            where=str(moved.home / DATABASE),
            todo="close what works with this file, or make it writable; the same command tries again",
        ) from None


def _replaced(database: sqlite3.Connection, table: str, column: str, moved: Moved) -> int:
    if column not in {row[1] for row in database.execute(f"PRAGMA table_info({table})")}:
        return 0  # a version of MLflow without it
    new = moved.home / ARTIFACTS
    written = new.as_uri() if moved.location.startswith("file:") else str(new)
    done = database.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
        (written, len(moved.location) + 1, moved.location, len(moved.location) + 1, f"{moved.location}/"),
    )
    return done.rowcount


def _keep_copy(database: sqlite3.Connection, home: Path) -> None:
    """One copy, whole or not at all: the newest takes the place of an older one."""
    draft = home / f".{BACKUP}.{os.getpid()}"
    try:
        with contextlib.closing(sqlite3.connect(draft)) as copy:
            database.backup(copy)
        os.replace(draft, home / BACKUP)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _database(home: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    uri = f"{(home / DATABASE).as_uri()}?mode={'rw' if write else 'ro'}"  # neither makes a file that is not there
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=WAIT if write else 5.0, isolation_level=None)) as database:
        yield database


def _path(location: str) -> Path | None:
    """The folder of an artifact location, which is a ``file:`` URL or a path; ``None`` for any other."""
    parts = urlsplit(location) if location.startswith("file:") else None
    if parts is not None:
        return Path(unquote(parts.path)) if parts.netloc in ("", "localhost") else None
    return Path(location) if location.startswith("/") else None


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
