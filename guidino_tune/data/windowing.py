"""The rule by which the numbers of files become what networks are given, and its application."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from guidino_tune.data.raw import Raw, Values
from guidino_tune.data.reading import read_raw
from guidino_tune.errors import UserError

PERCENTILES = (0.5, 99.5)
"""Of the training images' pixels: these become black and white, so that a hot pixel, or a thousand, changes nothing."""

_LUMINANCE = (19595, 38470, 7471)  # ITU-R 601 in parts of 65536, as Pillow has it

Kind = Literal["8-bit", "window", "percentiles", "file"]
Depth = Literal["8", "deep", "both"]
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class IntensityRule:
    """What becomes black and white in every image of a data set, for training and for prediction.

    Attributes:
        kind: ``8-bit``: values are taken as they are. ``window``: as ``data.window`` says. ``percentiles``: as measured. ``file``: as each
            file asks.
        windows: (low, high). Of kind ``window`` one for all channels or one per channel of the result; of ``percentiles`` one per file of
            an image, so that the channels of a file share it and colours stay colours; else empty.
        depths: Per file of an image: whether training images have 8 bits there, are deeper, or both (then those of 8 bits are taken as
            they are).
        form: What the files hold, in words.
        notes: What a person should know of how it was found; not part of the rule.
    """

    kind: Kind
    windows: tuple[Span, ...] = ()
    depths: tuple[Depth, ...] = ("8",)
    form: str = "8 bits"
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The type of decoded images: uint8 of 0 to 255, or uint16 of 0 to 65535."""
        return np.uint8 if self.kind == "8-bit" else np.uint16

    def describe(self) -> str:
        """The rule in one line."""
        if self.kind == "8-bit":
            return f"images: {self.form}; taken as they are"
        if self.kind == "file":
            return f"images: {self.form}; the window that each file asks for becomes black to white"
        spans = self._spans()
        also = "; images of 8 bits are taken as they are" if "both" in self.depths else ""
        if self.kind == "window":
            return f"images: {self.form}; {spans} become black to white{also}"
        low, high = PERCENTILES
        return f"images: {self.form}; {low} to {high} percentiles of the training images, {spans}, become black to white{also}"

    def _spans(self) -> str:
        spans = [f"{low:.6g} to {high:.6g}" for low, high in self.windows]
        word = "channel"
        if self.kind == "percentiles":
            word = "file"
            spans = ["as they are" if depth == "8" else span for depth, span in zip(self.depths, spans, strict=True)]
        return spans[0] if len(spans) == 1 else ", ".join(f"{word} {i}: {span}" for i, span in enumerate(spans, start=1))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        windows = [list(window) for window in self.windows]
        return {"kind": self.kind, "windows": windows, "depths": list(self.depths), "form": self.form}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> IntensityRule:
        """The inverse of ``to_dict``.

        Raises:
            KeyError: Something is missing.
        """
        windows = tuple((float(low), float(high)) for low, high in given["windows"])
        return cls(given["kind"], windows, tuple(given["depths"]), given["form"])


EIGHT_BITS = IntensityRule("8-bit")
"""Of images of 8 bits in one file each: as they are."""

Pixels = NDArray[Any]
"""uint8 or uint16."""

Files = Sequence[Path]
"""Of one image: one file, or several whose channels follow each other."""


def decode_image(paths: Files, rule: IntensityRule, channels: int = 3, contents: Sequence[bytes] | None = None) -> Pixels:
    """Decodes one image by the rule of its data set.

    Args:
        paths: Its files, whose channels follow each other.
        rule: Of the data set, or of the training images of a model.
        channels: ``data.channels``.
        contents: Of the files, where they have been read already.

    Returns:
        As ``apply``.

    Raises:
        UserError: A file cannot be decoded, or does not fit the rule or the number of channels.
    """
    found = [read_raw(path, contents[i] if contents is not None else None) for i, path in enumerate(paths)]
    return apply(rule, found, channels, paths)


def apply(rule: IntensityRule, raws: Sequence[Raw], channels: int, paths: Files = ()) -> Pixels:
    """Turns the numbers of an image's files into what networks are given.

    With three channels grey is repeated and colours stay as they are. With one, colours become their luminance (ITU-R 601). Otherwise the
    files must have exactly so many channels together; a file of three equal ones counts as grey where that fits. What is transparent
    becomes black, and so does what is no number.

    Args:
        rule: Of the data set.
        raws: The image's files in their order.
        channels: Of the result.
        paths: For messages.

    Returns:
        (H, W, ``channels``): uint8 where the rule is ``8-bit``, else uint16, in which 0 to 65535 spans the window.

    Raises:
        UserError: The files differ in size, have another number of channels or another depth than the rule, or hold no number at all.
    """
    where = str(paths[0]) if paths else ""
    _check(rule, raws, paths)
    if rule.kind == "8-bit" and len(raws) == 1 and channels == 3 and raws[0].channels in (1, 3) and raws[0].white == 255:
        values = raws[0].values  # the most usual ones, without detours
        image: Pixels = values if values.shape[2] == 3 else np.repeat(values, 3, axis=2)
        return image if raws[0].alpha is None else _seen(image, raws[0])
    done = []
    for number, (index, plane) in enumerate(_planes(raws, channels, where)):
        window = _window(rule, raws, index, number, paths)
        done.append(_scaled(plane, raws[index], window, rule, str(paths[index]) if paths else ""))
    return np.ascontiguousarray(np.stack(done, axis=-1))


def stretched(raw: Raw) -> NDArray[np.uint8]:
    """Makes one file visible by a rule of its own. Not for networks: its brightness cannot be compared with another file's.

    Returns:
        uint8 (H, W, C): 8 bits as they are, of others their own percentiles from black to white.
    """
    window = (0.0, float(raw.white or 255))
    if raw.deep:
        finite = raw.values[np.isfinite(raw.values)].astype(np.float64)
        low, high = np.percentile(finite, PERCENTILES).tolist() if finite.size else (0.0, 1.0)
        if not low < high and finite.size:
            low, high = float(finite.min()), float(finite.max())
        window = (low, high if low < high else low + 1)
    return _scaled(raw.values, raw, window, EIGHT_BITS, "")


def _check(rule: IntensityRule, raws: Sequence[Raw], paths: Files) -> None:
    where = [str(path) for path in paths] or [""] * len(raws)
    if len(raws) != len(rule.depths):
        raise UserError(
            f"is an image of {_files(len(raws))}, and the training images have {len(rule.depths)}",
            where=where[0],
            todo="give as many files, in the same order, as the training images have, or set data.bad_cases=skip",
        )
    for raw, depth, name in zip(raws, rule.depths, where, strict=True):
        if (depth == "8") == raw.deep and depth != "both":
            has = f"{raw.values.dtype.itemsize * 8} bits ({raw.values.dtype})" if raw.deep else "8 bits"
            others = "8 bits" if depth == "8" else f"more ({rule.form})"
            raise UserError(
                f"has {has}, and the training images have {others}: what is black and white in it is not known",
                where=name,
                todo="save it as the training images are, or set data.bad_cases=skip",
            )
        if raw.shape != raws[0].shape:
            sizes = f"{raw.shape[1]}x{raw.shape[0]} pixels, and {Path(where[0]).name} {raws[0].shape[1]}x{raws[0].shape[0]}"
            raise UserError(
                f"the files of one image differ in size: this is {sizes}",
                where=name,
                todo="put the right files there, or set data.bad_cases=skip",
            )
        if raw.values.dtype.kind == "f" and not np.isfinite(raw.values).any():
            raise UserError("holds no number: all of it is NaN or infinite", where=name, todo="save it again, or set data.bad_cases=skip")


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def is_grey(values: Values) -> bool:
    """True when all channels of (H, W, C) are equal."""
    return bool((values == values[..., :1]).all())


def _planes(raws: Sequence[Raw], channels: int, where: str) -> list[tuple[int, Values]]:
    """The channels of the result, each with the number of its file."""
    parts = [raw.values for raw in raws]
    total = sum(part.shape[2] for part in parts)
    if total != channels:
        parts = [part[..., :1] if part.shape[2] == 3 and is_grey(part) else part for part in parts]
    planes = [(index, part[..., i]) for index, part in enumerate(parts) for i in range(part.shape[2])]
    if len(planes) == 1 and channels == 3:
        return planes * 3
    if len(raws) == 1 and len(planes) == 3 and channels == 1:
        return [(0, _luminance(parts[0]))]
    if len(planes) != channels:
        alpha = ", and an alpha channel, which is none of them" if any(raw.alpha is not None for raw in raws) else ""
        raise UserError(
            f"has {total} channel{'s' if total > 1 else ''}{alpha}, but data.channels is {channels}",
            where=where,
            todo=f"set data.channels={total} if all images have as many, or save it with {channels}, or set data.bad_cases=skip",
        )
    return planes


def _luminance(values: Values) -> Values:
    if values.dtype == np.uint8:
        return ((values @ np.array(_LUMINANCE, np.uint32) + 32768) >> 16).astype(np.uint8)
    return values.astype(np.float64) @ (np.array(_LUMINANCE) / 65536)


def _window(rule: IntensityRule, raws: Sequence[Raw], index: int, number: int, paths: Files) -> Span:
    """(low, high) of a file's channel."""
    raw = raws[index]
    if not raw.deep:
        return 0.0, float(raw.white or 255)
    if rule.kind == "percentiles":
        return rule.windows[index]
    if rule.kind == "window":
        return rule.windows[number if len(rule.windows) > 1 else 0]
    if raw.window is None:
        raise UserError(
            "asks for no window, and data.window is file",
            where=str(paths[index]) if paths else "",
            todo="set data.window to [low, high] or percentiles, or data.bad_cases=skip",
        )
    return raw.window


def _check_inside(plane: Values, window: Span, where: str) -> None:
    """Refuses an image whose numbers all lie outside the window: they mean something else than those that were measured."""
    finite = plane[np.isfinite(plane)] if plane.dtype.kind == "f" else plane
    least, most = finite.min(), finite.max()
    if least < most and (most <= window[0] or least >= window[1]):
        raise UserError(
            f"holds values from {least:.6g} to {most:.6g}, all of them beyond those of the training images, of which {window[0]:.6g} to "
            f"{window[1]:.6g} become black to white",
            where=where,
            todo="save it on the scale of the training images, or set data.bad_cases=skip",
        )


def _scaled(plane: Values, raw: Raw, window: Span, rule: IntensityRule, where: str) -> Pixels:
    top = np.iinfo(rule.dtype).max
    if rule.kind == "8-bit" and window == (0.0, 255.0):
        return _seen(plane, raw)
    low, high = window
    if rule.kind == "percentiles" and raw.deep:
        _check_inside(plane, window, where)
    with np.errstate(invalid="ignore", over="ignore"):  # of what is no number, which becomes black
        share = (plane.astype(np.float64) - low) / (high - low)
        grey = np.rint(np.clip(share, 0, 1) * top)
    if plane.dtype.kind == "f":
        grey[~np.isfinite(plane)] = 0
    return _seen(grey.astype(rule.dtype), raw)


def _seen(pixels: Pixels, raw: Raw) -> Pixels:
    """Puts the pixels on black as far as the alpha channel lets them through."""
    if raw.alpha is None:
        return pixels
    alpha = raw.alpha if pixels.ndim == 2 else raw.alpha[..., None]
    seen: Pixels = np.rint(pixels * (alpha / np.float64(raw.white))).astype(pixels.dtype)
    return seen
