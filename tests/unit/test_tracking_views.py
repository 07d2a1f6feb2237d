"""The saved view of a study, as MLflow's pages read it."""

import base64
import json
import zlib
from types import SimpleNamespace
from typing import Any

import pytest

from guidino_tune.tracking import StudySnapshot
from guidino_tune.tracking.views import TAG, page, save_view, view_name

STUDY = StudySnapshot("polyps", params={"space.training.lr": "0.1 to 1", "space.loss.lambda_guide": "log", "training.lr": 0.1}, id="/h/s")


class Client:
    def __init__(self) -> None:
        self.tags: dict[str, str] = {}

    def get_experiment(self, number: str) -> Any:
        assert number == "7"
        return SimpleNamespace(tags=dict(self.tags))

    def set_experiment_tag(self, number: str, key: str, value: str) -> None:
        assert number == "7"
        self.tags[key] = value


def state(value: str) -> dict[str, Any]:
    kind, packed = json.loads(value)["state"].split(";")
    assert kind == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_view_filters_sorts_and_shows_what_is_searched() -> None:
    client = Client()
    save_view(client, "7", STUDY, "/h/s")
    ((tag, value),) = client.tags.items()
    assert tag == TAG + view_name("/h/s")
    assert json.loads(value)["name"] == "polyps: trials, best first"
    seen = state(value)
    assert seen["searchFilter"] == "tags.`guidino.study_id` = '/h/s' and tags.`guidino.kind` = 'trial'"
    assert (seen["orderByKey"], seen["orderByAsc"]) == ("metrics.`best_val_dice`", False)
    shown = [column for column in seen["selectedColumns"] if column.startswith("params")]
    assert shown == ["params.`searched/training.lr`", "params.`searched/loss.lambda_guide`"]
    assert set(seen["selectedColumns"]) <= set(seen["columnOrder"])


def test_view_has_charts_of_the_search_with_parameters_that_every_trial_has() -> None:
    """MLflow leaves a trial that lacks one parameter out of the whole chart."""
    client = Client()
    some = {"space.guide.lora.alpha": "4 .. 32 (log), when guide.lora.rank gt 0"}
    save_view(client, "7", StudySnapshot("s", params={**STUDY.params, **some}), "s")
    seen = state(*client.tags.values())
    parallel, line = seen["compareRunCharts"]
    assert (parallel["type"], parallel["selectedParams"]) == ("PARALLEL", ["searched/training.lr", "searched/loss.lambda_guide"])
    assert parallel["selectedMetrics"] == ["best_val_dice"]
    assert (line["type"], line["metricKey"]) == ("LINE", "val_dice")
    assert {chart["metricSectionId"] for chart in (parallel, line)} == {section["uuid"] for section in seen["compareRunSections"]}


def test_metric_that_is_minimised_sorts_upwards() -> None:
    client = Client()
    save_view(client, "7", StudySnapshot("s", objective="val_hd95", maximize=False), "s")
    seen = state(*client.tags.values())
    assert (seen["orderByKey"], seen["orderByAsc"]) == ("metrics.`best_val_hd95`", True)


def test_view_that_a_person_changed_stays_and_other_studies_have_their_own() -> None:
    client = Client()
    save_view(client, "7", STUDY, "/h/s")
    client.tags[TAG + view_name("/h/s")] = "changed"
    save_view(client, "7", STUDY, "/h/s")
    save_view(client, "7", STUDY, "/h/other")
    assert len(client.tags) == 2
    assert client.tags[TAG + view_name("/h/s")] == "changed"


def test_no_view_is_no_error() -> None:
    class Refusing(Client):
        def set_experiment_tag(self, number: str, key: str, value: str) -> None:
            raise PermissionError("you may not")

    save_view(Refusing(), "7", STUDY, "/h/s")


@pytest.mark.parametrize(
    ("uri", "base"),
    [
        ("sqlite:////h/mlflow.db", "http://127.0.0.1:5000"),
        ("http://me:secret@host:81/", "http://***@host:81"),
        ("https://host/mlflow", "https://host/mlflow"),
    ],
)
def test_address(uri: str, base: str) -> None:
    assert page(uri, "7", "/h/s") == f"{base}/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey={view_name('/h/s')}"
