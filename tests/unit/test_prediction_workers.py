"""Threads beside the network: the same files whatever their number, errors in their place, and a clean end."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_prediction_files import contents, picture
from test_prediction_files import model as model

from guidino_tune.errors import UserError
from guidino_tune.predict import main
from guidino_tune.workflows.predict import load_model
from guidino_tune.workflows.predict_folder import predict_folder
from guidino_tune.workflows.prediction_workers import MOST, automatic_workers, in_order

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_everything_comes_out_in_its_order(workers: int) -> None:
    """Also where later items are ready first; the middle step is one thread's, and nothing is taken far ahead."""
    taken, callers, waiting = [], set(), []
    given = list(range(23))

    def items() -> object:
        for item in given:
            taken.append(item)
            yield item

    def before(item: int) -> int:
        time.sleep(0.01 if item % 3 == 0 else 0)
        return item * 10

    def between(item: int) -> int:
        callers.add(threading.get_ident())
        return item + 1

    def after(item: int) -> int:
        time.sleep(0.01 if item % 4 == 1 else 0)
        return -item

    found = []
    for result in in_order(items(), before, between, after, workers):  # type: ignore[arg-type]
        found.append(result)
        waiting.append(len(taken) - len(found))
    assert found == [-(item * 10 + 1) for item in given]
    assert callers == {threading.get_ident()}
    assert max(waiting) <= (0 if workers == 1 else 2 * workers + 2)
    assert list(in_order([], before, between, after, workers)) == []


@pytest.mark.parametrize("step", ["before", "between", "after"])
@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_ends_the_line_at_its_item(step: str, workers: int) -> None:
    written = []

    def do(name: str, item: int) -> int:
        if name == step and item == 5:
            raise UserError("broken", where="item 5")
        if name == "after":
            written.append(item)
        return item

    line = in_order(range(100), lambda i: do("before", i), lambda i: do("between", i), lambda i: do("after", i), workers)
    with pytest.raises(UserError, match="item 5: broken"):
        list(line)
    assert set(written) >= {0, 1, 2, 3, 4}  # what the network has seen before is written
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("predict")]
    assert max(written) < 5 + 2 * workers + 2


def test_an_interruption_drops_what_waits() -> None:
    done = []

    def between(item: int) -> int:
        if item == 3:
            raise KeyboardInterrupt
        return item

    def after(item: int) -> int:
        time.sleep(0.2)
        done.append(item)
        return item

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(in_order(range(1000), lambda item: item, between, after, 1 + 1))
    assert time.monotonic() - begin < 2
    assert len(done) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("predict")]


def test_a_few_threads_by_themselves() -> None:
    assert 1 <= automatic_workers() <= MOST


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for number in range(6):
        picture(folder / ("z" if number % 2 else "") / f"{number}.png", number)
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:60])
    return folder


def test_what_is_written_does_not_depend_on_the_number_of_threads(model: Path, images: Path, tmp_path: Path) -> None:
    """Files, tables, messages and their order, byte for byte; and each mask is the one that the image has alone."""
    found = []
    for workers in (1, 2, 5):
        out = tmp_path / f"out{workers}"
        extras = {"probabilities": True, "csv": out / "t.csv", "polygons": out / "coco.json"}
        done, failed = predict_folder(load_model(model), images, out, extras=extras, workers=workers)
        assert (done, len(failed)) == (6, 1)
        found.append((contents(out), failed))
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == 3 * 6 + 2
    rows = list(csv.DictReader((tmp_path / "out5" / "t.csv").open()))
    assert [row["image"] for row in rows] == ["0.png", "2.png", "4.png", "z/1.png", "z/3.png", "z/5.png"]
    assert [one["file_name"] for one in json.loads((tmp_path / "out5" / "coco.json").read_text())["images"]] == [
        row["image"] for row in rows
    ]
    trained = load_model(model)
    for row in rows:
        mask = np.asarray(Image.open(tmp_path / "out5" / "masks" / row["image"])) // 255
        assert np.array_equal(mask, trained.predict(images / row["image"]))


def test_a_full_disk_is_told_in_one_message(model: Path, images: Path, tmp_path: Path) -> None:
    """By a limit on the size of files, which fails as a full disk does."""
    code = (
        "import resource, signal, sys\n"
        "from guidino_tune.predict import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = [str(model), str(images), "--output", str(tmp_path / "out"), "--workers", "3"]
    done = subprocess.run([sys.executable, "-B", "-c", code, *words], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "the file would become larger than is allowed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [file for file in (tmp_path / "out").rglob("*") if file.name.startswith(".")]  # no halves


def test_ctrl_c_leaves_whole_files(model: Path, tmp_path: Path) -> None:
    for number in range(60):
        picture(tmp_path / "in" / f"{number:02d}.png", number)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "guidino_tune.predict", str(model), str(tmp_path / "in"), "--output", str(out), "--workers", "3"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ))
    try:
        until = time.monotonic() + 120
        while not (out / "overlays").is_dir() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, told) == (130, "interrupted\n")
    files = [file for file in out.rglob("*") if file.is_file()]
    assert 0 < len(files) < 120
    for file in files:
        with Image.open(file) as whole:
            whole.load()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--workers", "0"], "'0' is no whole number from 1"),
        (["--workers", "many"], "'many' is no whole number from 1"),
        (["--memory", "much"], "'much' is no size such as 500M or 4G"),
        (["--memory", "0G"], "'0G' is no size"),
        (["--masks-as", "jpeg"], "invalid choice: 'jpeg'"),
    ],
)
def test_wrong_options_are_told(words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["model", str(tmp_path), "--output", str(tmp_path / "out"), *words])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_bytes_twice(model: Path, images: Path, tmp_path: Path) -> None:
    digests = set()
    for _ in range(2):
        predict_folder(load_model(model), images, tmp_path / "out", workers=3)
        digests.add(hashlib.sha256(json.dumps(contents(tmp_path / "out")).encode()).hexdigest())
    assert len(digests) == 1
