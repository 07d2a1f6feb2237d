"""What a person sees of a search: a short live table while it runs, a leaderboard at its end."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from guidino_tune import paths
from guidino_tune.config import Experiment
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.space.space import Space
from guidino_tune.study.objectives import SHORT, beyond, feasible, in_words
from guidino_tune.study.objectives import shown as shown_value
from guidino_tune.study.optuna_private import stored_trial
from guidino_tune.study.outcomes import REPEATS
from guidino_tune.study.promotion import is_waiting
from guidino_tune.study.tally import Tally
from guidino_tune.study.time_left import TimeLeft
from guidino_tune.study.time_left import in_words as in_words_left
from guidino_tune.study.trials import best_value, front, ranking, remaining
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.tables import UNLIMITED, Format, fitting, headings, most_telling, plain_table
from guidino_tune.workflows.trial_lines import TrialLines

UNKNOWN = "time left unknown"
"""Before an epoch has told how long one takes."""


class Progress:
    """A table that redraws itself on a terminal; elsewhere lines, see ``TrialLines``.

    Args:
        study: The study.
        space: What it searches.
        console: Where to draw.
        interval: Seconds between drawings.
    """

    def __init__(self, study: optuna.Study, space: Space, console: Console, interval: float = 1.0) -> None:
        self.study, self.space, self.console = study, space, console
        self.started = time.monotonic()
        self.tally, self.time_left = Tally(study), TimeLeft(study, space)
        self.total = self.tally.done + remaining(study, space)
        self.epochs: dict[int, int] = {}
        self.interval, self._estimate, self._look_again = interval, UNKNOWN, 0.0
        self._lock = threading.Lock()
        self.lines = None if console.is_terminal else TrialLines(space, console, self._summary, self._going)
        self.live = Live(console=console, refresh_per_second=1 / interval, get_renderable=self.draw) if console.is_terminal else None

    def __enter__(self) -> Progress:
        shown = self.live or self.lines
        if shown:
            shown.start()
        return self

    def __exit__(self, *exc: object) -> None:
        shown = self.live or self.lines
        if shown:
            shown.stop()

    def changed(self, number: int, experiment: Experiment | None = None, record: EpochRecord | None = None) -> None:
        """A trial has told an epoch, or else has started, ended, or begun to wait."""
        now = time.monotonic()
        if record is not None:
            self.epochs[number] = record.epoch
            with self._lock:
                self.time_left.trained(number, now, record.metrics.get("epoch_seconds"))
            return
        trial = stored_trial(self.study, number)
        starts = trial.state == TrialState.RUNNING and number not in self.epochs
        if starts:
            self.epochs[number] = max(trial.intermediate_values, default=0)
            kind = (experiment.name, experiment.data.image_size) if experiment else trial.user_attrs.get("name")
            with self._lock:
                self.time_left.started(number, kind, now)
        else:
            self.epochs.pop(number, None)
            with self._lock:
                self.time_left.ended(number)
        is_new = self.tally.take(trial)
        if self.lines and starts:
            self.lines.begins(trial, self.epochs[number])
        elif self.lines and is_new and trial.state.is_finished():
            self.lines.ends(trial, word(trial))

    def draw(self) -> Group:
        """The table as it is now: what runs, what leads, and how long it will take."""
        best, now = ranking(self.study)[:3], sorted(self._running(), key=is_waiting)[:8]
        trials = [*best, *now]
        before = [
            ["", *["best"] * len(best), *("waits" if is_waiting(t) else "now" for t in now)],
            ["trial", *(str(t.number) for t in trials)],
        ]
        after = [
            ["epoch", *(f"{self._epoch(t)}/{t.user_attrs.get('epochs', '?')}" for t in trials)],
            ["Dice", *(dice_cell(best_value(t)) for t in trials)],
        ]
        searched = searched_columns(self.space, trials)
        columns = [*before, *searched[: fitting([*before, *after], searched, self.console.width)], *after]
        table = plain_table([column[0] for column in columns])
        for row, cells in enumerate(zip(*(column[1:] for column in columns), strict=True)):
            table.add_row(*map(Text, cells), style="green" if row < len(best) else None)
        return Group(Text(self._summary(), style="bold"), table)

    def _epoch(self, trial: FrozenTrial) -> int:
        return self.epochs.get(trial.number) or max(trial.intermediate_values, default=0)

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _going(self) -> list[tuple[FrozenTrial, int]]:
        return [(trial, self._epoch(trial)) for trial in self._running() if trial.number in self.epochs]

    def _summary(self) -> str:
        states, waiting = self.tally.states, len(self.tally.waiting)
        parts = [
            f"{self.tally.done}/{self.total} trials",
            f"{states[TrialState.RUNNING] - waiting} running",
            *([f"{waiting} waiting at a rung"] if waiting else ()),
            f"{states[TrialState.PRUNED] - self.tally.beyond} stopped early",
        ]
        if self.tally.beyond:
            parts.append(f"{self.tally.beyond} beyond a constraint")
        if states[TrialState.FAIL]:
            kinds = ", ".join(f"{number} {kind}" for kind, number in self.tally.failures.items())
            parts.append(f"{states[TrialState.FAIL]} failed ({kinds})")
        if self.tally.best:
            parts.append(f"best Dice {best_value(self.tally.best) or 0.0:.4f}")
        elapsed = time.monotonic() - self.started
        if self.tally.done >= self.total and not self.epochs:
            return " · ".join([*parts, f"{_clock(elapsed)} in all"])
        return " · ".join([*parts, f"{_clock(elapsed)} so far", self._left(elapsed)])

    def _left(self, elapsed: float) -> str:
        """How long it will go on; it costs time to find out, so at most a twentieth is spent on that."""
        begun = time.monotonic()
        if begun >= self._look_again:
            with self._lock:
                state = self.time_left.state(begun)
            left = state.left() if state else None
            budget = self.space.study.time_budget
            if left and budget:
                left = left.capped(max(0.0, budget - elapsed))
            self._estimate = in_words_left(left) if left else UNKNOWN
            self._look_again = time.monotonic() + max(self.interval, 20 * (time.monotonic() - begun))
        return self._estimate


def placed(study: optuna.Study) -> list[tuple[int | None, FrozenTrial]]:
    """Trials that have ended, with their rank: a Pareto front, then others that ran their whole budget, then the rest, without one."""
    leading = front(study)
    on_front = {t.number for t in leading}
    complete = [*leading, *(t for t in ranking(study) if t.number not in on_front)]
    others = sorted(
        (t for t in study.get_trials(deepcopy=False) if t.state in (TrialState.PRUNED, TrialState.FAIL) and REPEATS not in t.user_attrs),
        key=lambda t: -(best_value(t) or 0.0),
    )
    return [*enumerate(complete, 1), *((None, t) for t in others)]


def leaderboard(study: optuna.Study, space: Space, rows: int = 10, width: int = UNLIMITED) -> tuple[Table, list[str]]:
    """The best trials with what was searched, then those that were stopped early or failed; a Pareto front stands before all others.

    Args:
        study: The study.
        space: What it searches.
        rows: So many of the best trials are shown.
        width: Characters in a line. What does not fit of the searched parameters is left out, first what differs least between the trials.

    Returns:
        The table, and the headings of the parameters that are left out.
    """
    every = placed(study)
    complete = [row for row in every if row[0] is not None]
    on_front = {t.number for t in front(study)}
    leaders = on_front or {t.number for _, t in complete[:1]}
    shown = complete[:rows]
    if len(complete) > rows:
        shown = [*shown, complete[-1]]
    shown = [*shown, *every[len(complete) :][: max(0, rows + 2 - len(shown))]]
    trials = [trial for _, trial in shown]
    more = {name: place for place, name in enumerate(space.study.objectives) if name != OBJECTIVE}
    before = [["rank", *(str(rank or "") for rank, _ in shown)], ["trial", *(str(t.number) for t in trials)]]
    after = [
        ["epochs", *(str(max(t.intermediate_values, default=0)) for t in trials)],
        [SHORT[OBJECTIVE], *(dice_cell(best_value(t)) for t in trials)],
        *(
            [SHORT[name], *(shown_value(name, t.values[place]) if rank else "-" for rank, t in shown)]
            for name, place in more.items()
        ),
        ["state", *("Pareto front" if t.number in on_front else word(t) for t in trials)],
    ]  # fmt: skip
    searched = searched_columns(space, trials)
    fit = fitting([*before, *after], searched, width)
    columns = [*before, *searched[:fit], *after]
    table = plain_table([column[0] for column in columns])
    for trial, *cells in zip(trials, *(column[1:] for column in columns), strict=True):
        style = "green" if trial.number in leaders else "dim" if trial.state != TrialState.COMPLETE else None
        table.add_row(*map(Text, cells), style=style)
    return table, [column[0] for column in searched[fit:]]


def searched_columns(space: Space, trials: Sequence[FrozenTrial]) -> list[list[str]]:
    """Heading and cells of each searched parameter, the most telling first; the system leads them where the trials have several."""
    names = headings(space)
    found = [
        [names[path], *(cell(t.params[path]) if path in t.params else "-" for t in trials)] for path in most_telling(space, trials)
    ]  # fmt: skip
    system = ["system", *(str(t.user_attrs.get("name", "")) for t in trials)]
    return [system, *found] if len(set(system[1:])) > 1 else [*found, system]


def hidden_line(hidden: Sequence[str], name: str, file: str = "") -> str:
    """Which columns did not fit, and where all of them are; empty where none is missing."""
    if not hidden:
        return ""
    what = "1 column does" if len(hidden) == 1 else f"{len(hidden)} columns do"
    return f"{what} not fit ({', '.join(hidden)}); all: {paths.next_command(f'show {name} --format csv')}" + (f", {file}" if file else "")


def conclusions(study: optuna.Study, space: Space) -> list[str]:
    """What the leaderboard cannot say of a study with several objectives or with constraints, in sentences."""
    lines, leading = [], front(study)
    if leading:
        numbers = ", ".join(str(t.number) for t in leading)
        lines.append(
            f"Pareto front ({in_words(space.study)}): trials {numbers}. best.yaml has trial {leading[0].number}, whose Dice is best; "
            "export another one with --trial. All of them: reports/pareto.csv and pareto.png."
        )
    broken = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and not feasible(t)]
    if broken:
        rest = "the best trial keeps to all of them" if ranking(study) else "no trial that ran its whole budget keeps to all of them"
        first = f"trial {broken[0].number}: {beyond(space.study, broken[0])}"
        lines.append(f"{len(broken)} trials broke a constraint and were not trained, or no further ({first}); {rest}.")
    return lines


def word(trial: FrozenTrial) -> str:
    """How a trial ended, in a few words."""
    if not feasible(trial):
        return f"beyond {trial.user_attrs.get('message', 'a constraint')}"
    words = {
        TrialState.PRUNED: "stopped early",
        TrialState.FAIL: trial.user_attrs.get("failure", "failed"),
        TrialState.COMPLETE: "complete",
    }
    return str(words.get(trial.state, trial.state.name.lower()))


def cell(value: object) -> str:
    """The value of a parameter in a table."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def dice_cell(value: float | None) -> str:
    """A Dice in a table."""
    return "-" if value is None else f"{value:.4f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def silent_console() -> Console:
    """Prints nothing, nowhere, not even in a notebook."""
    return Console(quiet=True, file=io.StringIO(), force_jupyter=False)


def make_console(form: Format = "table") -> Console:
    """Standard output, or standard error where that is for a program; as wide as tables need where it is no terminal."""
    # Without markup and emoji: brackets and colons in the name of a file are that name.
    console = Console(soft_wrap=True, markup=False, emoji=False, stderr=form != "table")
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console
