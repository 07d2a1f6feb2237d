"""Opens a data set for a search: training and validation cases, decoded. The masks of test cases are never opened here.

Nor are their images, with one exception: under ``data.group_duplicates`` all images are compared once, before the split is drawn, when
which of them are for the test is not yet known (or is published). Only which pairs are copies goes into the split.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from guidino_tune import paths
from guidino_tune.config.data import Data
from guidino_tune.data.cases import Listing, some, stable_hash
from guidino_tune.data.checks import look_over
from guidino_tune.data.dividing import leak_notes, take_or_draw
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import Split
from guidino_tune.data.table import CaseTable, Progress, build_table


@dataclass(frozen=True, slots=True)
class SearchData:
    """What a search may see.

    Attributes:
        train: Training cases, decoded.
        validation: Validation cases, decoded.
        split: The whole split; of the test cases only the ids.
        fingerprint: 64 hexadecimal digits of the decoded cases' ids and contents, image size, number of classes and split.
        notes: What a person should know: cases left out, patients in two parts, and the like.
    """

    train: CaseTable
    validation: CaseTable
    split: Split
    fingerprint: str
    notes: tuple[str, ...]


def open_for_search(
    data: Data, *, split_file: Path | None = None, cache: Path | None = None, progress: Progress | None = None
) -> SearchData:
    """Finds the cases, divides them, and decodes those for training and validation.

    Args:
        data: What to open.
        split_file: Read if it exists, else the split is made and written there, so that a study keeps its split for good.
        cache: Where decoded cases are kept; by default ``paths.cache()``.
        progress: Told (done, in all) over both parts, while decoding.

    Raises:
        UserError: The data set is not there or not whole, a case cannot be decoded (unless ``bad_cases`` is ``skip``), or the stored split
            does not fit the data set or the settings.
    """
    listing = find_cases(data)
    split, notes = take_or_draw(listing, data, split_file, progress=progress)
    notes += _twins(listing)
    notes += leak_notes(listing, split)
    train = _choose(split.train, data.max_train_cases, data.split_seed)
    validation = _choose(split.validation, data.max_validation_cases, data.split_seed)
    folder = cache or paths.cache()
    total = len(train) + len(validation)
    tables = []
    for ids, before in ((train, 0), (validation, len(train))):
        told = (lambda done, _, before=before: progress(before + done, total)) if progress else None
        cases = listing.select(ids)
        tables.append(build_table(cases, data.image_size, folder, data.bad_cases, told, num_classes=data.num_classes))
    notes += tuple(f"left out {text}" for table in tables for text in table.skipped)
    if absent := _absent_classes(tables[0], data.num_classes):
        notes += (f"no training mask holds class {some(absent)}: nothing is learned about it, and not predicting it scores 1",)
    notes += look_over(tables[0], tables[1], folder, split.origin)
    text = json.dumps([tables[0].fingerprint, tables[1].fingerprint, asdict(split)], sort_keys=True)
    return SearchData(tables[0], tables[1], split, hashlib.sha256(text.encode()).hexdigest(), listing.notes + notes)


def _absent_classes(train: CaseTable, num_classes: int) -> set[int]:
    """Classes of label maps that no training case has."""
    if num_classes == 1:
        return set()
    return set(range(1, num_classes + 1)).difference(*(np.unique(train.mask(i)).tolist() for i in range(len(train))))


def _twins(listing: Listing) -> tuple[str, ...]:
    """Ids that are one on a Mac or on Windows."""
    folded: dict[str, list[str]] = {}
    for case in listing.cases:
        folded.setdefault(case.id.casefold(), []).append(case.id)
    twins = [" and ".join(sorted(ids)) for ids in folded.values() if len(ids) > 1]
    return (f"ids that differ in capitals only, of which a Mac or Windows would keep one: {some(twins)}",) if twins else ()


def _choose(ids: tuple[str, ...], most: int | None, seed: int) -> tuple[str, ...]:
    if most is None or most >= len(ids):
        return ids
    return tuple(sorted(sorted(ids, key=lambda name: (stable_hash("choice", seed, name), name))[:most]))  # fewer is a part of more
