"""What really stops people, planted for real one by one: each gives a line that names the thing, with the next step below it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from doctor_helpers import (
    Place,
    best_truncated,
    checkpoint_damaged,
    cluster_dead,
    copies,
    dashboard_old,
    data_missing,
    disk_full,
    driver,
    driver_died,
    home_cannot_be_written,
    home_is_a_file,
    image_damaged,
    image_without_mask,
    journal_damaged,
    journal_gone,
    journal_torn,
    labels_outside,
    mask_without_image,
    masks_inverted,
    mlflow_dead,
    mlflow_deleted,
    model_of_another_kind,
    model_partial,
    model_truncated,
    model_without_config,
    no_such_study,
    package_missing,
    package_old,
    records_wait,
    sizes_differ,
    space_changed,
    space_mistaken,
    space_no_yaml,
    space_views,
    split_of_other_data,
    token_absent,
    token_readable,
    unknown_case_in_list,
)

from guidino_tune import doctor
from guidino_tune.workflows import doctor as checkups
from guidino_tune.workflows import survey


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in [n for n in os.environ if n.startswith(("RAY_", "MLFLOW_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Place(tmp_path, monkeypatch)


# fmt: off
DEFECTS: dict[str, tuple[str, Callable[[Place], list[str]], str, str, str]] = {
    # defect: (check, how it is planted, mark, what the line names, what the next step names)
    "a package is missing": ("packages", package_missing, "missing", "no-such-package is not installed", "pip install"),
    "a package is too old": ("packages", package_old, "missing", "numpy is 0.9, needed", "pip install"),
    "the package of Ray's dashboard is too old": ("packages", dashboard_old, "missing", "aiohttp_cors is 0.0.1", "pip install"),
    "the home folder is a file": ("home folder", home_is_a_file, "missing", "/h cannot be written", "--home"),
    "the home folder cannot be written": ("home folder", home_cannot_be_written, "missing", "/proc cannot be written", "--home"),
    "the disk is nearly full": ("home folder", disk_full, "note", "0.0 GiB free", "make room"),
    "the data set is missing": ("data", data_missing, "missing", "/nowhere: there is no such folder", "prepare kvasir"),
    "an image has no mask": ("data", image_without_mask, "missing", "1 images without mask: 3.png", "bad_cases=skip"),
    "a mask has no image": ("data", mask_without_image, "missing", "1 masks without image: 3.png", "bad_cases=skip"),
    "a list of cases names one that is not there": ("data", unknown_case_in_list, "missing", "1 listed cases have no files", "correct"),
    "images are damaged": ("asked for", image_damaged, "missing", "cannot be decoded", "bad_cases=skip"),
    "image and mask differ in size": ("asked for", sizes_differ, "missing", "differ in size", "bad_cases=skip"),
    "masks hold class numbers": ("asked for", labels_outside, "missing", "the masks hold", "data.labels="),
    "masks are inverted": ("asked for", masks_inverted, "note", "masks look inverted", "data.labels="),
    "the same image is in training and validation": ("asked for", copies, "note", "LEAK", "look at"),
    "a model folder has no config.json": ("weights", model_without_config, "missing", "holds no readable config.json", "save_pretrained"),
    "a model folder holds another architecture": ("weights", model_of_another_kind, "missing", "type 'resnet'", "dinov3_vit"),
    "weights are cut short": ("weights", model_truncated, "missing", "cannot be read", "download the model again"),
    "weights lack a layer": ("weights", model_partial, "missing", "lack or do not fit", "download the model again"),
    "Ray wants a token and there is none": ("Ray", token_absent, "missing", "there is no token", "get-auth-token --generate"),
    "others can read Ray's token": ("Ray", token_readable, "note", "other users of this machine can read", "chmod 600"),
    "the Ray cluster is dead": ("Ray", cluster_dead, "missing", "nothing answers there", "RAY_ADDRESS"),
    "MLflow is away": ("MLflow", mlflow_dead, "note", "nothing answers there", "MLFLOW_TRACKING_URI"),
    "the experiment was deleted in MLflow": ("MLflow", mlflow_deleted, "note", "was deleted", "mlflow experiments restore -x"),
    "a space has a mistake": ("asked for", space_mistaken, "missing", "space.training.learning_rate", "correct the path"),
    "a space is no YAML": ("asked for", space_no_yaml, "missing", "is no valid YAML, line", "mend that line"),
    "the folder of shared views is a file": ("asked for", space_views, "missing", "a part of this path is a file", "choose another"),
    "a space was changed after its study began": ("asked for", space_changed, "missing", "started with other settings", "study.name"),
    "a study's journal is damaged": ("asked for", journal_damaged, "missing", "damaged in line 3", "restore the file"),
    "a study's journal ends in the middle of a line": ("asked for", journal_torn, "note", "last line is unfinished", "next search"),
    "a study's journal is gone": ("asked for", journal_gone, "missing", "journal is gone", "restore it"),
    "a search died": ("asked for", driver_died, "note", "1 trials were left running", "the same search command continues"),
    "a checkpoint is damaged": ("asked for", checkpoint_damaged, "note", "weights.safetensors is not as it was written", "older one"),
    "the best weights are cut short": ("asked for", best_truncated, "note", "weights are damaged", "retrain"),
    "a study's split does not fit the data": ("asked for", split_of_other_data, "missing", "1 cases of the stored split", "data.root"),
    "records wait for MLflow": ("asked for", records_wait, "note", "not yet sent: 2 trials", "track mine --flush"),
    "there is no such study": ("asked for", no_such_study, "missing", "no such study", "studies: mine"),
}
# fmt: on


def examine(check: str, argv: list[str], place: Place, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Runs one of the checks as the command does; gives its exit code and its lines, each with the next step below it."""
    place.monkeypatch.setattr(survey, "CHECKS", {check: survey.CHECKS[check]})
    code = doctor.main(argv)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    assert "could not be checked" not in shown.out
    return code, shown.out.replace("\n                        ->", " ->").splitlines()


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found_and_told_with_the_next_step(defect: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    check, plant, mark, names, todo = DEFECTS[defect]
    argv = plant(place)
    try:
        code, lines = examine(check, argv, place, capsys)
    finally:
        if plant is disk_full:
            subprocess.run(["umount", str(place.folder / "small")], check=False)
    line = next((line for line in lines if names in line), None)
    assert line is not None, lines
    assert line.startswith(mark)
    assert todo in (line.partition(" -> ")[2] or line)  # a note may bring its own
    assert code == (1 if mark == "missing" else 0)


def test_there_are_enough_of_them() -> None:
    assert len(DEFECTS) >= 20


def test_a_study_at_work_is_told_with_its_process(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with driver(place) as process:
        code, lines = examine("asked for", ["--study", "mine"], place, capsys)
    assert code == 0
    assert any(f"process {process.pid} on" in line for line in lines)
    assert not any("left running" in line for line in lines)


def test_a_study_in_the_teams_database_is_not_called_gone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.monkeypatch.setenv("GUIDINO_TUNE_STORAGE", f"sqlite:///{place.folder}/team.db")
    assert not place.make_study().journal.exists()
    code, lines = examine("asked for", ["--study", "mine"], place, capsys)
    assert code == 0
    assert any("2 trials: 2 complete" in line for line in lines)
    place.monkeypatch.delenv("GUIDINO_TUNE_STORAGE")
    code, lines = examine("asked for", ["--study", "mine"], place, capsys)
    assert code == 1
    assert any("GUIDINO_TUNE_STORAGE" in line for line in lines)


def test_an_mlflow_that_does_not_know_us(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_error(401)

        do_GET = do_POST = answer

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        code, lines = examine("MLflow", [], place, capsys)
        server.shutdown()
    assert (code, lines[0].split()[0]) == (0, "note")
    assert "wrong or missing credentials (MLFLOW_TRACKING_USERNAME" in lines[0]
    assert " -> " in lines[0]


HEALTHY = {
    "packages": [], "search spaces": [], "processor": [], "home folder": [], "MLflow": [],
    "data": ["--kind", "folder", "--data-root", "{data}"],
    "weights": ["--backbone", "{model}"],
    "asked for": ["--space", "{space}", "--study", "mine", "--images"],
}  # fmt: skip


@pytest.mark.parametrize("check", HEALTHY)
def test_a_healthy_set_up_lacks_nothing_and_is_left_as_it_was(check: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    if check == "weights":
        place.make_model()
    place.make_study()
    # The picture of six cases and the fingerprint of a settled model folder are all that is written, into the cache.
    before = {file: file.stat().st_mtime_ns for file in place.folder.rglob("*") if file.is_file()}
    argv = [word.format(data=place.data, space=place.space, model=place.model) for word in HEALTHY[check]]
    code, lines = examine(check, argv, place, capsys)
    assert code == 0, lines
    assert not any(line.startswith("missing") for line in lines)
    after = {
        file: file.stat().st_mtime_ns
        for file in place.folder.rglob("*")
        if file.is_file() and file.parent.name not in ("sheets", "backbones")
    }
    assert after == before


def test_looking_at_the_demo_space_draws_no_images(home: Path) -> None:
    assert [finding.mark for finding in checkups.look_at_space("demo", images=True)] == ["ok"]
    assert not home.exists()


def test_every_problem_of_a_space_is_told_at_once(place: Place) -> None:
    place.space.write_text(place.space.read_text().replace("epochs: 4", "epochs: 4, batch_size: 3") + "resources: {workers: 2}\n")
    shutil.rmtree(place.data)
    found = {finding.name: finding for finding in checkups.look_at_space(str(place.space))}
    assert {"workers", "space's data"} <= found.keys()
    assert all(finding.mark == "missing" and finding.todo for finding in found.values())


@pytest.mark.parametrize("argv", [["--images"], ["--data-root", "/x"]])
def test_what_cannot_be_answered(argv: list[str], capsys: pytest.CaptureFixture[str], place: Place) -> None:
    place.monkeypatch.setattr(survey, "CHECKS", {})
    assert doctor.main(argv) == 2
    assert "add --space, or --kind" in capsys.readouterr().err


@pytest.mark.parametrize(("built_for", "said"), [("13.0", "UV_TORCH_BACKEND=cpu"), (None, "")])
def test_a_torch_for_gpus_on_a_machine_without_is_told(built_for: str | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(survey.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    (row,) = survey._gpus(argparse.Namespace())
    assert (row.mark, "CUDA 13.0" in row.found) == ("note", built_for is not None)
    assert bool(row.todo) == bool(said)
    assert said in row.todo
