"""Files of every format into their own numbers: nothing scaled, nothing lost, nothing guessed."""

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from guidino_tune.data.reading import read_raw

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
