"""The page on which MLflow shows a study: its trials, best first, with their scores and the searched parameters as columns.

MLflow keeps the views that people save in tags of the experiment. We save one for each study in the same way, because without it the
pages of MLflow 3 show neither scores nor parameters, and open on charts for language models, which are empty here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import time
import zlib
from typing import Any
from urllib.parse import quote, urlencode

from guidino_tune.errors import redacted
from guidino_tune.tracking.client import as_key, is_server
from guidino_tune.tracking.snapshots import StudySnapshot

TAG = "mlflow.sharedViewState."
LOCAL = "http://127.0.0.1:5000"
"""Where the command that ``ui_command`` gives serves the pages."""
LETTER = 7  # pixels, about: so many does a letter of a heading take


def view_name(study_id: str) -> str:
    """Name of a study's view, for addresses."""
    return f"guidino-{hashlib.sha256(study_id.encode()).hexdigest()[:12]}"


def page(uri: str, experiment_id: str, study_id: str) -> str:
    """Address of a study's view, on the server at ``uri`` or, for a database, on the one that ``ui_command`` starts."""
    query = urlencode({"workflowType": "machine_learning", "viewStateShareKey": view_name(study_id)})
    return f"{_base(uri)}/#/experiments/{experiment_id}/runs?{query}"


def model_page(uri: str, name: str) -> str:
    """Address of a registered model, on the same server."""
    return f"{_base(uri)}/#/models/{quote(name)}"


def _base(uri: str) -> str:
    return redacted(uri).rstrip("/") if is_server(uri) else LOCAL


def save_view(client: Any, experiment_id: str, study: StudySnapshot, study_id: str) -> None:
    """Saves the view of a study unless there is one, so that what a person changed in it stays. Never raises.

    Args:
        client: An ``MlflowClient``.
        experiment_id: MLflow's id of the experiment.
        study: The study; ``space.PATH`` in its parameters says that PATH is searched.
        study_id: As in the tag ``guidino.study_id`` of its runs.
    """
    tag = TAG + view_name(study_id)
    # It is a comfort and no record: a user who may not tag the experiment, or an MLflow that is away just now, is no reason to stop.
    with contextlib.suppress(Exception):
        if tag not in client.get_experiment(experiment_id).tags:
            client.set_experiment_tag(experiment_id, tag, _saved(study, study_id))


def _charts(study: StudySnapshot, params: list[str]) -> dict[str, Any]:
    """The page's charts: what was searched against the best score, and the score by epoch."""
    best, section = as_key(f"best_{study.objective}"), "guidino-search"
    common = {"metricSectionId": section, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    parallel = {"type": "PARALLEL", "uuid": "guidino-parallel", "selectedParams": params, "selectedMetrics": [best], **common}
    line = {
        "type": "LINE", "uuid": "guidino-line", "metricKey": study.objective, "selectedMetricKeys": [study.objective], "xAxisKey": "step",
        "xAxisScaleType": "linear", "scaleType": "linear", "selectedXAxisMetricKey": "", "lineSmoothness": 0, **common,
    }  # fmt: skip
    return {
        "compareRunCharts": [parallel, line],
        "compareRunSections": [
            {"uuid": section, "name": "Search", "display": True, "isReordered": False, "deleted": False, "isGenerated": False}
        ],
    }


def _saved(study: StudySnapshot, study_id: str) -> str:
    """A view as MLflow's pages write it: JSON with a name, and the state of the page as compressed JSON."""
    best = f"metrics.`{as_key(f'best_{study.objective}')}`"
    searched = [path.removeprefix("space.") for path in study.params if path.startswith("space.")]
    columns = {
        best: 130,
        "metrics.`val_iou`": 90,
        "metrics.`val_hd95`": 90,
        "tags.`guidino.state`": 120,
        **{f"params.`{as_key(f'searched/{path}')}`": 24 + LETTER * len(f"searched/{path}") for path in searched},
    }
    state = {
        "searchFilter": f"tags.`guidino.study_id` = '{study_id}' and tags.`guidino.kind` = 'trial'",
        "orderByKey": best,
        "orderByAsc": not study.maximize,
        "selectedColumns": list(columns),
        "columnOrder": ["0", "attributes.`Run Name`", "runDateAndNestInfo", "duration", *columns],
        "columnWidths": {"attributes.`Run Name`": 230, **columns},
        # What only some trials have would leave all others out of the chart.
        **_charts(study, [as_key(f"searched/{path}") for path in searched if ", when " not in str(study.params[f"space.{path}"])]),
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    return json.dumps({"name": f"{study.name}: trials, best first", "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})
