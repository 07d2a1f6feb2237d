"""Pictures of the usual formats, through Pillow; where Pillow would lose bits (PNG of 16 bits, JPEG 2000) through imagecodecs."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from guidino_tune.data.raw import Raw, Refused, Values, check_size, opacity, oriented, several

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"  # how such a file begins
JPEG2000 = (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n")

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "ICO", "TGA", "TIFF")  # others may start programs (PostScript)
_DEEP = {"I;16": 65535, "I;16B": 65535, "I;16L": 65535, "I;16N": 65535, "I": 0, "F": 0}
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_END = b"\xff\xd9"  # how a JPEG ends
_ASIDE = (b"Exif\0\0", b"tiff:Orientation", b"MPF\0")  # in a JPEG that may be turned, or is the first of several
_LOSSY = (0xC0, 0xC1, 0xC2)  # markers of a JPEG's frame: baseline, extended, progressive
_LOSSLESS = 0xC3  # marker of such a JPEG
_SCALED = {2: 85, 4: 17}  # Pillow multiplies greys of so many bits in a PNG


def read_picture(content: bytes, formats: tuple[str, ...] = _FORMATS) -> Raw:
    """Decodes PNG, JPEG, BMP, GIF, WebP and what else Pillow knows.

    Args:
        content: Of the file.
        formats: That Pillow may try.
    """
    if content.startswith(JPEG) and (values := _plain_jpeg(content)) is not None:
        return Raw(values, 255, lossy=True)
    small = 0
    if content.startswith(PNG) and len(content) > 25:
        if content[24] == 16:
            return _deep_png(content)
        small = content[24] if content[25] in (0, 4) else 0
    try:
        picture = Image.open(io.BytesIO(content), formats=formats)
    except Exception:
        if content.startswith(JPEG) and (raw := _deep_jpeg(content)) is not None:
            return raw
        raise
    return read_opened(picture, small, content.startswith(JPEG) or (picture.format == "WEBP" and b"VP8L" not in _chunks(content)))


def read_opened(picture: Image.Image, small: int = 0, lossy: bool = False) -> Raw:
    """Decodes what Pillow has opened, or made.

    Args:
        picture: It may be decoded already.
        small: Bits of the greys in a PNG, where they are less than 8.
        lossy: As of ``Raw``.
    """
    check_size(picture.width, picture.height)
    frames = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1  # of a photograph, whose others are previews
    if frames > 1:
        raise several(frames, "frames" if picture.format != "TIFF" else "pages")
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    picture.load()  # decodes all of it: a file cut short fails here
    return _turned(_unpacked(picture, small, lossy), orientation)


def _turned(raw: Raw, orientation: int) -> Raw:
    if orientation not in range(2, 9):
        return raw
    indices = None if raw.indices is None else oriented(raw.indices, orientation)
    alpha = None if raw.alpha is None else oriented(raw.alpha, orientation)
    return replace(raw, values=oriented(raw.values, orientation), alpha=alpha, indices=indices)


def _chunks(content: bytes) -> Iterator[bytes]:
    """Names of the chunks of a RIFF file (WebP)."""
    place = 12
    while place + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, place)
        yield name
        place += 8 + length + length % 2


def _unpacked(picture: Image.Image, small: int, lossy: bool) -> Raw:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return Raw(np.asarray(picture), 255, lossy=lossy)
    if picture.mode in _DEEP:
        values = np.asarray(picture)
        return Raw(values[..., None].astype(values.dtype.newbyteorder("="), copy=False), _DEEP[picture.mode], lossy=lossy)
    if picture.mode == "P":
        return _of_palette(picture)
    if picture.mode == "1" or small in _SCALED:
        return _of_few_bits(picture, _SCALED.get(small, 255))
    if picture.mode in _TRANSPARENT or "transparency" in picture.info:
        grey = picture.mode in ("L", "LA", "La")
        both = np.asarray(picture.convert("RGBA"))  # from there, for Pillow turns not every mode into LA
        values, alpha = both[..., : 1 if grey else 3], opacity(both[..., 3])
    elif picture.mode == "L":
        values, alpha = np.asarray(picture, dtype=np.uint8)[..., None], None
    else:
        try:
            values, alpha = np.asarray(picture.convert("RGB")), None
        except ValueError as error:  # such as LAB, in which a TIFF may be
            raise Refused(f"is in colours that cannot be read: {error}", "save it in grey or RGB") from None
    return Raw(np.ascontiguousarray(values), 255, alpha, lossy=lossy)


def _of_few_bits(picture: Image.Image, step: int) -> Raw:
    """Greys of 1, 2 or 4 bits, which Pillow has multiplied by ``step``; but not the one that is transparent."""
    values = (np.asarray(picture.convert("L")) // step)[..., None]
    key, white = picture.info.get("transparency"), 255 // step
    if picture.mode == "1" and isinstance(key, int):
        key = min(key, 1)
    return Raw(values, white, opacity((values[..., 0] != key).astype(np.uint8) * np.uint8(white)) if isinstance(key, int) else None)


def _of_palette(picture: Image.Image) -> Raw:
    indices = np.asarray(picture)
    palette = np.zeros((256, 3), np.uint8)
    colours = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    palette[: len(colours)] = colours
    alpha = opacity(np.asarray(picture.convert("RGBA"))[..., 3]) if "transparency" in picture.info else None
    used = max(len(colours), int(indices.max(initial=0)) + 1)
    return Raw(palette[indices], 255, alpha, indices, palette[:used])


def _deep_png(content: bytes) -> Raw:
    import imagecodecs

    width, height = struct.unpack_from(">II", content, 16)
    check_size(width, height, 8)
    picture = Image.open(io.BytesIO(content), formats=("PNG",))
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        raise several(frames, "frames")
    values = imagecodecs.png_decode(content).reshape(height, width, -1)
    raw = Raw(values, 65535)
    if values.shape[2] in (2, 4):
        raw = Raw(np.ascontiguousarray(values[..., :-1]), 65535, opacity(values[..., -1]))
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # what is broken beside the pixels changes none of them
        orientation = 1
    return _turned(raw, orientation)


def _deep_jpeg(content: bytes) -> Raw | None:
    """A JPEG of 12 or 16 bits, or without loss, which Pillow does not know; ``None`` where it is none."""
    import imagecodecs

    frame = _frame(content)
    if frame is None:
        return None
    marker, bits, height, width = frame
    check_size(width, height, 8)
    if not content.rstrip(b"\0").endswith(_END):  # the decoder would fill up what is absent
        raise Refused("is cut short: some of its pixels are not there")
    values = imagecodecs.jpeg8_decode(content).reshape(height, width, -1)
    return Raw(values, (1 << bits) - 1, lossy=marker != _LOSSLESS)


def _plain_jpeg(content: bytes) -> Values | None:
    """The pixels of a whole JPEG of 8 bits, grey or RGB, in half of Pillow's time; ``None`` of others (turned, broken, of several)."""
    import imagecodecs

    frame = _frame(content) if content.endswith(_END) and not any(sign in content for sign in _ASIDE) else None
    if frame is None or frame[0] not in _LOSSY or frame[1] != 8:
        return None
    _, _, height, width = frame
    check_size(width, height)
    try:
        values = imagecodecs.jpeg8_decode(content)
    except Exception:  # Pillow says what is wrong with it
        return None
    return values.reshape(height, width, -1) if values.shape[2:] in ((), (3,)) else None


def _frame(content: bytes) -> tuple[int, int, int, int] | None:
    """What the header of a JPEG's frame says: its marker, bits, height and width."""
    place = 2
    while place + 9 < len(content) and content[place] == 0xFF:
        marker, length = struct.unpack_from(">xBH", content, place)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return (marker, *struct.unpack_from(">BHH", content, place + 4))
        place += 2 + length
    return None


def jpeg_bits(path: Path) -> int:
    """Bits per number, from the first 64 KB of a JPEG; 0 where they do not tell it."""
    with open(path, "rb") as file:
        frame = _frame(file.read(2**16))
    return frame[1] if frame else 0


def is_turned(path: Path) -> bool:
    """Whether a JPEG or TIFF says that it is to be turned or mirrored to be seen, from its header."""
    try:
        with Image.open(path, formats=("JPEG", "MPO", "TIFF")) as picture:
            return picture.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # another format, or damaged, which is told elsewhere
        return False


def read_jpeg2000(content: bytes) -> Raw:
    """Decodes JPEG 2000, of any depth; Pillow would keep 8 bits of colours."""
    import imagecodecs

    start = content.find(JPEG2000[0])
    if start < 0 or len(content) < start + 43:
        raise Refused("cannot be decoded: it holds no JPEG 2000 picture")
    right, lower, left, upper = struct.unpack_from(">IIII", content, start + 8)
    (count,) = struct.unpack_from(">H", content, start + 40)
    check_size(right - left, lower - upper, 2 * count)
    depth = (content[start + 42] & 0x7F) + 1
    if depth > 16:
        raise Refused(f"is JPEG 2000 of {depth} bits, of which decoders lose some", "save it as TIFF, or set data.bad_cases=skip")
    place = content.find(b"colr", 0, start)
    if place > 0 and content[place + 4 : place + 11] == b"\x01\x00\x00\x00\x00\x00\x12":  # luminance and colour differences
        if depth > 8:
            raise Refused("is in colours that cannot be read: YCbCr of more than 8 bits", "save it in grey or RGB")
        return replace(read_picture(content, ("JPEG2000",)), lossy=_irreversible(content, start))
    values = imagecodecs.jpeg2k_decode(content).reshape(lower - upper, right - left, count)
    white = (1 << depth) - 1 if values.dtype.kind == "u" else 0
    lossy = _irreversible(content, start)
    alpha = _alpha_channel(content[:start])
    if alpha is None or not white:
        return Raw(values, white, lossy=lossy)
    colours = [i for i in range(count) if i != alpha[0]]
    return Raw(values[..., colours], white, opacity(values[..., alpha[0]]) if alpha[1] else None, lossy=lossy)


def _alpha_channel(boxes: bytes) -> tuple[int, bool] | None:
    """Which channel is no colour but the opacity, and whether the colours still have to be multiplied with it (box ``cdef``)."""
    place = boxes.find(b"cdef")
    if place < 0:
        return None
    (count,) = struct.unpack_from(">H", boxes, place + 4)
    for i in range(count):
        channel, kind, _ = struct.unpack_from(">HHH", boxes, place + 6 + 6 * i)
        if kind in (1, 2):
            return channel, kind == 1
    return None


def _irreversible(content: bytes, start: int) -> bool:
    """True for the wavelet that rounds (ISO/IEC 15444-1, A.6.1: the last byte of the COD segment is 0)."""
    place = start + 2
    while place + 14 <= len(content):
        marker, length = struct.unpack_from(">HH", content, place)
        if marker == 0xFF52:
            return content[place + 13] == 0
        place += 2 + length
    return True
