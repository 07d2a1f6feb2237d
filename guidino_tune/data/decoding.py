"""Files of a case into its image and its mask, by the rules of the data set, or a message that names the file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from guidino_tune.config.data import IGNORED
from guidino_tune.data.cases import Case
from guidino_tune.data.files import slice_of
from guidino_tune.data.intensity import apply
from guidino_tune.data.labels import LabelRule, Mask
from guidino_tune.data.reading import Raw, read_bytes, read_raw
from guidino_tune.data.rules import Rules
from guidino_tune.errors import UserError
from guidino_tune.framing import Array


def read_image(files: Path | Sequence[Path], rules: Rules) -> Array:
    """Decodes an image of one or several files.

    Returns:
        (H, W, C) with C ``rules.channels``: uint8, or uint16 of which 65535 is white.

    Raises:
        UserError: A file is missing, broken, cut short or too large, or has other channels than the rules say.
    """
    paths = [files] if isinstance(files, Path) else list(files)
    return apply(rules.intensity, [read_raw(path) for path in paths], rules.channels, paths)


def read_mask(files: Path | Sequence[Path], rule: LabelRule) -> Mask:
    """Decodes a mask of one or several files; what any of them marks is foreground.

    Returns:
        uint8 (H, W) of 0 to the number of classes, and ``IGNORED``.

    Raises:
        UserError: A file is missing, broken, cut short or too large, or does not fit the rule; or the files differ in size.
    """
    paths = [files] if isinstance(files, Path) else list(files)
    return _united([rule.apply(read_raw(path), path) for path in paths], paths)


def read_case(case: Case, rules: Rules) -> tuple[Array, Mask]:
    """Decodes image and mask; see ``read_image`` and ``read_mask``.

    Raises:
        UserError: As they do, or the two differ in size.
    """
    image, mask, _ = read_case_and_digest(case, rules)
    return image, mask


def read_case_and_digest(case: Case, rules: Rules) -> tuple[Array, Mask, bytes]:
    """As ``read_case``, with the SHA-256 (32 bytes) of all files' contents, from one read of each."""
    (pictures, first), (truths, second) = _read(case.images), _read(case.masks)
    image = apply(rules.intensity, pictures, rules.channels, case.images)
    mask = _united([rules.labels.apply(raw, path) for raw, path in zip(truths, case.masks, strict=True)], case.masks)
    if image.shape[:2] != mask.shape:
        raise UserError(
            f"image and mask differ in size: {case.image.name} is {_size(image)}, {case.mask} is {_size(mask)} pixels",
            where=str(case.image),
            todo="put the right pair there (check their EXIF orientation too), or set data.bad_cases=skip",
        )
    return image, mask, hashlib.sha256(b"".join((*first, *second))).digest()


def _read(paths: Sequence[Path]) -> tuple[list[Raw], list[bytes]]:
    """The files, decoded, and their digests."""
    raws, digests = [], []
    for path in paths:
        if slice_of(path)[1] is None:
            content = read_bytes(path)
            raws.append(read_raw(path, content))
            digests.append(hashlib.sha256(content).digest())
        else:  # to read a whole volume for each of its slices would take a hundred times as long
            raws.append(read_raw(path))
            digests.append(hashlib.sha256(np.ascontiguousarray(raws[-1].values).tobytes()).digest())
    return raws, digests


def _united(masks: list[Mask], paths: Sequence[Path]) -> Mask:
    united = masks[0]
    for mask, path in zip(masks[1:], paths[1:], strict=True):
        if mask.shape != united.shape:
            raise UserError(
                f"two masks of one image differ in size: {_size(united)} and {_size(mask)} pixels",
                where=f"{paths[0]} and {path}",
                todo="put the right files there, or set data.bad_cases=skip",
            )
        marked = (mask != 0) & ((mask != IGNORED) | (united == 0))
        united = np.where(marked, mask, united)
    return united


def _size(array: Array) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
