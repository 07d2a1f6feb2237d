"""Whether the trials of a study read their views from the store or make them on their device: settled once, by a measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import optuna

from guidino_tune.config import Experiment
from guidino_tune.config.epochs import batches_per_pass, steps_per_epoch
from guidino_tune.config.study import Resources, Shared
from guidino_tune.data.opening import SearchData
from guidino_tune.running.cluster import Plan
from guidino_tune.running.view_speeds import Unmeasured, side_by_side, speeds_on_node
from guidino_tune.space.check import examples
from guidino_tune.space.space import Space
from guidino_tune.study.pruners import planned_epochs
from guidino_tune.study.store import VIEWS, StudyFolder
from guidino_tune.workflows.view_sizes import Kind, kinds


def as_settled(resources: Resources, study: optuna.Study) -> Resources:
    """With what was settled for a study in the place of ``auto``; nothing may have been."""
    if resources.share_views != "auto" or VIEWS not in study.user_attrs:
        return resources
    return dataclasses.replace(resources, share_views=study.user_attrs[VIEWS]["way"])


def settle_views(
    study: optuna.Study,
    space: Space,
    folder: StudyFolder,
    data: SearchData,
    booked: Plan,
    say: Callable[[str], None],
    *,
    speeds: Callable[..., object] = speeds_on_node,
) -> Space:
    """The space with one way in the place of ``resources.share_views=auto``, which the study keeps.

    Trials on GPUs are measured in both ways, ``device`` is taken where it is quicker by ``MARGIN``; see ``Speeds``, whose numbers of trials
    are those of the plan. Without GPUs, and where nothing can be measured, they read from the store.

    Args:
        study: Opened.
        space: What it searches.
        folder: Its folder, with the split.
        data: Its images.
        booked: The plan, in whose cluster this process is.
        say: Told what was measured.
        speeds: Measures on a node.
    """
    resources, line = as_settled(space.resources, study), ""
    if resources.share_views == "auto":
        way: Shared = True
        if booked.gpus:
            way, line = _measured(space, folder, data, booked, speeds)
            say(line)
        resources = dataclasses.replace(resources, share_views=way)
    if study.user_attrs.get(VIEWS, {}).get("way") != resources.share_views:
        study.set_user_attr(VIEWS, {"way": resources.share_views, "why": line})
    return dataclasses.replace(space, resources=resources)


def _measured(space: Space, folder: StudyFolder, data: SearchData, booked: Plan, speeds: Callable[..., object]) -> tuple[Shared, str]:
    """The way, and why in words; measured with the base experiment, of a list with the first one."""
    from guidino_tune.training.view_speeds import MARGIN, Speeds

    found = examples(space) if space.study.is_list else [space.base, *examples(space)]
    sizes = kinds(found, len(data.train), len(data.validation), booked.workers)
    beside, sharing, nodes = side_by_side(booked)
    try:
        told = speeds(_of_one_worker(found[0], booked.workers), folder.split, space.resources, booked, sum(kind.bytes for kind in sizes))
    except Unmeasured as error:
        return True, f"views: read from the store, for what is quicker could not be measured ({error}); kept with the study"
    assert isinstance(told, Speeds)
    images = [kind for kind in sizes if kind.name.startswith("images")]
    stored = told.stored(beside=beside, sharing=sharing, kinds=len(images), first=new_share(space, found, images, len(data.train), nodes))
    augmented = told.augmented(sharing=sharing)
    rates = f"{augmented:,.0f} img/s", f"{stored:,.0f} img/s"
    if augmented > MARGIN * stored:
        return "device", f"views: made on the GPU, {rates[0]} a trial; read from the store they would be {rates[1]}; kept with the study"
    return True, f"views: read from the store, {rates[1]} a trial; made on the GPU they would be {rates[0]}; kept with the study"


def new_share(space: Space, found: list[Experiment], images: list[Kind], cases: int, nodes: int) -> float:
    """About which share of the images that are trained on has not been seen on its node before: each kind is made once on each node.

    Args:
        space: What is searched.
        found: Experiments of it.
        images: Kinds of views.
        cases: Training cases.
        nodes: That trials are on.
    """
    trials = len(space.first_trials) if space.study.is_list else space.study.trials
    training = found[0].training
    batches = max(1, batches_per_pass(cases, training.batch_size))
    passes = planned_epochs(space.study, space.longest, trials) * steps_per_epoch(training.steps_per_epoch, batches) / batches
    return min(1.0, nodes * sum(kind.passes for kind in images) / passes)


def _of_one_worker(experiment: Experiment, workers: int) -> Experiment:
    share = max(1, experiment.training.batch_size // workers)
    return dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, batch_size=share))
