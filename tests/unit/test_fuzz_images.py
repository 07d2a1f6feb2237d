"""Whatever bytes stand in an image file, reading it gives an array of the promised kind or one message that names the file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guidino_tune.config import Data
from guidino_tune.data.cases import Case
from guidino_tune.data.copies import copies_in_files
from guidino_tune.data.decoding import read_case, read_image, read_mask
from guidino_tune.data.intensity import measure_intensity
from guidino_tune.data.labels import LabelRule
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.rules import Rules, label_rule, survey_masks
from guidino_tune.errors import UserError

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"]
FORMATS = ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "ICO", "TGA"]


def encoded(mode: str, form: str, width: int, height: int, seed: int, orientation: int = 1) -> bytes | None:
    """A picture of noise in a file; ``None`` where the format has no such mode."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    try:
        if mode == "I;16":
            picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
        elif mode == "PA":
            picture = Image.fromarray(noise).convert("P").convert("PA")
        else:
            picture = Image.fromarray(noise).convert("L" if mode in "IF" else "RGB").convert(mode)
        picture.save(file, form, **({"exif": exif} if form in ("PNG", "JPEG", "TIFF", "WEBP") and orientation != 1 else {}))
    except (OSError, ValueError, KeyError, SystemError):
        return None
    return file.getvalue()


WHOLE = [content for mode in MODES for form in FORMATS if (content := encoded(mode, form, 9, 6, len(mode))) is not None]
edits = st.lists(
    st.tuples(st.sampled_from(["cut", "set", "drop", "insert", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=6)),
    min_size=1,
    max_size=5,
)


def edited(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, share, new in changes:
        place = int(share * len(content))
        if kind == "cut":
            content = content[:place]
        elif kind == "set":
            content = content[:place] + new + content[place + len(new) :]
        elif kind == "drop":
            content = content[:place] + content[place + len(new) :]
        elif kind == "insert":
            content = content[:place] + new + content[place:]
        else:
            content = content + content[place:]
    return content


def looked_at(file: Path, num_classes: int) -> list[str]:
    """The messages of both readers; what they give instead must be as promised."""
    told = []
    data = Data(kind="folder", num_classes=num_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said beside the message
        try:
            rule = measure_intensity([[file]], Data(kind="folder"))
            image = read_image(file, Rules(LabelRule("any"), rule))
            assert (image.ndim, image.shape[2]) == (3, 3)
            assert image.dtype in (np.uint8, np.uint16)
            assert image.size
        except UserError as error:
            told.append(str(error))
        try:
            mask = read_mask(file, label_rule(survey_masks([Case("a", file, file, "a")], data), data))
            assert (mask.dtype, mask.ndim) == (np.uint8, 2)
            assert mask.max() <= num_classes
        except UserError as error:
            told.append(str(error))
    return told


def test_colours_that_cannot_be_converted_are_told(tmp_path: Path) -> None:
    file = tmp_path / "lab.tif"
    file.write_bytes(next(content for content in WHOLE if Image.open(io.BytesIO(content)).mode == "LAB"))
    assert [message.partition(": ")[0] for message in looked_at(file, 1)] == [str(tmp_path)]  # as an image it can


def test_there_are_files_of_every_format() -> None:
    forms = {Image.open(io.BytesIO(content)).format for content in WHOLE}
    assert forms >= {"PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"}
    assert len(WHOLE) > 50


@given(content=st.sampled_from(WHOLE), changes=edits, num_classes=st.sampled_from([1, 3, 254]))
@examples(50)
def test_a_damaged_file_is_an_image_or_a_message(
    tmp_path: Path, content: bytes, changes: list[tuple[str, float, bytes]], num_classes: int
) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(edited(content, changes))
    for message in looked_at(file, num_classes):
        assert message.startswith((f"{file}: ", f"{tmp_path}: "))  # a mask that is whole may fit no rule of the data set
        assert "\n  -> " in message
        assert len(message) < 2000


@given(
    content=st.binary(max_size=200)
    | st.sampled_from(WHOLE).map(lambda whole: whole[:40]).flatmap(lambda head: st.binary(max_size=60).map(lambda tail: head + tail))
)
@examples(30)
def test_any_bytes_are_an_image_or_a_message(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "picture.tif"
    file.write_bytes(content)
    assert all(message.startswith(f"{file}: ") for message in looked_at(file, 1))


@given(
    mode=st.sampled_from(MODES),
    form=st.sampled_from([form for form in FORMATS if form != "ICO"]),  # which has sizes of its own
    width=st.integers(1, 20),
    height=st.integers(1, 20),
    seed=st.integers(0, 99),
    orientation=st.integers(1, 8),
    other=st.integers(0, 20),
    num_classes=st.sampled_from([1, 2, 254]),
)
@examples(30)
def test_a_pair_has_one_size_or_a_message(
    tmp_path: Path, mode: str, form: str, width: int, height: int, seed: int, orientation: int, other: int, num_classes: int
) -> None:
    content = encoded(mode, form, width, height, seed, orientation)
    if content is None:
        return
    (tmp_path / "image").write_bytes(content)
    side = (height, width) if orientation < 5 or form not in ("PNG", "JPEG", "TIFF", "WEBP") else (width, height)  # as it is shown
    mask = np.random.default_rng(seed).integers(0, num_classes + 1, (side[0] + (other == 1), side[1]), dtype=np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    case = Case(id="a", image=tmp_path / "image", mask=tmp_path / "mask.png", group="a")
    labels = LabelRule("values", {value: value for value in range(num_classes + 1)})
    rules = Rules(labels, measure_intensity([[case.image]], Data(kind="folder")))
    if other == 1:
        with pytest.raises(UserError, match="differ in size"):
            read_case(case, rules)
        return
    image, read = read_case(case, rules)
    assert image.shape == (*side, 3)
    assert np.array_equal(read, mask)


@given(damage=st.lists(st.tuples(st.integers(0, 5), st.booleans(), edits), max_size=3), seed=st.integers(0, 9))
@examples(15)
def test_a_damaged_data_set_is_read_without_what_is_broken(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bool, list[tuple[str, float, bytes]]]], seed: int
) -> None:
    root = tmp_path_factory.mktemp("data")
    for part in ("images", "masks"):
        (root / part).mkdir()
        for number in range(6):
            picture = Image.fromarray(np.random.default_rng(seed + number).integers(0, 2, (8, 8), dtype=np.uint8) * 255)
            picture.save(root / part / f"{number}.png")
    for number, of_image, changes in damage:
        file = root / ("images" if of_image else "masks") / f"{number}.png"
        file.write_bytes(edited(file.read_bytes(), changes))
    data = Data(kind="folder", root=str(root), image_size=32, bad_cases="skip", validation_fraction=0.4, test_fraction=0)
    message = str(root)
    try:
        opened = open_for_search(data, cache=root / "cache")
        assert len(opened.train) + len(opened.validation) >= 6 - len(damage)
    except UserError as error:  # every case of a part is broken
        message = str(error)
    assert str(root) in message
    copies_in_files([Case(id=str(i), image=root / "images" / f"{i}.png", mask=root, group="") for i in range(6)])
