"""What a person sees of a search: a short live table while it runs, a leaderboard at its end."""

from __future__ import annotations

import time

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from guidino_tune.space.space import Space
from guidino_tune.tuning.study import best_value, ranking, remaining, stored_trial
from guidino_tune.tuning.tally import Tally

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
        line = f"trial {number:>3} {name:<17} {_word(trial):<13} {score} after {max(trial.intermediate_values, default=0)} epochs{why}"
        self.console.print(f"{line} | {self._summary()}", highlight=False, soft_wrap=True)

    def draw(self) -> Group:
        """The table as it is now: what runs, what leads, and how long it will take."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("", "trial", "", *self._columns(), "epoch", "Dice"):
            table.add_column(column, justify="right" if column in ("trial", "epoch", "Dice") else "left", no_wrap=True)
        for trial in ranking(self.study)[:3]:
            table.add_row("best", *self._row(trial), style="green")
        for trial in self._running()[:8]:
            table.add_row("now", *self._row(trial))
        return Group(Text(self._summary(), style="bold"), table)

    def _columns(self) -> list[str]:
        return [short for path, short in SHORT.items() if path in self.space.parameters]

    def _row(self, trial: FrozenTrial) -> list[str]:
        value = best_value(trial)
        cells = [_cell(trial.params[path]) if path in trial.params else "-" for path in SHORT if path in self.space.parameters]
        epoch = f"{max(trial.intermediate_values, default=0)}/{trial.user_attrs.get('epochs', '?')}"
        return [str(trial.number), trial.user_attrs.get("name", ""), *cells, epoch, "-" if value is None else f"{value:.4f}"]

    def _summary(self) -> str:
        states = self.tally.states
        parts = [
            f"{self.tally.done}/{self.total} trials",
            f"{states[TrialState.RUNNING]} running",
            f"{states[TrialState.PRUNED]} stopped early",
        ]
        if states[TrialState.FAIL]:
            parts.append(f"{states[TrialState.FAIL]} failed")
        if self.tally.best:
            parts.append(f"best Dice {self.tally.best.value:.4f}")
        # It looks at running trials, so it is not made anew for each of many trials that end in the same second.
        if time.monotonic() > self._estimated + self.interval:
            self._estimate, self._estimated = self._time_left(), time.monotonic()
        return " · ".join([*parts, self._estimate])

    def _time_left(self) -> str:
        elapsed = time.time() - self.started
        epochs = self._epochs()
        new, done = epochs - self.epochs_at_start, self.tally.done
        if not done or not new:
            return f"{_clock(elapsed)} so far"
        # Finished trials tell how many epochs a trial costs on average, early stops included.
        left = max(0.0, self.tally.epochs / done * self.total - epochs)
        return f"{_clock(elapsed)} so far, about {_clock(elapsed / new * left)} left"

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _epochs(self) -> int:
        return self.tally.epochs + sum(max(t.intermediate_values, default=0) for t in self._running())


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
