"""One driver at a time on a study in a database, whichever machine it runs on: a lease that the driver renews while it lives.

The lease is an attribute of the study. Who finds one that is not its own watches it: clocks of two machines are compared for people to
read (``last_sign``), and decide nothing.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from typing import Any

import optuna

from guidino_tune.errors import UserError
from guidino_tune.study import optuna_private
from guidino_tune.study.journal import Journal
from guidino_tune.study.mirror import mirror_of
from guidino_tune.study.patient_storage import PatientStorage, without_patience

log = logging.getLogger(__name__)

LEASE = "lease"
"""Attribute of a study: who drives it, and how often that was renewed."""

DRIVEN_FROM = "driven_from"
"""Attribute of a study in a database: the machine and the folder that it was driven from last, as ``HOST:FOLDER``."""

BEAT = 10.0
"""Seconds between two renewals."""

STALE = 60.0
"""Seconds without a renewal after which another driver takes over."""

SETTLE = 0.5
"""Seconds after which a lease that was written must still be one's own: two that come at once see the later one."""


class Lease:
    """A study in a database, held by this process.

    Args:
        study: Nothing is done for one in a journal, which the lock of its folder protects.
        who: This process, in words.
        place: The machine and folder whose lock this process has: a former lease from there is that of a dead process.
        work: What is done, such as ``search``.
        todo: What the user of a second driver can do.

    Attributes:
        taken: Who took the lease over meanwhile, as after this machine slept; empty while it is ours.

    Raises:
        UserError: Another process renews its own.
    """

    def __init__(self, study: optuna.Study, who: str, place: str, work: str, todo: str) -> None:
        since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        self._study, self._work, self._todo = study, work, todo
        self._mine: dict[str, Any] = {"who": who, "since": since, "place": place, "work": work, "token": uuid.uuid4().hex}
        self._mine |= {"beats": 0, "renewed": time.time()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="guidino-tune-lease", daemon=True)
        self.taken, self._written = "", False
        if isinstance(optuna_private.backend(study), Journal):
            return
        found = read_lease(study)
        if found.get("place") != place:
            self._watch(found)
        self._written = True
        try:
            study.set_user_attr(LEASE, self._mine)
            time.sleep(SETTLE)
            self._refuse_unless_mine()
            study.set_user_attr(DRIVEN_FROM, place)
            if mirror := mirror_of(study):
                mirror.begin(optuna_private.study_id(study))
        except BaseException:
            self.close()  # nobody else would, and others would wait for a driver that is none
            raise
        self._thread.start()
        if isinstance(storage := optuna_private.storage(study), PatientStorage):
            storage.check = self._check

    def close(self) -> None:
        """Gives the lease back."""
        self._ended.set()
        self._end_mirror()
        if isinstance(storage := optuna_private.storage(self._study), PatientStorage):
            storage.check = lambda: None  # whoever reads on is nobody's rival
        if self._thread.is_alive():
            self._thread.join(BEAT)
        if self._written:
            with contextlib.suppress(Exception), without_patience():  # with the database away it will be stale
                if read_lease(self._study).get("token") == self._mine["token"]:
                    self._study.set_user_attr(LEASE, {})

    def _end_mirror(self) -> None:
        if mirror := mirror_of(self._study):
            mirror.end()

    def _watch(self, found: dict[str, Any]) -> None:
        end = time.monotonic() + STALE
        if found:
            log.warning("%s drove this study; if it gives no sign of life for %.0f s, this process takes over", _in_words(found), STALE)
        while found and time.monotonic() < end:
            time.sleep(BEAT / 10)
            now = read_lease(self._study)
            if now and now != found:
                raise self._refusal(now)
            found = now

    def _refuse_unless_mine(self) -> None:
        if (now := read_lease(self._study)).get("token") != self._mine["token"]:
            raise self._refusal(now)

    def _check(self) -> None:
        """See ``PatientStorage.check``."""
        with without_patience():
            try:
                now = read_lease(self._study)
            except Exception:
                return  # it is still away
        if now.get("token") != self._mine["token"]:
            self.taken = _in_words(now) or "another driver, which has ended"
            raise self._refusal(now)

    def _refusal(self, other: dict[str, Any]) -> UserError:
        return UserError(
            f"another {other.get('work', self._work)} works on this study ({_in_words(other)})",
            where=f"study {self._study.study_name!r} in its database",
            todo=f"{self._todo}; of one that died the study is free after {STALE:.0f} seconds",
        )

    def _renew(self) -> None:
        while not self._ended.wait(BEAT):
            # The database may be away, and is asked again: by then the lease may be another's, so that nothing is written late.
            with contextlib.suppress(Exception), without_patience():
                if (now := read_lease(self._study)).get("token") != self._mine["token"]:
                    self.taken = _in_words(now) or "another driver, which has ended"
                    self._end_mirror()
                    return
                self._mine["beats"] += 1
                self._mine["renewed"] = time.time()
                self._study.set_user_attr(LEASE, self._mine)


def read_lease(study: optuna.Study) -> dict[str, Any]:
    """The lease of a study as it is written down, whether its holder lives or not; empty when there is none."""
    return dict(study.user_attrs.get(LEASE) or {})


def lease_holder(study: optuna.Study, here: str) -> str:
    """Who drives a study from another place than this one, in words; a driver that died there stands until the next one comes."""
    found = read_lease(study)
    return "" if found.get("place") == here else _in_words(found)


def last_sign(lease: dict[str, Any]) -> float | None:
    """Seconds since a lease was renewed, by the clocks of its holder and of this machine: to be shown to people, and nothing more.

    ``None`` where it does not tell.
    """
    renewed = lease.get("renewed")
    return max(0.0, time.time() - renewed) if isinstance(renewed, int | float) else None


def _in_words(lease: dict[str, Any]) -> str:
    return f"{lease.get('who', 'its process is unknown')}, since {lease.get('since', 'long ago')}" if lease else ""
