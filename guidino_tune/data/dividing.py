"""The split of a data set: drawn as its settings ask for, or taken from the file where it is kept, with what a person should know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from guidino_tune.config.data import Data
from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.copies import copies_in_files
from guidino_tune.data.drawing import ENOUGH
from guidino_tune.data.identity import seen_images
from guidino_tune.data.splits import (
    PARTS,
    SIZED,
    TOGETHER,
    Split,
    check_split,
    draw_test,
    fold_of,
    groups_digest,
    joined,
    make_split,
    read_split,
    shared_groups,
    split_apart,
    write_split,
)
from guidino_tune.errors import UserError, first_names

Progress = Callable[[int, int], None]

Survey = Callable[[Sequence[Case]], Mapping[str, float]]
"""Opens masks, and gives the share of each case that is foreground; what it leaves out is of unknown size. Never asked of the test."""


def draw_split(
    listing: Listing, data: Data, *, progress: Progress | None = None, survey: Survey | None = None
) -> tuple[Split, tuple[str, ...]]:
    """Draws the split that ``data`` asks for, and says what was done about copies and about what is published.

    Args:
        listing: All cases.
        data: With ``group_duplicates``, all images are read and compared first.
        progress: Told (done, in all) over the images.
        survey: Asked, where it matters, about the cases that are not for the test.

    Raises:
        UserError: A part would be empty, or there are fewer groups than folds.
    """
    notes: list[str] = []
    published = sum(part == "validation" for part in listing.published.values())
    if data.folds and published and not listing.folds:
        notes.append(f"{published} cases are published as validation: with data.folds they are divided with those for training")
    copies = copies_in_files(listing.cases, progress) if data.group_duplicates else None
    sizes = _sizes(joined(listing, copies.pairs) if copies else listing, data, survey)
    if copies is None:
        return make_split(listing, data, sizes), tuple(notes)
    split, left_out = split_apart(listing, data, copies.pairs, sizes)
    notes.append(f"{len(copies.exact)} pairs of copies and {len(copies.near)} of near-copies: each pair is kept in one part of the split")
    notes += copies.note
    if left_out:
        notes.append(
            f"left out {len(left_out)} cases whose copies the data set publishes in another part "
            f"(test keeps its cases before validation, validation before training): {first_names(left_out)}"
        )
    if copies.unreadable:
        notes.append(f"{len(copies.unreadable)} images cannot be decoded and were not compared: {first_names(copies.unreadable)}")
    return split, tuple(notes)


def take_or_draw(
    listing: Listing, data: Data, split_file: Path | None, *, progress: Progress | None = None, survey: Survey | None = None
) -> tuple[Split, tuple[str, ...]]:
    """The split of a file, or where there is none yet, a drawn one, which is then written there.

    Args:
        listing: All cases.
        data: Its settings.
        split_file: Of a study; ``None`` draws, and keeps nothing.
        progress: See ``draw_split``.
        survey: See ``draw_split``.

    Returns:
        The split, and notes for a person.

    Raises:
        UserError: As ``draw_split``; or the stored split does not fit the data set, or is of another seed or fold.
    """
    if split_file is None or not split_file.exists():
        split, notes = draw_split(listing, data, progress=progress, survey=survey)
        if split_file is not None:
            keep_split(split, listing, split_file)
        return split, notes
    split = read_split(split_file)
    _check_settings(split, data, split_file)
    check_split(split, listing, split_file)
    notes = ()
    if data.group_duplicates != split.origin.endswith(TOGETHER) and split.origin != "given":
        how = "without" if data.group_duplicates else "with"
        notes = (f"{split_file}: the stored split is kept; it was drawn {how} data.group_duplicates",)
    new = {case.id for case in listing.cases}.difference(split.train, split.validation, split.test)
    if new:
        notes += (
            f"{split_file}: {len(new)} cases of the data set are in no part of the stored split and are not used: {first_names(new)}",
        )
    if (
        notes or data.group_duplicates or SIZED in split.origin
    ):  # to draw it again, what is now the test may have to be opened, or all masks
        return split, notes
    if "seeded" in split.origin and _parts(make_split(listing, data)) != _parts(split):
        return split, (f"{split_file}: the stored split is kept; with the present settings another one would be drawn",)
    return split, ()


def keep_split(split: Split, listing: Listing, split_file: Path) -> None:
    """Writes the file of a split that was drawn, with what later proves that the cases are still those of then."""
    write_split(split, split_file, groups_digest(listing, split), seen_images(listing, split))


def leak_notes(listing: Listing, split: Split) -> tuple[str, ...]:
    """Tells of groups with cases in more than one part, as only a published or a given split has them, and what to do about it."""
    leaks = shared_groups(listing, split)
    if not leaks:
        return ()
    part_of = {name: part for part in PARTS for name in getattr(split, part)}
    divided = [case for case in listing.cases if case.group in leaks and case.id in part_of]
    count = {part: sum(part_of[case.id] == part for case in divided) for part in PARTS}
    counts = ", ".join(f"{number} in {part}" for part, number in count.items() if number)
    tested = {case.group for case in divided if part_of[case.id] == "test"}
    return (
        f"{len(leaks)} groups (patients) have cases in more than one part of the split ({split.origin}): {first_names(leaks)}; {counts}. "
        + (f"Test scores are then too good, for {len(tested)} of them are tested" if tested else "Validation scores are then too good")
        + ": divide the patients anew and publish that, or, where these are no patients, say what keeps cases together with data.group",
    )


def _check_settings(split: Split, data: Data, split_file: Path) -> None:
    if "seeded" in split.origin and split.seed != data.split_seed:
        raise UserError(
            f"the stored split was drawn with seed {split.seed}, but data.split_seed is {data.split_seed}",
            where=str(split_file),
            todo=f"set data.split_seed={split.seed}, or start another study",
        )
    stored = fold_of(split)
    if stored != ((data.fold, data.folds) if data.folds else None):
        is_of = f"fold {stored[0]} of {stored[1]}" if stored else "no fold"
        asked = f"data.fold={data.fold} of data.folds={data.folds} is" if data.folds else "no data.folds are"
        values = f"data.folds={stored[1]} data.fold={stored[0]}" if stored else "data.folds=null data.fold=0"
        raise UserError(
            f"the stored split is of {is_of}, but {asked} asked for (folds count from 0)",
            where=str(split_file),
            todo=f"set {values}, or start another study (another study.name)",
        )


def _sizes(listing: Listing, data: Data, survey: Survey | None) -> Mapping[str, float] | None:
    """Sizes of the foregrounds where the draw depends on them."""
    drawn = (data.folds is not None and not listing.folds) or "validation" not in listing.published.values()
    if survey is None or not (data.stratify and drawn):
        return None
    test = set(draw_test(listing, data))
    pool = [case for case in listing.cases if case.id not in test]
    return survey(pool) if len(pool) >= 2 * ENOUGH else None


def _parts(split: Split) -> tuple[set[str], ...]:
    return set(split.train), set(split.validation), set(split.test)
