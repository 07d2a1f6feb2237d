"""TIFF through tifffile: any depth, any number of channels, planar or not, every usual compression."""

from __future__ import annotations

import io
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from guidino_tune.data.rasters import read_picture
from guidino_tune.data.raw import Raw, Refused, check_size, opacity, oriented, several

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_JPEG = (6, 7)
_LOSSY = (*_JPEG, 33003, 33004, 33005, 34712, 34892, 34927, 50001, 50002)  # JPEG, JPEG 2000, WebP and JPEG XL by their numbers
_ASSOCIATED, _ALPHA = 1, 2
_NO_DATA = 42113  # GDAL's tag: the number that stands where nothing was measured
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType: a preview, and which pixels are to be shown


@cache
def _tifffile() -> Any:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is told by our message
    return tifffile


def read_tiff(content: bytes) -> Raw:
    """Decodes a TIFF of one page; previews do not count."""
    library = _tifffile()
    try:
        file = library.TiffFile(io.BytesIO(content))
        page = _only_page(file)
    except Refused:
        raise
    except Exception as error:  # of damaged bytes whatever comes
        raise Refused(f"cannot be decoded: {error or type(error).__name__}") from None
    with file:
        bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        check_size(page.imagewidth, page.imagelength, page.samplesperpixel * max(1, bits // 8))
        if any(start + length > len(content) or not length for start, length in zip(page.dataoffsets, page.databytecounts, strict=True)):
            raise Refused("is cut short: some of its pixels are not there")
        compression, photometric = int(page.compression), int(page.photometric)
        known = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE) or (photometric == _YCBCR and compression in _JPEG)
        try:
            if not known:
                raise Refused(
                    f"is in colours that cannot be read: {getattr(page.photometric, 'name', photometric)}", "save it in grey or RGB"
                )
            return _decoded(page, bits)
        except Exception as error:
            if bits <= 8:  # Pillow knows some that tifffile does not, such as CMYK and YCbCr
                try:
                    return read_picture(content)
                except Refused:
                    raise
                except Exception:
                    pass
            if isinstance(error, Refused):
                raise
            raise Refused(f"cannot be decoded: {error or type(error).__name__}") from None


def tiff_is_deep(path: Path) -> bool:
    """Whether ``read_tiff`` would give more than 8 bits, from the header."""
    with _tifffile().TiffFile(path) as file:
        page = _only_page(file)
        return int(page.photometric) != _PALETTE and page.dtype not in (np.uint8, np.bool_)


def _only_page(file: Any) -> Any:
    pages = list(file.pages)
    whole = [page for page in pages if not int(getattr(page, "subfiletype", 0) or 0) & (_REDUCED | _MASK)] or pages[:1]
    if not whole:
        raise Refused("cannot be decoded: it has no page")
    if len(whole) > 1:
        raise several(len(whole), "pages")
    page = whole[0].aspage()
    if page.imagedepth > 1:
        raise several(page.imagedepth, "planes")
    if file.is_imagej or file.is_shaped:  # may have one page for many planes that follow each other
        number = int(np.prod(file.series[0].shape)) // max(1, int(np.prod(page.shape)))
        if number > 1:
            raise several(number, "planes")
    return page


def _decoded(page: Any, bits: int) -> Raw:
    values = page.asarray()
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    elif page.axes == "YX":
        values = values[..., None]
    elif page.axes != "YXS":
        raise Refused(f"has the axes {page.axes}, and an image has height, width and channels")
    if values.dtype.kind not in "buif":
        raise Refused(f"holds {values.dtype}, which are no real numbers", "save real numbers")
    unsigned = values.dtype.kind in "bu"
    values = values.astype(np.uint8 if values.dtype.kind == "b" else values.dtype.newbyteorder("="), copy=False)
    white = (1 << bits) - 1 if unsigned else 0
    if values.dtype.kind == "f" and page.tags.get(_NO_DATA) is not None:
        values = np.where(values == np.asarray(page.nodata, values.dtype), np.nan, values).astype(values.dtype)
    photometric, lossy = int(page.photometric), int(page.compression) in _LOSSY
    tag = page.tags.get(274)
    turn = int(tag.value) if tag is not None else 1
    if photometric == _PALETTE:
        return _of_palette(page, values[..., 0], turn)
    if photometric == _WHITE_IS_ZERO:
        if not unsigned:
            raise Refused(
                "says that 0 is white, and holds numbers below it or fractions, so that black is not known", "save it with 0 as black"
            )
        values = white - values
    extra = tuple(int(sample) for sample in page.extrasamples)
    if not extra and photometric == _RGB and values.shape[2] == 4:
        extra = (_ALPHA,)  # some writers do not say it
    kept = list(range(values.shape[2]))
    alpha = None
    for index, kind in enumerate(extra, start=values.shape[2] - len(extra)):
        if kind in (_ASSOCIATED, _ALPHA) and unsigned and len(kept) > 1:
            kept.remove(index)
            alpha = values[..., index] if kind == _ALPHA else alpha  # associated: transparent pixels are stored as black
    if len(kept) < values.shape[2]:
        values = values[..., kept]
    alpha = None if alpha is None else opacity(oriented(alpha, turn))
    return Raw(oriented(values, turn), white, alpha, lossy=lossy)


def _of_palette(page: Any, indices: Any, turn: int) -> Raw:
    if indices.dtype != np.uint8:
        raise Refused("has a palette of more than 256 colours", "save it in RGB")
    colours = np.asarray(page.colormap).T
    palette = (colours if colours.max(initial=0) < 256 else colours >> 8).astype(np.uint8)  # some writers keep to 8 bits
    indices = oriented(indices, turn)
    if indices.max(initial=0) >= len(palette):
        raise Refused("cannot be decoded: its palette is too short")
    return Raw(palette[indices], 255, None, indices, palette)
