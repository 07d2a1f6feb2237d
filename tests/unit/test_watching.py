"""A folder that is watched."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_prediction_files import model as model

from guidino_tune.errors import UserError
from guidino_tune.predict import main
from guidino_tune.workflows.predict import load_model
from guidino_tune.workflows.watching import watch_folder


def draw(file: Path, seed: int = 0) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 33, 3), dtype=np.uint8)).save(file)


def test_images_are_segmented_as_they_come(model: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    images.mkdir()
    rounds: list[tuple[int, int]] = []
    looks = 0

    def goes_on() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            draw(images / "a.png")
            (images / "half.png").write_bytes(b"\x89PNG\r\n")
        elif looks == 3:
            draw(images / "b.png", 1)  # a and half are ready at this look, b at the next
        elif looks == 7:
            draw(images / "half.png", 2)  # whole now
            draw(images / "a.png", 3)
        return looks < 11

    watch_folder(
        load_model(model), images, out, every=0.01, told=lambda done, failed: rounds.append((done, len(failed))), tell=lambda _: None,
        goes_on=goes_on, overlays=False,
    )  # fmt: skip
    assert rounds == [(1, 1), (1, 0), (2, 0)]
    assert sorted(file.name for file in (out / "masks").iterdir()) == ["a.png", "b.png", "half.png"]


def test_it_needs_a_folder_and_no_end(model: Path, tmp_path: Path, capsys: Any) -> None:
    draw(tmp_path / "a.png")
    with pytest.raises(UserError, match="no folder that could be watched"):
        watch_folder(load_model(model), tmp_path / "a.png", tmp_path / "out", told=lambda *_: None, tell=lambda _: None)
    assert main([str(model), str(tmp_path), "--output", str(tmp_path / "out"), "--watch", "--csv", "t.csv"]) == 2
    assert "which --watch does not have" in capsys.readouterr().err


def test_an_interruption_is_its_end(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    draw(tmp_path / "in" / "a.png")
    command = [sys.executable, "-m", "guidino_tune.predict", str(model), str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--watch"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], env=dict(os.environ))
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "out" / "overlays" / "a.png").exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "stopped after 1 masks" in told
