"""Studies that are looked at and nothing else: those of the home folder, or those of a database, where no folder of theirs is at hand.

Nothing is made here, be it a database, a table or a folder: a name with a mistake in it leaves no trace.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from guidino_tune import paths
from guidino_tune.errors import UserError, nearest, redacted
from guidino_tune.space.space import read_space
from guidino_tune.study.journal import database
from guidino_tune.study.store import StoredStudy, StudyFolder, folder_of, known_studies, stored_study

DEFINITION = "definition"
"""Attribute of a study: what it searches. Studies of other programs have none."""

TABLES = {"studies", "trials", "version_info", "alembic_version"}
"""Some of those that Optuna keeps."""

PATIENCE = 10
"""Seconds for a database server to answer: behind a firewall nothing does."""

WITH_TIMEOUT = ("psycopg", "psycopg2", "pymysql", "mysqldb")
"""Drivers that take ``connect_timeout``."""


class Reader:
    """The studies in force: of a database where one is named, else of the home folder.

    Args:
        storage: Database URL; ``None`` looks at ``GUIDINO_TUNE_STORAGE``.

    Attributes:
        url: Of the database; ``None`` for the home folder.

    Raises:
        UserError: The database cannot be reached, or keeps no studies.
    """

    def __init__(self, storage: str | None = None) -> None:
        self.url = database(storage)
        self._storage = open_to_read(self.url) if self.url else None

    @property
    def place(self) -> str:
        """Where the studies are, in words."""
        return redacted(self.url) if self.url else str(paths.studies())

    def names(self) -> list[str]:
        """All studies, sorted; without those that other programs keep in the same database."""
        if self._storage is None:
            return known_studies()
        with readable(self.place):
            return sorted(study.study_name for study in self._storage.get_all_studies() if DEFINITION in study.user_attrs)

    def open(self, name: str) -> StoredStudy:
        """A study by its name; in the home folder also by the path of its folder, with a slash in it.

        Raises:
            UserError: There is none of this name, and which is nearest; or it cannot be read.
        """
        if self._storage is None:
            if not folder_of(name).definition.exists():
                raise self._unknown(name)
            return stored_study(name)
        with readable(self.place):
            try:
                study = optuna.load_study(study_name=name, storage=self._storage, sampler=optuna.samplers.RandomSampler())
            except KeyError:
                raise self._unknown(name) from None
            definition = study.user_attrs.get(DEFINITION)
            if not isinstance(definition, dict):
                raise UserError("this study is of another program", where=f"study {name!r} in {self.place}", todo="name another one")
        # Where its folder is in this home too, the lock of that folder counts; one with a journal is of another study of this name.
        folder = StudyFolder(paths.studies() / name)
        if folder.journal.exists():
            folder = StudyFolder(paths.studies() / ".elsewhere" / name)
        return StoredStudy(folder, study, read_space(definition, source=f"study {name!r} in {self.place}"))

    def _unknown(self, name: str) -> UserError:
        known = self.names()
        todo = nearest(name, known) if known else "there are no studies; a search makes one"
        elsewhere = "" if self.url else ", or name their home with --home, their database with --storage or GUIDINO_TUNE_STORAGE"
        return UserError(f"no study {name!r}", where=self.place, todo=todo + elsewhere)


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """Turns what a database refuses, or its end, into a ``UserError``."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        raise UserError(f"the database cannot be read ({_reason(cause)})", where=where, todo="ask again once it answers") from None


def open_to_read(url: str) -> BaseStorage:
    """The storage of a database that exists, without the right to write where the kind of database can be asked for that.

    Raises:
        UserError: It cannot be reached, is not there, or has no studies in it.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    import sqlalchemy

    todo = "correct --storage or GUIDINO_TUNE_STORAGE, start the database or its tunnel, or install its driver"
    try:
        parts = sqlalchemy.make_url(url)
        options: dict[str, Any] = {"execution_options": {"postgresql_readonly": True}}
        if parts.get_driver_name() in WITH_TIMEOUT:
            options["connect_args"] = {"connect_timeout": PATIENCE}
        if parts.get_backend_name() == "sqlite":
            options["creator"] = _opener(Path(parts.database or ""))
        engine = sqlalchemy.create_engine(url, **options)
        tables = set(sqlalchemy.inspect(engine).get_table_names())
        engine.dispose()
        if not tables >= TABLES:
            raise UserError("this database has no studies in it", where=url, todo="correct its name: the first search makes its tables")
        storage = optuna.storages.RDBStorage(url, engine_kwargs=options, skip_table_creation=True)
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy, Optuna and every driver have errors of their own; all mean the same here
        raise UserError(f"the database cannot be opened ({_reason(error, url)})", where=url, todo=todo) from None
    return optuna.storages.get_storage(storage)


def _opener(file: Path) -> Callable[[], sqlite3.Connection]:
    """Opens an SQLite file that is there, to read it; by its URL, SQLAlchemy would make one."""
    if not file.is_file():
        beside = [other.name for other in file.absolute().parent.glob("*.db")]
        near = f"; {nearest(file.name, beside)}" if beside else ""
        raise UserError("no such database", where=str(file), todo=f"correct its path{near}")
    return lambda: sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)


def _reason(error: BaseException, url: str = "") -> str:
    text = redacted(" ".join(str(getattr(error, "orig", None) or error).split()), url)[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
