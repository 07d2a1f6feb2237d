"""What a person should know of a training before it begins: how long its epochs are, and how much its validation can tell."""

from __future__ import annotations

import math

from guidino_tune.config import Experiment
from guidino_tune.config.epochs import batches_per_pass, steps_per_epoch

FEW_CASES = 10
"""Below so many validation cases a single one decides which trial is the best."""


def epoch_in_words(experiment: Experiment, num_train: int, workers: int = 1) -> str:
    """Such as ``50 steps (20 cases at batch 4 are 5 steps; 10 passes)``.

    Args:
        experiment: Its batch size and steps of an epoch count here.
        num_train: Training cases.
        workers: That share a batch.
    """
    training = experiment.training
    batches = batches_per_pass(num_train, training.batch_size, workers)
    steps = steps_per_epoch(training.steps_per_epoch, batches)
    cases = f"{num_train} cases at batch {training.batch_size}"
    if steps == batches or batches == 0:  # of too few cases for a batch the training itself tells
        return f"{_steps(steps)} ({cases}, every case once)"
    passes = steps / batches
    several = f"{passes:g} passes" if passes == math.floor(passes) else f"{passes:.1f} passes"
    return f"{_steps(steps)} ({cases} are {_steps(batches)}; {several})"


def training_notes(experiment: Experiment, num_train: int, num_validation: int, workers: int = 1) -> list[str]:
    """What is to be said before a search: the length of its epochs, and that its validation cases are few.

    Args:
        experiment: What is trained.
        num_train: Training cases.
        num_validation: Validation cases.
        workers: That share a batch.
    """
    notes = [f"an epoch: {epoch_in_words(experiment, num_train, workers)}"]
    if num_validation < FEW_CASES:
        data = experiment.data
        folds = data.folds or min(5, max(2, num_train + num_validation))
        remedy = f"retrain --folds {folds} scores every case by a model that has not seen it"
        if data.max_validation_cases is not None and data.max_validation_cases <= num_validation:
            remedy = f"raise data.max_validation_cases, which is {data.max_validation_cases}"
        elif data.folds is None:
            remedy = f"data.folds={folds} divides all that is not for the test into {folds} parts, each for validation once, and {remedy}"
        weight = f"each is {100 / num_validation:.0f} % of every score" if num_validation else "nothing can be compared"
        cases = "case is" if num_validation == 1 else "cases are"
        notes.append(f"only {num_validation} {cases} for validation: {weight}, and the best trial may be so by chance; {remedy}")
    return notes


def _steps(number: int) -> str:
    return f"{number} step{'' if number == 1 else 's'}"
