"""One search from its checks to its leaderboard."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import optuna
from rich.console import Console

from guidino_tune.config import Experiment
from guidino_tune.data.dividing import keep_split
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.rules import write_rules
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError, storage_error
from guidino_tune.framing import place_mask
from guidino_tune.known_backbones import expecting
from guidino_tune.metrics import constant_mask_dice
from guidino_tune.models.cost import network_cost
from guidino_tune.running.cluster import Plan, has_others, may_change
from guidino_tune.running.connection import connected, connecting, no_dashboard
from guidino_tune.running.elastic import plan_when_possible
from guidino_tune.running.environment import sealed_tests
from guidino_tune.running.hardware import roomier, sharing_line
from guidino_tune.running.packing import pack
from guidino_tune.space.advice import training_notes
from guidino_tune.space.space import Space, override
from guidino_tune.stopping import raise_swallowed
from guidino_tune.study.driver import INTERRUPTED, Driver
from guidino_tune.study.kept_weights import KeptWeights
from guidino_tune.study.precision import SETTLED
from guidino_tune.study.seeding import find_seeds, queue_seeds
from guidino_tune.study.store import BEGUN_BY, StoredStudy, StudyFolder, folder_of, open_study
from guidino_tune.study.trials import finished, remaining
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.backbones import continued, note
from guidino_tune.workflows.certainty import Certainty
from guidino_tune.workflows.checks import changed_code, check_content, check_settings
from guidino_tune.workflows.closing import CONTINUES, tell_result
from guidino_tune.workflows.home import follow_home
from guidino_tune.workflows.precision import settle
from guidino_tune.workflows.progress import Progress, silent_console
from guidino_tune.workflows.recorder import Recorder
from guidino_tune.workflows.report import report_at_end
from guidino_tune.workflows.resolve import resolve_data
from guidino_tune.workflows.result import Callback, Listener, StudyResult, callback_listener
from guidino_tune.workflows.track import Tracking, await_mlflow, open_tracker, remember_data, study_snapshot
from guidino_tune.workflows.view_ways import settle_views

SENDING, STOPPING, AT_ONCE = 60.0, 5.0, 1.0
"""Seconds for what MLflow has not got yet: at the end of a search, when it was stopped, and when it was stopped twice. The rest is sent by
the next run."""


def run_search(
    space: Space,
    *,
    callbacks: Sequence[Callback] = (),
    sampler: str | optuna.samplers.BaseSampler | None = None,
    pruner: str | optuna.pruners.BasePruner | None = None,
    storage: str | None = None,
    start_from: Sequence[str | Path] = (),
    tracking: Tracking = "spool",
    console: Console | None = None,
) -> StudyResult:
    """Starts, continues or extends the study of this space.

    It may be called in a notebook, and in any thread. Ctrl-C, or the button that stops a cell, lets it end within seconds with what it has:
    it returns, and ``result.ended`` says ``Interrupted``. The same call goes on from there. Other threads than the main one get no Ctrl-C.
    Searches in several threads at once need a ``ray.init()`` before them: the cluster that a search starts itself ends with it, for all.

    Args:
        space: What to search, with its study settings and resources, from ``load_space``.
        callbacks: Told of every trial and epoch, see ``Callback``.
        sampler: In place of the space's: a name as in ``study.sampler``, or a sampler of Optuna. A study that was begun with one is
            continued with one of its class.
        pruner: In place of the space's: a name as in ``study.pruner``, or a pruner of Optuna; of the epochs that are validated, it may stop
            a trial after each.
        storage: Database URL of the Optuna study; by default a journal file in the study's folder.
        start_from: Earlier studies, also of other data sets, by name or folder: the best configurations of each are tried behind the
            space's first trials, see ``find_seeds``. Without effect for those from which the study was begun.
        tracking: What to do when MLflow is away at the start: ``spool`` keeps everything for later, ``wait`` waits, ``stop`` raises.
        console: For progress and results; without one nothing is printed.

    Returns:
        The study; its ``ended`` tells why it ended before all trials did.

    Raises:
        UserError: Before anything is spent, see ``check_search``; or the study can no longer be written, or a callback failed. What the
            study has stays readable, and trials that were running go on with the next call.
        KeyboardInterrupt: Stopped before its trials ran, or a second time while it was stopping.

    Example:
        >>> result = run_search(load_space("demo", {"study.trials": 4}))  # doctest: +SKIP
        >>> result.ended, result.best.provenance["val_dice"]  # doctest: +SKIP
        ('', 0.4801)
    """
    console = console or silent_console()
    follow_home(console)
    named = {f"study.{what}": name for what, name in (("sampler", sampler), ("pruner", pruner)) if isinstance(name, str)}
    space = resolve_data(override(space, named) if named else space)
    folder = folder_of(space.study.name)
    with contextlib.ExitStack() as known:
        space = known.enter_context(continued(space, folder))
        noted = check_settings(space, folder)
        known.enter_context(sealed_tests())  # before Ray starts: its processes are sealed from their birth
        cluster = known.enter_context(contextlib.ExitStack())
        cluster.enter_context(connecting(space.resources))
        noted += check_content(space, folder)
        seeds = find_seeds(space, start_from, storage)
        await_mlflow(tracking, console)
        known.enter_context(folder.lock())
        data = _read_images(space, folder, console)
        baseline = _baseline(data, space.base.data.has_ignored)
        say = partial(console.print, highlight=False, soft_wrap=True)
        space, settled = settle(space, folder, storage, cluster, say)
        with console.status("opening the study, and waiting for the end of a driver that may have died elsewhere"):
            study = open_study(space, folder, storage, settled)
        queue_seeds(study, seeds)
        _same_data(study, data, folder)
        _take_own(study, space, folder, sampler=sampler, pruner=pruner)
        stored = StoredStudy(folder, study, space)
        listener = callback_listener(tuple(callbacks), StudyResult(stored)) if callbacks else None
        if not folder.split.exists():
            keep_split(data.split, find_cases(space.base.data), folder.split)
        if not folder.rules.exists():
            write_rules(data.rules, folder.rules)
        epoch, *advice = training_notes(space.base, len(data.train), len(data.validation), space.resources.workers)
        backbones, unnoted = note(study, space, folder)
        known.enter_context(expecting(backbones))
        for line in (*noted, *seeds.notes, *space.notes, *data.notes, *advice, *unnoted, *changed_code(study, space)):
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
        end, patience, report, certainty = INTERRUPTED, STOPPING, None, None
        known.enter_context(_told_when_interrupted(console))
        try:
            recorder.sync()
            end = _run_trials(study, space, folder, data, recorder, console, listener)
            recorder.conclude()
            patience = STOPPING if end == INTERRUPTED else SENDING
            cluster.close()  # no GPU waits for a report
            if end != INTERRUPTED:
                certainty = Certainty(study, space)
                report = report_at_end(stored, console, certainty)
                recorder.refresh()
        except KeyboardInterrupt:
            patience = AT_ONCE
            raise
        finally:
            cluster.close()  # its workers end before their folders are tidied, and no GPU waits for MLflow
            if end:
                recorder.interrupted()
            trials = study.get_trials(deepcopy=False)
            for number in (trial.number for trial in trials if trial.state.is_finished()):
                folder.trial(number).tidy()
            for number in KeptWeights(study, space.study).others(trials):
                folder.trial(number).drop_weights()
            tracker.close(timeout=patience, interrupted=bool(end))
        certainty = certainty or Certainty(study, space)
        tell_result(stored, console, baseline=baseline, tracking=tracker, end=end, certainty=certainty, report=report, storage=storage)
    return StudyResult(stored, end, storage)


@contextlib.contextmanager
def _told_when_interrupted(console: Console) -> Iterator[None]:
    """Says that nothing is lost, wherever a Ctrl-C strikes: the second one may do so when the trials have ended."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"{INTERRUPTED}. {CONTINUES}", style="yellow", highlight=False, soft_wrap=True)
        raise


def _read_images(space: Space, folder: StudyFolder, console: Console) -> SearchData:
    with console.status("reading the images") as status:
        return open_for_search(
            space.base.data,
            # A lost split is drawn again, and kept only once its images are known to be the study's.
            split_file=None if folder.definition.exists() and not folder.split.exists() else folder.split,
            progress=lambda done, total: status.update(f"reading the images: {done} of {total}"),
        )


def _take_own(study: optuna.Study, space: Space, folder: StudyFolder, **given: object) -> None:
    """Puts a sampler or pruner that was handed over in the place of the space's; its class is noted, and stays the study's."""
    begun = any(t.state.is_finished() or t.params for t in study.get_trials(deepcopy=False))
    for what, own in given.items():
        kind = "" if own is None or isinstance(own, str) else f"{type(own).__module__}.{type(own).__qualname__}"
        before = study.user_attrs.get(f"own_{what}", "")
        if begun and before != kind:
            raise UserError(
                f"this study was begun with {before or f'the {what} of its space'}, not with {kind or f'the {what} of its space'}",
                where=str(folder.path),
                todo=f"hand over the same kind of {what} again, or start another study with another study.name",
            )
        if kind and (space.study.is_list or (what == "pruner" and len(space.study.objectives) > 1)):
            why = "a list has nothing to choose" if space.study.is_list else "trials with several objectives are not stopped early"
            raise UserError(f"an own {what} would have no effect: {why}", where=str(folder.path), todo="leave it out")
        if before != kind:
            study.set_user_attr(f"own_{what}", kind)
        if kind:
            setattr(study, what, own)


def _run_trials(
    study: optuna.Study,
    space: Space,
    folder: StudyFolder,
    data: SearchData,
    recorder: Recorder,
    console: Console,
    callback: Listener | None = None,
) -> str:
    """Runs what remains of the study; says why when it ended before all trials did."""
    before, left = len(finished(study)), remaining(study, space)
    if before:
        console.print(f"continuing study {space.study.name!r}: {before} trials finished before, {left} to go")
    if not left:
        return ""
    say = partial(console.print, highlight=False, soft_wrap=True)
    with connected(space.resources) as dashboard:
        plan_when_possible(space.resources, say)
        asked, packed = pack(space, folder.path, console)
        resources = plan_when_possible(asked, say, packed)
        say(
            f"{resources.concurrent} trials side by side ({resources.executor} executor; {space.resources.workers} worker(s) of "
            f"{resources.cpus} CPU(s) and {resources.gpus:g} GPU(s) each){', more or fewer as nodes come and go' if may_change() else ''}"
        )
        if may_change() and not resources.gpus and space.resources.gpus_per_worker is None:
            say("note: no GPU is in the cluster now, so trials run on CPUs; GPUs are waited for with resources.gpus_per_worker=1")
        if resources.shares_gpus:
            say(f"note: {sharing_line(os.environ)}")
        with console.status("measuring how fast views are read and made"):
            space = settle_views(study, space, folder, data, resources, say)
        raise_swallowed()
        console.print(f"study folder {folder.path}; Ray dashboard {dashboard or no_dashboard()}", highlight=False)
        return _search(study, space, folder, recorder, resources, console, callback, say)


def _search(
    study: optuna.Study,
    space: Space,
    folder: StudyFolder,
    recorder: Recorder,
    resources: Plan,
    console: Console,
    callback: Listener | None,
    say: Callable[[str], None],
) -> str:
    """Runs what remains; see ``_run_trials``."""
    from guidino_tune.running.process import process_settings
    from guidino_tune.running.tune_adapter import run_trials

    deadline = time.monotonic() + space.study.time_budget if space.study.time_budget else math.inf
    with Progress(study, space, console) as progress:

        def listener(number: int, experiment: Experiment, record: EpochRecord | None) -> None:
            recorder.changed(number, experiment, record)
            progress.changed(number, experiment, record)
            if callback:
                callback(number, record)

        settings = process_settings(
            resources, space.resources, ray_folder=folder.ray, precision=study.user_attrs.get(SETTLED, ""),
            rules=study.user_attrs.get(BEGUN_BY, 0),
        )  # fmt: skip

        def warn(text: str) -> None:
            console.print(f"warning: {text}", style="yellow", highlight=False, soft_wrap=True)

        driver = Driver(
            study, space, folder, listener, settings, deadline, warn, network_cost, partial(has_others, booked=resources),
            partial(roomier, booked=resources),
        )  # fmt: skip
        run_trials(driver, resources, say)
    if driver.error:
        unwritable = isinstance(driver.error, OSError | optuna.exceptions.StorageInternalError)
        raise _unwritable(driver.error, folder) if unwritable else driver.error
    return driver.ended


def _unwritable(error: Exception, folder: StudyFolder) -> Exception:
    todo = "put it right, and run it again to go on: nothing is lost"
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
            todo="restore the images, go on with the version of guidino_tune that began it, or start another study with another study.name",
        )
