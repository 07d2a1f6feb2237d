"""An exported model becomes a version in MLflow's registry, once."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from guidino_tune import paths
from guidino_tune.config import Experiment
from guidino_tune.errors import redacted
from guidino_tune.tracking import SeedRun, flatten, log_model_run
from guidino_tune.tracking.client import is_server, place, same_place
from guidino_tune.tracking.inspection import experiment_name
from guidino_tune.tracking.views import model_page
from guidino_tune.training.folder import write_text
from guidino_tune.training.model_folder import find_rules
from guidino_tune.workflows.serving import LOADER, example_image
from guidino_tune.workflows.track import mlflow_uri


def register_model(
    experiment: Experiment,
    model: Path,
    home: Path,
    name: str,
    console: Console,
    *,
    summary: Mapping[str, float],
    known_by: Mapping[str, Any],
    tags: Mapping[str, str],
    about: str,
    seeds: Sequence[SeedRun],
    artifacts: Sequence[Path] = (),
    evaluated: Path | None = None,
    score: float | None = None,
) -> None:
    """Registers a model, unless that was done before, and says what to do with it.

    Args:
        experiment: What was trained.
        model: The exported folder.
        home: Where to remember it.
        name: The registered one is ``guidino-tune-NAME``.
        console: For the next steps.
        summary: Final metrics.
        known_by: What makes it another model or measurement; plain JSON types.
        tags: Of the run and of the version.
        about: The model in a line, for a person.
        seeds: The trainings behind it.
        artifacts: Other files to keep with the run.
        evaluated: What can be evaluated on validation cases; by default the model.
        score: On validation, by which the versions of a model are compared.

    Raises:
        UserError: MLflow is away or refuses.
    """
    uri, registered = mlflow_uri(), f"guidino-tune-{name}"
    marker = home / "registered.json"
    it = {"experiment": experiment.hash, **known_by}
    known: dict[str, str] = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
    before = ((json.loads(key), version) for key, version in known.items())
    version = next((v for values, v in before if same_place(values.pop("uri"), uri) and values == it), None)
    if version is None:
        title, artifacts_at = f"retrain {name} {experiment.name}", paths.home() / "mlartifacts"
        _, version = log_model_run(
            uri, experiment_name(), title, flatten(experiment.to_dict()), summary, artifacts, model, registered,
            {"experiment_hash": experiment.hash, **tags}, seeds=seeds, artifact_location=artifacts_at, loader_module=LOADER,
            example=example_image(experiment.data.channels, find_rules(model, experiment.data).intensity.kind != "8-bit"),
            description=about, score=score,
        )  # fmt: skip
        write_text(marker, json.dumps({**known, json.dumps({**it, "uri": place(uri)}): version}, indent=1))
    for line in (
        about,
        f"registered in MLflow as {registered!r}, version {version}",
        f"  browse: {redacted(uri) if is_server(uri) else paths.next_command('ui')}",
        f"    open: {model_page(uri, registered)}",
        " predict: " + paths.next_command(f"predict {shlex.quote(str(model))} IMAGES --output masks"),
        "evaluate: " + paths.next_command(f"evaluate {shlex.quote(str(evaluated or model))}"),
    ):
        console.print(line, highlight=False, soft_wrap=True)
