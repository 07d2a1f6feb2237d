"""A folder that is watched."""

import csv
import dataclasses
import json
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
from guidino_tune.workflows.predict import load_model
from guidino_tune.workflows.predict_folder import predict_folder
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


def looking(
    model: Any, images: Path, out: Path, at: dict[int, Callable[[], object]], until: int, **how: Any
) -> list[tuple[int, list[str]]]:
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
        overlays=False, **how,
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


def test_it_needs_a_folder(model: Path, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    with pytest.raises(UserError, match="no folder that could be watched"):
        watch_folder(load_model(model), tmp_path / "a.png", tmp_path / "out", told=lambda *_: None, tell=lambda _: None)


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


# ---------------------------------------------------------------------------------------------------------------- table and objects


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    with table.open() as opened:
        rows = list(csv.DictReader(opened))
    assert len({row["image"] for row in rows}) == len(rows)  # one class, and nothing twice
    return {row["image"]: row for row in rows}


def names_of(objects: Path) -> dict[str, int]:
    """How many objects each image has, by its name."""
    values = json.loads(objects.read_text())
    assert [image["id"] for image in values["images"]] == list(range(1, len(values["images"]) + 1))
    assert [one["id"] for one in values["annotations"]] == list(range(1, len(values["annotations"]) + 1))
    found = {image["file_name"]: 0 for image in values["images"]}
    by_number = {image["id"]: image["file_name"] for image in values["images"]}
    for one in values["annotations"]:
        found[by_number[one["image_id"]]] += 1
    return found


def test_rows_come_with_the_images_and_change_with_them(model: Path, tmp_path: Path) -> None:
    images, table, objects = tmp_path / "in", tmp_path / "t.csv", tmp_path / "o.json"
    (images / "sub").mkdir(parents=True)
    seen: list[list[str]] = []

    def note() -> None:
        seen.append(list(rows_of(table)) if table.exists() else [])

    def wider() -> None:
        Image.fromarray(np.full((40, 57, 3), 200, np.uint8)).save(images / "b.png")

    at: dict[int, Callable[[], object]] = {
        2: lambda: draw(images / "b.png"),
        6: lambda: (note(), draw(images / "sub" / "a.png", 1), draw(images / "a.png", 2)),
        10: lambda: (note(), wider()),
        14: lambda: (note(), (images / "a.png").unlink(), draw(images / "c.png", 3)),
    }
    trained = load_model(model)
    rounds = looking(trained, images, tmp_path / "out", at, 18, extras={"csv": str(table), "polygons": str(objects)})
    assert [done for done, _ in rounds] == [1, 2, 1, 1]
    assert seen == [["b.png"], ["a.png", "b.png", "sub/a.png"], ["a.png", "b.png", "sub/a.png"]]
    rows = rows_of(table)
    assert list(rows) == list(names_of(objects)) == ["a.png", "b.png", "c.png", "sub/a.png"]  # moved away, and its rows are there
    assert rows["b.png"]["width"] == "57"
    for name, row in rows.items():
        assert int(row["pixels"]) == int((np.asarray(Image.open(tmp_path / "out" / "masks" / name)) > 0).sum())
        assert int(row["objects"]) == names_of(objects)[name]

    def at_once() -> None:  # after a restart: what is there is kept, what is gone is not
        assert list(rows_of(table)) == ["a.png", "b.png", "c.png", "sub/a.png"]

    (images / "c.png").write_bytes(b"\x89PNG\r\n")  # cannot be read any more, and is still there
    looking(trained, images, tmp_path / "out", {2: at_once}, 5, extras={"csv": table, "polygons": objects})
    assert list(rows_of(table)) == list(names_of(objects)) == ["b.png", "c.png", "sub/a.png"]
    assert rows_of(table) == {name: row for name, row in rows.items() if name != "a.png"}
    once = tmp_path / "once.csv"
    (images / "c.png").unlink()
    predict_folder(trained, images, tmp_path / "out", overlays=False, extras={"csv": once})
    assert rows_of(once) == {name: row for name, row in rows.items() if name not in ("a.png", "c.png")}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("mine\n", "predict did not write this file"),
        ('{"info": {"description": "guidino-tune predict"}, "images": [{', "cannot be read back"),
    ],
)
def test_a_file_that_cannot_be_gone_on_with_is_told_at_once(content: str, expected: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "o.json").write_text(content)
    with pytest.raises(UserError, match=expected):
        looking(load_model(model), tmp_path / "in", tmp_path / "out", {}, 1, extras={"polygons": tmp_path / "o.json"})
    assert (tmp_path / "o.json").read_text() == content


HEAD = "image,width,height,label,class,pixels,share,objects,largest,mean_probability"
ROW = "a.png,33,40,1,foreground,7,0.005303,1,7,0.6"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{HEAD},remark\n{ROW},look at it\n", "its columns are image, .*, remark"),  # a person's own column
        (f"{HEAD}\n{ROW},look at it\n", "line 2 is damaged"),
        (f"{HEAD}\n{ROW}\nb.png,33,40,1,foregr", "line 3 is damaged"),
        (f"{HEAD}\n{ROW.replace('0.6', '0,6')}\n", "line 2 is damaged"),
        (f"{HEAD}\n{ROW.replace('7', 'seven')}\n", "line 2 is damaged"),
        (f'{HEAD}\n"{ROW}\n{ROW}\n', "unexpected end of data"),  # all behind a quotation mark that is not closed
        (f'{HEAD}\n"{ROW * 5000}\n', "field larger than field limit"),
    ],
)
def test_a_damaged_table_is_told_at_once(content: str, expected: str, model: Path, tmp_path: Path) -> None:
    """Not when the first image has come, and not by a table that lacks what stood there."""
    (tmp_path / "in").mkdir()
    draw(tmp_path / "in" / "a.png")
    table = tmp_path / "t.csv"
    table.write_text(content)
    with pytest.raises(UserError, match=f"cannot be read back: .*{expected}") as caught:
        looking(load_model(model), tmp_path / "in", tmp_path / "out", {}, 4, extras={"csv": table})
    assert (caught.value.where, table.read_text()) == (str(table), content)


def test_strange_names_come_through_a_table_and_back(model: Path, tmp_path: Path) -> None:
    names = ['a,b "c".png', "line\nbreak.png", "back\rspace.png", "=1+1.png", "ü 日本 #3.png", " lead.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        draw(tmp_path / "in" / name)
    table, objects = tmp_path / "t.csv", tmp_path / "o.json"
    extras = {"csv": table, "polygons": objects}
    rounds = looking(load_model(model), tmp_path / "in", tmp_path / "out", {}, 4, extras=extras)
    assert rounds == [(len(names), [])]
    before = table.read_bytes(), objects.read_bytes()
    assert rounds == looking(load_model(model), tmp_path / "in", tmp_path / "out", {}, 4, extras=extras)
    assert (table.read_bytes(), objects.read_bytes()) == before
    with table.open(newline="") as opened:
        assert sorted(row["image"] for row in csv.DictReader(opened)) == sorted(names)


def test_the_command_watches_with_a_table(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    draw(tmp_path / "in" / "a.png")
    table = tmp_path / "t.csv"
    command = [sys.executable, "-m", "guidino_tune.predict", str(model), str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--watch"]
    process = subprocess.Popen(
        [*command, "--csv", str(table)], cwd=Path(__file__).parents[2], env=dict(os.environ), stdout=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 120
        while not table.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert list(rows_of(table)) == ["a.png"]
