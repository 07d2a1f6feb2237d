"""Which configurations of a study are compared: its best ones, and those that they are held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import optuna

from guidino_tune.config import Experiment
from guidino_tune.errors import UserError
from guidino_tune.space.space import Space
from guidino_tune.study.trials import best_value, ranking
from guidino_tune.workflows.listed import with_seed

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One of those that are compared.

    Attributes:
        name: ``trial 12``, ``default``, or ``trial 0 (default)`` where both are the same.
        experiment: With the budget of the comparison and the first of its seeds.
        about: What it is, in words.
        reference: Whether the winner is held against it on the test cases.
        finalist: Whether it is one of the best of the study.
    """

    name: str
    experiment: Experiment
    about: str
    reference: bool
    finalist: bool


def default_experiment(space: Space) -> tuple[Experiment, str]:
    """The configuration that a search starts from, and what it is in words: the base experiment with the first of the first trials."""
    first = space.first_trials[0] if space.first_trials else {}
    values = ", ".join(f"{path}={value}" for path, value in first.items())
    about = "the experiment of the search space" + (f" with its first listed trial ({values})" if values else "")
    return space.experiment(first), about


def finalists(study: optuna.Study, space: Space, *, top: int, against: Sequence[str], epochs: int | None = None) -> list[Configuration]:
    """The best trials of a study and those named beside them; trials that differ in nothing but their seed are one configuration.

    Args:
        study: With at least one complete trial.
        space: What it searches.
        top: How many of the best.
        against: ``default`` or numbers of trials.
        epochs: Budget of each; ``None`` leaves their own.

    Returns:
        Best trials first; fewer than ``top`` where there are no more.

    Raises:
        UserError: No complete trial, or one that is named is not there.
    """
    ranked = ranking(study)
    if not ranked:
        raise UserError(
            "no trial has run its whole budget, so there is nothing to compare",
            where=f"study {study.study_name}",
            todo="continue the search",
        )
    found: dict[str, Configuration] = {}

    def add(configuration: Configuration) -> None:
        experiment = with_seed(configuration.experiment, space.base.training.seed)
        if epochs:
            experiment = dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, epochs=epochs))
        known = found.get(experiment.hash)
        if known and configuration.reference:
            name = f"{known.name} ({DEFAULT})" if configuration.name == DEFAULT else known.name
            about = f"{known.about}; {configuration.about}" if configuration.name == DEFAULT else known.about
            found[experiment.hash] = dataclasses.replace(known, name=name, about=about, reference=True)
        elif not known:
            found[experiment.hash] = dataclasses.replace(configuration, experiment=experiment)

    for trial in ranked:
        if len(found) < top:
            add(_of_trial(space, trial, reference=False))
    trials = {str(t.number): t for t in study.get_trials(deepcopy=False) if t.params or t.state.is_finished()}
    for word in against:
        if word == DEFAULT:
            experiment, about = default_experiment(space)
            add(Configuration(DEFAULT, experiment, about, reference=True, finalist=False))
        elif word in trials:
            add(_of_trial(space, trials[word], reference=True))
        else:
            known = f"0 to {max(map(int, trials))}" if trials else "none"
            raise UserError(f"no trial {word!r}", where="against", todo=f"give the word default, or numbers of trials ({known})")
    return list(found.values())


def _of_trial(space: Space, trial: optuna.trial.FrozenTrial, *, reference: bool) -> Configuration:
    experiment, value = space.experiment(trial.params), best_value(trial)
    score = "no validation score" if value is None else f"validation Dice {value:.4f}"
    values = ", ".join(f"{path}={chosen}" for path, chosen in trial.params.items())
    about = f"{experiment.name}, {trial.state.name.lower()} in the search with {score}: {values or 'nothing was searched'}"
    return Configuration(f"trial {trial.number}", experiment, about, reference, finalist=not reference)
