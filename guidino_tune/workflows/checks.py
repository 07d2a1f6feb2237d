"""What can be known before anything is written or trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import optuna

from guidino_tune import targets
from guidino_tune.config import Custom, DINOGuide, Experiment
from guidino_tune.config.study import PRUNERS, SAMPLERS
from guidino_tune.custom_loss import check_term
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError, storage_error
from guidino_tune.models import check_backbone, check_segmenter
from guidino_tune.space.check import check_space, examples
from guidino_tune.space.space import Space
from guidino_tune.space.suggest import suggest
from guidino_tune.study.objectives import COUNTED, directions
from guidino_tune.study.pruners import make_pruner
from guidino_tune.study.samplers import make_sampler
from guidino_tune.study.store import StudyFolder, check_same_search

OWN_CODE = "own_code"
"""Attribute of a study: SHA-256 of the file of each target."""

ROOM = 2**24
"""Bytes that must be free before a search starts: enough for a study's own files and a few small checkpoints."""


def check_search(space: Space, folder: StudyFolder) -> list[str]:
    """Everything that can be known before anything is written or trained.

    The user's own code that the space names may be imported from here on: whoever searches has named the space.

    Returns:
        Notes for the user.

    Raises:
        UserError: The space has a mistake, the study's folder cannot be written, weights cannot be loaded, the data set is not there, the
            user's own code fails, or the folder holds another search.
    """
    return check_settings(space, folder) + check_content(space, folder)


def check_settings(space: Space, folder: StudyFolder) -> list[str]:
    """The first part of ``check_search``: what takes no time, and is wrong most often."""
    targets.trust(*space.targets)
    targets.look_in(Path(space.source).parent)
    notes = check_space(space, begun=folder.definition.exists())
    check_storage(folder.path)
    check_workers(space.base, space.resources.workers)
    return notes


def check_content(space: Space, folder: StudyFolder) -> list[str]:
    """The second part: weights, networks, code and data are looked at."""
    notes = check_models(space)
    check_decisions(space)
    find_cases(space.base.data)
    return notes + check_same_search(space, folder)


def check_storage(folder: Path) -> None:
    """There is room for a study in this folder, or where it will be made; leaves nothing behind.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(ROOM))
            file.flush()
    except OSError as error:
        error.filename = str(there)
        raise storage_error(error) or error from None


def check_workers(experiment: Experiment, workers: int) -> None:
    """The images of a batch can be shared out evenly.

    Raises:
        UserError: They cannot.
    """
    if experiment.training.batch_size % workers:
        raise UserError(
            f"a batch of {experiment.training.batch_size} images cannot be shared out to {workers} workers",
            where="resources.workers",
            todo="make training.batch_size a multiple of the workers",
        )


def check_models(space: Space) -> list[str]:
    """Every guide backbone that a trial may use can be loaded, and every segmenter built on it; networks and terms of the user's own work.

    Returns:
        Notes for the user.

    Raises:
        UserError: Which one cannot, why, and what else to do.
    """
    guides: dict[tuple[Any, ...], DINOGuide] = {}
    segmenters: dict[tuple[Any, ...], Experiment] = {}
    terms: dict[tuple[Any, ...], Experiment] = {}
    for experiment in examples(space):
        guide = experiment.guide
        backbone = ""
        if isinstance(guide, DINOGuide):
            backbone = guide.backbone
            guides[backbone, guide.weights, guide.sha256] = guide
        segmenters[experiment.segmenter, backbone, experiment.data.image_size, experiment.data.channels] = experiment
        if experiment.loss.custom and experiment.loss.custom.weight:
            terms[experiment.loss.custom.target, experiment.loss.custom.options] = experiment
    for guide in guides.values():
        check_backbone(guide)
    counted = space.resources.trials_per_gpu == "auto" or any(
        name in COUNTED for name in (*space.study.objectives, *space.study.constraints)
    )
    notes = [check_segmenter(experiment, counted=counted) for experiment in _telling(segmenters.values(), space)]
    for experiment in terms.values():
        check_term(experiment)
    return list(dict.fromkeys(filter(None, notes)))


def _telling(experiments: Iterable[Experiment], space: Space) -> Iterator[Experiment]:
    """One for each network; of the user's own, which are computed, those with every choice and with the ends of every range of options."""
    own = [e for e in experiments if isinstance(e.segmenter, Custom)]
    yield from (e for e in experiments if e not in own)

    def network(e: Experiment) -> tuple[Any, ...]:
        assert isinstance(e.segmenter, Custom)
        return e.segmenter.target, e.segmenter.gates, e.data.image_size, e.data.channels

    for _, alike in groupby(sorted(own, key=network), key=network):
        several = list(alike)
        chosen = {several[0].segmenter: several[0]}
        for path, parameter in space.parameters.items():
            name = path.removeprefix("segmenter.options.")
            valued = {e.segmenter.options[name]: e for e in several if name in e.segmenter.options} if name != path else {}  # type: ignore[union-attr]
            ends = valued if parameter.choices or len(valued) < 2 else (min(valued), max(valued))
            chosen |= {valued[value].segmenter: valued[value] for value in ends}
        yield from chosen.values()


def check_own_code(experiment: Experiment) -> None:
    """The user's own network and loss term, where an experiment has them, can be imported and work.

    Raises:
        UserError: Which does not, and why.
    """
    if isinstance(experiment.segmenter, Custom):
        check_segmenter(experiment)
    check_term(experiment)


def check_decisions(space: Space) -> None:
    """A sampler and a pruner that are not ours decide about three trials, which are not run.

    Raises:
        UserError: One of them cannot be imported, or fails; or the sampler is not made for such a space.
    """
    study = space.study
    sampler = make_sampler(space)
    if study.sampler in SAMPLERS and study.pruner in PRUNERS:
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rehearsed = optuna.create_study(directions=directions(study), sampler=sampler, pruner=make_pruner(study))
    for _ in range(min(3, len(space.first_trials)) if study.is_list else 3):
        with targets.blaming(study.sampler, "study.sampler"):
            trial = rehearsed.ask()
            suggest(space, trial)
        with targets.blaming(study.pruner, "study.pruner"):
            if len(study.objectives) == 1:
                trial.report(0.5, study.min_epochs)
                trial.should_prune()
        rehearsed.tell(trial, [0.5] * len(study.objectives))


def changed_code(study: optuna.Study, space: Space) -> list[str]:
    """Notes the files of the user's own code in the study; says which are not as they were when it first used them."""
    noted = study.user_attrs.get(OWN_CODE, {})
    if space.targets and targets.FOLDER not in study.user_attrs:
        study.set_user_attr(targets.FOLDER, str(Path(space.source).absolute().parent))
    now = targets.digests(space.targets)
    if now.keys() - noted.keys():
        study.set_user_attr(OWN_CODE, {**now, **noted})
    return [
        f"the file of {target} is not as it was when this study began; its trials may not be comparable with new ones"
        for target, digest in now.items()
        if noted.get(target, digest) != digest
    ]
