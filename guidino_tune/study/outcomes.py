"""What follows from the failures of a study: who goes on, what is not tried again, and when a search ends.

The kinds of failure and what each means are in ``guidino_tune.training.failures``. The rules over several trials are:

- **Not a third time.** A configuration that failed twice the same way (the same kind) is not run again in this run; in a later one only
  if it diverged, lacked memory or met a bug: what the disk, the data or a machine did may have been mended meanwhile.
- **Giving up.** ``PATIENCE`` trials in a row that fail with the same kind and the same message, and not through their configuration, have
  a common cause: a full disk, a missing folder, a dead driver, a bug. The search ends, whether or not trials had a result before, for
  every further trial would fail as well; the difference is in the exit code (1 without any result; 75, "try again later", otherwise).
  Failures of different kinds or messages are taken for those of single trials, and are made up for, up to ``LIMIT`` in a row.
- **One bad node ends no search.** Where a search uses several nodes, what ends it happened on at least two of them; see ``nodes``. What
  disk, files or network of a node did to a trial is tried once on another one, from the trial's checkpoint, before it counts; what a
  node says that is not fit for the search, on all others that are not avoided.
- **A small GPU is no verdict.** What runs out of memory is tried once more, alone on a GPU of those with the most memory; see ``moving``.
- A result in between, be it that a configuration diverges, shows that the machines work, and so does an epoch of a trial on a node where
  nothing failed: counting starts again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from guidino_tune.errors import redacted
from guidino_tune.study.nodes import Nodes
from guidino_tune.training.failures import INFEASIBLE, POLICIES, FailureKind, as_kind

PATIENCE = 3
"""Trials in a row that fail the same way for reasons outside their configuration before a search gives up."""

LIMIT = 3 * PATIENCE
"""Trials in a row that fail in whatever way before a search gives up."""

TWICE = 2
"""Failures of one kind after which a configuration is not tried again."""

LASTING = (*INFEASIBLE, "bug")
"""Failures that a configuration would meet in a later run as well."""

PREEMPTIONS = 20
"""Times that a trial may lose its machine without an epoch in between; then it counts as crashed."""

REFUSALS = 20
"""Configurations in a row that a sampler may propose though they are not to be tried again."""

UNTRAINED = 100
"""Configurations in a row that may be beyond a constraint before they are trained; then the search gives up."""

TOO_TIGHT = "start another study (another study.name) with a higher limit in study.constraints, or with smaller networks"
"""What to do then."""

REPEATED = "repeated"
"""Attribute of a trial that was not run, because its configuration had failed twice."""

REPEATS = "repeats"
"""Attribute of a trial that was not run, because the trial of this number has its result, or is to have it."""

INTERRUPTION = "interrupted"
"""Attribute of a trial that waits to go on: what interrupted it; empty while it runs."""

Key = frozenset[tuple[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstFailure:
    """The first trial that failed in one way.

    Attributes:
        kind: Of the failure.
        count: Trials that failed so.
        trial: The number of the first.
        message: Its reason.
        node: Where it was; empty where that is unknown.
        todo: What to do about such a failure.
    """

    kind: str
    count: int
    trial: int
    message: str
    node: str
    todo: str


class Outcomes:
    """Counts how trials failed.

    Args:
        trials: Those stored by earlier runs.
        max_failures: How often a trial whose process died goes on.

    Attributes:
        nodes: Where the trials of this run are.
    """

    def __init__(self, trials: Iterable[FrozenTrial], max_failures: int) -> None:
        self.max_failures, self.nodes = max_failures, Nodes()
        self._failed: Counter[tuple[Key, FailureKind]] = Counter()
        self._described: dict[str, tuple[int, Mapping[str, Any]]] = {}
        self._deaths: Counter[int] = Counter()
        self._preemptions: Counter[int] = Counter()
        self._furthest: Counter[int] = Counter()
        self._short_of_memory: set[int] = set()
        self._in_a_row: list[tuple[FailureKind, str, str]] = []
        self._repetitions: set[tuple[str, ...]] = set()
        for trial in trials:
            if trial.state == TrialState.FAIL and as_kind(trial.user_attrs.get("failure")) in LASTING:
                self._count(trial)
            if "hash" in trial.user_attrs:
                self._described.setdefault(trial.user_attrs["hash"], (trial.number, trial.params))

    def closed(self, trial: FrozenTrial) -> None:
        """Takes in a trial that has just ended."""
        if trial.state != TrialState.FAIL:
            self._in_a_row = []
            return
        self._count(trial)
        kind = as_kind(trial.user_attrs.get("failure"))
        if POLICIES[kind].is_result:
            self._in_a_row = []
            return
        node = self.nodes.failed(trial.number, as_key(trial.params), kind)
        self._in_a_row.append((kind, str(trial.user_attrs.get("message", "")), node))

    def progressed(self, number: int, epoch: int) -> None:
        """A trial told an epoch; one that no machine has come to before shows that its machines are no trap."""
        if epoch > self._furthest[number]:
            self._furthest[number] = epoch
            self._preemptions.pop(number, None)
            node = self.nodes.progressed(number)
            if node and node not in {where for _, _, where in self._in_a_row}:
                self._in_a_row = []

    def is_short_of_memory(self, number: int) -> bool:
        """True when a trial was ended for want of memory, and goes on with parts of batches."""
        return number in self._short_of_memory

    def ended(self, number: int, kind: FailureKind, text: str) -> tuple[FailureKind, str, bool]:
        """Judges a trial whose process or machine is gone; called once for each end.

        Args:
            number: Of the trial.
            kind: See ``death_kind``.
            text: What Ray says of it.

        Returns:
            Kind and message to be recorded, and whether the trial goes on from its checkpoint.
        """
        message = redacted(" ".join(text.split()))[:1000] or "nothing is known of its end"
        if kind == "preempted":
            self._preemptions[number] += 1
            if self._preemptions[number] <= PREEMPTIONS:
                return kind, message, True
            return "crashed", f"its machine was lost {PREEMPTIONS + 1} times without an epoch in between; the last time: {message}", False
        if kind == "out-of-memory":
            first = number not in self._short_of_memory
            self._short_of_memory.add(number)
            return kind, message, first
        self._deaths[number] += 1
        times = self._deaths[number]
        if times <= self.max_failures:
            return kind, message, True
        return kind, f"its process ended {times} time(s), more often than resources.max_failures allows; the last time: {message}", False

    def repeated(self, params: Mapping[str, Any]) -> FailureKind | None:
        """The kind in which a configuration failed so often that it is not tried again."""
        key = as_key(params)
        return next((kind for kind in POLICIES if self._failed[key, kind] >= TWICE), None)

    @property
    def hopeless(self) -> set[Key]:
        """The parameters that failed so often in one way that they are not tried again."""
        return {key for (key, _), number in self._failed.items() if number >= TWICE}

    def repetition(self, number: int, name: str, params: Mapping[str, Any]) -> str:
        """A warning when another trial has different parameters and yet the same experiment; once for the same parameters.

        Of a list such a trial is run: its result is that of the other one, once more.

        Args:
            number: Of the new trial.
            name: The hash of its experiment.
            params: Its active parameters.
        """
        other, known = self._described.setdefault(name, (number, dict(params)))
        differing = tuple(sorted(p for p in known.keys() | params.keys() if known.get(p) != params.get(p)))
        if other == number or not differing or differing in self._repetitions:
            return ""
        self._repetitions.add(differing)
        shown = ", ".join(f"{p}: {known.get(p, 'absent')} and {params.get(p, 'absent')}" for p in differing)
        return (
            f"trials {other} and {number} differ in parameters without effect on their experiment ({shown}), so the second one repeats the "
            "first; in a new study (another study.name), search these only where they have an effect, with `when:`"
        )

    def given_up(self, running: Collection[int] = ()) -> str:
        """Why no more trials are started, in words; empty while they are. See the rules above.

        Args:
            running: Trials that run now.
        """
        row = self._in_a_row
        if not row:
            return ""
        kind, message, _ = row[-1]
        alike = list(takewhile(lambda failed: (failed[0], _cause(failed[1])) == (kind, _cause(message)), reversed(row)))
        if len(alike) >= PATIENCE and not self.nodes.one_to_blame((node for *_, node in alike), running, few=len(alike) < LIMIT):
            return f"{len(alike)} trials in a row failed the same way, not through their configuration: {kind}: {_sentence(message, kind)}"
        if len(row) >= LIMIT and not self.nodes.one_to_blame((node for *_, node in row), running, few=False):
            counts = ", ".join(f"{n} {k}" for k, n in Counter(k for k, *_ in row).items())
            return f"{len(row)} trials in a row failed ({counts}), the last one: {kind}: {_sentence(message, kind)}"
        return ""

    def _count(self, trial: FrozenTrial) -> None:
        if REPEATED not in trial.user_attrs:
            self._failed[as_key(trial.params), as_kind(trial.user_attrs.get("failure"))] += 1


def in_words(trials: Sequence[FrozenTrial]) -> list[str]:
    """A line for each kind of failure among these trials: how many, the message of the first, and what to do about it."""
    groups: dict[FailureKind, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.FAIL and not {REPEATED, REPEATS} & trial.user_attrs.keys():
            groups.setdefault(as_kind(trial.user_attrs.get("failure")), []).append(trial)
    lines = []
    for kind, failed in sorted(groups.items(), key=lambda group: -len(group[1])):
        numbers = ", ".join(str(t.number) for t in failed[:5]) + (", ..." if len(failed) > 5 else "")
        lines.append(f"{len(failed)} {kind} (trial {numbers}): {_sentence(failed[0].user_attrs.get('message', ''), kind)}")
    return lines


def same_way(trials: Iterable[FrozenTrial]) -> FailureKind | None:
    """The kind in which all these trials failed; ``None`` when they did not, or not the same way."""
    run = (t for t in trials if REPEATS not in t.user_attrs)
    kinds = {as_kind(t.user_attrs.get("failure")) if t.state == TrialState.FAIL else None for t in run}
    return kinds.pop() if len(kinds) == 1 else None


def as_key(values: Mapping[str, Any]) -> Key:
    """The values of a trial as something to count and look up."""
    return frozenset(values.items())


def _cause(message: str) -> str:
    """A message without what differs from trial to trial: numbers, addresses, epochs."""
    return re.sub(r"0x[0-9a-fA-F]+|\d+(\.\d+)?", "#", message)


def _sentence(message: str, kind: FailureKind) -> str:
    return f"{message.rstrip('.')}. What to do: {POLICIES[kind].todo}"
