"""Looking over decoded cases for what no single file shows: copies in both parts, empty masks, masks turned inside out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from pathlib import Path

from guidino_tune.data.cases import Listing, Pair
from guidino_tune.data.copies import VERSION, Copies, copies_among, copies_in_files
from guidino_tune.data.table import CaseTable, Progress
from guidino_tune.errors import first_names

MANY_EMPTY = 0.1
"""Share of empty masks from which it is told; a few are as usual as images without a lesion."""

INVERTED = 0.75
"""Share of masks with more than half of their pixels in the foreground from which they look inverted (Kvasir-SEG has 0.04)."""

FULL = 0.98
"""Share of foreground pixels from which a single mask is told."""


def look_over(
    train: CaseTable, validation: CaseTable, folder: Path, origin: str, turned: str = "", *, near: bool = False
) -> tuple[str, ...]:
    """Says what a person should know about the cases of a search. It costs once: the answer is kept beside the tables.

    Args:
        train: Decoded training cases.
        validation: Decoded validation cases.
        folder: The cache.
        origin: Of the split.
        turned: The setting that takes background and foreground the other way round, where there is one.
        near: Look for near-copies in both parts too; exact copies are told anyway.

    Returns:
        Notes, empty when nothing is conspicuous.
    """
    form = f"{VERSION} {MANY_EMPTY} {INVERTED} {FULL} {origin} {turned} {near} {train.fingerprint} {validation.fingerprint}"
    path = folder / f"notes-{hashlib.sha256(form.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return tuple(str(note) for note in json.loads(path.read_text(encoding="utf-8")))
    notes = (*_copies(train, validation, origin, near), *_masks(train, validation, turned))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with contextlib.suppress(OSError):  # then it is looked over again
        temporary.write_text(json.dumps(notes), encoding="utf-8")
        os.replace(temporary, path)
    return notes


def _copies(train: CaseTable, validation: CaseTable, origin: str, near: bool) -> tuple[str, ...]:
    part_of = dict.fromkeys(train.ids, "training") | dict.fromkeys(validation.ids, "validation")
    found = copies_among(((name, table.image(i)) for table in (train, validation) for i, name in enumerate(table.ids)), near=near)
    pixels = "the very same pixels" + ("" if train.native else f", once they are {train.size} wide and high,")
    return found.note + copies_in_words(
        found.across(part_of), f"in training and validation ({origin})", "start a study with --group-duplicates", pixels
    )


def copies_in_words(copies: Copies, where: str, todo: str, pixels: str = "the very same pixels") -> tuple[str, ...]:
    """A sentence on the exact copies and one on the near-copies, where there are any.

    Args:
        copies: What was found.
        where: Such as ``in training and validation``.
        todo: What to do about it.
        pixels: What exact copies have in common.
    """
    notes = []
    if copies.exact:
        notes.append(f"LEAK: {_pairs(copies.exact)} of images with {pixels} are {where}: scores there are too good to be true; {todo}")
    if copies.near:
        notes.append(f"{_pairs(copies.near)} of near-copies (look at them) are {where}: scores there may be too good; {todo}")
    return tuple(notes)


def copies_in(listing: Listing, progress: Progress | None = None) -> tuple[str, ...]:
    """Compares all images of a data set, those of its test part included; no mask is opened, and no search calls this.

    Returns:
        Sentences for a person: at least one.
    """
    copies = copies_in_files(listing.cases, progress)
    notes = [f"{len(copies.exact)} pairs of copies and {len(copies.near)} pairs of near-copies among {len(listing.cases)} images"]
    notes += copies.note
    todo = "guidino-tune search --group-duplicates leaves them out of training"
    # What a published split does not list goes where training goes, also where only the test is published.
    part_of = {case.id: listing.published.get(case.id, "train") for case in listing.cases} if listing.published else {}
    notes += copies_in_words(copies.across(part_of), "in two parts of the published split", todo)
    if copies.pairs and not listing.published:
        notes += copies_in_words(copies, "there", "guidino-tune search --group-duplicates keeps each pair in one part")
    if copies.unreadable:
        notes.append(f"{len(copies.unreadable)} images cannot be decoded: {first_names(copies.unreadable)}")
    return tuple(notes)


def _pairs(pairs: tuple[Pair, ...]) -> str:
    return f"{len(pairs)} pair{'s' * (len(pairs) > 1)} ({first_names(f'{a} and {b}' for a, b in pairs)})"


def _masks(train: CaseTable, validation: CaseTable, turned: str) -> tuple[str, ...]:
    shares = {name: float(share) for table in (train, validation) for name, share in zip(table.ids, table.foreground, strict=True)}
    total = len(shares)
    empty = [name for name, share in shares.items() if share == 0]
    large = [name for name, share in shares.items() if share > 0.5]
    full = [name for name, share in shares.items() if share >= FULL]
    notes = []
    if len(empty) >= MANY_EMPTY * total:
        notes.append(f"{len(empty)} of {total} masks are empty: {first_names(empty)}; a model that predicts nothing is right on them")
    if train.num_classes == 1 and len(large) >= INVERTED * total:
        notes.append(
            f"masks look inverted: in {len(large)} of {total} more than half of the pixels are foreground; "
            f"foreground is white (or 1), background black{f'; if it is the other way round: {turned}' if turned else ''}"
        )
    elif full:
        notes.append(f"{len(full)} of {total} masks are foreground almost everywhere: {first_names(full)}; inverted, or the wrong file?")
    return tuple(notes)
