"""Retrained models in MLflow: one run with a nested run per seed, and a version in the model registry."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from guidino_tune.errors import UserError
from guidino_tune.tracking.client import as_key, as_tags, as_text, code_tags, connect, explain, find_experiment, is_server, is_unknown
from guidino_tune.tracking.flavour import SCORE, crown, example_files, example_info, python_function, signature
from guidino_tune.tracking.snapshots import Plain
from guidino_tune.training.reporter import EpochRecord

BATCH = 100  # MLflow's limit of parameters in a request
METRICS = 900  # its limit of metrics is 1000
MODEL = "model"
CONTENT = "guidino.content"
"""Tag of a version: fingerprint of all that was registered with it, by which what broke off half-way is found again."""


@dataclass(frozen=True, slots=True)
class SeedRun:
    """One training with one seed: a run nested in the model's.

    Attributes:
        seed: Of the training.
        metrics: Final ones.
        history: Per epoch; may be empty.
        params: Where they differ from the model's.
        artifacts: Files or folders.
        chosen: Whether its weights are the exported ones.
    """

    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: Sequence[EpochRecord] = ()
    params: Mapping[str, Plain] = field(default_factory=dict)
    artifacts: Sequence[Path] = ()
    chosen: bool = False


def log_model_run(
    uri: str,
    experiment: str,
    run_name: str,
    params: Mapping[str, Plain],
    metrics: Mapping[str, float],
    artifacts: Sequence[Path],
    model_dir: Path,
    registered_name: str,
    tags: Mapping[str, str],
    *,
    seeds: Sequence[SeedRun] = (),
    loader_module: str | None = None,
    example: Any = None,
    description: str = "",
    score: float | None = None,
    artifact_location: Path | None = None,
) -> tuple[str, str]:
    """Logs a run with an exported model and makes it a version in the model registry, once.

    A call that breaks off may have added a version before, even if it never heard of it: the next call with the same content finds it and
    finishes what is missing. Other files, numbers or tags are another version.

    Args:
        uri: Of an MLflow server or a database.
        experiment: Name of the MLflow experiment; created when missing.
        run_name: Shown in MLflow.
        params: The experiment, flattened with dots.
        metrics: Final ones, such as means over the seeds.
        artifacts: Other files or folders to keep with the run.
        model_dir: The exported model; its files land under ``model/``, beside an ``MLmodel`` file that describes them.
        registered_name: Of the model in the registry; created when missing.
        tags: Of the run and of the version.
        seeds: The trainings behind the model.
        loader_module: Python module with ``_load_pyfunc(path)``, so that ``mlflow.pyfunc.load_model`` works; ``None`` leaves the model
            to this package's own commands. No code is pickled either way.
        example: An image as nested lists, for whoever wants to try the model on MLflow's pages or its server.
        description: Of the version, for a person.
        score: On validation; the best version of all has the alias ``flavour.CHAMPION``.
        artifact_location: Folder for the artifacts of a new experiment in a database.

    Returns:
        Id of the run, and the version's number.

    Raises:
        UserError: The model folder is missing, or MLflow is away or refuses. The files of the retraining are not touched.
    """
    model_dir = Path(model_dir)
    if not model_dir.is_dir():
        raise UserError("there is no exported model", where=str(model_dir), todo="export it first, then register it")
    run_id, client = "", None
    try:
        client = connect(uri, timeout=60)
        told = [dict(params), dict(metrics), dict(tags), [_told(seed) for seed in seeds], loader_module, description, score]
        content = _fingerprint(model_dir, told)
        begun = _find_begun(client, registered_name, content)
        if begun is None:
            experiment_id = find_experiment(client, experiment, None if is_server(uri) else artifact_location)
            labels = {**code_tags(), **tags, "guidino.kind": "retrain"}
            run = client.create_run(experiment_id, run_name=run_name, tags=as_tags(labels))
            run_id = run.info.run_id
            _log(client, run_id, params, metrics, (), artifacts)
            for seed in seeds:
                _log_seed(client, experiment_id, run_id, seed)
            client.log_artifacts(run_id, str(model_dir), MODEL)
            if example is not None:
                for name, text in example_files(example).items():
                    client.log_text(run_id, text, f"{MODEL}/{name}")
            client.log_dict(run_id, _description(run_id, model_dir, loader_module, example is not None), f"{MODEL}/MLmodel")
            # Last of all that is written, so that a version whose content is known has all its files.
            known = {**tags, CONTENT: content} | ({SCORE: repr(score)} if score is not None else {})
            version = _register(client, registered_name, f"{run.info.artifact_uri}/{MODEL}", run_id, known, description)
            begun = run_id, version
        crown(client, registered_name)
        if client.get_run(begun[0]).info.status != "FINISHED":
            client.set_terminated(begun[0])
        return begun
    except UserError:
        raise
    except Exception as error:
        _give_up(client, run_id)
        raise UserError(
            f"the model could not be registered: {explain(error, uri)}",
            where=str(model_dir),
            todo="the files are complete; run the same command again when MLflow answers",
        ) from error


def _told(seed: SeedRun) -> list[Any]:
    return [seed.seed, dict(seed.metrics), dict(seed.params), seed.chosen]


def _fingerprint(model_dir: Path, told: Sequence[Any]) -> str:
    """SHA-256 of a model's files and of what is told with them."""
    files = {}
    for file in sorted(file for file in model_dir.rglob("*") if file.is_file()):
        with file.open("rb") as stream:
            files[file.relative_to(model_dir).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashlib.sha256(json.dumps([files, told], sort_keys=True, default=str).encode()).hexdigest()


def _find_begun(client: Any, name: str, content: str) -> tuple[str, str] | None:
    """Run and number of the version with this content, the newest of several; none whose run somebody has deleted."""
    versions = [one for one in client.search_model_versions(f"name = '{name}'") if one.tags.get(CONTENT) == content]
    for one in sorted(versions, key=lambda one: -int(one.version)):
        try:
            if client.get_run(one.run_id).info.lifecycle_stage == "active":
                return str(one.run_id), str(one.version)
        except Exception as error:
            if not is_unknown(error):
                raise
    return None


def _log_seed(client: Any, experiment_id: str, parent: str, seed: SeedRun) -> None:
    tags = {
        "mlflow.parentRunId": parent,
        "guidino.kind": "seed",
        "guidino.seed": str(seed.seed),
        "guidino.chosen": str(seed.chosen).lower(),
    }
    start = int(seed.history[0].time * 1000) if seed.history else None
    run = client.create_run(experiment_id, start_time=start, run_name=f"seed {seed.seed}", tags=as_tags(tags | code_tags()))
    _log(client, run.info.run_id, {"training.seed": seed.seed, **seed.params}, seed.metrics, seed.history, seed.artifacts)
    client.set_terminated(run.info.run_id, end_time=int(seed.history[-1].time * 1000) if seed.history else None)


def _log(
    client: Any,
    run_id: str,
    params: Mapping[str, Plain],
    metrics: Mapping[str, float],
    history: Sequence[EpochRecord],
    artifacts: Sequence[Path],
) -> None:
    from mlflow.entities import Metric, Param

    items = [Param(as_key(key), as_text(value)) for key, value in params.items()]
    points = [Metric(as_key(k), float(v), int(r.time * 1000), r.epoch) for r in history for k, v in r.metrics.items()]
    last = history[-1].epoch if history else 0
    points += [Metric(as_key(key), float(value), int(time.time() * 1000), last) for key, value in metrics.items()]
    for start in range(0, len(items), BATCH):
        client.log_batch(run_id, params=items[start : start + BATCH])
    for start in range(0, len(points), METRICS):
        client.log_batch(run_id, metrics=points[start : start + METRICS])
    for path in artifacts:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), path.name)
        else:
            client.log_artifact(run_id, str(path))


def _description(run_id: str, model_dir: Path, loader_module: str | None, example: bool) -> dict[str, Any]:
    """The content of ``MLmodel``: MLflow's pages and ``mlflow.models`` read it."""
    files = sorted(p for p in model_dir.rglob("*") if p.is_file())
    ours = {"files": [p.relative_to(model_dir).as_posix() for p in files], "version": metadata.version("guidino-tune")}
    flavors: dict[str, Any] = {"guidino_tune": ours}
    if loader_module:
        flavors["python_function"] = python_function(loader_module)
    return {
        **(signature() if loader_module else {}),
        **(example_info() if example else {}),
        "artifact_path": MODEL,
        "flavors": flavors,
        "mlflow_version": metadata.version("mlflow"),
        "model_size_bytes": sum(p.stat().st_size for p in files),
        "model_uuid": uuid.uuid4().hex,
        "run_id": run_id,
        "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    }


def _register(client: Any, name: str, source: str, run_id: str, tags: Mapping[str, str], description: str) -> str:
    try:
        client.create_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(client.create_model_version(name, source, run_id, tags=as_tags(tags), description=description or None).version)


def _give_up(client: Any, run_id: str) -> None:
    """Marks a half-written run as failed, if that is still possible."""
    if client is None or not run_id:
        return
    try:
        client.set_terminated(run_id, status="FAILED")
    except Exception:
        return  # MLflow is away: the first error is the one to tell
