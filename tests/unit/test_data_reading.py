"""Files of every format into their own numbers: nothing scaled, nothing lost, nothing guessed."""

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from guidino_tune.data import raw as raw_module
from guidino_tune.data.reading import is_deep, read_raw
from guidino_tune.errors import UserError

RANDOM = np.random.default_rng(0)
GREY8 = RANDOM.integers(0, 256, (33, 41), dtype=np.uint8)
GREY16 = RANDOM.integers(0, 65536, (33, 41), dtype=np.uint16)
RGB8 = RANDOM.integers(0, 256, (33, 41, 3), dtype=np.uint8)
RGB16 = RANDOM.integers(0, 65536, (33, 41, 3), dtype=np.uint16)
FIVE = RANDOM.integers(0, 4096, (33, 41, 5), dtype=np.uint16)
SIGNED = RANDOM.integers(-1000, 3000, (33, 41), dtype=np.int16)
FLOAT = RANDOM.normal(0, 1, (33, 41)).astype(np.float32)


def by_pillow(array, form: str, **options) -> bytes:
    file = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(file, form, **options)
    return file.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def npy(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(array: np.ndarray, colour: int, bits: int, *more: bytes) -> bytes:
    """Written by hand, for Pillow writes neither 16 bits in colours nor 2 and 4 bits in grey."""
    height, width = array.shape[:2]
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in array]
    else:
        parts = np.unpackbits(array.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1)
        rows = [np.packbits(row).tobytes() for row in parts]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data + chunk(b"IEND", b"")


def netpbm(kind: int, array: np.ndarray, white: int | None) -> bytes:
    height, width = array.shape[:2]
    head = f"P{kind}\n# made by hand\n{width} {height}\n" + (f"{white}\n" if white else "")
    if kind <= 3:
        return head.encode() + "\n".join(" ".join(map(str, row.reshape(-1))) for row in array).encode()
    if kind == 4:
        return head.encode() + np.packbits(array, axis=1).tobytes()
    return head.encode() + array.astype(">u2" if white and white > 255 else "u1").tobytes()


CASES = {
    "png 8": (by_pillow(GREY8, "PNG"), GREY8, 255),
    "png 16": (png(GREY16, 0, 16), GREY16, 65535),
    "png 16 of Pillow": (by_pillow(GREY16, "PNG"), GREY16, 65535),
    "png rgb": (by_pillow(RGB8, "PNG"), RGB8, 255),
    "png rgb 16": (png(RGB16, 2, 16), RGB16, 65535),
    "png 1": (by_pillow(GREY8 > 99, "PNG"), GREY8 > 99, 1),
    "png 2": (png(GREY8 & 3, 0, 2), GREY8 & 3, 3),
    "png 4": (png(GREY8 & 15, 0, 4), GREY8 & 15, 15),
    "bmp": (by_pillow(RGB8, "BMP"), RGB8, 255),
    "bmp grey": (by_pillow(GREY8, "BMP"), GREY8, 255),
    "webp lossless": (by_pillow(RGB8, "WEBP", lossless=True), RGB8, 255),
    "jp2 16": (imagecodecs.jpeg2k_encode(GREY16, reversible=True), GREY16, 65535),
    "jp2 rgb 16": (imagecodecs.jpeg2k_encode(RGB16, reversible=True), RGB16, 65535),
    "jp2 12": (imagecodecs.jpeg2k_encode(GREY16 >> 4, reversible=True, bitspersample=12), GREY16 >> 4, 4095),
    "jp2 signed": (imagecodecs.jpeg2k_encode(SIGNED, reversible=True), SIGNED, 0),
    "j2k": (imagecodecs.jpeg2k_encode(RGB8, reversible=True, codecformat="j2k"), RGB8, 255),
    "jpeg lossless 16": (imagecodecs.jpeg8_encode(GREY16, lossless=True, bitspersample=16), GREY16, 65535),
    "tiff 8": (tiff(GREY8), GREY8, 255),
    "tiff 16 lzw": (tiff(GREY16, compression="lzw", predictor=True), GREY16, 65535),
    "tiff rgb 16 deflate": (tiff(RGB16, compression="zlib", photometric="rgb"), RGB16, 65535),
    "tiff zstd tiled": (tiff(RGB16, compression="zstd", photometric="rgb", tile=(16, 16)), RGB16, 65535),
    "tiff planar": (tiff(np.moveaxis(RGB16, 2, 0), photometric="rgb", planarconfig="separate"), RGB16, 65535),
    "tiff five": (tiff(FIVE, photometric="minisblack", planarconfig="contig"), FIVE, 65535),
    "tiff five planar": (tiff(np.moveaxis(FIVE, 2, 0), photometric="minisblack", planarconfig="separate"), FIVE, 65535),
    "tiff two": (tiff(FIVE[..., :2], photometric="minisblack", planarconfig="contig"), FIVE[..., :2], 65535),
    "tiff signed": (tiff(SIGNED), SIGNED, 0),
    "tiff signed 32": (tiff(SIGNED.astype(np.int32) * 99), SIGNED.astype(np.int32) * 99, 0),
    "tiff float": (tiff(FLOAT), FLOAT, 0),
    "tiff big-endian": (tiff(GREY16, byteorder=">"), GREY16, 65535),
    "bigtiff": (tiff(GREY16, bigtiff=True), GREY16, 65535),
    "tiff white is zero": (tiff(GREY16, photometric="miniswhite"), 65535 - GREY16, 65535),
    "tiff 1": (by_pillow(GREY8 > 99, "TIFF", compression="group4"), GREY8 > 99, 1),
    "tiff 12": (tiff(GREY16 >> 4, bitspersample=12), GREY16 >> 4, 4095),
    "pgm": (netpbm(5, GREY8, 255), GREY8, 255),
    "pgm 100": (netpbm(5, GREY8 % 101, 100), GREY8 % 101, 100),
    "pgm 12": (netpbm(5, GREY16 >> 4, 4095), GREY16 >> 4, 4095),
    "pgm 16": (netpbm(5, GREY16, 65535), GREY16, 65535),
    "pgm written": (netpbm(2, GREY16, 65535), GREY16, 65535),
    "ppm": (netpbm(6, RGB8, 255), RGB8, 255),
    "ppm written": (netpbm(3, RGB8, 255), RGB8, 255),
    "pbm": (netpbm(4, GREY8 > 99, None), GREY8 <= 99, 1),
    "pbm written": (netpbm(1, (GREY8 > 99).astype(int), None), GREY8 <= 99, 1),
    "npy": (npy(GREY16), GREY16, 65535),
    "npy float": (npy(FLOAT), FLOAT, 0),
    "npy channels last": (npy(FIVE), FIVE, 65535),
    "npy channels first": (npy(np.moveaxis(FIVE, 2, 0)), FIVE, 65535),
    "npy big-endian": (npy(SIGNED.astype(">i2")), SIGNED, 0),
    "npy of Fortran": (npy(np.asfortranarray(GREY16)), GREY16, 65535),
    "npy of truth values": (npy(GREY8 > 99), GREY8 > 99, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_every_format_gives_its_own_numbers(tmp_path: Path, name: str) -> None:
    content, truth, white = CASES[name]
    path = tmp_path / "file"
    path.write_bytes(content)
    read = read_raw(path)
    truth = np.atleast_3d(truth.astype(np.uint8) if truth.dtype == bool else truth)
    assert read.values.dtype == truth.dtype
    assert read.values.dtype.isnative
    assert np.array_equal(read.values, truth)
    assert read.white == white
    assert (read.alpha, read.indices, read.palette, read.window, read.lossy) == (None, None, None, None, False)
    assert np.array_equal(read_raw(path, content).values, truth)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


ALPHA = np.eye(33, 41, dtype=np.uint16)


@pytest.mark.parametrize(
    ("content", "values", "alpha"),
    [
        (by_pillow(np.dstack([RGB8, ALPHA.astype(np.uint8) * 255]), "PNG"), RGB8, ALPHA * 255),
        (by_pillow(Image.fromarray(np.dstack([GREY8, ALPHA.astype(np.uint8) * 255]), "LA"), "PNG"), GREY8, ALPHA * 255),
        (png(np.dstack([RGB16, ALPHA * 65535]), 6, 16), RGB16, ALPHA * 65535),
        (png(np.dstack([GREY16, ALPHA * 65535]), 4, 16), GREY16, ALPHA * 65535),
        (png(GREY8 & 3, 0, 2, chunk(b"tRNS", b"\0\2")), GREY8 & 3, ((GREY8 & 3) != 2) * 3),
        (tiff(np.dstack([RGB16, ALPHA * 65535]), photometric="rgb", extrasamples=["unassalpha"]), RGB16, ALPHA * 65535),
        (by_pillow(np.dstack([RGB8, ALPHA.astype(np.uint8) * 255]), "JPEG2000"), RGB8, ALPHA * 255),
        (by_pillow(GREY8 > 99, "PNG", transparency=1), GREY8 > 99, GREY8 <= 99),
        (by_pillow(np.dstack([RGB8, ALPHA.astype(np.uint8) * 255]), "WEBP", lossless=True, exact=True), RGB8, ALPHA * 255),
    ],
    ids=["png", "grey png", "png 16", "grey png 16", "key of 2 bits", "tiff", "jp2", "key of 1 bit", "webp"],
)
def test_alpha_stands_apart(tmp_path: Path, content: bytes, values: np.ndarray, alpha: np.ndarray) -> None:
    read = read_raw(written(tmp_path / "file", content))
    assert np.array_equal(read.values, np.atleast_3d(values))
    assert np.array_equal(read.alpha, alpha)
    assert alpha.max() == read.white


def test_alpha_that_is_the_same_everywhere_tells_nothing(tmp_path: Path) -> None:
    for level in (0, 99, 255):
        content = by_pillow(np.dstack([RGB8, np.full_like(GREY8, level)]), "PNG")
        assert read_raw(written(tmp_path / "file", content)).alpha is None


def test_a_fourth_sample_that_is_no_alpha_is_a_channel(tmp_path: Path) -> None:
    four = np.dstack([RGB16, GREY16])
    content = tiff(four, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(read_raw(written(tmp_path / "file", content)).values, four)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF"])
def test_a_palette_gives_indices_colours_and_both(tmp_path: Path, form: str) -> None:
    indices = GREY8 % 4
    colours = np.array([[0, 0, 0], [128, 0, 0], [9, 9, 9], [0, 0, 255]], np.uint8)
    picture = Image.fromarray(indices, "L").convert("P")
    picture.putpalette(colours.reshape(-1).tolist())
    read = read_raw(written(tmp_path / "file", by_pillow(picture, form)))
    assert np.array_equal(read.indices, indices)
    assert np.array_equal(read.palette[:4], colours)
    assert np.array_equal(read.values, colours[indices])
    assert read.white == 255


def test_what_is_compressed_with_loss_says_so(tmp_path: Path) -> None:
    lossy = [
        by_pillow(RGB8, "JPEG"),
        by_pillow(RGB8, "WEBP", quality=90),
        by_pillow(np.dstack([RGB8, ALPHA.astype(np.uint8) * 255]), "WEBP", quality=90),
        imagecodecs.jpeg2k_encode(RGB8, level=30, reversible=False),
        tiff(RGB8, compression="jpeg", photometric="rgb"),
        imagecodecs.jpeg8_encode(GREY16 >> 4, bitspersample=12, level=95),
    ]
    assert all(read_raw(written(tmp_path / "file", content)).lossy for content in lossy)
    deep = read_raw(tmp_path / "file")
    assert (deep.values.dtype, deep.white) == (np.uint16, 4095)
    assert np.abs(deep.values[..., 0].astype(int) - (GREY16 >> 4)).mean() < 200


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_by_pillow(tmp_path: Path, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path / "file", by_pillow(RGB8, form, exif=exif))
    assert np.array_equal(read_raw(path).values, np.asarray(ImageOps.exif_transpose(Image.open(path))))


def test_orientation_turns_deep_colours_and_indices_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = png(RGB16, 2, 16, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    assert np.array_equal(read_raw(written(tmp_path / "a", content)).values, np.rot90(RGB16, -1))
    picture = Image.fromarray(GREY8).convert("P")
    read = read_raw(written(tmp_path / "b", by_pillow(picture, "PNG", exif=exif)))
    assert np.array_equal(read.indices, np.rot90(np.asarray(picture), -1))
    turned = tiff(GREY16, extratags=[(274, "H", 1, 8, True)])
    assert np.array_equal(read_raw(written(tmp_path / "c", turned)).values[..., 0], np.rot90(GREY16))


def frames(form: str) -> bytes:
    others = [Image.fromarray(255 - RGB8), Image.fromarray(RGB8 // 2)]
    return by_pillow(RGB8, form, save_all=True, append_images=others, **({"lossless": True} if form == "WEBP" else {}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (frames("GIF"), "holds 3 frames"),
        (frames("WEBP"), "holds 3 frames"),
        (frames("PNG"), "holds 3 frames"),
        (frames("TIFF"), "holds 3 pages"),
        (tiff(np.zeros((7, 20, 30), np.uint16)), "holds 7 pages"),
        (tiff(np.zeros((7, 20, 30), np.uint16), metadata={"axes": "ZYX"}, imagej=True), "holds 7 p"),
        (netpbm(5, GREY8, 255) + netpbm(5, GREY8, 255), "holds 2 pictures"),
    ],
    ids=["gif", "webp", "apng", "tiff", "pages", "imagej", "pgm"],
)
def test_files_of_several_pictures_say_how_many(tmp_path: Path, content: bytes, words: str) -> None:
    path = written(tmp_path / "several", content)
    with pytest.raises(UserError, match=words) as caught:
        read_raw(path)
    assert caught.value.where == str(path)
    assert "data.bad_cases=skip" in caught.value.todo


def test_previews_are_no_further_pictures(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(GREY16)
        writer.write(GREY16[::4, ::4], subfiletype=1)
    assert np.array_equal(read_raw(written(tmp_path / "a", file.getvalue())).values[..., 0], GREY16)
    photograph = io.BytesIO()
    Image.fromarray(RGB8).save(photograph, "MPO", save_all=True, append_images=[Image.fromarray(RGB8[::2, ::2])])
    assert read_raw(written(tmp_path / "b", photograph.getvalue())).values.shape == RGB8.shape


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy(np.zeros((20, 20, 20))), "the axis of the channels is not known"),
        (npy(np.zeros((4, 30, 5))), "the axis of the channels is not known"),
        (npy(np.zeros((2, 3, 20, 20))), "has the shape"),
        (npy(np.zeros(9)), "has the shape"),
        (npy(np.zeros((20, 20), complex)), "no real numbers"),
        (npy(np.array([[{}]]), allow_pickle=True), "no real numbers"),
        (tiff(np.zeros((20, 20), np.complex64)), "no real numbers"),
        (tiff(FLOAT, photometric="miniswhite"), "black is not known"),
        (netpbm(5, GREY8, 100), "says that 100 is its largest number"),
        (b"P5\n9 9\n0\n" + bytes(81), "its largest number would be 0"),
        (b"P2\n2 2\n255\n1 2 x 4", "what should be a number is none"),
        (b"P5" + b" " * 5000, "its header"),
        (b"DICM", "it is no image"),
    ],
)
def test_what_cannot_be_known_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = written(tmp_path / "file", content)
    with pytest.raises(UserError, match=words) as caught:
        read_raw(path)
    assert caught.value.where == str(path)
    assert caught.value.todo


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("bmp")])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str) -> None:
    content = CASES[name][0]
    path = written(tmp_path / "file", content[: len(content) * 2 // 3])
    with pytest.raises(UserError, match=r"cannot be decoded|cut short") as caught:
        read_raw(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("name", CASES)
def test_what_would_fill_the_memory_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_module, "MAX_PIXELS", 33 * 41 - 1)
    with pytest.raises(UserError, match=r"is too large: 41x33 pixels"):
        read_raw(written(tmp_path / "file", CASES[name][0]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("absent.png", "absent.nii.gz", "absent.nii.gz#3", "absent.dcm"):
        with pytest.raises(UserError, match="cannot be read: No such file"):
            read_raw(tmp_path / name)


def test_depth_is_known_before_decoding(tmp_path: Path) -> None:
    for name, (content, truth, _) in CASES.items():
        path = written(tmp_path / "file", content)
        assert is_deep(path) == (truth.dtype not in (np.uint8, bool)), name
    assert not is_deep(written(tmp_path / "file", by_pillow(RGB8, "JPEG")))


def sizes(*, least: int = 1) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, 24), st.integers(least, 24))


WRITERS = {
    "tiff": lambda a: tiff(a, photometric="minisblack", planarconfig="contig"),
    "planar": lambda a: tiff(np.moveaxis(a, -1, 0), photometric="minisblack", planarconfig="separate"),
    "lzw": lambda a: tiff(a, photometric="minisblack", planarconfig="contig", compression="lzw"),
    "npy": npy,
    "png": lambda a: by_pillow(a[..., 0] if a.shape[2] == 1 else a, "PNG"),
    "jp2": lambda a: imagecodecs.jpeg2k_encode(a[..., 0] if a.shape[2] == 1 else a, reversible=True),
    "pgm": lambda a: netpbm(5 if a.shape[2] == 1 else 6, a, int(np.iinfo(a.dtype).max)),
}


@given(
    kind=st.sampled_from(["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]),
    channels=st.integers(1, 6),
    size=sizes(),
    container=st.sampled_from(sorted(WRITERS)),
    seed=st.integers(0, 99),
)
@examples(120)
def test_whatever_is_written_is_read_or_refused(
    tmp_path: Path, kind: str, channels: int, size: tuple[int, int], container: str, seed: int
) -> None:
    """Never silently different."""
    random, dtype = np.random.default_rng(seed), np.dtype(kind)
    if dtype.kind == "f":
        truth = random.normal(0, 1000, (*size, channels)).astype(dtype)
    else:
        truth = random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (*size, channels), dtype, endpoint=True)
    if container == "jp2" and min(size) < channels:
        return  # imagecodecs writes another shape
    if container == "npy" and 4 * size[0] < min(size[1], channels):
        return  # by the rule of this format its rows are the channels
    if container == "pgm" and (dtype.kind != "u" or dtype.itemsize > 2 or channels not in (1, 3)):
        return
    try:
        content = WRITERS[container](truth)
    except (TypeError, ValueError, KeyError, OSError, imagecodecs.Jpeg2kError):  # this container holds no such thing
        return
    try:
        read = read_raw(written(tmp_path / "file", content))
    except UserError as error:
        assert (container == "npy" and "axis" in error.what) or "pages" in error.what or "planes" in error.what or "bits" in error.what  # noqa: PT017
        return
    whole = read.values if read.alpha is None else np.dstack([read.values, read.alpha])
    if whole.shape[2] == channels - 1:  # an alpha that was the same everywhere
        assert (container, channels) in (("png", 2), ("png", 4))
        assert (truth[..., -1] == truth[0, 0, -1]).all()
        truth = truth[..., :-1]
    assert np.array_equal(whole, truth)
    assert whole.dtype == truth.dtype


def test_what_a_float_tiff_calls_no_data_is_no_number(tmp_path: Path) -> None:
    values = FLOAT.copy()
    values[:5] = -9999
    content = tiff(values, extratags=[(42113, "s", 0, "-9999", True)])
    read = read_raw(written(tmp_path / "file", content)).values[..., 0]
    assert np.isnan(read[:5]).all()
    assert np.array_equal(read[5:], values[5:])
