"""A small study in MLflow, and the server that the tracker tells people to start."""

import os
import shlex
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from selenium.common.exceptions import StaleElementReferenceException

from guidino_tune.analysis.pictures import contact_sheet, overlay, save_png
from guidino_tune.analysis.plain_tables import markdown_table
from guidino_tune.tracking import DatasetInfo, EpochRecord, MLflowTracker, StudySnapshot, TrialSnapshot
from guidino_tune.tracking.notes import NOTE, link, picture
from guidino_tune.tracking.snapshots import Plain, TrialState
from guidino_tune.workflows.notes import cell, code

SEARCHED: dict[str, Plain] = {"segmenter.kind": "unet", "loss.lambda_guide": 0.1, "guide.tokenbook.num_prototypes": 36}
DICES: dict[int, tuple[float, ...]] = {
    0: (0.31, 0.55, 0.52),
    1: (0.12,),
    2: (0.40, 0.61, 0.83),
    3: (0.22, 0.35),
    4: (0.44, 0.70, 0.66),
    5: (),
}
"""Validation Dice by trial and epoch: 2 is the best; the last epoch of 0 and 4 is not their best one."""
STATES: dict[int, TrialState] = {1: "pruned", 3: "pruned", 5: "fail"}
EVIL = "x` ![](http://127.0.0.1:9/p.png) <img src=x onerror=document.title=1> [a](javascript:alert(1)) <div> | @me :smile: \\"
"""What a user might have called something."""

BEST_FIRST = sorted((n for n, dices in DICES.items() if dices), key=lambda n: -max(DICES[n]))


@dataclass
class Pages:
    """Where the pages are.

    Attributes:
        experiment: Address of the MLflow experiment.
        view: Address that the tracker gives people, on the port of this server.
        runs: Address of each trial's run.
        parent: Address of the study's run.
        picture: The picture in trial 2.
        shots: Folder for screenshots.
    """

    experiment: str
    view: str
    runs: dict[int, str]
    parent: str
    picture: Path
    shots: Path


def until(look: Callable[[], Any], seconds: float = 30) -> Any:
    """The first true answer of ``look``, or the last one."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = look()
        except StaleElementReferenceException:  # the page redrew itself while we looked
            found = None
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def draw(path: Path) -> Path:
    """A sheet of two overlays, as trials make them."""
    y, x = np.mgrid[:64, :64]
    rows = []
    for shift in (0, 12):
        truth = (x - 24 - shift) ** 2 + (y - 30) ** 2 < 180
        image = np.stack([90 + x + 60 * truth, 60 + y, 50 + 0 * x], axis=-1).astype(np.uint8)
        guide = np.exp(-((x[::16, ::16] - 24 - shift) ** 2 + (y[::16, ::16] - 30) ** 2) / 400)
        rows.append(overlay(image, truth, guide, np.roll(truth, 3, axis=1), title=f"case {shift}"))
    return save_png(contact_sheet(rows), path)


def described(drawing: Path) -> str:
    """A description with the picture of trial 2, and with what a user wrote."""
    table = markdown_table(["name", "Dice"], [[cell(EVIL), "0.83"]])
    return f"{picture(2, drawing.name)}\n\n{table}\nWhy: {code(EVIL, 200)}."


def track(uri: str, folder: Path, drawing: Path) -> MLflowTracker:
    """Tracks a study of six made-up trials: three complete, two stopped early, one failed."""
    study = StudySnapshot(
        "polyps",
        params={f"space.{path}": "searched" for path in SEARCHED},
        datasets=(DatasetInfo("demo", "abc", 8, 2),),
        metrics={"best_val_dice": 0.83},
        tags={NOTE: f"Best: {link(2, 'trial 2')}\n\n{picture(2, drawing.name)}"},
        id=str(folder / "studies" / "polyps"),
    )
    tracker = MLflowTracker(uri, "guidino_tune", study, folder / "ledger.jsonl", folder / "mlartifacts")
    tracker.start()
    for number, dices in DICES.items():
        searched = {**SEARCHED, "loss.lambda_guide": 0.1 + number}
        history = tuple(EpochRecord(e, {"val_dice": d, "val_iou": d / (2 - d)}, 1.7e9 + 60 * number + e) for e, d in enumerate(dices, 1))
        tracker.update(
            TrialSnapshot(
                number,
                "GuiDINO-U",
                state=STATES.get(number, "complete"),
                reason="out of memory" if STATES.get(number) == "fail" else "",
                params=searched,
                searched=searched,
                history=history,
                pictures=(drawing,) if number == 2 else (),
                tags={NOTE: described(drawing)} if number == 2 else {},
                started=1.7e9 + 60 * number,
            )
        )
    assert tracker.close(60), tracker.message
    return tracker


class serving:
    """Runs the server while a block runs.

    Args:
        command: As a person would type it.
        port: Where it listens.
        folder: It runs there, and writes its log there.
    """

    def __init__(self, command: str, port: int, folder: Path) -> None:
        self.command, self.port, self.folder = command, port, folder

    def __enter__(self) -> None:
        own = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | own
        with (self.folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                shlex.split(self.command), cwd=self.folder, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        if not until(self._answers, 180):
            self.__exit__()
            raise AssertionError((self.folder / "server.log").read_text())

    def __exit__(self, *exc: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # the server and its workers: a group of its own
        self.process.wait()

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError((self.folder / "server.log").read_text())
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
