"""What a person sees of a search: a short live table while it runs, a leaderboard at its end."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from guidino_tune.config.experiment import KNOWN
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.space.space import Space
from guidino_tune.study.objectives import SHORT, beyond, feasible, in_words
from guidino_tune.study.objectives import shown as shown_value
from guidino_tune.study.optuna_private import stored_trial
from guidino_tune.study.outcomes import REPEATS
from guidino_tune.study.promotion import BASELINES, is_waiting
from guidino_tune.study.pruners import planned_epochs
from guidino_tune.study.tally import Tally
from guidino_tune.study.trials import best_value, front, ranking, remaining


def columns(space: Space) -> dict[str, str]:
    """Headings of what is searched, by path, in the space's order."""
    known = {path: KNOWN[path.removesuffix(".kind")] for path in space.parameters if path.removesuffix(".kind") in KNOWN}
    return {path: about.heading for path, about in known.items() if about.heading}


class Progress:
    """A table that redraws itself on a terminal; elsewhere a line for each finished trial.

    Args:
        study: The study.
        space: What it searches.
        console: Where to draw.
        interval: Seconds between drawings.
    """

    def __init__(self, study: optuna.Study, space: Space, console: Console, interval: float = 1.0) -> None:
        self.study, self.space, self.console = study, space, console
        self.started = time.monotonic()
        self.tally = Tally(study)
        self.total = self.tally.done + remaining(study, space)
        self.epochs_at_start = self._epochs()
        self.interval, self._estimate, self._estimated = interval, "", 0.0
        self.live = Live(console=console, refresh_per_second=1 / interval, get_renderable=self.draw) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live:
            self.live.stop()

    def changed(self, number: int) -> None:
        """A trial has started or ended; prints a line about one that ended, when there is no terminal to draw on."""
        trial = stored_trial(self.study, number)
        if not self.tally.take(trial) or self.live or not trial.state.is_finished():
            return
        value = best_value(trial)
        score = "no result" if value is None else f"Dice {value:.4f}"
        why = f" ({trial.user_attrs['failure']}: {trial.user_attrs.get('message', '')[:200]})" if "failure" in trial.user_attrs else ""
        name = trial.user_attrs.get("name", "")
        line = f"trial {number:>3} {name:<17} {word(trial):<13} {score} after {max(trial.intermediate_values, default=0)} epochs{why}"
        self.console.print(f"{line} | {self._summary()}", highlight=False, soft_wrap=True)

    def draw(self) -> Group:
        """The table as it is now: what runs, what leads, and how long it will take."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("", "trial", "", *self._columns(), "epoch", "Dice"):
            table.add_column(column, justify="right" if column in ("trial", "epoch", "Dice") else "left", no_wrap=True)
        for trial in ranking(self.study)[:3]:
            table.add_row("best", *self._row(trial), style="green")
        for trial in sorted(self._running(), key=is_waiting)[:8]:
            table.add_row("now", *self._row(trial))
        return Group(Text(self._summary(), style="bold"), table)

    def _columns(self) -> list[str]:
        return list(columns(self.space).values())

    def _row(self, trial: FrozenTrial) -> list[str]:
        value = best_value(trial)
        cells = [cell(trial.params[path]) if path in trial.params else "-" for path in columns(self.space)]
        epoch = f"{max(trial.intermediate_values, default=0)}/{trial.user_attrs.get('epochs', '?')}"
        return [str(trial.number), trial.user_attrs.get("name", ""), *cells, epoch, "-" if value is None else f"{value:.4f}"]

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
        # It looks at running trials, so it is not made anew for each of many trials that end in the same second.
        if self.tally.done >= self.total or time.monotonic() > self._estimated + self.interval:
            self._estimate, self._estimated = self._time_left(), time.monotonic()
        return " · ".join([*parts, self._estimate])

    def _time_left(self) -> str:
        elapsed = time.monotonic() - self.started
        epochs = self._epochs()
        new, done = epochs - self.epochs_at_start, self.tally.done
        study = self.space.study
        if done >= self.total:
            return f"{_clock(elapsed)} in all"
        if not new or not (done or study.waits):
            return f"{_clock(elapsed)} so far"
        # Finished trials tell how many epochs a trial costs on average, early stops included; where trials wait, the few that are finished
        # are the long ones, and how many go on at each rung is a rule.
        baselines = min(BASELINES, len(self.space.first_trials))
        planned = planned_epochs(study, self.space.longest, self.total, baselines) if study.waits else self.tally.epochs / done * self.total
        left = max(0.0, planned - epochs)
        return f"{_clock(elapsed)} so far, about {_clock(elapsed / new * left)} left"

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _epochs(self) -> int:
        return self.tally.epochs + sum(max(t.intermediate_values, default=0) for t in self._running())


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


def leaderboard(study: optuna.Study, space: Space, rows: int = 10, searched: Mapping[str, str] | None = None) -> Table:
    """The best trials with what was searched, then those that were stopped early or failed; a Pareto front stands before all others.

    Args:
        study: The study.
        space: What it searches.
        rows: So many of the best trials are shown.
        searched: Headings of the parameters to show, by path; ``None``: see ``columns``.
    """
    every = placed(study)
    complete = [row for row in every if row[0] is not None]
    on_front = {t.number for t in front(study)}
    leaders = on_front or {t.number for _, t in complete[:1]}
    shown = complete[:rows]
    if len(complete) > rows:
        shown = [*shown, complete[-1]]
    table = Table(title=f"Study {study.study_name}", title_justify="left", header_style="bold")
    paths = columns(space) if searched is None else searched
    more = {name: place for place, name in enumerate(space.study.objectives) if name != OBJECTIVE}
    numbers = ("rank", "trial", "epochs", *SHORT.values())
    for column in ("rank", "trial", "system", *paths.values(), "epochs", "val Dice", *(SHORT[n] for n in more), ""):
        table.add_column(column, justify="right" if column in numbers else "left")
    for rank, trial in [*shown, *every[len(complete) :][: max(0, rows + 2 - len(shown))]]:
        value = best_value(trial)
        table.add_row(
            str(rank or ""),
            str(trial.number),
            trial.user_attrs.get("name", ""),
            *(cell(trial.params[p]) if p in trial.params else "-" for p in paths),
            str(max(trial.intermediate_values, default=0)),
            "-" if value is None else f"{value:.4f}",
            *(shown_value(name, trial.values[place]) if rank else "-" for name, place in more.items()),
            "Pareto front" if trial.number in on_front else word(trial),
            style="green" if trial.number in leaders else "dim" if trial.state != TrialState.COMPLETE else None,
        )
    return table


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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def silent_console() -> Console:
    """Prints nothing, nowhere, not even in a notebook."""
    return Console(quiet=True, file=io.StringIO(), force_jupyter=False)


def make_console() -> Console:
    """Standard output; as wide as the tables need where it is no terminal."""
    # Without markup and emoji: brackets and colons in the name of a file are that name.
    console = Console(soft_wrap=True, markup=False, emoji=False)
    return console if console.is_terminal else Console(width=160, soft_wrap=True, markup=False, emoji=False)
