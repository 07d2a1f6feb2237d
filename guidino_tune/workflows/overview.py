"""How studies stand, from what is stored with them alone: for whoever asks on the machine that searches, or on another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from guidino_tune.errors import UserError
from guidino_tune.study.lease import STALE, last_sign, read_lease
from guidino_tune.study.locking import place
from guidino_tune.study.nodes import NODE
from guidino_tune.study.nodes import shown as node_in_words
from guidino_tune.study.outcomes import REPEATED, REPEATS, FirstFailure
from guidino_tune.study.reading import Reader
from guidino_tune.study.store import StoredStudy
from guidino_tune.study.tally import Tally
from guidino_tune.study.trials import best_value, remaining
from guidino_tune.training.failures import POLICIES, as_kind

State = Literal["running", "stopped", "ended", "unreadable"]
"""Of a study: somebody drives it; nobody does, and trials are left; none is left; or it cannot be read."""

SILENT = 2 * STALE
"""Seconds without a sign of a driver elsewhere after which it is taken for dead when people ask; clocks may differ by as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrivenBy:
    """Who drives a study, or did until it fell silent.

    Attributes:
        who: Process and machine.
        since: When it began, as its machine wrote it.
        silent: Seconds without a sign of it, where that is known.
    """

    who: str
    since: str
    silent: float | None = None

    @property
    def is_dead(self) -> bool:
        """Whether it has been silent for too long."""
        return self.silent is not None and self.silent > SILENT

    def __str__(self) -> str:
        silent = f", silent for {span(self.silent)}" if self.silent is not None and self.is_dead else ""
        return f"{self.who}, since {self.since}{silent}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One study, in a row.

    Attributes:
        name: Of the study.
        data: Kind of its data set.
        state: See ``State``.
        driver: Who drives it.
        complete: Trials that ran their whole budget.
        stopped: Trials that were stopped early, or broke a constraint.
        failed: Trials that failed.
        running: Trials that run, or wait to go on.
        left: Trials that are still to be finished.
        best: Validation Dice of the best trial that ran its whole budget.
        latest: When a trial began or ended last, by the clock of the machine that searched; ``None`` before the first one.
        problem: Why it cannot be read.
    """

    name: str
    data: str = ""
    state: State = "unreadable"
    driver: DrivenBy | None = None
    complete: int = 0
    stopped: int = 0
    failed: int = 0
    running: int = 0
    left: int = 0
    best: float | None = None
    latest: datetime | None = None
    problem: str = ""


def overviews(reader: Reader) -> list[Overview]:
    """All studies, the one with the latest trial first."""
    found = []
    for name in reader.names():
        try:
            found.append(overview(reader.open(name)))
        except (UserError, OSError) as error:  # the others are to be seen
            found.append(Overview(name=name, problem=" ".join(str(error).split())))
    return sorted(found, key=lambda study: (study.latest or datetime.min, study.name), reverse=True)


def overview(stored: StoredStudy) -> Overview:
    """How a study stands now."""
    tally, driver = Tally(stored.study), driver_of(stored)
    left = remaining(stored.study, stored.space)
    state: State = "running" if driver and not driver.is_dead else "stopped" if left else "ended"
    return Overview(
        name=stored.study.study_name,
        data=stored.space.base.data.kind,
        state=state,
        driver=driver,
        complete=tally.states[TrialState.COMPLETE],
        stopped=tally.states[TrialState.PRUNED],
        failed=tally.states[TrialState.FAIL],
        running=tally.states[TrialState.RUNNING],
        left=left,
        best=best_value(tally.best) if tally.best else None,
        latest=datetime.fromtimestamp(tally.latest) if tally.latest else None,
    )


def driver_of(stored: StoredStudy) -> DrivenBy | None:
    """Who drives a study: by the lock of its folder, else by the lease in its database; ``None`` where nobody does."""
    if note := stored.folder.holder():
        begun = stored.folder.held_since()
        return DrivenBy(who=plain(note), since="an unknown time" if begun is None else f"{datetime.fromtimestamp(begun):%Y-%m-%d %H:%M}")
    lease = read_lease(stored.study)
    if not lease or lease.get("place") == place(stored.folder.path):
        return None
    return DrivenBy(who=plain(lease.get("who", "a process")), since=plain(lease.get("since", "long ago")), silent=last_sign(lease))


def first_failures(trials: list[FrozenTrial]) -> list[FirstFailure]:
    """The first failure of each kind, in the order in which they came."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.FAIL and not {REPEATED, REPEATS} & trial.user_attrs.keys():
            groups.setdefault(as_kind(trial.user_attrs.get("failure")), []).append(trial)
    return [
        FirstFailure(
            kind=kind,
            count=len(failed),
            trial=failed[0].number,
            message=plain(failed[0].user_attrs.get("message", "")),
            node=node_in_words(plain(failed[0].user_attrs.get(NODE, ""))),
            todo=POLICIES[as_kind(kind)].todo,
        )
        for kind, failed in groups.items()
    ]


def data_in_words(stored: StoredStudy) -> str:
    """Over which images a study searches, such as ``kvasir, 795 training and 100 validation cases, /data/Kvasir-SEG``."""
    data, about = stored.space.base.data, stored.study.user_attrs.get("data")
    counted = isinstance(about, Mapping) and {"num_train", "num_validation"} <= about.keys()
    cases = f"{about['num_train']} training and {about['num_validation']} validation cases" if counted and about else ""
    return ", ".join(filter(None, (data.kind, cases, f"{data.image_size} pixels", plain(data.root or ""))))


def plain(text: Any) -> str:
    """Text from a storage that others may write to, without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def span(seconds: float) -> str:
    """A duration as people say it, such as ``5 min``."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
