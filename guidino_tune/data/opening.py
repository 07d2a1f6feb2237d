"""Opens a data set for a search: training and validation cases, decoded. The masks of test cases are never opened here.

Nor are their images, with one exception: under ``data.group_duplicates`` all images are compared once, before the split is drawn, when
which of them are for the test is not yet known (or is published). Only which pairs are copies goes into the split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from guidino_tune import paths
from guidino_tune.config.data import Data
from guidino_tune.data.cases import Case, Listing, stable_hash
from guidino_tune.data.checks import look_over
from guidino_tune.data.dividing import leak_notes, take_or_draw
from guidino_tune.data.labels import LabelRule
from guidino_tune.data.rules import (
    RULES,
    Rules,
    foreground_shares,
    label_rule,
    measure_rules,
    read_rules,
    sample,
    survey_masks,
    write_rules,
)
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import Split
from guidino_tune.data.table import CaseTable, Progress, build_table
from guidino_tune.errors import UserError, first_names

SURVEYED = 3000
"""Cases whose masks are looked at before a validation split is drawn that has as much of small and large foregrounds as the rest."""

LOW_CEILING = 0.95
"""Dice of resized masks to themselves below which it is told: what no network can reach should not be searched for."""


@dataclass(frozen=True, slots=True)
class SearchData:
    """What a search may see.

    Attributes:
        train: Training cases, decoded.
        validation: Validation cases, decoded.
        split: The whole split; of the test cases only the ids.
        fingerprint: 64 hexadecimal digits of the decoded cases' ids and contents, of how they were read and resized, and of the split.
        notes: What a person should know: cases left out, patients in two parts, and the like.
        rules: How the files were read.
    """

    train: CaseTable
    validation: CaseTable
    split: Split
    fingerprint: str
    notes: tuple[str, ...]
    rules: Rules


def open_for_search(
    data: Data, *, split_file: Path | None = None, cache: Path | None = None, progress: Progress | None = None
) -> SearchData:
    """Finds the cases, divides them, finds out how they are to be read, and decodes those for training and validation.

    Args:
        data: What to open.
        split_file: Read if it exists, else the split is made and written there, so that a study keeps its split for good; so are the rules
            of reading, beside it.
        cache: Where decoded cases are kept; by default ``paths.cache()``.
        progress: Told (done, in all) over both parts, while decoding.

    Raises:
        UserError: The data set is not there or not whole, its masks or images cannot be understood, all training masks are empty or full,
            a case cannot be decoded (unless ``bad_cases`` is ``skip``), or the stored split does not fit the data set or the settings.
    """
    listing = find_cases(data)
    known: list[LabelRule] = []

    def survey(cases: Sequence[Case]) -> Mapping[str, float]:
        looked = survey_masks(sample(cases, SURVEYED), data)
        known.append(label_rule(looked, data))
        return foreground_shares(looked, known[0])

    split, notes = take_or_draw(listing, data, split_file, progress=progress, survey=survey)
    notes += _twins(listing)
    notes += leak_notes(listing, split)
    train = _choose(split.train, data.max_train_cases, data.split_seed)
    validation = _choose(split.validation, data.max_validation_cases, data.split_seed)
    folder = cache or paths.cache()
    total = len(train) + len(validation)
    rules = _rules(listing, split, data, split_file, known[0] if known else None)
    tables = []
    for ids, before in ((train, 0), (validation, len(train))):
        report = (lambda done, _, before=before: progress(before + done, total)) if progress else None
        tables.append(build_table(listing.select(ids), data, rules, folder, report))
    where = split_file or Path(data.root or data.kind)
    check_foreground(tables[0], where)
    _check_validation(tables[1], where)
    notes += rules.intensity.notes
    notes += tuple(f"left out {text}" for table in tables for text in table.skipped)
    if absent := _absent_classes(tables[0], data.num_classes):
        names = [data.class_names[number - 1] for number in sorted(absent)]
        notes += (f"no training mask holds {first_names(names)}: nothing is learned about it, and not predicting it scores 1",)
    if (ceiling := tables[0].ceiling) < LOW_CEILING:
        notes += (
            f"masks at {data.image_size} px and back: Dice {ceiling:.2f} to themselves, the most that any network can score at their own "
            "size; a larger data.image_size or data.view=patch keeps more",
        )
    notes += look_over(tables[0], tables[1], folder, split.origin, rules.labels.turned, near=data.group_duplicates)
    text = json.dumps([tables[0].fingerprint, tables[1].fingerprint, asdict(split)], sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    return SearchData(tables[0], tables[1], split, fingerprint, listing.notes + notes, rules)


def _rules(listing: Listing, split: Split, data: Data, split_file: Path | None, labels: LabelRule | None) -> Rules:
    """The rules that the study has stored, or else those measured on its training and validation cases."""
    stored = split_file.parent / RULES if split_file is not None else None
    rules = read_rules(stored) if stored is not None else None
    if rules is None:
        known = {case.id for case in listing.cases}
        train, validation = (listing.select(tuple(name for name in part if name in known)) for part in (split.train, split.validation))
        rules = measure_rules(train, validation, data, labels)
        if stored is not None:
            write_rules(rules, stored)
    return rules


def check_foreground(train: CaseTable, where: Path) -> None:
    """There is something to learn.

    Raises:
        UserError: All training masks are empty, or all are full.
    """
    for wrong, word in ((0.0, "empty"), (1.0, "full")):
        if (train.foreground == wrong).all():
            raise UserError(
                f"all {len(train)} training masks are {word}: there is nothing to learn",
                where=str(where),
                todo="look at the masks: is it the right folder, and what do their values mean (data.labels)?",
            )


def _check_validation(validation: CaseTable, where: Path) -> None:
    """There is something to choose by.

    Raises:
        UserError: All validation masks are empty, so that a model that predicts nothing would be the best.
    """
    if not validation.foreground.any():
        raise UserError(
            f"all {len(validation)} validation masks are empty: a model that predicts nothing would be the best there",
            where=str(where),
            todo="publish a validation part with foreground, or where it was drawn: another data.split_seed, a larger "
            "data.validation_fraction, or data.folds=5",
        )


def _absent_classes(train: CaseTable, num_classes: int) -> set[int]:
    """Classes of label maps that no training case has."""
    if num_classes == 1:
        return set()
    return set(range(1, num_classes + 1)).difference(*(np.unique(train.mask(i)).tolist() for i in range(len(train))))


def _twins(listing: Listing) -> tuple[str, ...]:
    """Ids that a Mac or Windows would take for one."""
    folded: dict[str, list[str]] = {}
    for case in listing.cases:
        folded.setdefault(case.id.casefold(), []).append(case.id)
    twins = [" and ".join(sorted(ids)) for ids in folded.values() if len(ids) > 1]
    return (f"ids that differ in capitals only, of which a Mac or Windows would keep one: {first_names(twins)}",) if twins else ()


def _choose(ids: tuple[str, ...], most: int | None, seed: int) -> tuple[str, ...]:
    if most is None or most >= len(ids):
        return ids
    return tuple(sorted(sorted(ids, key=lambda name: (stable_hash("choice", seed, name), name))[:most]))  # fewer is a part of more
