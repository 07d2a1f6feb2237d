"""A folder that is watched."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_prediction_files import model as model

from guidino_tune.data.intensity import IntensityRule
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


def looking(model: Any, images: Path, out: Path, at: dict[int, Callable[[], object]], until: int) -> list[tuple[int, list[str]]]:
    """What is told after each round; ``at`` holds what happens before a look, by its number."""
    rounds: list[tuple[int, list[str]]] = []
    looks = 0

    def goes_on() -> bool:
        nonlocal looks
        looks += 1
        at.get(looks, lambda: None)()
        return looks < until

    watch_folder(
        model, images, out, every=0, told=lambda done, failed: rounds.append((done, failed)), tell=lambda _: None, goes_on=goes_on,
        overlays=False,
    )  # fmt: skip
    return rounds


def test_files_of_an_image_may_come_one_after_the_other(model: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    images.mkdir()
    trained = load_model(model)
    rule = IntensityRule("8-bit", (), ("8", "8", "8"), "3 files of 8 bits, 1 channel each")
    trained = dataclasses.replace(trained, rules=dataclasses.replace(trained.rules, intensity=rule))

    def grey(name: str) -> None:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 33), dtype=np.uint8)).save(images / name)

    def first() -> None:
        for name in ("a_0000.png", "a_0001.png", "b_0000.png"):
            grey(name)

    def then() -> None:
        for name in ("a_0002.png", "b_0001.png", "b_0002.png"):
            grey(name)

    rounds = looking(trained, images, out, {2: first, 5: then, 9: lambda: os.utime(images / "a_0001.png", (1, 1))}, 13)
    assert [done for done, _ in rounds] == [0, 2, 1]
    assert (len(rounds[0][1]), rounds[1][1], rounds[2][1]) == (2, [], [])
    assert sorted(file.name for file in (out / "masks").iterdir()) == ["a.png", "b.png"]


def test_a_file_rests_as_long_after_a_round_as_otherwise(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round may take milliseconds: that a file did not grow in that time says nothing."""
    (tmp_path / "in").mkdir()
    draw(tmp_path / "in" / "a.png")
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert looking(load_model(model), tmp_path / "in", tmp_path / "out", {}, 4) == [(1, [])]
    assert len(slept) == 3


def test_a_folder_that_is_gone_is_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no such file or folder"):
        looking(load_model(model), tmp_path / "in", tmp_path / "out", {2: (tmp_path / "in").rmdir}, 4)


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
