"""What cannot be refused without refusing good data, and is told instead; and settings on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_data_as_people_have_it import PAIRS, byte, folder, opened, pair, plain, png, right

from guidino_tune.errors import UserError
from guidino_tune.workflows.doctor import told_data


def test_images_that_are_turned_by_their_header_are_told(tmp_path: Path) -> None:
    root = tmp_path / "data"
    turn = Image.Exif()
    turn[274] = 3
    for i in range(PAIRS):
        grey, truth = pair(i)
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(byte(grey)[::-1, ::-1].copy()).save(root / "images" / f"case{i:03d}.jpg", exif=turn)
        png(root / "masks" / f"case{i:03d}.png", plain(truth, i))
    found, _, _ = opened(root)
    right(found)
    assert any("18 of 18 images are turned" in note for note in found.notes)


def test_images_on_another_scale_are_told(tmp_path: Path) -> None:
    root = tmp_path / "data"
    folder(root, lambda grey: grey.astype(np.float32), plain, "tif")
    for i in range(0, PAIRS, 2):
        tifffile.imwrite(root / "images" / f"case{i:03d}.tif", (pair(i)[0] / 255).astype(np.float32))
    found, _, _ = opened(root)
    assert any("use less than a sixteenth of the grey levels, such as case" in note for note in found.notes)


def test_masks_that_look_inverted_come_with_the_setting_that_turns_them(tmp_path: Path) -> None:
    folder(tmp_path / "data", byte, lambda truth, i: plain(~truth, i))
    found, _, _ = opened(tmp_path / "data")
    [note] = [note for note in found.notes if "look inverted" in note]
    assert note.endswith("--set 'data.labels={foreground: 0, background: 255}'")
    right(opened(tmp_path / "data", labels={"foreground": 0, "background": 255})[0])


def test_a_validation_without_any_foreground_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "data", byte, lambda truth, i: plain(truth * (i < 14), i))
    for part, ids in (("train", range(14)), ("val", range(14, 17)), ("test", range(17, PAIRS))):
        (tmp_path / "data" / f"{part}.txt").write_text("".join(f"case{i:03d}\n" for i in ids))
    with pytest.raises(UserError, match="all 3 validation masks are empty"):
        opened(tmp_path / "data")


@pytest.mark.parametrize("text", ["data.masks=*_mask.png", "data.images=[ab]*.png", "data.group=[0-9]+", "data.group=^(P[0-9]+)_"])
def test_doctor_takes_patterns_as_they_are_written(text: str) -> None:
    name, _, value = text.removeprefix("data.").partition("=")
    assert getattr(told_data("folder", "somewhere", [text]), name) == value
