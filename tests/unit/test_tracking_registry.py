"""A retrained model in MLflow's registry, read back through the registry."""

import contextlib
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from guidino_tune.errors import UserError
from guidino_tune.tracking import EpochRecord, SeedRun, log_model_run
from guidino_tune.tracking.client import connect
from guidino_tune.tracking.flavour import CHAMPION
from guidino_tune.tracking.registry import CONTENT


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(bytes(range(200)))
    (folder / "experiment.yaml").write_text("data: {kind: demo}\n")
    return folder


def log(uri: str, model: Path, **more: Any) -> tuple[str, str]:
    values: dict[str, Any] = {
        "uri": uri,
        "experiment": "retrain",
        "run_name": "GuiDINO-W kvasir",
        "params": {"training.lr": 1e-4, "guide.backbone": "vits16"},
        "metrics": {"val_dice": 0.9},
        "artifacts": [model / "experiment.yaml"],
        "model_dir": model,
        "registered_name": "kvasir",
        "tags": {"study": "s"},
    }
    return log_model_run(**values | more)


def test_version_is_read_back_and_loaded_without_pickle(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    uri = f"sqlite:///{tmp_path}/a b/m.db"
    (tmp_path / "toy_loader.py").write_text(
        "from pathlib import Path\n"
        "class Model:\n"
        "    def __init__(self, path): self.size = len((Path(path) / 'weights.safetensors').read_bytes())\n"
        "    def predict(self, data, params=None): return [self.size for _ in data]\n"
        "def _load_pyfunc(path): return Model(path)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    history = tuple(EpochRecord(e, {"val_dice": e / 10}, 1.7e9 + e) for e in (1, 2, 3))
    seeds = [SeedRun(0, {"val_dice": 0.88}, history), SeedRun(1, {"val_dice": 0.92}, history, chosen=True)]
    run_id, version = log(uri, model, seeds=seeds, loader_module="toy_loader", artifact_location=tmp_path / "art")
    assert version == "1"
    client = connect(uri)
    stored = client.get_model_version("kvasir", "1")
    assert (stored.run_id, stored.status, stored.tags.keys()) == (run_id, "READY", {"study", CONTENT})
    mlflow.set_tracking_uri(uri)
    try:
        local = Path(mlflow.artifacts.download_artifacts("models:/kvasir/1", dst_path=str(tmp_path / "back")))
        assert (local / "weights.safetensors").read_bytes() == bytes(range(200))
        info = mlflow.models.get_model_info("models:/kvasir/1")
        assert info.flavors["guidino_tune"]["files"] == ["experiment.yaml", "weights.safetensors"]
        loaded = mlflow.pyfunc.load_model("models:/kvasir/1")
        assert loaded.predict([[1], [2]]) == [200, 200]
    finally:
        mlflow.set_tracking_uri("")
        sys.modules.pop("toy_loader", None)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params["training.lr"], run.data.metrics["val_dice"]) == ("FINISHED", "0.0001", 0.9)
    assert {a.path for a in client.list_artifacts(run_id)} == {"model", "experiment.yaml"}
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", order_by=["metrics.val_dice DESC"])
    assert [(c.info.run_name, c.info.status, c.data.tags["guidino.chosen"]) for c in children] == [
        ("seed 1", "FINISHED", "true"),
        ("seed 0", "FINISHED", "false"),
    ]
    assert [m.value for m in client.get_metric_history(children[0].info.run_id, "val_dice")] == [0.1, 0.2, 0.3, 0.92]
    # The export itself is left as it was, and a retraining with other numbers is a second version.
    assert sorted(p.name for p in model.iterdir()) == ["experiment.yaml", "weights.safetensors"]
    assert log(uri, model)[1] == "2"
    with pytest.raises(UserError, match="could not be registered"):
        log(uri, model, registered_name="no/slash")
    (failed,) = client.search_runs([run.info.experiment_id], "attributes.status = 'FAILED'")
    assert failed.info.run_name == "GuiDINO-W kvasir"


def test_messages(tmp_path: Path, model: Path) -> None:
    with pytest.raises(UserError, match="no exported model"):
        log("http://127.0.0.1:9", tmp_path / "nothing")
    with pytest.raises(UserError, match="connection refused") as caught:
        log("http://me:secret@127.0.0.1:9", model)
    assert "secret" not in str(caught.value)


def break_at(database: Path, table: str) -> None:
    """From now on the database fails where a row of this table is to be written, as one whose disk is full does."""
    with contextlib.closing(sqlite3.connect(database)) as own, own:
        own.execute(f"CREATE TRIGGER broken BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END")


def mend(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as own, own:
        own.execute("DROP TRIGGER broken")


def test_a_version_that_was_begun_is_finished(tmp_path: Path, model: Path) -> None:
    """MLflow's own database breaks once the version is there: the next attempt adds neither a run nor a version."""
    database = tmp_path / "m.db"
    uri = f"sqlite:///{database}"
    client = connect(uri)
    client.search_experiments()
    break_at(database, "registered_model_aliases")
    for _ in range(2):
        with pytest.raises(UserError, match="disk is full"):
            log(uri, model, score=0.9, artifact_location=tmp_path / "art")
    (version,) = client.search_model_versions("name = 'kvasir'")
    assert client.get_run(version.run_id).info.status == "FAILED"
    mend(database)
    assert log(uri, model, score=0.9) == (version.run_id, str(version.version))
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert str(client.get_model_version_by_alias("kvasir", CHAMPION).version) == str(version.version)
    assert len(client.search_runs([run.info.experiment_id])) == 1
    # Another number, or another file, is another version; so is what stands on a run that somebody deleted.
    assert log(uri, model, score=0.8)[1] == "2"
    (model / "experiment.yaml").write_text("data: {kind: kvasir}\n")
    assert log(uri, model, score=0.9)[1] == "3"
    client.delete_run(client.get_model_version("kvasir", "3").run_id)
    assert log(uri, model, score=0.9)[1] == "4"
