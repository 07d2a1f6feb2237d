"""Bad input: whatever lies in a data set, it is decoded, or left out with a note, or named in a message that says what to do."""

import io
import os
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guidino_tune.config import Data
from guidino_tune.data import raw
from guidino_tune.data.cases import Case
from guidino_tune.data.decoding import read_case, read_image, read_mask
from guidino_tune.data.intensity import EIGHT_BITS, measure_intensity
from guidino_tune.data.labels import LabelRule
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.reading import read_raw
from guidino_tune.data.rules import Rules, measure_rules
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for index in range(8):
        write(root, f"c{index}.png", index)
    return root


def write(root: Path, name: str, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for folder, array in (("images", rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)), ("masks", square())):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / folder / name)


def square() -> np.ndarray:
    mask = np.zeros((40, 48), np.uint8)
    mask[5:20, 10:30] = 255
    return mask


def data(root: Path, **changes: Any) -> Data:
    return Data(kind="folder", root=str(root), image_size=32, validation_fraction=0.25, test_fraction=0.0, **changes)


def png(width: int, height: int) -> bytes:
    """A few hundred bytes that claim to be a picture of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def truncated() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()[:3000]


def outcome(call: Callable[[], Any]) -> Any:
    """What it returns, or its message."""
    try:
        return call()
    except UserError as error:
        return error


BROKEN = {
    "nothing in it": (b"", "cannot be decoded"),
    "a JPEG cut short": (truncated(), "cannot be decoded"),
    "a page of HTML": (b"<html>404</html>", "cannot be decoded: it is no image"),
    "a decompression bomb": (png(30_000, 30_000), "is too large"),
    "a picture above our own limit": (png(10_000, 8_001), "is too large: 10000x8001 pixels, and 80,000,000 is the most"),
    "no pixels": (png(0, 0), "cannot be decoded"),
}


@pytest.mark.parametrize("folder", ["images", "masks"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_with_what_to_do_or_left_out(root: Path, name: str, folder: str) -> None:
    content, words = BROKEN[name]
    (root / folder / "c3.png").write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        open_for_search(data(root))
    assert str(root / folder / "c3.png") in str(caught.value)
    assert "data.bad_cases=skip" in str(caught.value)
    opened = open_for_search(data(root, bad_cases="skip"))
    assert len(opened.train) + len(opened.validation) == 7
    assert any(note.startswith("left out c3:") and words.partition(":")[0] in note for note in opened.notes)


def folder_of_that_name(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "absent.png")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def link_to_its_folder(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent)


def unreadable(path: Path) -> None:
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


@pytest.mark.parametrize("spoil", [folder_of_that_name, link_to_nowhere, link_to_itself, link_to_its_folder, unreadable])
def test_what_only_looks_like_a_file_is_named_or_left_out(root: Path, spoil: Any) -> None:
    spoil(root / "images" / "c3.png")
    with pytest.raises(UserError, match="cannot be read") as caught:
        open_for_search(data(root))
    assert str(root / "images" / "c3.png") in str(caught.value)
    assert any(note.startswith("left out c3:") for note in open_for_search(data(root, bad_cases="skip")).notes)


def test_links_to_files_and_folders_are_followed(root: Path, tmp_path: Path) -> None:
    plain = open_for_search(data(root))
    linked = tmp_path / "linked"
    (linked / "images").mkdir(parents=True)
    for path in (root / "images").iterdir():
        (linked / "images" / path.name).symlink_to(path)
    (linked / "masks").symlink_to(root / "masks")
    assert open_for_search(data(linked)).fingerprint == plain.fingerprint


def test_a_folder_that_cannot_be_listed_is_no_traceback(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.scandir

    def refuse(folder: Path) -> Any:
        if Path(folder).name == "images":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # a superuser, as in containers, is never refused by the real thing
    with pytest.raises(UserError, match="cannot be listed: Permission denied") as caught:
        find_cases(data(root))
    assert caught.value.where == str(root / "images")


@pytest.mark.parametrize("name", ["größe.png", "画像 1.png", "a b  c.png", "x'y;$(z).png", "-rf.png"])
def test_any_name_that_is_text_is_a_name(root: Path, name: str) -> None:
    write(root, name)
    (root / "train.txt").write_text("\n".join([*(f"c{i}" for i in range(5)), name]), encoding="utf-8")
    (root / "validation.txt").write_text("c5\nc6\nc7", encoding="utf-8")
    assert Path(name).stem in open_for_search(data(root)).train.ids


def test_a_name_is_the_same_in_either_spelling_of_its_accents(root: Path) -> None:
    write(root, unicodedata.normalize("NFD", "größe.png"))
    path = root / "masks" / unicodedata.normalize("NFD", "größe.png")
    path.rename(root / "masks" / unicodedata.normalize("NFC", "größe.png"))
    assert unicodedata.normalize("NFC", "größe") in {case.id for case in find_cases(data(root)).cases}


def test_a_name_that_is_no_text_is_refused(root: Path) -> None:
    os.rename(os.fsencode(root / "images" / "c3.png"), os.fsencode(root / "images") + b"/\xff\xfe.png")
    with pytest.raises(UserError, match="is no UTF-8") as caught:
        find_cases(data(root))
    str(caught.value).encode()  # the message itself can be printed


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_without_partner_stop_or_are_left_out(root: Path, kind: str) -> None:
    (root / kind / "c3.png").unlink()
    with pytest.raises(UserError, match=r"1 (images without mask|masks without image): c3\.png"):
        open_for_search(data(root))
    opened = open_for_search(data(root, bad_cases="skip"))
    assert len(opened.train) + len(opened.validation) == 7
    assert "left out 1" in opened.notes[1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_images_of_every_mode_have_three_channels_of_the_same_picture(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8).repeat(4, 0).repeat(4, 1))
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        picture = Image.fromarray((np.asarray(grey).astype(np.float64) * (1 / 255 if mode == "F" else 257)).astype(kind))
    else:
        picture = grey.convert(mode) if mode in ("1", "L", "LA", "P") else grey.convert("RGB").convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr", "LAB", "I", "F") else "x.png")
    picture.save(path)
    rule = measure_intensity([[path]], Data(kind="folder"))
    image = read_image(path, Rules(LabelRule("any"), rule))
    assert image.shape == (32, 32, 3)
    assert image.dtype == (np.uint16 if mode in ("I;16", "I", "F") else np.uint8)
    if mode != "1":
        levels = image.astype(float) / (257 if image.dtype == np.uint16 else 1)
        assert np.abs(levels - np.asarray(grey)[..., None]).max() <= 4


def test_an_image_turned_by_its_tag_must_fit_its_mask(tmp_path: Path) -> None:
    """A camera turns by a tag, and a drawing program writes the mask as it is seen; a mask of the stored pixels does not fit."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 40)).save(tmp_path / "a.jpg", exif=exif)
    for name, size in (("seen.png", (40, 48)), ("stored.png", (48, 40))):
        Image.new("L", size).save(tmp_path / name)
    rules = Rules(LabelRule("any", {0: 0}), EIGHT_BITS)
    image, mask = read_case(Case("a", tmp_path / "a.jpg", tmp_path / "seen.png", "a"), rules)
    assert (image.shape, mask.shape) == ((48, 40, 3), (48, 40))
    with pytest.raises(UserError, match=r"a\.jpg is 40x48, .*stored\.png is 48x40 pixels") as caught:
        read_case(Case("a", tmp_path / "a.jpg", tmp_path / "stored.png", "a"), rules)
    assert "EXIF" in caught.value.todo


def test_damaged_tags_are_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03")
    found = outcome(lambda: read_raw(path).values.shape)
    assert found == (8, 8, 3) or (isinstance(found, UserError) and found.where == str(path))


@pytest.mark.parametrize("value", [0, 2, 12, 255])
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damage that it gets over
def test_no_single_wrong_byte_in_a_header_is_a_traceback(tmp_path: Path, value: int) -> None:
    """Pillow raises a TypeError for a TIFF whose numbers are marked as text, and other errors for other bytes."""
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(tmp_path / "whole.tif")
    content = (tmp_path / "whole.tif").read_bytes()
    path = tmp_path / "x.tif"
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        found = outcome(lambda: read_raw(path).values.shape)
        assert isinstance(found, tuple) or (isinstance(found, UserError) and found.where == str(path))


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"]
FORMATS = ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"]


@st.composite
def files(draw: st.DrawFn, size: tuple[int, int]) -> bytes:
    """An image file of some mode and format, as it should be or spoilt."""
    width, height = size
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    mode, top = draw(st.sampled_from(MODES)), draw(st.sampled_from([0, 1, 2, 255]))
    values = rng.integers(0, top + 1, (height, width))
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        values = values * draw(st.sampled_from([1, 257, 300]))
        picture = Image.fromarray((values / draw(st.sampled_from([1, 255, 0.001])) if mode == "F" else values).astype(kind))
        if mode == "F" and draw(st.booleans()):
            picture = Image.fromarray(np.full((height, width), draw(st.sampled_from([np.nan, np.inf, -np.inf, -1.0])), np.float32))
    else:
        picture = Image.fromarray(values.astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = draw(st.integers(0, 9))
    buffer = io.BytesIO()
    kind = draw(st.sampled_from(FORMATS))
    try:
        picture.save(buffer, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}))
    except (OSError, ValueError, KeyError):  # this format has no such mode
        buffer = io.BytesIO()
        picture.convert("RGB" if mode != "F" else "L").save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    match draw(st.sampled_from(["whole", "whole", "cut", "changed", "noise", "doubled"])):
        case "cut":
            del content[draw(st.integers(0, len(content))) :]
        case "changed":
            for place, value in draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)):
                content[place] = value
        case "noise":
            content[draw(st.integers(0, len(content))) :] = draw(st.binary(max_size=60))
        case "doubled":
            content += bytes(content)
    return bytes(content)


@given(st.data())
@examples(40)
def test_any_pair_of_files_is_a_case_or_a_message(tmp_path: Path, draw: st.DataObject) -> None:
    size = draw.draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    image, mask = tmp_path / "image é.png", tmp_path / "mask é.png"
    image.write_bytes(draw.draw(files(size)))
    mask.write_bytes(draw.draw(files(size if draw.draw(st.integers(0, 3)) else (7, 9))))
    num_classes = draw.draw(st.integers(1, 3))
    case, data = Case("a", image, mask, "a"), Data(kind="folder", num_classes=num_classes)
    found = outcome(lambda: read_case(case, measure_rules([case], [], data)))
    if isinstance(found, UserError):
        assert found.where in (str(image), str(mask), str(tmp_path))
        assert found.todo
        return
    pixels, labels = found
    assert pixels.dtype in (np.uint8, np.uint16)
    assert labels.dtype == np.uint8
    assert pixels.shape == (*labels.shape, 3)
    assert labels.max(initial=0) <= num_classes


def test_pillow_s_own_limit_does_not_come_before_ours() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert raw.MAX_PIXELS < Image.MAX_IMAGE_PIXELS


def test_what_is_no_number_in_a_mask_is_neither_background_nor_foreground(tmp_path: Path) -> None:
    values = np.zeros((4, 4), np.float32)
    values[0] = np.nan
    Image.fromarray(values).save(tmp_path / "m.tif")
    with pytest.raises(UserError, match=r"no number .* in 4 places") as caught:
        read_mask(tmp_path / "m.tif", LabelRule("any", {0: 0}))
    assert "data.ignore_label=255" in caught.value.todo
