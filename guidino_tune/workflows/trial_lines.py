"""A search where no terminal is: a line when a trial begins and when it ends, and now and then one about those that run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from optuna.trial import FrozenTrial
from rich.console import Console

from guidino_tune.space.space import Space
from guidino_tune.study.trials import best_value
from guidino_tune.workflows.tables import headings

SOON, OFTEN = 30.0, 180.0
"""Seconds until the first line about what runs, and from one to the next."""

SHOWN = 8
"""Running trials that are named in such a line."""


def stamp() -> str:
    """The time of day of this machine, for the beginning of a line."""
    return f"{datetime.now():%Y-%m-%d %H:%M:%S}"


class TrialLines:
    """Writes the lines; each is whole, and on its way at once.

    Args:
        space: What is searched.
        console: Where to write.
        standing: Says how the study stands, in a few words.
        running: Gives the trials that run, with their newest epoch.
    """

    def __init__(
        self, space: Space, console: Console, standing: Callable[[], str], running: Callable[[], Sequence[tuple[FrozenTrial, int]]]
    ) -> None:
        self.console, self.standing, self.running = console, standing, running
        self.names: Mapping[str, str] = headings(space)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="guidino-tune-heartbeat", daemon=True)

    def start(self) -> None:
        """Begins to tell what runs."""
        self._thread.start()

    def stop(self) -> None:
        """Tells no more."""
        self._over.set()
        self._thread.join()

    def begins(self, trial: FrozenTrial, epoch: int) -> None:
        """A trial begins, with what it tries, or goes on after an epoch."""
        if epoch:
            self.write(f"trial {trial.number} goes on after epoch {epoch}")
            return
        values = ", ".join(f"{self.names.get(path, path)} {_value(value)}" for path, value in trial.params.items())
        self.write(f"trial {trial.number} begins: {trial.user_attrs.get('name', '')}{f', {values}' if values else ''}")

    def ends(self, trial: FrozenTrial, how: str) -> None:
        """A trial has ended."""
        value, attributes = best_value(trial), trial.user_attrs
        score = "no result" if value is None else f"Dice {value:.4f}"
        why = f" ({attributes['failure']}: {attributes.get('message', '')[:200]})" if "failure" in attributes else ""
        epochs = f"{max(trial.intermediate_values, default=0)} of {attributes.get('epochs', '?')} epochs"
        self.write(f"trial {trial.number} ends: {how}, {score} after {epochs}{why} | {self.standing()}")

    def write(self, text: str) -> None:
        """One line with its time."""
        self.console.print(f"{stamp()} {' '.join(text.split())}", markup=False, highlight=False, soft_wrap=True)

    def _beat(self) -> None:
        pause = SOON
        while not self._over.wait(pause):
            pause = OFTEN
            try:
                self.write(self.heartbeat())
            except Exception:  # of a study that cannot be read just now: the search itself says so
                continue

    def heartbeat(self) -> str:
        """What runs, and how the study stands."""
        going = self.running()
        named = [f"trial {t.number} epoch {epoch}/{t.user_attrs.get('epochs', '?')}{_dice(t)}" for t, epoch in going[:SHOWN]]
        more = [f"{len(going) - SHOWN} more"] if len(going) > SHOWN else []
        return f"running: {', '.join([*named, *more]) or 'none'} | {self.standing()}"


def _dice(trial: FrozenTrial) -> str:
    value = best_value(trial)
    return "" if value is None else f" Dice {value:.4f}"


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
