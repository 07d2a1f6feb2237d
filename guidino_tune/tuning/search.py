"""One search from its checks to its leaderboard."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console

from guidino_tune import paths
from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError
from guidino_tune.metrics import constant_mask_dice
from guidino_tune.models import check_backbone, check_segmenter
from guidino_tune.space.check import check_space, examples
from guidino_tune.space.space import Space
from guidino_tune.tracking import DatasetInfo, MLflowTracker, StudySnapshot, flatten, tracking_uri
from guidino_tune.training.folder import write_text
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.tuning.bridge import PATIENCE, Bridge, StudyScheduler, StudySearcher
from guidino_tune.tuning.cluster import Plan, connected, plan
from guidino_tune.tuning.environment import sealed_tests
from guidino_tune.tuning.packing import pack
from guidino_tune.tuning.progress import Progress, leaderboard
from guidino_tune.tuning.recording import Recorder
from guidino_tune.tuning.study import StudyFolder, check_same_search, finished, load_study, open_study, ranking, remaining

MLFLOW_EXPERIMENT = "guidino_tune"

INTERRUPTED, OUT_OF_TIME = "Interrupted", "The time budget is used up"
"""Why a search ended before all its trials did; anything else is a failure in words."""


def mlflow_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or a database in the home folder that all studies share, so that they can be compared."""
    return tracking_uri(paths.home() / "mlflow.db")


def check_search(space: Space, folder: StudyFolder) -> None:
    """Everything that can be known before anything is written or trained.

    Raises:
        UserError: The space has a mistake, weights cannot be loaded, the data set is not there, or the folder holds another search.
    """
    check_space(space)
    check_models(space)
    check_workers(space.base, space.resources.workers)
    find_cases(space.base.data)
    check_same_search(space, folder)


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


def check_models(space: Space) -> None:
    """Every guide backbone that a trial may use can be loaded, and every segmenter built on it.

    Raises:
        UserError: Which one cannot, why, and what else to do.
    """
    guides: dict[tuple[Any, ...], DINOGuide] = {}
    segmenters: dict[tuple[Any, ...], Experiment] = {}
    for experiment in examples(space):
        guide = experiment.guide
        backbone = ""
        if isinstance(guide, DINOGuide):
            backbone = guide.backbone
            guides[backbone, guide.weights, guide.sha256] = guide
        segmenters[experiment.segmenter, backbone, experiment.data.image_size] = experiment
    for guide in guides.values():
        check_backbone(guide)
    for experiment in segmenters.values():
        check_segmenter(experiment)


def run_search(space: Space, console: Console, storage: str | None = None) -> int:
    """Starts, continues or extends the study of this space, and prints what came of it.

    Args:
        space: What to search, with its study settings and resources.
        console: For progress and results.
        storage: Database URL of the Optuna study; by default a journal file in the study's folder.

    Returns:
        Exit code: 0; 1 when no trial gave a result or it gave up; 130 when it was interrupted.

    Raises:
        UserError: Before anything is spent; see ``check_search``.
    """
    folder = StudyFolder(paths.studies() / space.study.name)
    check_search(space, folder)
    with folder.lock(), sealed_tests():
        data = _read_images(space, folder, console)
        baseline = _baseline(data)
        study = open_study(space, folder, storage)
        _same_data(study, data, folder)
        for note in (*space.notes, *data.notes):
            console.print(f"note: {note}", style="yellow", highlight=False)
        console.print(
            f"{len(data.train)} training and {len(data.validation)} validation cases ({data.split.origin}); the test split is sealed. "
            f"Best constant mask: Dice {baseline:.4f}"
        )
        snapshot = _study_snapshot(study, space, data, baseline)
        tracker = MLflowTracker(mlflow_uri(), MLFLOW_EXPERIMENT, snapshot, folder.ledger, paths.home() / "mlartifacts")
        recorder = Recorder(study, space, folder, tracker, snapshot)
        tracker.start()
        end = INTERRUPTED
        try:
            recorder.sync()
            end = _run_trials(study, space, folder, recorder, console)
        finally:
            if end:
                recorder.interrupted()
            for trial in study.get_trials(deepcopy=False):
                if trial.state.is_finished():
                    folder.trial(trial.number).tidy()
            tracker.close(timeout=60, interrupted=bool(end))
        return _closing(study, space, folder, console, baseline=baseline, tracking=tracker, end=end)


def send_results(space: Space, console: Console) -> None:
    """Brings MLflow up to date with what was measured and written after a search: test scores of its trials, and reports.

    The caller holds the study's lock.
    """
    folder = StudyFolder(paths.studies() / space.study.name)
    study = load_study(folder)
    data = open_for_search(space.base.data, split_file=folder.split)
    snapshot = _study_snapshot(study, space, data, _baseline(data))
    tracker = MLflowTracker(mlflow_uri(), MLFLOW_EXPERIMENT, snapshot, folder.ledger, paths.home() / "mlartifacts")
    tracker.start()
    Recorder(study, space, folder, tracker, snapshot).sync()
    running = any(t.state == TrialState.RUNNING for t in study.get_trials(deepcopy=False))
    if not tracker.close(timeout=60, interrupted=running):
        console.print(tracker.message, style="yellow", highlight=False, soft_wrap=True)


def _read_images(space: Space, folder: StudyFolder, console: Console) -> SearchData:
    with console.status("reading the images") as status:
        return open_for_search(
            space.base.data,
            split_file=folder.split,
            progress=lambda done, total: status.update(f"reading the images: {done} of {total}"),
        )


def _run_trials(study: optuna.Study, space: Space, folder: StudyFolder, recorder: Recorder, console: Console) -> str:
    """Runs what remains of the study; says why when it ended before all trials did."""
    before, left = len(finished(study)), remaining(study, space)
    if before:
        console.print(f"continuing study {space.study.name!r}: {before} trials finished before, {left} to go")
    if not left:
        return ""
    with connected() as dashboard:
        resources = plan(pack(space, folder.path, console))
        console.print(
            f"{resources.concurrent} trials side by side ({resources.executor} executor; {space.resources.workers} worker(s) of "
            f"{resources.cpus} CPU(s) and {resources.gpus:g} GPU(s) each)",
            highlight=False,
        )
        console.print(f"study folder {folder.path}; Ray dashboard {dashboard or 'off'}", highlight=False)
        return _search(study, space, folder, recorder, resources, console)


def _search(study: optuna.Study, space: Space, folder: StudyFolder, recorder: Recorder, resources: Plan, console: Console) -> str:
    """Runs what remains; see ``_run_trials``."""
    import ray
    from ray import tune

    from guidino_tune.tuning.executors import process_settings, trainable

    deadline = time.time() + space.study.time_budget if space.study.time_budget else math.inf
    with Progress(study, space, console) as progress:

        def listener(number: int, experiment: Experiment, record: EpochRecord | None) -> None:
            recorder.changed(number, experiment, record)
            if record is None:
                progress.changed(number)

        settings = process_settings(resources, space.resources, split_file=folder.split, ray_folder=folder.ray)

        def warn(text: str) -> None:
            console.print(f"warning: {text}", style="yellow", highlight=False, soft_wrap=True)

        bridge = Bridge(study, space, folder, listener, settings, deadline, warn)
        tuner = tune.Tuner(
            trainable(resources),
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(bridge),
                scheduler=StudyScheduler(bridge),
                num_samples=bridge.remaining,
                max_concurrent_trials=resources.concurrent,
                reuse_actors=resources.executor == "actor",
            ),
            # A name of its own for each run keeps Tune from looking for its earlier state: the study is the only one.
            run_config=tune.RunConfig(
                name=f"run-{int(time.time())}",
                storage_path=str(folder.ray),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=space.resources.max_failures),
            ),
        )
        with _termination_as_interrupt():
            try:
                tuner.fit()
            except ray.tune.TuneError as error:
                raise UserError(f"Ray ended the search: {error}", where=str(folder.path), todo="the same command continues it") from error
            except KeyboardInterrupt:
                return INTERRUPTED
            finally:
                shutil.rmtree(folder.ray, ignore_errors=True)
    if bridge.given_up:
        return f"{PATIENCE} trials in a row failed for reasons outside their configuration, the last one: {bridge.given_up}"
    if bridge.expired and remaining(study, space):
        return OUT_OF_TIME
    return INTERRUPTED if bridge.running else ""


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM (a stopped job, a machine going down) ends the search as Ctrl-C does: trials stay in the study, to be continued."""
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _baseline(data: SearchData) -> float:
    train = [data.train.mask(i) for i in range(len(data.train))]
    validation = [data.validation.mask(i) for i in range(len(data.validation))]
    return constant_mask_dice(train, validation, num_classes=data.train.num_classes)


def _same_data(study: optuna.Study, data: SearchData, folder: StudyFolder) -> None:
    known = study.user_attrs.get("data_fingerprint")
    if known is None:
        study.set_user_attr("data_fingerprint", data.fingerprint)
    elif known != data.fingerprint:
        raise UserError(
            "the images differ from those this study was started with; its trials could not be compared with new ones",
            where=str(folder.path),
            todo="restore the images, or start another study with --name",
        )


def _study_snapshot(study: optuna.Study, space: Space, data: SearchData, baseline: float) -> StudySnapshot:
    # Kept with the study: it tells a study apart from an older one of the same name, on any machine.
    if "id" not in study.user_attrs:
        study.set_user_attr("id", uuid.uuid4().hex)
    section = space.base.data
    return StudySnapshot(
        name=space.study.name,
        params={
            **flatten(dataclasses.asdict(space.study), "study."),
            **({} if space.recipes else flatten(space.base.to_dict())),
            **{f"space.{path}": parameter.describe() for path, parameter in space.parameters.items()},
        },
        datasets=(
            DatasetInfo(
                name=section.kind,
                fingerprint=data.fingerprint,
                num_train=len(data.train),
                num_validation=len(data.validation),
                source=section.root or section.kind,
            ),
        ),
        metrics={"constant_mask_dice": baseline},
        id=study.user_attrs["id"],
    )


def _closing(
    study: optuna.Study, space: Space, folder: StudyFolder, console: Console, *, baseline: float, tracking: MLflowTracker, end: str
) -> int:
    console.print(leaderboard(study, space))
    ranked = ranking(study)
    failed = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.FAIL]
    if failed:
        reasons = sorted({f"{t.user_attrs.get('failure')}: {t.user_attrs.get('message', '')}" for t in failed})
        console.print(f"{len(failed)} trials failed: " + "; ".join(reasons[:3]), style="red", highlight=False, soft_wrap=True)
    if ranked:
        best = float(ranked[0].value or 0.0)
        verdict = "beats" if best > baseline else "does NOT beat"
        worst = float(ranked[-1].value or 0.0)
        console.print(
            f"Best validation Dice {best:.4f} {verdict} the best constant mask ({baseline:.4f}); worst complete trial {worst:.4f}."
        )
    if tracking.pending or tracking.last_error:
        console.print(tracking.message, style="yellow", highlight=False, soft_wrap=True)
    name = space.study.name
    steps = [("browse", tracking.ui_command), ("open", tracking.url)]
    if end:
        console.print(f"{end}. Nothing is lost; the same command goes on from here.", style="yellow", highlight=False, soft_wrap=True)
    if ranked:
        steps += [
            ("export", paths.next_command(f"export {name} --output best.yaml")),
            ("retrain", paths.next_command("retrain best.yaml --seeds 3")),
        ]
    for label, command in (step for step in steps if step[1]):
        console.print(f"{label:>8}: {command}", highlight=False, soft_wrap=True)
    write_text(folder.path / "leaderboard.txt", _plain(study, space))
    if end:
        return {INTERRUPTED: 130, OUT_OF_TIME: 0}.get(end, 1)
    return 0 if ranked else 1


def _plain(study: optuna.Study, space: Space) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(leaderboard(study, space, rows=1000))
    return console.export_text()
