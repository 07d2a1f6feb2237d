"""What a search would do: the experiment, the space and the plan, checked and printed, with nothing spent and nothing written."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from guidino_tune import paths
from guidino_tune.config import Resources
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import redacted
from guidino_tune.running.inspection import find_cluster
from guidino_tune.space.advice import training_notes
from guidino_tune.space.check import examples
from guidino_tune.space.space import Space
from guidino_tune.study.objectives import in_words
from guidino_tune.study.pruners import rungs, validated_epochs
from guidino_tune.study.seeding import find_seeds
from guidino_tune.study.store import StudyFolder, folder_of, load_study
from guidino_tune.study.trials import orphans, tried
from guidino_tune.workflows.backbones import continued
from guidino_tune.workflows.checks import check_search
from guidino_tune.workflows.resolve import resolve_data
from guidino_tune.workflows.track import mlflow_uri
from guidino_tune.workflows.view_sizes import in_words as views_in_words
from guidino_tune.workflows.view_sizes import kinds
from guidino_tune.workflows.view_ways import as_settled

MOST_READ = 3000
"""Training cases that a dry run reads: more would take longer than a look is worth."""


def show_plan(space: Space, console: Console, storage: str | None = None, start_from: Sequence[str] = ()) -> int:
    """Prints the resolved experiment, the space, and what would happen where.

    Returns:
        Exit code 0.

    Raises:
        UserError: What would stop the search itself: a mistake in the space, missing data, weights that cannot be loaded.
    """
    space = resolve_data(space)
    folder = folder_of(space.study.name)
    with continued(space, folder) as space:
        noted = check_search(space, folder)
        seeds = find_seeds(space, start_from, storage)
    opened = _read(space, folder, console)
    split = opened.split
    if not space.recipes:
        console.rule("experiment", align="left")
        console.print(space.base.to_yaml(), highlight=False)
    console.rule("space", align="left")
    console.print(_listed(space) if space.study.is_list else _searched(space))
    data = space.base.data
    used = (len(split.train), data.max_train_cases), (len(split.validation), data.max_validation_cases)
    train, validation = (min(number, most or number) for number, most in used)
    epoch, *advice = training_notes(space.base, train, validation, space.resources.workers)
    for note in (*noted, *seeds.notes, *space.notes, *opened.notes, *advice):
        console.print(f"note: {note}", style="yellow", highlight=False)
    console.rule("plan", align="left")
    study, resources, epochs = space.study, space.resources, space.base.training.epochs
    compared = rungs(study, epochs) if study.has_rungs or ":" in study.pruner else ()
    validated = validated_epochs(study, epochs)
    known, resources = _known(folder, space, storage)
    trials = len(space.first_trials) if study.is_list else study.trials
    plan = {
        "study": f"{study.name}, {trials} trials ({known}), sampler {study.sampler}, seed {study.seed}",
        "looks for": in_words(study) + "".join(f"; {name} at most {limit:g}" for name, limit in study.constraints.items()),
        "early stop": f"{study.pruner}; trials are compared at epochs {', '.join(map(str, compared))} of {epochs}" if compared else "none",
        "validation": f"after {len(validated)} of {epochs} epochs, at training size; HD95 and ASD after the last",
        "an epoch": epoch.removeprefix("an epoch: "),
        "time": f"no new trial after {study.time_budget:g} s" if study.time_budget else "no limit",
        "early end": f"after {study.patience} trials in a row without a better one" if study.patience else "none",
        "read as": "; ".join(opened.rules.lines),
        "cases": f"{len(split.train)} training, {len(split.validation)} validation, {len(split.test)} sealed test ({split.origin})",
        "a trial": f"{resources.workers} worker(s) with {resources.cpus_per_worker or 'their share of the'} CPU(s) and "
        + f"{_gpus(resources)} each; executor {resources.executor}; up to {epochs} epochs",
        "side by side": f"at most {resources.concurrent}" if resources.concurrent else "as many as fit",
        "Ray": _ray(resources),
        "study folder": str(folder.path),
        "MLflow": redacted(mlflow_uri()),
        "cache": str(paths.cache()),
    }
    lines = [
        *plan.items(),
        *(("" if number else "shared views", text) for number, text in enumerate(_views(space, resources, train, validation))),
    ]
    for name, text in lines:
        console.print(f"{name:>13}  {text}", highlight=False, soft_wrap=True)
    return 0


def _ray(resources: Resources) -> str:
    """The cluster that a search would join, asked for what it has; or that it would start one."""
    cluster = find_cluster(os.environ)
    forgotten = not os.environ.get("RAY_ADDRESS") and cluster.problem.startswith("nothing answers")
    if cluster.problem and not forgotten:
        return f"{cluster.address} (from {cluster.origin}): {cluster.problem}; {cluster.todo}"
    if forgotten or not cluster.address:
        return f"a new cluster on this machine, which has {os.cpu_count()} CPUs"
    has = f"the cluster at {cluster.address}: {cluster.resources or 'it does not tell its resources'}"
    return f"{has}; where no trial fits, nodes are waited for, {resources.wait_for_nodes / 60:g} minutes"


def _read(space: Space, folder: StudyFolder, console: Console) -> SearchData:
    """Every image and mask that a search would read, of a large data set a sample; what is decoded here is forgotten again."""
    data = space.base.data
    count = len(find_cases(data).cases)
    if count > MOST_READ and data.max_train_cases is None:
        data = dataclasses.replace(data, max_train_cases=MOST_READ, max_validation_cases=MOST_READ // 10)
        console.print(f"{count} cases: a sample of {MOST_READ} training cases is read here", highlight=False)
    with tempfile.TemporaryDirectory() as scratch, console.status("reading the images") as status:
        # The split and the rules of a study that was begun, without a word written beside them.
        for name in (folder.split, folder.rules):
            if name.is_file():
                shutil.copy2(name, scratch)
        return open_for_search(
            data,
            split_file=Path(scratch) / folder.split.name,
            cache=Path(scratch),
            progress=lambda done, total: status.update(f"reading the images: {done} of {total}"),
        )


def _searched(space: Space) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("parameter", "searched", *(f"first trial {i}" for i in range(len(space.first_trials)))):
        table.add_column(column)
    for path, parameter in space.parameters.items():
        table.add_row(path, parameter.describe(), *(str(trial.get(path, "-")) for trial in space.first_trials))
    return table


def _listed(space: Space) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("listed trial", *space.parameters, "system", "image size", "epochs"):
        table.add_column(column)
    for number, values in enumerate(space.first_trials):
        made = space.experiment(values)
        cells = [str(values.get(path, "-")) for path in space.parameters]
        table.add_row(str(number), *cells, made.name, str(made.data.image_size), str(made.training.epochs))
    return table


def _gpus(resources: Resources) -> str:
    if resources.trials_per_gpu is not None:
        return "as many to a GPU as fit" if resources.trials_per_gpu == "auto" else f"1/{resources.trials_per_gpu} GPU"
    return "the GPUs there are" if resources.gpus_per_worker is None else f"{resources.gpus_per_worker:g} GPU(s)"


def _views(space: Space, resources: Resources, train: int, validation: int) -> list[str]:
    """What is kept where; with the way that a study has settled, or that is to be settled."""
    if not resources.shared:
        return ["none: every trial makes its own"]
    if resources.share_views == "device":
        return [f"{resources.views_folder or paths.views()}, tokens of the validation images alone: every trial makes its own"]
    found = kinds(examples(space), train, validation, resources.workers, once=resources.share_views == "once")
    open_way = ["on GPUs both ways are measured first: reading views from there, or making them on the GPU, without tokens (share_views)"]
    return views_in_words(found, resources) + (open_way if resources.share_views == "auto" else [])


def _known(folder: StudyFolder, space: Space, storage: str | None) -> tuple[str, Resources]:
    """How far the study is, and the resources with what it has settled."""
    if not folder.definition.exists():
        return "new", space.resources
    study = load_study(folder, storage)
    done = sum(t.state.is_finished() for t in tried(study))
    return f"{done} finished before, {len(orphans(study, space))} to be continued", as_settled(space.resources, study)
