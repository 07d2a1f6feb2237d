"""Single DICOM frames through pydicom: the optional extra ``guidino-tune[dicom]``."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from typing import Any

import numpy as np

from guidino_tune.data.raw import Raw, Refused, check_size, several

_EXTRA = "pip install 'guidino-tune[dicom]'"
_OURS = ("JPEGLosslessDecoder", "JPEGLosslessSV1Decoder", "JPEGExtended12BitDecoder", "JPEGLSLosslessDecoder", "JPEGLSNearLosslessDecoder")
_RIGHT = "save it as PNG or TIFF, or set data.bad_cases=skip"


_plugins = threading.Lock()


def _pydicom() -> Any:
    try:
        import pydicom
        from pydicom.pixels import decoders
    except ImportError:
        raise Refused("is a DICOM file, and the package that reads them is not installed", _EXTRA) from None
    with _plugins:
        if "imagecodecs" not in decoders.JPEGLosslessDecoder.available_plugins:
            for name in _OURS:
                getattr(decoders, name).add_plugin("imagecodecs", (__name__, "decode_frame"))
            # What breaks the standard and does not matter here; what is wrong with a file is told by our message.
            logging.getLogger("pydicom").setLevel(logging.CRITICAL)
            warnings.filterwarnings("ignore", module="pydicom")
    return pydicom


def is_available(uid: str) -> bool:
    """Asked by pydicom of its plugins: imagecodecs is always installed."""
    return True


def decode_frame(content: bytes, runner: Any) -> bytearray:
    """A plugin of pydicom for what its own do not decode: JPEG of 12 and 16 bits, with and without loss, and JPEG-LS."""
    import imagecodecs

    if "JPEG-LS" in runner.transfer_syntax.name:
        values = imagecodecs.jpegls_decode(content)
    else:  # components as they are stored: pydicom knows their colours
        values = imagecodecs.jpeg8_decode(content, colorspace="unknown", outcolorspace="unknown")
    runner.set_option("bits_allocated", values.dtype.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    return bytearray(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())


def read_dicom(content: bytes) -> Raw:
    """Decodes a DICOM file of one frame.

    Rescale slope and intercept are applied (so CT gives Hounsfield units), MONOCHROME1 is turned (stored numbers become the largest that
    their bits hold less themselves), YBR and palettes become RGB. ``Raw.window`` is the first window that the file names.

    Raises:
        Refused: pydicom is not installed, the file has several frames or none, or its compression cannot be read.
    """
    library = _pydicom()
    try:
        data = library.dcmread(io.BytesIO(content))
    except library.errors.InvalidDicomError:
        raise Refused("cannot be decoded: it is no DICOM file") from None
    for name in ("Rows", "Columns", "FloatPixelData" if "FloatPixelData" in data else "PixelData"):
        if name not in data:
            raise Refused(f"is a DICOM file without a picture ({name} is absent)", "leave it out, or set data.bad_cases=skip")
    frames, samples = int(data.get("NumberOfFrames") or 1), int(data.get("SamplesPerPixel", 1))
    if frames > 1:
        raise several(frames, "frames")
    check_size(int(data.Columns), int(data.Rows), samples * max(1, int(data.get("BitsAllocated", 8)) // 8))
    return _decoded(library, data)


def _decoded(library: Any, data: Any) -> Raw:
    syntax = data.file_meta.get("TransferSyntaxUID") if hasattr(data, "file_meta") else None
    if syntax is None:
        raise Refused("does not say how its pixels are stored (TransferSyntaxUID)", _RIGHT)
    try:
        values = library.pixels.pixel_array(data)  # YBR becomes RGB
    except Exception as error:
        if syntax.is_compressed:
            raise Refused(f"cannot be decoded: its pixels are compressed as {syntax.name}: {_first(error)}", _RIGHT) from None
        raise
    colour = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
    lossy = str(data.get("LossyImageCompression", "00")) == "01" or any(
        mark in syntax.name for mark in ("Baseline", "Extended", "Near-lossless", "Near-Lossless")
    )
    if colour == "PALETTE COLOR":
        values = library.pixels.apply_color_lut(values, data)
    if values.ndim == 3:
        if values.dtype == np.uint16 and ((values & 255 == values >> 8).all() or not (values & 255).any()):
            values = (values >> 8).astype(np.uint8)  # palettes write colours of 8 bits as 16
        return Raw(values, (1 << values.dtype.itemsize * 8) - 1, lossy=lossy)
    return _grey(data, values, turned=colour == "MONOCHROME1", lossy=lossy)


def _grey(data: Any, values: Any, *, turned: bool, lossy: bool) -> Raw:
    if "ModalityLUTSequence" in data:
        raise Refused("says what its numbers mean in a table (ModalityLUTSequence), which is not read", _RIGHT)
    slope, intercept = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
    bits, signed = int(data.get("BitsStored", 8)), values.dtype.kind == "i"
    window = _window(data)
    if turned:
        if values.dtype.kind == "f":
            raise Refused("holds fractions in which low numbers are white (MONOCHROME1), so that black is not known", _RIGHT)
        turn = -1 if signed else (1 << bits) - 1
        values = (turn - values.astype(np.int64)).astype(values.dtype)
        if window is not None:
            whole = slope * turn + 2 * intercept
            window = (whole - window[1], whole - window[0])
    if (slope, intercept) == (1.0, 0.0):
        eight = values.dtype == np.uint8
        return Raw(values[..., None], (1 << bits) - 1 if eight else 0, window=window, lossy=lossy)
    if slope.is_integer() and intercept.is_integer() and values.dtype.kind != "f":
        whole_numbers = values.astype(np.int64) * int(slope) + int(intercept)
        if np.abs(whole_numbers).max(initial=0) < 2**31:
            small = np.abs(whole_numbers).max(initial=0) < 2**15
            return Raw(whole_numbers.astype(np.int16 if small else np.int32)[..., None], window=window, lossy=lossy)
    return Raw((values.astype(np.float64) * slope + intercept).astype(np.float32)[..., None], window=window, lossy=lossy)


def _window(data: Any) -> tuple[float, float] | None:
    """The first window, as DICOM defines its edges (PS3.3 C.11.2.1.2)."""
    centre, width = (_number(data.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or not width >= 1:
        return None
    if str(data.get("VOILUTFunction", "LINEAR")) == "LINEAR" and width > 1:
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    return centre - width / 2, centre + width / 2


def _number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    first = value[0] if isinstance(value, (list, tuple)) or (hasattr(value, "__getitem__") and not isinstance(value, str)) else value
    return float(first)


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
