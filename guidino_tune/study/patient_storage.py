"""A study's database that may be away for a while, as while it is started anew: what is asked of it waits until it is back."""

from __future__ import annotations

import abc
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage

from guidino_tune.study.mirror import MirroredStorage

log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds for which a database is waited for; trials go on meanwhile, to the end of the epochs that they have begun."""

AGAIN = 1.0
"""Seconds between two tries."""

LONG = 45.0
"""Seconds of waiting after which another driver may soon have taken the study over: before more is written, that is looked at."""

_hurry = threading.local()


@contextlib.contextmanager
def without_patience() -> Iterator[None]:
    """Within the block, in this thread, an error comes at once."""
    before, _hurry.on = getattr(_hurry, "on", False), True
    try:
        yield
    finally:
        _hurry.on = before


def open_database(url: str) -> BaseStorage:
    """The storage of this URL, with patience where it is a database server.

    Connections are looked at before they are used: one from before the server was started anew is replaced without an error.

    Raises:
        Exception: Of SQLAlchemy or the database's driver; a database that is away at the start is not waited for.
    """
    if not url.startswith(("postgresql", "mysql", "mariadb", "mssql", "oracle")):
        return MirroredStorage(optuna.storages.RDBStorage(url))  # type: ignore[abstract]  # as below
    inner = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    mirror = MirroredStorage(inner)  # type: ignore[abstract]
    return PatientStorage(mirror, inner.remove_session)  # type: ignore[abstract]  # it gets its methods below


def _is_away(error: BaseException) -> bool:
    """Whether a database could not be reached, or ended a connection; what it refuses it would refuse again."""
    from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError

    kinds = OperationalError, InterfaceError, PendingRollbackError
    return isinstance(error, kinds) or isinstance(error.__cause__, kinds)


def _patient(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(MirroredStorage, name), updated=())  # its own attributes say that it is abstract
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun, waited = time.monotonic(), False
        while True:
            try:
                answer = getattr(self.inner, name)(*args, **kwargs)
            except UpdateFinishedTrialError:
                # What was done before the connection broke is done; told twice, it would look as if somebody else had done it.
                if waited and name == "set_trial_state_values":
                    return True
                raise
            except Exception as error:
                seconds = time.monotonic() - begun
                if not _is_away(error) or self.given_up or getattr(_hurry, "on", False):
                    raise
                if seconds > PATIENCE:
                    self.given_up = True
                    raise
                if not waited:
                    log.warning("the study's database does not answer: it is asked again, for %.0f minutes", PATIENCE / 60)
                waited = True
                self.forget()
                time.sleep(AGAIN)
                if seconds > LONG:
                    self.check()
            else:
                if waited:
                    log.warning("the study's database is back")
                    if name == "set_trial_state_values":
                        answer = True  # a queued trial that runs already was begun by the try whose answer was lost
                self.given_up = False
                return answer

    return method


class PatientStorage(BaseStorage):
    """A storage whose questions and answers outlast an outage.

    Each is one transaction, and what it writes may be written twice with the same end; but for a new trial, of which a connection that
    breaks at the last moment may leave one behind that nobody knows of, for the next run.

    Args:
        inner: The storage that it stands for.
        forget: Ends what is left of a broken transaction.

    Attributes:
        check: Raises when somebody else has taken the study over; asked before something is written after a long outage.
        given_up: Nothing is waited for any more, until there is an answer: whoever puts things away at the end is not to wait once more.
    """

    def __init__(self, inner: BaseStorage, forget: Callable[[], None] = lambda: None) -> None:
        self.inner, self.forget = inner, forget
        self.check: Callable[[], None] = lambda: None
        self.given_up = False


for _name, _asked in {**vars(BaseStorage), "flush": MirroredStorage.flush}.items():
    if callable(_asked) and not _name.startswith("_"):
        setattr(PatientStorage, _name, _patient(_name))
abc.update_abstractmethods(PatientStorage)  # type: ignore[type-abstract]
