"""Weights that others have published for a part of a segmenter, such as the encoder trained on ImageNet, from a local file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import paths
from guidino_tune.errors import UserError, first_names
from guidino_tune.models.published import read_published
from guidino_tune.models.weights import check_digest, not_finite


@dataclass(frozen=True, slots=True)
class Layout:
    """Published weights that a segmenter can start from.

    Attributes:
        about: What they are, for messages.
        anchor: A weight that every such file has once.
        names: Own names as regular expressions, with the published name of each; the first that matches the whole name counts. Weights
            that match none start at random.
        left_out: Regular expression of published names that are not used on purpose; the group that matches is what a person is told.
            A block of that name must be used altogether or not at all.
        fitting: The options with which the segmenter has the published shapes.
        tables: Regular expression of own tables of relative positions, ((2 * window - 1)^2, heads), which are interpolated.
    """

    about: str
    anchor: str
    names: tuple[tuple[str, str], ...]
    left_out: str
    fitting: str
    tables: str = "(?!)"

    def published(self, name: str) -> str | None:
        """The published name of an own weight; ``None`` for one that starts at random."""
        return next((re.sub(own, theirs, name) for own, theirs in self.names if re.fullmatch(own, name)), None)


def start_from(segmenter: nn.Module, layout: Layout, file: str, sha256: str | None = None) -> str:
    """Copies published weights into a segmenter; one on the meta device is only compared with them.

    Args:
        segmenter: Newly made; changed in place.
        layout: Of its class.
        file: ``.safetensors``, or what ``torch.save`` wrote of tensors alone.
        sha256: The file must have this digest; ``None``: any.

    Returns:
        What of the file was left out on purpose, in words; empty where all was used.

    Raises:
        UserError: The file is missing, damaged or another one; it lacks a weight, has one of another shape, or one that nobody knows.
    """
    path = paths.rebased(Path(file).expanduser())
    where = f"segmenter.pretrained={path}"
    read = read_published(path, (layout.anchor,), layout.about)
    if sha256 is not None:
        check_digest(path, sha256, "segmenter.sha256")
    own = segmenter.state_dict()
    wanted = {name: theirs for name in own if (theirs := layout.published(name)) is not None}
    counters = {name for name in wanted.values() if name.endswith("num_batches_tracked")}  # older files have none
    missing = wanted.values() - read.weights.keys() - counters
    left = {name: re.fullmatch(layout.left_out, name) for name in read.weights.keys() - wanted.values()}
    parts = {name: match[match.lastindex or 0] for name, match in left.items() if match}
    unknown = [name for name in left if name not in parts or any(theirs.startswith(f"{parts[name]}.") for theirs in wanted.values())]
    found = {name: _fitted(read.weights[theirs], own[name], re.fullmatch(layout.tables, name) is not None)
             for name, theirs in wanted.items() if theirs in read.weights}  # fmt: skip
    other = [f"{wanted[name]} {tuple(read.weights[wanted[name]].shape)}, not {tuple(own[name].shape)}" for name, value in found.items()
             if value.shape != own[name].shape]  # fmt: skip
    problems = (
        ("lacks", missing),
        ("has unknown weights", unknown),
        ("has other shapes", other),
        ("holds NaN or infinity", not_finite(found)),
    )
    if mismatches := "; ".join(f"{what}: {first_names(names)}" for what, names in problems if names):
        raise UserError(
            f"does not fit as {layout.about}: {mismatches}",
            where=where,
            todo=f"give such a file, and keep {layout.fitting}; or set segmenter.pretrained=null for random weights",
        )
    with torch.no_grad():
        for name, value in found.items():
            if not own[name].is_meta:
                own[name].copy_(value)
    return ", ".join(sorted({*parts.values(), *read.left_out}))


def _fitted(value: Tensor, own: Tensor, is_table: bool) -> Tensor:
    """A table of relative positions for another window, interpolated as Swin Transformer's authors do; all else as it is."""
    if not is_table or value.ndim != 2 or value.shape[0] == own.shape[0]:
        return value
    theirs, ours = (round(len(table) ** 0.5) for table in (value, own))
    if theirs**2 != len(value):
        return value
    maps = value.float().T.reshape(1, -1, theirs, theirs)
    return F.interpolate(maps, size=(ours, ours), mode="bicubic", align_corners=False).flatten(2)[0].T
