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
from guidino_tune.tracking.snapshots import Plain, StudySnapshot, TrialSnapshot
from guidino_tune.tracking.uploads import PICTURES, ContentHashes, upload
from guidino_tune.tracking.views import save_view
from guidino_tune.training.reporter import EpochRecord

BATCH = 100  # MLflow's limit of parameters or tags in a request
METRICS = 900  # its limit of metrics, and of everything together, is 1000
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
            tags = as_tags({"guidino.study": study.name, **mine, **code_tags()})
            found = self._find(mine)
            run = found or self._client.create_run(self._experiment_id, run_name=study.name, tags=tags)
            self._ledger.note(
                STUDY,
                run_id=run.info.run_id,
                status=run.info.status,
                **(self._known(found) if found else {"doubtful": time.time()}),
            )
        self._experiment_id, self._parent = run.info.experiment_id, run.info.run_id
        self._opened = time.time()
        save_view(self._client, self._experiment_id, study, study_id(study))
        return not lost

    def remove_doubles(self, study: StudySnapshot) -> None:
        """Deletes empty runs that MLflow made twice: one that answers late may carry out a request after we asked again.

        While that may still happen, the doubt stays in the ledger for the next time.
        """
        doubtful = {key for key in self._ledger.keys if self._ledger.sent(key).doubtful}
        runs: list[Any] = []
        token: str | None = None
        while doubtful and (token or not runs):
            mine = f"tags.`guidino.study_id` = '{study_id(study)}'"
            page = self._client.search_runs([self._experiment_id], mine, max_results=1000, page_token=token)
            runs, token = [*runs, *page], page.token
            if not page:
                break
        for run in runs:
            key = STUDY if run.data.tags.get("guidino.kind") == "study" else run.data.tags.get("guidino.trial")
            if key in doubtful and run.info.run_id != self._ledger.sent(key).run_id and not (run.data.metrics or run.data.params):
                self._client.delete_run(run.info.run_id)
                self._ledger.note(key, doubtful=0.0)
        for key in doubtful:
            if 0 < self._ledger.sent(key).doubtful < time.time() - DOUBT:
                self._ledger.note(key, doubtful=0.0)

    def send_study(self, study: StudySnapshot, status: str) -> None:
        """Parameters, data sets, tags, metrics and status of the parent run."""
        sent, run_id = self._ledger.sent(STUDY), self._parent
        if not sent.params:
            self._send_params(run_id, study.params)
            self._send_datasets(run_id, study)
            self._ledger.note(STUDY, params=True)
        self._send_tags(STUDY, run_id, study.tags)
        self._send_metrics(STUDY, run_id, study.metrics)
        if sent.status != status:
            if status == "RUNNING":
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status=status)
            self._ledger.note(STUDY, status=status)

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
                run = self._create(trial, study)
                made = {"run_id": run.info.run_id, "status": run.info.status, "tags": as_tags(trial_tags(trial, sent))}
                self._ledger.note(key, **made, **({} if new else {"doubtful": time.time()}))
            else:
                self._ledger.note(key, run_id=run.info.run_id, status=run.info.status, **self._known(run, trial.results))
        run_id = sent.run_id
        self._send_together(key, sent, trial, study)
        if not sent.params:
            self._send_params(run_id, _params(trial))
            self._ledger.note(key, params=True)
        for records in _batches(_with_best(trial.history, study, sent.epoch)):
            batch = _metrics(records)
            self._try(lambda batch=batch: self._log(run_id, metrics=batch))  # type: ignore[misc]
            self._ledger.note(key, epoch=records[-1].epoch)
        self._send_metrics(key, run_id, trial.results)
        self._send_tags(key, run_id, trial_tags(trial, sent))
        status = STATUS[trial.state]
        if sent.status != status:
            if status in ("RUNNING", "SCHEDULED"):
                self._client.update_run(run_id, status=status)
            else:
                self._client.set_terminated(run_id, status=status, end_time=_milliseconds(trial.finished, trial.history[-1:]))
            self._ledger.note(key, status=status)

    def _send_together(self, key: str, sent: Sent, trial: TrialSnapshot, study: StudySnapshot) -> None:
        """Parameters, tags and epochs in one request, if they fit into one; where MLflow refuses it, the parts go one by one."""
        from mlflow.entities import Param, RunTag

        if not sent.params:
            self._send_datasets(sent.run_id, study)
        params = {} if sent.params else _params(trial)
        tags = {name: value for name, value in as_tags(trial_tags(trial, sent)).items() if sent.tags.get(name) != value}
        records = list(_with_best(trial.history, study, sent.epoch))
        metrics = _metrics(records)
        if not (params or metrics) or max(len(params), len(tags)) > BATCH or len(metrics) + len(params) + len(tags) > METRICS:
            return
        try:
            self._log(
                sent.run_id,
                params=[Param(as_key(name), as_text(value)) for name, value in params.items()],
                tags=[RunTag(name, value) for name, value in tags.items()],
                metrics=metrics,
            )
        except Exception as error:
            if not is_permanent(error):
                raise
            return
        self._ledger.note(key, params=True, tags=tags, **({"epoch": records[-1].epoch} if records else {}))

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
            tags=as_tags(tags | trial_tags(trial, Sent()) | code_tags()),
        )

    def send_files(self, key: str, pictures: Sequence[Path], artifacts: Sequence[Path]) -> None:
        """Uploads the files whose content MLflow does not have: pictures into ``pictures/`` and into the image grid, others as they are."""
        sent = self._ledger.sent(key)
        if sent.run_id and not sent.deleted:
            self._unless_deleted(key, lambda: self._send_files(key, sent, pictures, artifacts))

    def _send_files(self, key: str, sent: Sent, pictures: Sequence[Path], artifacts: Sequence[Path]) -> None:
        for path in pictures:
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

    def _send_params(self, run_id: str, params: Mapping[str, Plain]) -> None:
        from mlflow.entities import Param

        items = [Param(as_key(key), as_text(value)) for key, value in params.items()]
        for start in range(0, len(items), BATCH):
            self._try(lambda start=start: self._log(run_id, params=items[start : start + BATCH]))  # type: ignore[misc]

    def _send_tags(self, key: str, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        sent = self._ledger.sent(key)
        changed = {name: value for name, value in as_tags(tags).items() if sent.tags.get(name) != value}
        items = [RunTag(name, value) for name, value in changed.items()]
        for start in range(0, len(items), BATCH):
            self._try(lambda start=start: self._log(run_id, tags=items[start : start + BATCH]))  # type: ignore[misc]
        if changed:
            self._ledger.note(key, tags=changed)

    def _send_metrics(self, key: str, run_id: str, metrics: Mapping[str, float]) -> None:
        """Metrics without an epoch of their own: each change is a new step."""
        sent = self._ledger.sent(key)
        values = {as_key(name): float(value) for name, value in metrics.items()}
        while sent.asked or any(repr(sent.metrics.get(name)) != repr(value) for name, value in values.items()):
            if not sent.asked:
                changed = {name: value for name, value in values.items() if repr(sent.metrics.get(name)) != repr(value)}
                self._ledger.note(key, asked={"values": changed, "step": sent.step + 1, "time": _now()})
            # After a lost answer exactly the same goes out again: MLflow keeps one of equal points, but two that differ in their time.
            asked = sent.asked
            points = [_metric(name, value, asked["time"], asked["step"]) for name, value in asked["values"].items()]
            self._try(lambda points=points: self._log(run_id, metrics=points))  # type: ignore[misc]
            self._ledger.note(key, metrics=asked["values"], step=asked["step"], asked={})

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

    def _log(self, run_id: str, **what: Any) -> None:
        self._client.log_batch(run_id, **what)

    def _find(self, tags: Mapping[str, str]) -> Any:
        """The oldest run with these tags, or ``None``."""
        text = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = self._client.search_runs([self._experiment_id], text, max_results=1, order_by=["attributes.start_time ASC"])
        return runs[0] if runs else None

    def _known(self, run: Any, metrics: Mapping[str, float] | None = None) -> dict[str, Any]:
        """For the ledger: metrics without an epoch (all of the study's) in a run that it does not remember; so they count as no change."""
        names = run.data.metrics.keys() if metrics is None else run.data.metrics.keys() & {as_key(name) for name in metrics}
        points = [point for name in names for point in self._client.get_metric_history(run.info.run_id, name)]
        last = {point.key: point.value for point in sorted(points, key=lambda point: point.step)}
        return {"metrics": last, "step": max((point.step for point in points), default=0)}

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


def _metrics(records: Sequence[EpochRecord]) -> list[Any]:
    return [_metric(name, value, int(r.time * 1000), r.epoch) for r in records for name, value in r.metrics.items()]


def _with_best(history: Sequence[EpochRecord], study: StudySnapshot, after: int) -> Iterator[EpochRecord]:
    """Records of epochs later than ``after``, with the objective's best value so far, so that running trials sort too."""
    best: float | None = None
    for record in history:
        value = float(record.metrics.get(study.objective, math.nan))
        if math.isfinite(value):
            best = value if best is None else (max if study.maximize else min)(best, value)
        if record.epoch > after:
            metrics = {as_key(name): float(number) for name, number in record.metrics.items()}
            yield EpochRecord(record.epoch, metrics if best is None else {**metrics, as_key(f"best_{study.objective}"): best}, record.time)


def _batches(records: Iterator[EpochRecord]) -> Iterator[list[EpochRecord]]:
    """Whole epochs, as many together as one request takes."""
    batch: list[EpochRecord] = []
    count = 0
    for record in records:
        if batch and count + len(record.metrics) > METRICS:
            yield batch
            batch, count = [], 0
        batch.append(record)
        count += len(record.metrics)
    if batch:
        yield batch


def _metric(name: str, value: float, milliseconds: int, step: int) -> Any:
    from mlflow.entities import Metric

    return Metric(name, value, milliseconds, step)


def _now() -> int:
    return int(time.time() * 1000)


def _milliseconds(seconds: float | None, records: Sequence[EpochRecord]) -> int | None:
    if seconds is None and records:
        seconds = records[0].time
    return None if seconds is None else int(seconds * 1000)


def study_id(study: StudySnapshot) -> str:
    """What tells a study from others, without the quote that would end a literal in MLflow's search language (which has no escape)."""
    return (study.id or study.name).replace("'", "_")
