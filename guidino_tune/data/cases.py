"""A case (one image with its mask) and a listing of the cases of a data set."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guidino_tune.errors import UserError, first_names

Pair = tuple[str, str]
"""Two case ids."""

PARTS = ("train", "validation", "test", "trainval")
"""What a data set may publish about a case; ``trainval`` cases are divided by us."""


@dataclass(frozen=True, slots=True)
class Case:
    """The files of one image and its mask.

    A path may end with ``#12``: the slice of that number, from 0, of a volume (see ``data.files``).

    Attributes:
        id: Unique in its data set; where two folders use the same file names it is prefixed (``trainval/0000``).
        image: Path of the image.
        mask: Path of the mask.
        group: Cases of one group (a patient) never come into two drawn parts; the id itself where no patient is known.
        more_images: Files of its further channels, in their order.
        more_masks: Files of its further objects: the truth is what any of them marks.
        stratum: What the layout tells of its kind, such as the folder of its class; drawn parts have as much of each.
    """

    id: str
    image: Path
    mask: Path
    group: str
    more_images: tuple[Path, ...] = ()
    more_masks: tuple[Path, ...] = ()
    stratum: str = ""

    @property
    def images(self) -> tuple[Path, ...]:
        """All files of the image."""
        return (self.image, *self.more_images)

    @property
    def masks(self) -> tuple[Path, ...]:
        """All files of the truth."""
        return (self.mask, *self.more_masks)


@dataclass(frozen=True, slots=True)
class Listing:
    """All cases of a data set, by name only: no file has been opened.

    Attributes:
        cases: Every case, ids unique.
        published: Case id -> ``train``, ``validation``, ``test`` or ``trainval``, where the data set publishes a split; else empty.
        notes: What a person should know, such as files that were left out.
        implied: Fields of ``Data`` that the data set itself tells, such as ``{"channels": 2, "labels": {"lesion": 1}}``.
        folds: The ids for validation of each fold, where the data set publishes folds; ``published`` is one of them.

    Raises:
        UserError: No case at all, or an id occurs twice.
        ValueError: ``published`` names an unknown case or part (a mistake in a source).
    """

    cases: tuple[Case, ...]
    published: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    implied: Mapping[str, Any] = field(default_factory=dict)
    folds: tuple[frozenset[str], ...] = ()

    def __post_init__(self) -> None:
        if not self.cases:
            raise UserError("the data set has no cases", todo="check data.root, or fetch the data with: guidino-tune prepare")
        twice = [name for name, count in Counter(case.id for case in self.cases).items() if count > 1]
        if twice:
            raise UserError(
                f"{len(twice)} case ids occur twice: {first_names(twice)}", where=str(self.cases[0].image.parent), todo="rename the files"
            )
        unknown = set(self.published) - {case.id for case in self.cases} | (set(self.published.values()) - set(PARTS))
        if unknown:
            raise ValueError(f"published split names unknown cases or parts: {first_names(unknown)}")

    def select(self, ids: tuple[str, ...]) -> list[Case]:
        """The cases with these ids, in this order.

        Raises:
            KeyError: An id is not in the listing.
        """
        by_id = {case.id: case for case in self.cases}
        return [by_id[name] for name in ids]


def stable_hash(*parts: object) -> int:
    """A 63-bit number from the text of ``parts``, the same in every process and on every machine (unlike ``hash``)."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
