"""When MLflow is away: waiting for it before a search, and sending later what a study kept for it, without images and without Ray."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import optuna
from optuna.trial import TrialState
from rich.console import Console

from guidino_tune import paths
from guidino_tune.data.splits import read_split
from guidino_tune.errors import UserError, redacted
from guidino_tune.space.space import Space
from guidino_tune.study.journal import mend_journal
from guidino_tune.study.store import StoredStudy, StudyFolder, folder_of, load_study, stored_study
from guidino_tune.study.trials import remaining
from guidino_tune.tracking import DatasetInfo, MLflowTracker, StudySnapshot, TrialSnapshot, flatten, tracking_uri
from guidino_tune.tracking.inspection import experiment_name, reach, unreachable
from guidino_tune.tracking.ledger import Ledger
from guidino_tune.tracking.missing import Missing, missing
from guidino_tune.tracking.snapshots import EndedTrial
from guidino_tune.workflows.recorder import Recorder, study_files

if TYPE_CHECKING:
    from guidino_tune.data.opening import SearchData

Tracking = Literal["spool", "wait", "stop"]
"""What a search does when MLflow is away at its start: keep everything for later, wait for it, or not start."""

PROBE = 15  # seconds for an answer: some servers need ten
PAUSE = 5.0  # seconds between two questions
LONG = 600.0  # seconds for the end of a sending, when little is left
ENOUGH = 5  # failures in a row after which a sending is given up; they take a quarter of a minute


def mlflow_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or a database in the home folder that all studies share, so that they can be compared."""
    return tracking_uri(paths.home() / "mlflow.db")


def await_mlflow(tracking: Tracking, console: Console) -> None:
    """Does what the user chose for an MLflow that is away, before anything is spent; Ctrl-C ends the waiting.

    Raises:
        UserError: ``stop`` was chosen, and MLflow cannot be used.
    """
    if tracking == "spool" or (reason := unreachable(mlflow_uri(), PROBE)) is None:
        return
    if tracking == "stop":
        raise UserError(
            f"MLflow cannot be used: {reason}", todo="start or correct it, or choose tracking `spool`, which sends everything later"
        )
    started, shown = time.monotonic(), ""
    with console.status("") as status:
        while reason is not None:
            if reason != shown:
                console.print(
                    f"waiting for MLflow (Ctrl-C leaves, and nothing is lost): {reason}", markup=False, highlight=False, soft_wrap=True
                )
                shown = reason
            status.update(f"waiting for MLflow since {time.monotonic() - started:.0f} s")
            time.sleep(PAUSE)
            reason = unreachable(mlflow_uri(), PROBE)
    console.print("MLflow answers", markup=False, highlight=False)


def remember_data(study: optuna.Study, data: SearchData, baseline: float) -> None:
    """Keeps with the study what MLflow is told of its images, so that it can be sent from a machine without them.

    Args:
        study: The study.
        data: Its images.
        baseline: Dice of the best constant mask.
    """
    about = {"num_train": len(data.train), "num_validation": len(data.validation), "constant_mask_dice": baseline}
    if study.user_attrs.get("data") != about:
        study.set_user_attr("data", about)


def study_snapshot(study: optuna.Study, space: Space, folder: StudyFolder) -> StudySnapshot:
    """The study as MLflow is told of it, from what is stored with it."""
    stored = study.user_attrs
    # Kept with the study: it tells a study apart from an older one of the same name, on any machine; and what is sent twice has one time.
    for key, value in (("id", uuid.uuid4().hex), ("begun", time.time())):
        if key not in stored:
            stored[key] = value
            study.set_user_attr(key, value)
    about = stored.get("data")
    if about is None and folder.split.exists():  # a study from before these were stored
        split = read_split(folder.split)
        about = {"num_train": len(split.train), "num_validation": len(split.validation)}
    section = space.base.data
    datasets: tuple[DatasetInfo, ...] = ()
    if about is not None and "data_fingerprint" in stored:
        datasets = (
            DatasetInfo(
                name=section.kind,
                fingerprint=stored["data_fingerprint"],
                num_train=about["num_train"],
                num_validation=about["num_validation"],
                source=section.root or section.kind,
            ),
        )
    return StudySnapshot(
        name=space.study.name,
        params={
            **flatten(dataclasses.asdict(space.study), "study."),
            **({} if space.recipes else flatten(space.base.to_dict())),
            **{f"space.{path}": parameter.describe() for path, parameter in space.parameters.items()},
        },
        datasets=datasets,
        metrics={name: about[name] for name in ("constant_mask_dice",) if about and name in about},
        time=stored["begun"],
        id=stored["id"],
    )


def open_tracker(snapshot: StudySnapshot, folder: StudyFolder, tell: Callable[[str], None] | None = None) -> MLflowTracker:
    """The tracker of a study, not started; ``tell`` hears when MLflow goes away and is back."""
    return MLflowTracker(mlflow_uri(), experiment_name(), snapshot, folder.ledger, paths.home() / "mlartifacts", tell=tell)


def send_results(space: Space, console: Console, storage: str | None = None, folder: StudyFolder | None = None) -> bool:
    """Brings MLflow up to date with everything that a study holds: what it missed, and what was measured and written after the search.

    The caller holds the study's lock. Its folder is that of its name in the home, unless it is given.

    Returns:
        Whether everything arrived; if not, it prints why.
    """
    folder = folder or folder_of(space.study.name)
    study = load_study(folder, storage)
    snapshot = study_snapshot(study, space, folder)
    tracker = open_tracker(snapshot, folder)
    tracker.start()
    Recorder(study, space, folder, tracker, snapshot).sync()
    place, spoken = redacted(mlflow_uri()), time.monotonic()
    with console.status(f"sending to MLflow at {place}") as status:
        while not tracker.flush(1.0, ENOUGH) and tracker.pending and tracker.failures < ENOUGH:
            trouble = f"; {tracker.last_error}" if tracker.failures else ""
            line = f"sending to MLflow at {place}: {tracker.pending} updates wait{trouble}"
            status.update(line)
            if not console.is_terminal and time.monotonic() - spoken > 2 * PROBE:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
                spoken = time.monotonic()
        unfinished = any(t.state == TrialState.RUNNING for t in study.get_trials(deepcopy=False)) or remaining(study, space) > 0
        arrived = tracker.close(timeout=0 if tracker.failures else LONG, interrupted=unfinished)
    if not arrived or tracker.last_error:
        console.print(
            tracker.message if not arrived else f"note: {tracker.last_error}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )
    return arrived


def send_where_free(stored: StoredStudy, storage: str | None, console: Console) -> None:
    """Brings what was written beside a study to its run in MLflow; where a search works on it, that does so at its end."""
    try:
        lock = stored.folder.lock()
    except UserError:
        console.print("the study is being searched: its driver sends the report to MLflow", highlight=False)
        return
    with lock:
        if reason := unreachable(mlflow_uri(), PROBE):
            console.print(
                f"not sent to MLflow ({reason}); guidino-tune track sends it later", highlight=False, soft_wrap=True, markup=False
            )
            return
        send_results(stored.space, console, storage, stored.folder)


def send(names: Sequence[str], console: Console, storage: str | None = None) -> int:
    """Sends what MLflow lacks of these studies.

    Args:
        names: Of the studies.
        console: For progress and results.
        storage: Database URL of the studies; by default the file in each one's folder.

    Returns:
        Exit code: 0 when everything arrived; 1 when not; 2 when a study among several is unusable or at work.

    Raises:
        UserError: There is no such study, or a search works on it, and it is the only one asked for.
    """
    code = 0
    for name in names:
        try:
            folder, _, space = stored_study(name, storage)
            reason = unreachable(mlflow_uri(), 4 * PROBE)
            if reason is not None:
                waits = waiting(name, storage)
                console.print(
                    f"{name}: not sent ({reason}); waiting: {waits}", style="yellow", markup=False, highlight=False, soft_wrap=True
                )
                code = max(code, 1)
                continue
            with folder.lock():
                mend_journal(folder.journal)
                arrived = send_results(space, console, storage, folder)
        except UserError as error:
            if len(names) == 1:
                raise
            console.print(f"{name}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            code = 2
            continue
        if arrived:
            console.print(f"{name}: everything is in MLflow", markup=False, highlight=False)
        code = max(code, 0 if arrived else 1)
    return code


def show(names: Sequence[str], console: Console, storage: str | None = None) -> int:
    """Prints how much of these studies waits to be sent, and whether MLflow answers; see ``send``."""
    code, waiting_now = 0, False
    for name in names:
        try:
            waits = waiting(name, storage)
        except UserError as error:
            if len(names) == 1:
                raise
            console.print(f"{name}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            code = 2
            continue
        searching = "; a search works on it and sends by itself" if folder_of(name).holder() else ""
        console.print(
            f"{name}: " + (f"{waits} not yet in MLflow" if waits else "everything is in MLflow") + searching, markup=False, highlight=False
        )
        code, waiting_now = max(code, 1 if waits else 0), waiting_now or bool(waits)
    try:
        console.print(f"MLflow: {reach(mlflow_uri(), PROBE)}", markup=False, highlight=False, soft_wrap=True)
    except UserError as error:
        console.print(f"MLflow is away: {error.what}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if waiting_now:
        chosen = names[0] if len(names) == 1 else "--all"
        console.print(f"send it with: {paths.next_command(f'track {chosen} --flush')}", markup=False, highlight=False, soft_wrap=True)
    return code


def waiting(name: str, storage: str | None = None) -> Missing:
    """What MLflow lacks of a study, without asking MLflow and without changing anything.

    Raises:
        UserError: There is no such study.
    """
    folder, study, space = stored_study(name, storage)
    found = _Collected()
    Recorder(study, space, folder, found, StudySnapshot(name)).hand_over()
    return missing(Ledger(folder.ledger, read_only=True), found.trials, study_files(folder), mlflow_uri())


WAITING_HEADINGS = ("study", "trials", "epochs", "files", "study_run", "sent_elsewhere", "problem")
"""Of ``waiting_rows``."""


def waiting_rows(names: Sequence[str], storage: str | None = None) -> list[list[object]]:
    """What MLflow lacks of each study, see ``Missing``; or why that cannot be told."""
    rows = list[list[object]]()
    for name in names:
        try:
            waits = waiting(name, storage)
            rows.append([name, waits.trials, waits.epochs, waits.files, waits.study, waits.elsewhere or None, None])
        except UserError as error:
            rows.append([name, *[None] * 5, " ".join(str(error).split())])
    return rows


class _Collected:
    """In the place of a tracker: keeps the snapshots."""

    def __init__(self) -> None:
        self.trials: list[TrialSnapshot] = []

    def update(self, trial: TrialSnapshot) -> None:
        """Keeps one."""
        self.trials.append(trial)

    def update_ended(self, trial: EndedTrial) -> None:
        """Keeps one."""
        self.trials.append(trial.read())
