"""A table and a scaling study from the command line: interrupted, continued, extended, measured once, and in MLflow."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from in_process import interrupted
from optuna.trial import TrialState
from PIL import Image
from small_searches import study_folder, trials_of

from guidino_tune.data.sources.demo import generate
from guidino_tune.reproduce import main as reproduce
from guidino_tune.training.measured import read_measured

SMALL = ["segmenter.base_width=2", "guide.backbone=tiny", "data.image_size=32"]
EPOCHS = 4
CASES = ["data.max_train_cases=8", "data.max_validation_cases=4", "data.test_fraction=0.2"]


@pytest.fixture(scope="module")
def polyps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo images in Kvasir-SEG's layout."""
    root = tmp_path_factory.mktemp("kvasir")
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for number in range(30):
        image, mask = generate(number, 48)
        Image.fromarray(image).save(root / "images" / f"{number:02d}.jpg", quality=95)
        Image.fromarray(mask).save(root / "masks" / f"{number:02d}.jpg", quality=95)
    return root


def arguments(root: Path, *words: str, epochs: int, settings: list[str] = SMALL) -> list[str]:
    """A tiny budget, made smaller."""
    sets = [word for text in [*CASES, *settings] for word in ("--set", text)]
    common = ["--budget", "tiny", "--epochs", str(epochs), "--data-root", str(root)]
    return [*words, *common, *sets]


def test_an_interrupted_table_goes_on_and_is_measured_once(
    home: Path, polyps: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "tables-kvasir-tiny"
    table = arguments(polyps, "table2", "--rows", "GuiDINO-U,U-Net", "--seeds", "2", epochs=EPOCHS)
    interrupted(monkeypatch, lambda number, epoch: (number, epoch) == (1, 2))
    assert reproduce(table) == 130
    before = {t.number: t.params for t in trials_of(home, name)}
    assert not study_folder(home, name).reports.exists()

    assert reproduce(table) == 0
    trials = trials_of(home, name)
    assert sorted((t.params["recipe"], t.params["training.seed"]) for t in trials) == [
        ("GuiDINO-U", 0), ("GuiDINO-U", 1), ("U-Net", 0), ("U-Net", 1),
    ]  # fmt: skip
    assert all(t.state == TrialState.COMPLETE and len(t.intermediate_values) == EPOCHS for t in trials)
    assert before.items() <= {t.number: t.params for t in trials}.items()
    folder = study_folder(home, name)
    rows = list(csv.DictReader((folder.reports / "table2.csv").open()))
    assert [(r["system"], r["seeds"], r["dice_paper"]) for r in rows] == [("U-Net", "2", "79.16"), ("GuiDINO-U", "2", "89.51")]
    for row in rows:
        found = [read_measured(folder.trial(t.number))[-1] for t in trials if t.params["recipe"] == row["system"]]
        mean = sum(m.scores["dice"] for m in found) / len(found)
        assert float(row["dice_mean"]) == pytest.approx(100 * mean, rel=1e-5)
        assert float(row["dice_difference"]) == pytest.approx(100 * mean - float(row["dice_paper"]), abs=1e-3)
    opened = (folder.split.parent / "test-openings.jsonl").read_text().splitlines()
    assert len(opened) == 1
    assert json.loads(opened[0])["cases"] == 6

    # Another row extends the study; only its trial is measured. A model that cannot be read costs the others nothing.
    (folder.trial(0).best / "weights.safetensors").write_bytes(b"damaged")
    more = arguments(polyps, "table2", "--rows", "nnWNet,U-Net", "--seeds", "2", epochs=EPOCHS)
    capsys.readouterr()
    assert reproduce(more) == 0
    assert trials_of(home, name)[:4] == trials
    assert [t.params["recipe"] for t in trials_of(home, name)[4:]] == ["nnWNet", "nnWNet"]
    opened = (folder.split.parent / "test-openings.jsonl").read_text().splitlines()
    assert len(opened) == 2
    assert "seed 1" not in json.loads(opened[1])["reason"]
    damaged = trials[0].params["recipe"]
    rows = {r["system"]: r for r in csv.DictReader((folder.reports / "table2.csv").open())}
    assert rows["nnWNet"]["seeds"] == "2"
    assert rows[damaged]["seeds"] == "1"
    note = rows[damaged]["note"]
    assert re.search(rf"seed {trials[0].params['training.seed']}: .* cannot be read: .*; retrain", note), note
    assert "failed" in capsys.readouterr().out

    from guidino_tune.tracking.client import connect

    client = connect(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("guidino_tune")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if r.data.tags["guidino.kind"] == "study"]
    assert {"table2.md", "table2.csv", "study.yaml"} <= {a.path for a in client.list_artifacts(parent.info.run_id)}
    for run in (r for r in runs if r.data.tags["guidino.kind"] == "trial"):
        measured = read_measured(folder.trial(int(run.data.tags["guidino.trial"])))[-1]
        assert run.data.metrics["test_dice"] == pytest.approx(measured.scores["dice"])
        assert run.data.tags["test_protocol"] == measured.protocol


def test_a_scaling_study_draws_its_figure(home: Path, polyps: Path) -> None:
    words = ["scaling", "--rows", "Seg-GuiDINO", "--backbones", "tiny,vits16", "--image-sizes", "32,48", "--hd95", "pooled"]
    assert reproduce(arguments(polyps, *words, epochs=1, settings=["segmenter.hidden=8"])) == 0
    reports = study_folder(home, "scaling-kvasir-tiny").reports
    rows = list(csv.DictReader((reports / "scaling.csv").open()))
    assert [(r["backbone"], r["image_size"]) for r in rows] == [("tiny", "32"), ("vits16", "32"), ("tiny", "48"), ("vits16", "48")]
    assert all("HD95 of both directions pooled" in r["protocol"] for r in rows)
    costs = {(r["backbone"], r["image_size"]): float(r["gigaflops"]) for r in rows}
    assert costs["tiny", "32"] < costs["tiny", "48"] < costs["vits16", "48"]
    assert "With one seed each" in (reports / "scaling.md").read_text()
    with Image.open(reports / "scaling.png") as picture:
        assert picture.width > 600
