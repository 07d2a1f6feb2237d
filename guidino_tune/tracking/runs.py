"""Sends the difference between a snapshot and the ledger to one MLflow run. Called only by the tracker's thread."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from guidino_tune.tracking.client import (
    as_key,
    as_tags,
    as_text,
    code_tags,
    error_code,
    find_experiment,
    is_inactive,
    is_permanent,
    is_unknown,
)
from guidino_tune.tracking.ledger import Ledger, Sent
from guidino_tune.tracking.notes import NOTE, addressed, picture
from guidino_tune.tracking.snapshots import Plain, StudySnapshot, TrialSnapshot
from guidino_tune.tracking.uploads import PICTURES, PREVIEWS, ContentHashes, upload
from guidino_tune.tracking.views import save_view
from guidino_tune.training.reporter import EpochRecord

SIZES = {"params": 100, "tags": 100, "metrics": 800}  # in one request: MLflow's limits, and no more than 1000 of all together
DOUBT = 120.0  # seconds in which a request that was given up may still be carried out: twice the longest timeout
STUDY = "study"
STATUS = {"running": "RUNNING", "interrupted": "SCHEDULED", "complete": "FINISHED", "pruned": "FINISHED", "fail": "FAILED"}

T = TypeVar("T")


class RunSender:
    """Brings the runs of one study up to date.

    Args:
        client: An ``MlflowClient``.
        experiment: Name of the MLflow experiment.
        artifact_location: Folder for artifacts of a new experiment.
        ledger: What was sent before.
        refused: Called with a message when MLflow refuses something for good; the rest is sent nevertheless.
    """

    def __init__(
        self, client: Any, experiment: str, artifact_location: Path | None, ledger: Ledger, refused: Callable[[str], None]
    ) -> None:
        self._client, self._experiment, self._artifact_location = client, experiment, artifact_location
        self._ledger, self._refused = ledger, refused
        self._experiment_id = ""
        self._parent = ""
        self._opened = math.inf
        self._hashes = ContentHashes()

    @property
    def location(self) -> tuple[str, str]:
        """Experiment and parent run, by id; empty before ``open``."""
        return self._experiment_id, self._parent

    def open(self, study: StudySnapshot) -> bool:
        """Finds the parent run by the ledger, else by its tags, else creates it.

        Returns:
            False when MLflow lost what the ledger remembers: everything must be sent again.
        """
        remembered = self._ledger.sent(STUDY).run_id
        run = self._get(remembered) if remembered else None
        lost = bool(remembered) and (run is None or run.info.lifecycle_stage != "active")
        if lost:
            self._ledger.forget()
        if run is None or lost:
            self._experiment_id = find_experiment(self._client, self._experiment, self._artifact_location)
            mine = {"guidino.study_id": study_id(study), "guidino.kind": "study"}
            run = self._find(mine)
            if run is None:
                self._ledger.note(STUDY, doubtful=time.time())
                tags = as_tags({"guidino.study": study.name, **mine, **code_tags()})
                run = self._client.create_run(self._experiment_id, run_name=study.name, tags=tags)
            self._ledger.note(STUDY, run_id=run.info.run_id, status=run.info.status)
        self._experiment_id, self._parent = run.info.experiment_id, run.info.run_id
        self._opened = time.time()
        save_view(self._client, self._experiment_id, study, study_id(study))
        return not lost

    def remove_doubles(self, study: StudySnapshot) -> None:
        """Deletes empty runs that MLflow made twice: one that answers late may carry out a request after we looked and asked again.

        Nothing else that is sent twice is stored twice, but MLflow gives every run that it is asked for an id of its own. While a late
        request may still be carried out, the doubt stays in the ledger for the next time.
        """
        asked = self._ledger.sent(STUDY).doubtful
        runs: list[Any] = []
        token: str | None = ""
        while asked and token is not None:
            mine = f"tags.`guidino.study_id` = '{study_id(study)}'"
            page = self._client.search_runs([self._experiment_id], mine, max_results=1000, page_token=token or None)
            runs, token = [*runs, *page], page.token or None
        for run in runs:
            ours = self._ledger.sent(run.data.tags.get("guidino.trial", STUDY)).run_id
            if ours not in ("", run.info.run_id) and not (run.data.metrics or run.data.params):
                self._client.delete_run(run.info.run_id)
        if 0 < asked < time.time() - DOUBT:
            self._ledger.note(STUDY, doubtful=0.0)

    def send_study(self, study: StudySnapshot, status: str) -> None:
        """Parameters, data sets, tags, metrics and status of the parent run."""
        self._send_figures(STUDY, study, study.params, study.tags, EpochRecord(study.step, study.metrics, study.time))
        self._send_status(STUDY, status)

    def send_trial(self, trial: TrialSnapshot, study: StudySnapshot) -> None:
        """Parameters, metrics, tags and status of a trial's run, which is created when it is missing."""
        key = str(trial.number)
        if not self._ledger.sent(key).deleted:
            self._unless_deleted(key, lambda: self._send_trial(key, self._ledger.sent(key), trial, study))

    def _unless_deleted(self, key: str, action: Callable[[], None]) -> None:
        """Runs ``action``; a run that a person deleted stays deleted, one that MLflow lost is forgotten and so made again."""
        try:
            action()
        except Exception as error:
            run_id = self._ledger.sent(key).run_id
            if not run_id or not (is_unknown(error) or is_inactive(error)):
                raise
            run = self._get(run_id)
            if run is not None and run.info.lifecycle_stage == "deleted":
                self._ledger.note(key, deleted=True)
                return
            if run is None:
                self._ledger.forget(key)
            raise

    def _send_trial(self, key: str, sent: Sent, trial: TrialSnapshot, study: StudySnapshot) -> None:
        if not sent.run_id:
            # One that started since cannot have a run before the first request for one, and looking takes longer the more runs there are.
            new = trial.started is not None and trial.started > self._opened
            run = None if new else self._find({"mlflow.parentRunId": self._parent, "guidino.trial": key})
            if run is None:
                if not new:
                    self._ledger.note(STUDY, doubtful=time.time())
                run = self._create(trial, study)
            self._ledger.note(key, run_id=run.info.run_id, status=run.info.status)
        epoch, ended = (trial.history[-1].epoch, trial.history[-1].time) if trial.history else (0, 0.0)
        final = EpochRecord(epoch, trial.results, trial.measured or trial.finished or ended)
        self._send_figures(key, study, _params(trial), trial_tags(trial, sent), final, list(_with_best(trial.history, study, sent.epoch)))
        self._send_status(key, STATUS[trial.state], _milliseconds(trial.finished, trial.history[-1:]))

    def _send_figures(
        self,
        key: str,
        study: StudySnapshot,
        params: Mapping[str, Plain],
        tags: Mapping[str, str],
        final: EpochRecord,
        records: Sequence[EpochRecord] = (),
    ) -> None:
        """Brings all but status and files up to date: ``final`` metrics as far as they changed, and epochs. It may be sent again.

        For MLflow keeps one of equal points, parameters and tags: step and time of a metric come from the study, never from the clock.
        """
        from mlflow.entities import Metric, Param, RunTag

        sent = self._ledger.sent(key)
        tags, metrics = changed(as_tags(tags), sent.tags), changed(as_metrics(final.metrics), sent.metrics)
        if sent.params and not (tags or metrics or records):
            return
        if not sent.params:
            self._send_datasets(sent.run_id, study)
        points = [*records, EpochRecord(sent.step + final.epoch, metrics, final.time)]
        tags, noted = self._addressed(tags)
        if NOTE in tags and key != STUDY and self._is_a_persons(sent):
            del tags[NOTE]
        self._log(
            sent.run_id,
            params=[] if sent.params else [Param(as_key(name), as_text(value)) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
            metrics=[Metric(name, value, int(r.time * 1000), r.epoch) for r in points for name, value in r.metrics.items()],
        )
        self._ledger.note(key, params=True, tags=noted, metrics=metrics, **({"epoch": records[-1].epoch} if records else {}))

    def _addressed(self, tags: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Tags as they are sent, and as they are remembered: a description that names a run which is not there yet goes again later."""
        if NOTE not in tags:
            return tags, tags
        note, lacking = addressed(tags[NOTE], self._experiment_id, lambda number: self._ledger.sent(number).run_id)
        return {**tags, NOTE: note}, {**tags, NOTE: "" if lacking else tags[NOTE]}

    def _is_a_persons(self, sent: Sent) -> bool:
        """True when a run has a description that is not the one that was sent: it stays, also when ours is worded anew."""
        ours = addressed(sent.tags.get(NOTE, ""), self._experiment_id, lambda number: self._ledger.sent(number).run_id)[0]
        return self._client.get_run(sent.run_id).data.tags.get(NOTE, "") not in ("", ours)

    def _send_status(self, key: str, status: str, end: int | None = None) -> None:
        sent = self._ledger.sent(key)
        if sent.status == status:
            return
        if status in ("RUNNING", "SCHEDULED"):
            self._client.update_run(sent.run_id, status=status)
        else:
            self._client.set_terminated(sent.run_id, status=status, end_time=end)
        self._ledger.note(key, status=status)

    def _log(self, run_id: str, **what: Sequence[Any]) -> None:
        """Sends all in as few requests as MLflow takes; where it refuses one for good, each kind alone."""
        for n in range(max(math.ceil(len(items) / SIZES[kind]) for kind, items in what.items())):
            part = {kind: items[n * SIZES[kind] : (n + 1) * SIZES[kind]] for kind, items in what.items()}
            try:
                self._client.log_batch(run_id, **part)
            except Exception as error:
                if not is_permanent(error):
                    raise
                for kind, items in part.items():
                    self._try(lambda kind=kind, items=items: self._client.log_batch(run_id, **{kind: items}))  # type: ignore[misc]

    def _create(self, trial: TrialSnapshot, study: StudySnapshot) -> Any:
        tags = {
            "mlflow.parentRunId": self._parent,
            "guidino.study": study.name,
            "guidino.study_id": study_id(study),
            "guidino.kind": "trial",
            "guidino.trial": str(trial.number),
        }
        return self._client.create_run(
            self._experiment_id,
            start_time=_milliseconds(trial.started, trial.history[:1]),
            run_name=f"trial {trial.number:04d} {trial.name}".strip(),
            tags=as_tags(tags | code_tags()),
        )

    def send_files(self, key: str, pictures: Sequence[Path], artifacts: Sequence[Path], note: str = "") -> None:
        """Uploads the files whose content MLflow does not have: pictures into ``pictures/`` and into the image grid, others as they are.

        Pictures that the description shows go into ``previews/`` as well.
        """
        sent = self._ledger.sent(key)
        if sent.run_id and not sent.deleted:
            self._unless_deleted(key, lambda: self._send_files(key, sent, pictures, artifacts, note))

    def _send_files(self, key: str, sent: Sent, pictures: Sequence[Path], artifacts: Sequence[Path], note: str) -> None:
        for path in pictures:
            if key != STUDY and picture(int(key), path.name) in note:
                self._upload(sent, key, path, PREVIEWS)
            self._upload(sent, key, path, PICTURES)
        for path in artifacts:
            if path.is_dir():
                for file in sorted(p for p in path.rglob("*") if p.is_file()):
                    self._upload(sent, key, file, (Path(path.name) / file.relative_to(path).parent).as_posix())
            else:
                self._upload(sent, key, path, "")

    def _upload(self, sent: Sent, key: str, path: Path, folder: str) -> None:
        place = f"{folder}/{path.name}".lstrip("/")
        digest = self._try(lambda: self._hashes.of(path))
        if digest is None or sent.files.get(place) == digest:
            return
        self._try(lambda: upload(self._client, sent.run_id, path, folder, digest))
        self._ledger.note(key, files={place: digest})

    def _send_datasets(self, run_id: str, study: StudySnapshot) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for data in study.datasets:
            profile = json.dumps({"num_train": data.num_train, "num_validation": data.num_validation})
            source = json.dumps({"uri": data.source or data.name})
            dataset = Dataset(data.name[:500], data.fingerprint[:36], "local", source, profile=profile)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", "training and validation")]))
        if not inputs:
            return
        try:
            self._try(lambda: self._client.log_inputs(run_id, inputs))
        except Exception as error:
            if error_code(error) != "ENDPOINT_NOT_FOUND":
                raise
            self._refused(" ".join(str(error).split())[:400])  # a server from before MLflow knew of data sets: the rest it knows

    def _find(self, tags: Mapping[str, str]) -> Any:
        """The oldest run with these tags, or ``None``."""
        text = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = self._client.search_runs([self._experiment_id], text, max_results=1, order_by=["attributes.start_time ASC"])
        return runs[0] if runs else None

    def _get(self, run_id: str) -> Any:
        try:
            return self._client.get_run(run_id)
        except Exception as error:
            if is_unknown(error):
                return None
            raise

    def _try(self, action: Callable[[], T]) -> T | None:
        """Runs ``action``; what MLflow refuses for good is reported and left out, as the next try would meet the same refusal."""
        try:
            return action()
        except Exception as error:
            if not is_permanent(error):
                raise
            self._refused(" ".join(str(error).split())[:400])
            return None


def _params(trial: TrialSnapshot) -> dict[str, Plain]:
    """The searched ones come a second time under one heading, so that MLflow's column menu offers them together."""
    return {**trial.params, **{f"searched/{path}": value for path, value in trial.searched.items()}}


def trial_tags(trial: TrialSnapshot, sent: Sent) -> dict[str, str]:
    """All tags of a trial that may change; ``sent`` is what its run has."""
    tags = {**trial.tags, "guidino.state": trial.state.upper()}
    if trial.reason or "guidino.reason" in sent.tags:
        tags["guidino.reason"] = trial.reason  # an old reason goes when the trial runs again
    return tags


def as_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under names that MLflow takes."""
    return {as_key(name): float(value) for name, value in metrics.items()}


def changed(values: Mapping[str, T], before: Mapping[str, T]) -> dict[str, T]:
    """What is not as before; NaN is like NaN."""
    return {name: value for name, value in values.items() if repr(before.get(name)) != repr(value)}


def _with_best(history: Sequence[EpochRecord], study: StudySnapshot, after: int) -> Iterator[EpochRecord]:
    """Records of epochs later than ``after``, with the objective's best value so far, so that running trials sort too."""
    best: float | None = None
    for record in history:
        value = float(record.metrics.get(study.objective, math.nan))
        if math.isfinite(value):
            best = value if best is None else (max if study.maximize else min)(best, value)
        if record.epoch > after:
            metrics = as_metrics(record.metrics)
            yield EpochRecord(record.epoch, metrics if best is None else {**metrics, as_key(f"best_{study.objective}"): best}, record.time)


def _milliseconds(seconds: float | None, records: Sequence[EpochRecord]) -> int | None:
    if seconds is None and records:
        seconds = records[0].time
    return None if seconds is None else int(seconds * 1000)


def study_id(study: StudySnapshot) -> str:
    """What tells a study from others, without the quote that would end a literal in MLflow's search language (which has no escape)."""
    return (study.id or study.name).replace("'", "_")
