"""Models that MLflow keeps, as folders on this machine for as long as they are read."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guidino_tune.config.parsing import read_yaml
from guidino_tune.errors import UserError, nearest
from guidino_tune.tracking.client import connect, explain, is_unknown, sqlite_file

FORMS = "models:/NAME/VERSION, models:/NAME/latest, models:/NAME@ALIAS or runs:/RUN/model"
_MODEL = re.compile(r"models:/+(?P<name>[^/:]+?)(?:/(?P<version>\d+|latest)|@(?P<alias>[^/@]+))")
_RUN = re.compile(r"runs:/+(?P<run>[^/]+)/(?P<path>.+)")


def is_in_mlflow(model: str) -> bool:
    """Whether a model is named by where MLflow keeps it, and not by a folder."""
    return model.startswith(("models:/", "runs:/"))


@contextmanager
def downloaded(model: str, uri: str) -> Iterator[Path]:
    """Fetches a model's files into a folder that is there until the block ends.

    Args:
        model: In one of ``FORMS``.
        uri: Of an MLflow server or a database.

    Raises:
        UserError: MLflow is away, knows no such model, or its files are not all there.
    """
    if (file := sqlite_file(uri)) and not file.is_file():
        raise UserError(
            "there is no MLflow database",
            where=str(file),
            todo="set MLFLOW_TRACKING_URI to the MLflow that has the model, or name a folder",
        )
    with tempfile.TemporaryDirectory(prefix="guidino-tune-model-") as folder:
        try:
            client = connect(uri, timeout=60)
            place = _artifacts(client, model)
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            from mlflow.artifacts import download_artifacts

            files = Path(download_artifacts(artifact_uri=place, dst_path=folder, tracking_uri=uri))
        except UserError:
            raise
        except Exception as error:
            todo = "start MLflow or correct MLFLOW_TRACKING_URI, or name the model's folder"
            raise UserError(f"the model cannot be fetched: {explain(error, uri)}", where=model, todo=todo) from None
        _check_whole(files, model)
        yield files


def _artifacts(client: Any, model: str) -> str:
    """Where the files of a model are.

    Raises:
        UserError: There is no such model, version, alias or run.
    """
    if run := _RUN.fullmatch(model):
        try:
            return f"{client.get_run(run['run']).info.artifact_uri}/{run['path'].strip('/')}"
        except Exception as error:
            if not is_unknown(error):
                raise
            raise UserError(f"MLflow has no run {run['run']!r}", where=model, todo="copy the run's id from its page") from None
    named = _MODEL.fullmatch(model)
    if named is None:
        raise UserError("names no model", where=model, todo=f"write {FORMS}")
    name, version, alias = named["name"], named["version"], named["alias"]
    numbers = sorted(int(one.version) for one in client.search_model_versions(f"name = '{name}'"))
    if not numbers:
        known = [one.name for one in client.search_registered_models()]
        what = f"{name!r} has no version" if name in known else f"MLflow's registry has no model {name!r}"
        raise UserError(what, where=model, todo=nearest(name, known) if known else "register one: `guidino-tune retrain` does")
    aliases = client.get_registered_model(name).aliases
    wanted = aliases.get(alias) if alias is not None else numbers[-1] if version == "latest" else version
    if wanted is None or int(wanted) not in numbers:
        what = f"{name!r} has no {f'version {version}' if alias is None else f'alias {alias!r}'}"
        others = f"; its aliases: {', '.join(sorted(aliases))}" if aliases else ""
        raise UserError(what, where=model, todo=f"its versions: {', '.join(map(str, numbers))}{others}")
    return str(client.get_model_version_download_uri(name, str(wanted)))


def _check_whole(files: Path, model: str) -> None:
    """Compares the files with the list that was made when the model was registered, where there is one.

    Raises:
        UserError: Some are missing, or it is a model of another program.
    """
    if not (files / "MLmodel").is_file():
        return
    flavors = read_yaml(files / "MLmodel").get("flavors")
    ours = flavors.get("guidino_tune") if isinstance(flavors, dict) else None
    if not isinstance(ours, dict):
        raise UserError("is no model of guidino_tune", where=model, todo="name one that `guidino-tune retrain` has registered")
    listed = found if isinstance(found := ours.get("files"), list) else []
    missing = [name for name in listed if not (files / str(name)).is_file()]
    if missing:
        what = f"its files are incomplete: {len(missing)} of {len(listed)} are missing, such as {missing[0]}"
        raise UserError(what, where=model, todo="register it again, or name its folder")
