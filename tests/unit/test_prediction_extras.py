"""What predict writes beside masks."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_prediction_files import model as model

from guidino_tune.predict import main
from guidino_tune.workflows.prediction_objects import components, outline, run_lengths


def filled(corners: list[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie within a polygon."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y1 != y2:
            inside ^= ((y > min(y1, y2)) & (y < max(y1, y2))) & (x < x1)
        else:
            assert x1 != x2
    return inside


def test_outlines_and_run_lengths_give_the_mask_back() -> None:
    from scipy.ndimage import binary_fill_holes

    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 6), (7, 1), (9, 12), (20, 17)):
        for density in (0.3, 0.6, 0.9, 1.0):
            mask = rng.random(shape) < density
            together = np.zeros(shape, int)
            for box, part in components(mask):
                whole = np.zeros(shape, bool)
                whole[box] = part
                corners = outline(part, box[1].start, box[0].start)
                assert np.array_equal(filled(corners, shape), binary_fill_holes(whole, np.ones((3, 3))))
                counts = run_lengths(box, part, shape)
                assert sum(counts) == mask.size
                line = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
                assert np.array_equal(line.reshape(shape, order="F"), whole)
                together += whole
            assert np.array_equal(together, mask)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name, size in (("a", (40, 30)), ("b", (33, 50))):
        picture = Image.new("RGB", size, (40, 30, 20))
        ImageDraw.Draw(picture).ellipse((5, 5, 20, 20), (250, 200, 180))
        picture.save(tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


def test_extras_are_written_and_agree_with_the_masks(model: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    words = [str(model), str(images), "--output", str(out), "--probabilities", "--csv", str(tmp_path / "t.csv")]
    words += ["--polygons", str(tmp_path / "coco.json")]
    for _ in range(2):  # its own files it replaces
        assert main(words) == 0
    assert f"written: {tmp_path / 't.csv'}" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "b.png"]
    for row, image in zip(rows, coco["images"], strict=True):
        mask = np.asarray(Image.open(out / "masks" / row["image"])) > 0
        probability = np.asarray(Image.open(out / "probabilities" / row["image"]))
        assert probability.dtype == np.uint16
        assert ((probability > 32768) == mask).mean() > 0.999
        own = [one for one in coco["annotations"] if one["image_id"] == image["id"]]
        assert int(row["pixels"]) == mask.sum() == sum(one["area"] for one in own)
        assert int(row["objects"]) == len(own)
        assert (image["height"], image["width"]) == mask.shape
    for mine in ("mine", "guidino-tune predict MODEL images --output out\n"):  # what only speaks of the command is not its own
        (tmp_path / "t.csv").write_text(mine)
        assert main(words) == 2
        assert "predict did not write this file" in capsys.readouterr().err
        assert (tmp_path / "t.csv").read_text() == mine
    (tmp_path / "t.csv").unlink()
    assert main([*words, "--polygons", str(tmp_path / "t.csv")]) == 2
    assert "are one file" in capsys.readouterr().err
    assert not (tmp_path / "t.csv").exists()
