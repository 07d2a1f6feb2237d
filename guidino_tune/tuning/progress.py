"""What a person sees of a search: a short live table while it runs, a leaderboard at its end."""

from __future__ import annotations

import time
from collections import Counter

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from guidino_tune.space.space import Space
from guidino_tune.tuning.study import best_value, finished, ranking, remaining

SHORT = {"data.image_size": "image size", "training.seed": "seed", "segmenter.kind": "segmenter", "guide.backbone": "backbone",
         "guide.gate": "gate", "guide.lora.rank": "LoRA rank", "loss.lambda_guide": "lambda",
         "guide.tokenbook.num_prototypes": "prototypes", "loss.hinge_weight": "hinge", "training.lr": "lr"}  # fmt: skip
"""Columns of the tables, where they are searched."""


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
        self.started = time.time()
        self.total = len(finished(study)) + remaining(study, space)
        self.epochs_at_start = self._epochs(study.get_trials(deepcopy=False))
        self.live = Live(console=console, refresh_per_second=1 / interval, get_renderable=self.draw) if console.is_terminal else None
        self._told: set[int] = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live:
            self.live.stop()

    def changed(self, number: int) -> None:
        """Prints a line about a trial that has just ended, when there is no terminal to draw on."""
        if self.live or number in self._told:
            return
        trials = self.study.get_trials(deepcopy=False)
        trial = trials[number]
        if trial.state.is_finished():
            self._told.add(number)
            value = best_value(trial)
            score = "no result" if value is None else f"Dice {value:.4f}"
            why = f" ({trial.user_attrs['failure']}: {trial.user_attrs.get('message', '')[:200]})" if "failure" in trial.user_attrs else ""
            name = trial.user_attrs.get("name", "")
            line = f"trial {number:>3} {name:<17} {_word(trial):<13} {score} after {max(trial.intermediate_values, default=0)} epochs{why}"
            self.console.print(f"{line} | {self._summary(trials)}", highlight=False, soft_wrap=True)

    def draw(self) -> Group:
        """The table as it is now: what runs, what leads, and how long it will take."""
        trials = self.study.get_trials(deepcopy=False)
        running = [t for t in trials if t.state == TrialState.RUNNING]
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("", "trial", "", *self._columns(), "epoch", "Dice"):
            table.add_column(column, justify="right" if column in ("trial", "epoch", "Dice") else "left", no_wrap=True)
        for trial in ranking(self.study)[:3]:
            table.add_row("best", *self._row(trial), style="green")
        for trial in running[:8]:
            table.add_row("now", *self._row(trial))
        return Group(Text(self._summary(trials), style="bold"), table)

    def _columns(self) -> list[str]:
        return [short for path, short in SHORT.items() if path in self.space.parameters]

    def _row(self, trial: FrozenTrial) -> list[str]:
        value = best_value(trial)
        cells = [_cell(trial.params[path]) if path in trial.params else "-" for path in SHORT if path in self.space.parameters]
        epoch = f"{max(trial.intermediate_values, default=0)}/{trial.user_attrs.get('epochs', '?')}"
        return [str(trial.number), trial.user_attrs.get("name", ""), *cells, epoch, "-" if value is None else f"{value:.4f}"]

    def _summary(self, trials: list[FrozenTrial]) -> str:
        count = Counter(t.state for t in trials)
        done = len(finished(self.study))
        best = ranking(self.study)
        parts = [
            f"{done}/{self.total} trials",
            f"{count[TrialState.RUNNING]} running",
            f"{count[TrialState.PRUNED]} stopped early",
        ]
        if count[TrialState.FAIL]:
            parts.append(f"{count[TrialState.FAIL]} failed")
        if best:
            parts.append(f"best Dice {best[0].value:.4f}")
        return " · ".join([*parts, self._time_left(trials, done)])

    def _time_left(self, trials: list[FrozenTrial], done: int) -> str:
        elapsed = time.time() - self.started
        epochs = self._epochs(trials) - self.epochs_at_start
        if not done or not epochs:
            return f"{_clock(elapsed)} so far"
        # Finished trials tell how many epochs a trial costs on average, early stops included.
        average = self._epochs([t for t in trials if t.state.is_finished()]) / done
        left = max(0.0, average * self.total - self._epochs(trials))
        return f"{_clock(elapsed)} so far, about {_clock(elapsed / epochs * left)} left"

    @staticmethod
    def _epochs(trials: list[FrozenTrial]) -> int:
        return sum(max(t.intermediate_values, default=0) for t in trials)


def leaderboard(study: optuna.Study, space: Space, rows: int = 10) -> Table:
    """The best trials with what was searched, then those that were stopped early or failed."""
    complete = ranking(study)
    others = sorted(
        (t for t in study.get_trials(deepcopy=False) if t.state in (TrialState.PRUNED, TrialState.FAIL)),
        key=lambda t: -(best_value(t) or 0.0),
    )
    shown = complete[:rows]
    if len(complete) > rows:
        shown = [*shown, complete[-1]]
    table = Table(title=f"Study {study.study_name}", title_justify="left", header_style="bold")
    paths = [p for p in SHORT if p in space.parameters]
    for column in ("rank", "trial", "system", *(SHORT[p] for p in paths), "epochs", "val Dice", ""):
        table.add_column(column, justify="right" if column in ("rank", "trial", "epochs", "val Dice") else "left")
    for trial in [*shown, *others[: max(0, rows + 2 - len(shown))]]:
        value = best_value(trial)
        table.add_row(
            str(complete.index(trial) + 1) if trial in complete else "",
            str(trial.number),
            trial.user_attrs.get("name", ""),
            *(_cell(trial.params[p]) if p in trial.params else "-" for p in paths),
            str(max(trial.intermediate_values, default=0)),
            "-" if value is None else f"{value:.4f}",
            _word(trial),
            style="green" if complete and trial is complete[0] else "dim" if trial.state != TrialState.COMPLETE else None,
        )
    return table


def _word(trial: FrozenTrial) -> str:
    words = {
        TrialState.PRUNED: "stopped early",
        TrialState.FAIL: trial.user_attrs.get("failure", "failed"),
        TrialState.COMPLETE: "complete",
    }
    return str(words.get(trial.state, trial.state.name.lower()))


def _cell(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def make_console() -> Console:
    """Standard output; as wide as the tables need where it is no terminal."""
    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(width=160, soft_wrap=True)
