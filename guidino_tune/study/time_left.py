"""How long a search will still take: what is left of it is played many times, as its epochs, rungs and failures were so far."""

from __future__ import annotations

import bisect
import functools
import heapq
import math
import random
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.space.space import Space
from guidino_tune.study.promotion import BASELINE, is_waiting
from guidino_tune.study.pruners import PRUNERS, rungs
from guidino_tune.study.trials import remaining, tried, untrained, value_at

PLAYS, LEAST_PLAYS, STEPS = 48, 8, 20_000
"""How often the rest is played: so often, and of a long one so that about ``STEPS`` pieces of trials are played, but at least so often."""

FEW = 3
"""Trials at a rung that are too few to tell how others will fare there."""

RECENT = 60
"""Trials whose epochs tell what the next ones cost."""

DOUBT, LEAST_DOUBT = 0.6, 0.25
"""Spread of a guess from the epochs of one trial, as the logarithm of a factor, which falls with the square root of their number; and the
rest of it, for what is still to come may be other than what was."""

LEARNING = 4
"""Power of a trial's place at the first rung, with which a sampler that learns draws others of its kind: searches with TPE over recorded
curves were told best with 3 to 5 (errors in ``docs/watching.md``); with 0, as for one that does not learn, too long times were told."""

LOW, HIGH = 0.05, 0.95
"""The quantiles of the range."""


@dataclass(frozen=True, slots=True)
class Left:
    """Seconds to the end of a search: about ``middle``, and mostly between ``low`` and ``high``."""

    low: float
    middle: float
    high: float

    def capped(self, seconds: float) -> Left:
        """At most so many."""
        return Left(min(self.low, seconds), min(self.middle, seconds), min(self.high, seconds))


@dataclass(slots=True)
class _Heard:
    """What was heard of a trial: its kind, seconds and number of its epochs without those that came first, and what these took."""

    kind: Hashable
    seconds: float = 0.0
    epochs: int = 0
    firsts: list[float] = field(default_factory=list)

    @property
    def pace(self) -> float:
        """Seconds of an epoch."""
        return self.seconds / self.epochs if self.epochs else min(self.firsts)


@dataclass(slots=True)
class _Piece:
    """A trial on its way to its next rung, in a play."""

    kind: Hashable
    pace: float
    epoch: int
    budget: int
    is_baseline: bool = False


class TimeLeft:
    """Hears of every start, epoch and end, and tells how long it will go on.

    Args:
        study: The study.
        space: What it searches.

    A kind is what decides about the seconds of an epoch: the system and the size of its images.
    """

    def __init__(self, study: optuna.Study, space: Space) -> None:
        self.study, self.space = study, space
        self.heard: dict[int, _Heard] = {}
        self.running: dict[int, tuple[float, bool]] = {}
        self.side_by_side: deque[int] = deque(maxlen=200)

    def started(self, number: int, kind: Hashable, now: float) -> None:
        """A trial begins, or goes on."""
        self.heard.setdefault(number, _Heard(kind))
        self.running[number] = (now, True)
        self.side_by_side.append(len(self.running))

    def trained(self, number: int, now: float, seconds: float | None = None) -> None:
        """A trial has told an epoch, which took so long by its own account."""
        if number not in self.running:
            return
        since, is_first = self.running[number]
        heard, self.running[number] = self.heard[number], (now, False)
        if is_first:
            heard.firsts.append(now - since)
            if seconds is not None and not heard.epochs:
                heard.seconds, heard.epochs = seconds, 1
        else:
            heard.seconds, heard.epochs = heard.seconds + now - since, heard.epochs + 1
        self.side_by_side.append(len(self.running))

    def ended(self, number: int) -> None:
        """A trial has ended, waits, or was interrupted."""
        self.running.pop(number, None)

    def state(self, now: float) -> State | None:
        """Where the search stands; ``None`` before the first epoch that was heard of."""
        known = {number: heard for number, heard in list(self.heard.items())[-RECENT:] if heard.epochs or heard.firsts}
        if not known:
            return None
        return State(self, known, now)


class State:
    """Where a search stands, to be played to its end."""

    def __init__(self, told: TimeLeft, known: Mapping[int, _Heard], now: float) -> None:
        settings, self.known = told.space.study, list(known.values())
        self.factor, self.waits, self.length = settings.reduction_factor, settings.waits, told.space.longest
        self.is_halving, self.custom = settings.has_rungs and settings.pruner in PRUNERS, settings.pruner not in PRUNERS
        self.rungs = rungs(settings, self.length)[:-1] if self.is_halving else ()
        trials = [trial for trial in tried(told.study) if not untrained(trial)]
        ended = [trial for trial in trials if trial.state.is_finished()]
        self.failed = [max(t.intermediate_values, default=0) for t in ended if t.state == TrialState.FAIL]
        self.failing = len(self.failed) / (len(ended) + 2)
        self.hazard = self._hazard(ended)
        self.places = [self._places(trials, rung) for rung in self.rungs]
        learns = bool(self.rungs) and settings.learns
        self.promise = [(self.places[0].get(number, 0.0) if learns else 1.0) ** LEARNING + 1e-9 for number in known]
        self.by_lot = max(0, settings.startup_trials - len(trials)) if learns else math.inf
        listed = len(told.space.first_trials)
        kinds = {number: heard.kind for number, heard in told.heard.items()}
        # The first trials are chosen well: what others were is what new ones will be.
        self.others = [[(kinds.get(number), place) for number, place in places.items() if number >= listed] for places in self.places]
        going = [t for t in trials if t.state == TrialState.RUNNING]
        heard = told.heard
        self.running = [
            (self._piece(t, heard[t.number]), now - told.running[t.number][0]) for t in going if t.number in told.running
        ]  # fmt: skip
        away = [t for t in going if t.number not in told.running]
        self.waiting = [(t, self.rungs.index(t.last_step or 0), self._piece(t, heard.get(t.number))) for t in away if self._waits(t)]
        self.to_go_on = [self._piece(t, heard.get(t.number)) for t in away if not self._waits(t)]
        self.to_begin = max(0, remaining(told.study, told.space) - len(going))
        self.workers = max([1, len(self.running), *told.side_by_side])
        self.extra = [max(0.0, first - one.pace) for one in self.known for first in one.firsts if one.epochs] or [0.0]
        self.size = (self.to_begin + len(going)) * (1 + len(self.rungs))

    @staticmethod
    def _places(trials: Sequence[FrozenTrial], rung: int) -> dict[int, float]:
        """Of each trial that came to a rung its place there, from 0 (the worst) to 1."""
        found = sorted((value, t.number) for t in trials if t.state != TrialState.FAIL and (value := value_at(t, rung)) is not None)
        return {number: (place + 1.5) / (len(found) + 1) for place, (_, number) in enumerate(found)}

    def left(self) -> Left:
        """To the end of the search, from many ways in which it may go on."""
        plays = max(LEAST_PLAYS, min(PLAYS, STEPS // max(1, self.size)))
        ends = sorted(self.play(random.Random(number)) for number in range(plays))
        return Left(*(ends[min(len(ends) - 1, int(share * len(ends)))] for share in (LOW, 0.5, HIGH)))

    def _waits(self, trial: FrozenTrial) -> bool:
        return self.waits and is_waiting(trial) and trial.last_step in self.rungs

    def _hazard(self, ended: Sequence[FrozenTrial]) -> float:
        """How likely a pruner of one's own stops a trial in an epoch."""
        stopped = sum(trial.state == TrialState.PRUNED for trial in ended) if self.custom else 0
        return stopped / max(1, sum(max(trial.intermediate_values, default=0) for trial in ended))

    def _piece(self, trial: FrozenTrial, heard: _Heard | None) -> _Piece:
        known = heard if heard and (heard.epochs or heard.firsts) else None
        pace = known.pace if known else self._pace(random.Random(trial.number), self.known, heard.kind if heard else None)
        return _Piece(
            heard.kind if heard else None, pace, max(trial.intermediate_values, default=0),
            trial.user_attrs.get("epochs", self.length), BASELINE in trial.user_attrs,
        )  # fmt: skip

    @staticmethod
    def _pace(drawing: random.Random, known: Sequence[_Heard], kind: Hashable = None) -> float:
        """Of a trial that has not told: that of another one of its kind, else of any."""
        return drawing.choice([one for one in known if one.kind == kind] or known).pace

    def play(self, drawing: random.Random) -> float:
        """One way in which it may end, in seconds from now."""
        pairs = drawing.choices([*zip(self.known, self.promise, strict=True)], k=len(self.known))
        known, promise = [one for one, _ in pairs], [of for _, of in pairs]
        doubt = math.exp(drawing.gauss(0.0, math.hypot(LEAST_DOUBT, DOUBT / math.sqrt(len(known)))))
        counted = [sorted(places.values()) for places in self.places]
        waiting: list[list[tuple[float, int, _Piece]]] = [[] for _ in self.rungs]
        turn = 0
        for trial, rung, piece in self.waiting:
            turn += 1
            bisect.insort(waiting[rung], (-self.places[rung][trial.number], turn, piece))
        to_go_on, to_begin = list(self.to_go_on), self.to_begin
        queue: list[tuple[float, int, _Piece]] = []

        def run(piece: _Piece, at: float, done: float | None = None) -> None:
            """To the next rung; ``done``: seconds of the epoch that runs now."""
            nonlocal turn
            turn += 1
            target = min([r for r in self.rungs if r > piece.epoch], default=piece.budget)
            target = self._early(drawing, piece.epoch, min(target, piece.budget))
            seconds = max(1, target - piece.epoch) * piece.pace * doubt
            seconds = max(seconds - done, 0.1 * piece.pace) if done is not None else seconds + drawing.choice(self.extra)
            piece = _Piece(piece.kind, piece.pace, max(target, piece.epoch + 1), piece.budget, piece.is_baseline)
            heapq.heappush(queue, (at + seconds, turn, piece))

        def promoted(least: int) -> _Piece | None:
            for rung in range(len(waiting) - 1, -1, -1):
                if waiting[rung] and self._leads(counted[rung], -waiting[rung][0][0], least):
                    return waiting[rung].pop(0)[2]
            return None

        for piece, done in self.running:
            run(piece, 0.0, done)
        clock = 0.0
        while True:
            while len(queue) < self.workers:
                last = not to_begin and not queue and not to_go_on
                if found := (promoted(int(last)) if self.waits and not to_go_on else None):
                    run(found, clock)
                elif to_go_on:
                    run(to_go_on.pop(), clock)
                elif to_begin:
                    to_begin -= 1
                    like = drawing.choice(known) if self.to_begin - to_begin <= self.by_lot else drawing.choices(known, promise)[0]
                    run(_Piece(like.kind, like.pace, 0, self.length), clock)
                else:
                    break
            if not queue:
                return clock
            clock, _, piece = heapq.heappop(queue)
            if piece.epoch not in self.rungs or piece.epoch >= piece.budget:
                continue
            rung = self.rungs.index(piece.epoch)
            place = self._arrival(drawing, rung, piece.kind)
            bisect.insort(counted[rung], place)
            if piece.is_baseline or self._leads(counted[rung], place, 0 if self.waits else 1):
                run(piece, clock)
            elif self.waits:
                turn += 1
                bisect.insort(waiting[rung], (-place, turn, piece))

    def _early(self, drawing: random.Random, epoch: int, target: int) -> int:
        """Where a trial ends that fails, or that a pruner of one's own stops; else ``target``."""
        if epoch == 0 and self.failed and drawing.random() < self.failing:
            return max(1, min(target, drawing.choice(self.failed)))
        if self.hazard:
            return min(target, epoch + 1 + int(math.log(1 - drawing.random()) / math.log(1 - min(self.hazard, 0.999))))
        return target

    @functools.cache  # noqa: B019 -- as long as a state lives
    def _arrivals(self, rung: int, kind: Hashable) -> list[float]:
        """The places at a rung of trials like one that comes there: of its kind, or where these are few, of any, or at any rung."""
        there = self.others[rung]
        likes = ([place for one, place in there if one == kind], [place for _, place in there], [p for o in self.others for _, p in o])
        return next((places for places in likes if len(places) > FEW), [])

    def _arrival(self, drawing: random.Random, rung: int, kind: Hashable) -> float:
        """The place at a rung of a trial that comes there: as those that came before, which differs from rung to rung."""
        known = self._arrivals(rung, kind)
        return drawing.choice(known) + (drawing.random() - 0.5) / len(known) if known else drawing.random()

    def _leads(self, counted: Sequence[float], place: float, least: int) -> bool:
        places = max(least, len(counted) // self.factor)
        return len(counted) - bisect.bisect_right(counted, place) < places


def in_words(left: Left) -> str:
    """Such as ``20 to 35 min left``; never nothing, for what is not over takes a while."""
    if left.high < 60:
        return "less than a minute left"
    unit, length = ("min", 60.0) if left.high < 100 * 60 else ("h", 3600.0) if left.high < 48 * 3600 else ("days", 86400.0)
    step = next(step for step in (0.5, 1, 5, 10) if left.high / length <= 20 * step or step == 10)
    step = max(step, 1) if unit == "min" else step
    low, high = math.floor(left.low / length / step) * step, math.ceil(left.high / length / step) * step
    if low <= 0:
        return f"up to {high:g} {unit} left"
    return f"about {high:g} {unit} left" if low == high else f"{low:g} to {high:g} {unit} left"
