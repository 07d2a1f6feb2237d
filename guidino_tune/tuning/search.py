"""One search from its checks to its leaderboard."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console

from guidino_tune import paths
from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.data.dividing import keep_split
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.rules import write_rules
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError, storage_error
from guidino_tune.framing import place_mask
from guidino_tune.metrics import constant_mask_dice
from guidino_tune.models import check_backbone, check_segmenter
from guidino_tune.models.known import expecting
from guidino_tune.space.advice import training_notes
from guidino_tune.space.check import check_space, examples
from guidino_tune.space.space import Space
from guidino_tune.stopping import stop_signals
from guidino_tune.tracking import MLflowTracker
from guidino_tune.training.folder import write_text
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.tuning.backbones import continued, note
from guidino_tune.tuning.bridge import Bridge, StudyScheduler, StudySearcher
from guidino_tune.tuning.cluster import Plan, connected, plan
from guidino_tune.tuning.environment import sealed_tests
from guidino_tune.tuning.home import follow_home
from guidino_tune.tuning.leftovers import Leftovers
from guidino_tune.tuning.outcomes import in_words, same_way
from guidino_tune.tuning.packing import pack
from guidino_tune.tuning.progress import Progress, conclusions, leaderboard
from guidino_tune.tuning.recording import Recorder
from guidino_tune.tuning.resolving import resolve_data
from guidino_tune.tuning.sending import Tracking, await_mlflow, open_tracker, remember_data, study_snapshot
from guidino_tune.tuning.study import StudyFolder, best_value, check_same_search, finished, open_study, ranking, remaining, without_result

INTERRUPTED, OUT_OF_TIME = "Interrupted", "The time budget is used up"
"""Why a search ended before all its trials did; anything else is a failure in words."""

CONTINUES = "Nothing is lost; the same command goes on from here."

ROOM = 2**24
"""Bytes that must be free before a search starts: enough for a study's own files and a few small checkpoints."""

SENDING, STOPPING, AT_ONCE = 60.0, 5.0, 1.0
"""Seconds for what MLflow has not got yet: at the end of a search, when it was stopped, and when it was stopped twice. The rest is sent by
the next run."""


def check_search(space: Space, folder: StudyFolder) -> list[str]:
    """Everything that can be known before anything is written or trained.

    Returns:
        Notes for the user.

    Raises:
        UserError: The space has a mistake, the study's folder cannot be written, weights cannot be loaded, the data set is not there, or
            the folder holds another search.
    """
    notes = check_space(space, begun=folder.definition.exists())
    check_storage(folder.path)
    check_models(space)
    check_workers(space.base, space.resources.workers)
    find_cases(space.base.data)
    check_same_search(space, folder)
    return notes


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
        segmenters[experiment.segmenter, backbone, experiment.data.image_size, experiment.data.channels] = experiment
    for guide in guides.values():
        check_backbone(guide)
    for experiment in segmenters.values():
        check_segmenter(experiment)


def run_search(space: Space, console: Console, storage: str | None = None, tracking: Tracking = "spool") -> int:
    """Starts, continues or extends the study of this space, and prints what came of it.

    Args:
        space: What to search, with its study settings and resources.
        console: For progress and results.
        storage: Database URL of the Optuna study; by default a journal file in the study's folder.
        tracking: What to do when MLflow is away at the start.

    Returns:
        Exit code: 0; 1 when no trial gave a result; 75 (try again later) when it gave up after some had; 130 when it was interrupted.

    Raises:
        UserError: Before anything is spent, see ``check_search``; or the study can no longer be written. What it has stays readable, and
            trials that were running go on with the next call.
        KeyboardInterrupt: Stopped before its trials ran, or a second time while it was stopping.
    """
    follow_home(console)
    space = resolve_data(space)
    folder = StudyFolder(paths.studies() / space.study.name)
    with contextlib.ExitStack() as known:
        space = known.enter_context(continued(space, folder))
        noted = check_search(space, folder)
        await_mlflow(tracking, console)
        known.enter_context(folder.lock())
        known.enter_context(sealed_tests())
        data = _read_images(space, folder, console)
        baseline = _baseline(data, space.base.data.has_ignored)
        study = open_study(space, folder, storage)
        _same_data(study, data, folder)
        if not folder.split.exists():
            keep_split(data.split, find_cases(space.base.data), folder.split)
        if not folder.rules.exists():
            write_rules(data.rules, folder.rules)
        epoch, *advice = training_notes(space.base, len(data.train), len(data.validation), space.resources.workers)
        backbones, unnoted = note(study, space, folder)
        known.enter_context(expecting(backbones))
        for line in (*noted, *space.notes, *data.notes, *advice, *unnoted):
            console.print(f"note: {line}", style="yellow", highlight=False)
        for line in data.rules.lines:
            console.print(line, highlight=False, soft_wrap=True)
        console.print(
            f"{len(data.train)} training and {len(data.validation)} validation cases ({data.split.origin}); the test split is sealed. "
            f"Best constant mask: Dice {baseline:.4f}"
        )
        console.print(epoch, highlight=False, soft_wrap=True)
        remember_data(study, data, baseline)
        snapshot = study_snapshot(study, space, folder)
        tracker = open_tracker(
            snapshot, folder, lambda line: console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
        )
        recorder = Recorder(study, space, folder, tracker, snapshot)
        tracker.start()
        end, patience = INTERRUPTED, STOPPING
        try:
            recorder.sync()
            end = _run_trials(study, space, folder, recorder, console)
            recorder.draw_front()
            patience = STOPPING if end == INTERRUPTED else SENDING
        except KeyboardInterrupt:
            patience = AT_ONCE
            console.print(f"{INTERRUPTED}. {CONTINUES}", style="yellow", highlight=False, soft_wrap=True)
            raise
        finally:
            if end:
                recorder.interrupted()
            for trial in study.get_trials(deepcopy=False):
                if trial.state.is_finished():
                    folder.trial(trial.number).tidy()
            tracker.close(timeout=patience, interrupted=bool(end))
        return _closing(study, space, folder, console, baseline=baseline, tracking=tracker, end=end)


def _read_images(space: Space, folder: StudyFolder, console: Console) -> SearchData:
    with console.status("reading the images") as status:
        return open_for_search(
            space.base.data,
            # A lost split is drawn again, and kept only once its images are known to be the study's.
            split_file=None if folder.definition.exists() and not folder.split.exists() else folder.split,
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

    deadline = time.monotonic() + space.study.time_budget if space.study.time_budget else math.inf
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
                num_samples=-1,  # the searcher says when it is enough: some trials are made up for, or handed out again
                max_concurrent_trials=resources.concurrent,
                reuse_actors=resources.executor == "actor",
            ),
            # A name of its own for each run keeps Tune from looking for its earlier state: the study is the only one.
            run_config=tune.RunConfig(
                name=f"run-{uuid.uuid4().hex[:12]}",
                storage_path=str(folder.ray),
                verbose=0,
                # The searcher hands out again what shall go on: Tune counts the loss of a machine as a failure of the trial.
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        # On a full disk Tune would tell, with a traceback, that it cannot copy its state there; nobody reads that state.
        logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
        try:
            # Tune takes the first signal as a request to end, and leaves its handler behind.
            with Leftovers(resources.executor), stop_signals():
                tuner.fit()
        except ray.tune.TuneError as error:
            raise UserError(f"Ray ended the search: {error}", where=str(folder.path), todo="the same command continues it") from error
        finally:
            shutil.rmtree(folder.ray, ignore_errors=True)
    if bridge.unwritable:
        raise _unwritable(bridge.unwritable, folder)
    return _why_ended(bridge)


def _why_ended(bridge: Bridge) -> str:
    """Why a search ended before all its trials did; empty when all have."""
    study, space = bridge.study, bridge.space
    if bridge.given_up:
        return bridge.given_up
    if remaining(study, space, bridge.outcomes):
        return OUT_OF_TIME if bridge.expired else INTERRUPTED
    # Of a list: what the next run tries again.
    left = remaining(study, space)
    return f"{left} listed trials failed twice, and not through their configuration" if left else ""


def _unwritable(error: Exception, folder: StudyFolder) -> Exception:
    todo = "put it right; nothing is lost, the same command goes on"
    if not isinstance(error, OSError):
        return UserError(f"the study's database refuses ({error})", where=str(folder.path), todo=todo)
    # Not every file that is opened here is the study's: weights may be read to count a network's operations.
    place = str(error.filename or folder.path)
    return storage_error(error, place) or UserError(error.strerror or str(error) or type(error).__name__, where=place, todo=todo)


def _baseline(data: SearchData, ignore: bool = False) -> float:
    train, validation = (
        # One mask for images of all sizes: at that of the patches.
        [place_mask(table.mask(i), table.size, "squash", "nearest") if table.native else table.mask(i) for i in range(len(table))]
        for table in (data.train, data.validation)
    )
    return constant_mask_dice(train, validation, num_classes=data.train.num_classes, ignore=ignore)


def _same_data(study: optuna.Study, data: SearchData, folder: StudyFolder) -> None:
    known = study.user_attrs.get("data_fingerprint")
    if known is None:
        study.set_user_attr("data_fingerprint", data.fingerprint)
    elif known != data.fingerprint:
        raise UserError(
            "the images differ from those this study was started with, or this version reads them otherwise; its trials could not be "
            "compared with new ones",
            where=str(folder.path),
            todo="restore the images, go on with the version of guidino_tune that began it, or start another study with --name",
        )


def _closing(
    study: optuna.Study, space: Space, folder: StudyFolder, console: Console, *, baseline: float, tracking: MLflowTracker, end: str
) -> int:
    console.print(leaderboard(study, space))
    ranked = ranking(study)
    failed = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.FAIL]
    if failed:
        lines = [f"{len(failed)} trials failed:", *in_words(failed), *without_result(study, space)]
        console.print("\n  ".join(lines), style="red", highlight=False, soft_wrap=True, markup=False)
        if kind := same_way(t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING):
            console.print(f"No trial has a result: all of them failed the same way ({kind}).", style="red", highlight=False)
    if ranked:
        best = best_value(ranked[0]) or 0.0
        verdict = "beats" if best > baseline else "does NOT beat"
        worst = best_value(ranked[-1]) or 0.0
        console.print(
            f"Best validation Dice {best:.4f} {verdict} the best constant mask ({baseline:.4f}); worst complete trial {worst:.4f}."
        )
    for line in conclusions(study, space):
        console.print(line, highlight=False, soft_wrap=True)
    if tracking.pending or tracking.last_error:
        console.print(tracking.message, style="yellow", highlight=False, soft_wrap=True)
    left = [str(t.number) for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
    if left and not end:
        console.print(
            f"{len(left)} trials were left unfinished (trial {', '.join(left[:8])}), for as many as were asked for have their result; a "
            "search for more goes on with them.",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    name = space.study.name
    steps = [("browse", tracking.ui_command), ("open", tracking.url)]
    if end:
        console.print(f"{end}. {CONTINUES}", style="yellow", highlight=False, soft_wrap=True)
    if ranked:
        steps += [
            ("export", paths.next_command(f"export {name} --output best.yaml")),
            ("retrain", paths.next_command("retrain best.yaml --seeds 3")),
            ("compare", paths.next_command(f"compare {name}")),
        ]
    for label, command in (step for step in steps if step[1]):
        console.print(f"{label:>8}: {command}", highlight=False, soft_wrap=True)
    write_text(folder.path / "leaderboard.txt", _plain(study, space))
    if end:
        # What ends a search that had results before is to be mended, and the search to be continued.
        return {INTERRUPTED: 130, OUT_OF_TIME: 0}.get(end, os.EX_TEMPFAIL if ranked else 1)
    return 0 if ranked else 1


def _plain(study: optuna.Study, space: Space) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(leaderboard(study, space, rows=1000))
    return console.export_text()
