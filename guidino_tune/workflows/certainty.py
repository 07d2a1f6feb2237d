"""What a study's own trials say of how sure its search is."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from guidino_tune.analysis.certainty import FEWEST, Estimate, expected_gain, importance, rung_agreement
from guidino_tune.space.encoding import columns, encode
from guidino_tune.space.space import RECIPE, Space
from guidino_tune.study.pruners import rungs
from guidino_tune.study.trials import best_value, tried, value_at

SHOWN = 4
"""Parameters of which the end of a search tells the importance."""

SAMPLE = 400
"""Trials from which importance is estimated: of more, these would take minutes and tell hardly more."""


class Certainty:
    """Of a study with one objective, whose trials all have the same number of epochs.

    Args:
        study: Any state; trials that failed, or were closed untrained, say nothing here.
        space: That it searches.
    """

    def __init__(self, study: optuna.Study, space: Space) -> None:
        self.space, epochs = space, space.base.training.epochs
        alike = "training.epochs" not in space.parameters
        self.trials = [t for t in tried(study) if t.intermediate_values and alike and t.user_attrs.get("epochs") == epochs]
        self.rungs = rungs(space.study, epochs)
        self._known: dict[tuple[int, int], dict[str, Estimate]] = {}

    @functools.cached_property
    def agreement(self) -> dict[int, Estimate]:
        """Kendall's tau between each rung and the end; see ``analysis.certainty.rung_agreement``."""
        reached = [{rung: value for rung in self.rungs if (value := value_at(trial, rung)) is not None} for trial in self.trials]
        return rung_agreement(reached, self.rungs)

    def importance(self, epoch: int, most: int | None = SAMPLE) -> dict[str, Estimate]:
        """Of each parameter for the best Dice until ``epoch``, among all trials that came so far; see ``analysis.certainty.importance``.

        A parameter that others depend on (``when``) is shuffled together with them: a rank means nothing to a frozen backbone. Of
        more than ``most`` trials so many are looked at, drawn by a fixed seed: the same ones whenever it is asked for; ``None``: all.
        """
        at = [(trial, value) for trial in self.trials if (value := value_at(trial, epoch)) is not None]
        if most and len(at) > most:
            at = [at[place] for place in np.sort(np.random.default_rng(0).choice(len(at), most, replace=False))]
        if (epoch, len(at)) not in self._known:
            self._known[epoch, len(at)] = self._importance(at)
        return self._known[epoch, len(at)]

    def _importance(self, at: Sequence[tuple[FrozenTrial, float]]) -> dict[str, Estimate]:
        inputs = np.array([encode(self.space, trial.params) for trial, _ in at])
        return importance(inputs, self._groups, np.array([value for _, value in at]))

    def expected_gain(self, more: int) -> Estimate | None:
        """In Dice, with ``more`` trials like these; see ``analysis.certainty.expected_gain``."""
        return expected_gain([value for trial in self.trials if (value := best_value(trial)) is not None], more)

    @functools.cached_property
    def _groups(self) -> Mapping[str, list[int]]:
        groups = columns(self.space)
        for path, parameter in reversed(list(self.space.parameters.items())):
            for other in {name if name in groups else RECIPE for name in parameter.when or ()} & groups.keys():
                groups[other] += [column for column in groups[path] if column not in groups[other]]
        return groups

    def sentences(self) -> list[str]:
        """For the end of a search; empty where there are too few trials to say anything, and for lists and several objectives."""
        lines: list[str] = []
        if self.space.study.is_list or len(self.space.study.objectives) > 1:
            return lines
        if self.agreement:
            told = ", ".join(f"epoch {rung} {estimate}" for rung, estimate in self.agreement.items())
            count = next(iter(self.agreement.values())).trials
            lines.append(f"Early epochs and the end (Kendall's tau, 1 = same order, {count} trials that came to the end): {told}.")
        reached = {rung: sum(rung in trial.intermediate_values for trial in self.trials) for rung in self.rungs}
        ends = [rung for rung in self.rungs if reached[rung] >= FEWEST]
        for rung in dict.fromkeys((*ends[:1], *ends[-1:])):
            if shares := list(self.importance(rung).items())[:SHOWN]:
                told = ", ".join(f"{path} {estimate}" for path, estimate in shares)
                looked = f"{SAMPLE} of {reached[rung]}" if reached[rung] > SAMPLE else str(reached[rung])
                lines.append(f"What decides the best Dice until epoch {rung} (share of its variance, {looked} trials): {told}.")
        if gain := self.expected_gain(len(self.trials)):
            lines.append(f"As many trials again would probably gain {gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}] Dice.")
        return lines
