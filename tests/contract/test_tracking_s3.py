"""Pictures and models in an S3 behind a real MLflow server, which may be away for a while; only that server has its keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_tracking_server import PATIENCE, Server, running, trial, wait_for

from guidino_tune.tracking import MLflowTracker, StudySnapshot, log_model_run
from guidino_tune.tracking.client import connect

pytest.importorskip("moto", reason="needs moto[s3], one of the extra dev")
boto3 = pytest.importorskip("boto3")

pytestmark = pytest.mark.timeout(600)

KEYS = {"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def storage() -> Iterator[Any]:
    from moto.server import ThreadedMotoServer

    storage = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    storage.start()
    yield storage
    storage.stop()


@pytest.fixture
def bucket(storage: Any) -> Any:
    _, port = storage.get_host_and_port()
    s3 = boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
                        aws_access_key_id="mine", aws_secret_access_key="secret")  # fmt: skip
    return s3.create_bucket(Bucket="artifacts")


@pytest.fixture
def server(storage: Any, bucket: Any, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, artifacts="s3://artifacts/mlflow")
    keys = {**KEYS, "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{storage.get_host_and_port()[1]}"}
    with running(server, **keys):
        yield server


def names(bucket: Any) -> set[str]:
    return {Path(entry.key).name for entry in bucket.objects.all()}


def test_pictures_and_models_arrive_in_a_bucket(server: Server, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guidino_tune.tracking.mlflow_tracker.LONGEST_WAIT", 1.0)
    picture = tmp_path / "case1_epoch0001.png"
    Image.new("RGB", (32, 16), "blue").save(picture)
    tracker = MLflowTracker(server.uri, "s3", StudySnapshot("s"), tmp_path / "ledger.jsonl")
    tracker.start()
    tracker.update(trial(0, 3, pictures=(picture,)))
    assert tracker.flush(PATIENCE), tracker.message
    assert picture.name in names(bucket)

    bucket.objects.all().delete()
    bucket.delete()  # as when the storage refuses: figures go on, files wait
    other = tmp_path / "case2_epoch0004.png"
    Image.new("RGB", (32, 16), "red").save(other)
    tracker.update(trial(0, 5, state="complete", pictures=(picture, other)))
    assert wait_for(lambda: tracker.failures > 0, PATIENCE)
    assert '"status": "FINISHED"' in (tmp_path / "ledger.jsonl").read_text()
    bucket.create()
    assert tracker.close(PATIENCE), tracker.message
    assert other.name in names(bucket)
    client = connect(server.uri, 30)
    (run,) = client.search_runs([client.get_experiment_by_name("s3").experiment_id], "tags.`guidino.trial` = '0'")
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val_dice")] == [1, 2, 3, 4, 5]

    model = tmp_path / "export"
    model.mkdir()
    (model / "weights.safetensors").write_bytes(b"w" * 1000)
    log_model_run(server.uri, "s3", "retrain", {"a": 1}, {"val_dice": 0.9}, [], model, "demo-model", {})
    assert {"MLmodel", "weights.safetensors"} <= names(bucket)
    assert not (tmp_path / "art").exists()
