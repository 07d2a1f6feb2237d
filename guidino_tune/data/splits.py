"""Train, validation and test: what a data set publishes is kept, what is missing is drawn by a seed, whole groups at a time."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from guidino_tune.config.data import Data
from guidino_tune.data.cases import Case, Listing, Pair
from guidino_tune.data.drawing import Cells, cells, draw_folds, draw_part
from guidino_tune.errors import UserError, first_names

PARTS = ("train", "validation", "test")
"""Of a split, and the names of their lists in its file."""

SIZED, FOLD, TOGETHER = ", stratified by size", ", fold ", ", copies together"
"""What the origin of a split says further, in this order: validation has as much of each size, it is a fold, and it divides no copies."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which cases are for training, for choosing, and for the one measurement at the end.

    Attributes:
        train: Case ids, sorted.
        validation: Case ids, sorted.
        test: Case ids, sorted; empty when none is published and ``data.test_fraction`` is 0.
        origin: Such as ``published``, ``published test, seeded validation`` or ``seeded``.
        seed: Seed of what was drawn.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    origin: str
    seed: int


def make_split(listing: Listing, data: Data, sizes: Mapping[str, float] | None = None) -> Split:
    """Divides a listing: ``draw_test``, then ``divide``.

    Raises:
        UserError: Training or validation would be empty.
    """
    return divide(listing, data, draw_test(listing, data), sizes)


def draw_test(listing: Listing, data: Data) -> tuple[str, ...]:
    """The test cases: those that are published, or else drawn.

    ``test_fraction`` of the cases that are not published as validation, rounded, at least one. Groups are taken whole, in an order that
    depends only on the seed and the group's name: not on the machine, on the order of the listing, on ``validation_fraction`` or on
    ``folds``. With ``data.stratify`` it has as much of each ``Case.stratum`` as the others; of masks nothing is known here.

    Returns:
        Ids, sorted; none where none is published and ``data.test_fraction`` is 0.
    """
    published = _published(listing)
    test = [name for name, part in published.items() if part == "test"]
    if not test:
        every = bool(data.folds and listing.folds)  # published folds have different validation parts and must have one test
        pool = [case for case in listing.cases if every or published.get(case.id) != "validation"]
        kinds = cells(pool) if data.stratify else {}
        test = list(draw_part(pool, _target(data.test_fraction, len(pool)), "test", data.split_seed, kinds))
    return tuple(sorted(test))


def divide(listing: Listing, data: Data, test: Iterable[str], sizes: Mapping[str, float] | None = None) -> Split:
    """Divides what is not for the test.

    Published validation cases stay what they are; else ``validation_fraction`` of the cases that are in no published validation or test is
    drawn, as ``draw_test`` does, or with ``folds`` all that is not for the test is divided into so many parts, of which ``fold`` is for
    validation; a published validation part is then divided too, unless folds are published. An unpublished case follows a published one
    of its group.

    Args:
        listing: All cases.
        data: Seed, fractions and folds.
        test: From ``draw_test``.
        sizes: Case id -> share of the image that is foreground, of those that are not for the test; with ``data.stratify`` validation has
            as much of each size as training. ``None`` where that is not known.

    Raises:
        UserError: Training or validation would be empty, or there are fewer groups than folds.
    """
    published, sealed = _published(listing), set(test)
    rest = [case for case in listing.cases if case.id not in sealed]
    kept = {case.id for case in rest if published.get(case.id) == "validation"}
    origins = {"test": "published" if "test" in published.values() else "seeded" if sealed else "no", "validation": "published"}
    sized = ""
    if (data.folds and not listing.folds) or not kept:
        kinds = cells(rest, sizes) if data.stratify else {}
        sized = SIZED if kinds and sizes else ""
        available = len(rest) if origins["test"] == "published" else len(listing.cases)
        kept = (
            folds_of(rest, data.folds, data.split_seed, kinds)[data.fold]
            if data.folds
            else draw_part(rest, _target(data.validation_fraction, available), "validation", data.split_seed, kinds)
        )
        origins["validation"] = "seeded" if kept else "no"
    train = {case.id for case in rest} - kept
    for part, ids in (("training", train), ("validation", kept)):
        if not ids:
            raise UserError(
                f"no cases are left for {part}: {len(listing.cases)} cases in {len({case.group for case in listing.cases})} groups",
                where="data.validation_fraction, data.test_fraction",
                todo="choose other fractions, or use more cases",
            )
    return Split(
        train=tuple(sorted(train)),
        validation=tuple(sorted(kept)),
        test=tuple(sorted(sealed)),
        origin=_origin(origins) + sized + (fold_words(data.fold, data.folds) if data.folds else ""),
        seed=data.split_seed,
    )


def fold_splits(listing: Listing, split: Split, folds: int, seed: int, *, stratify: bool, sizes: Mapping[str, float]) -> list[Split]:
    """Cross-validation of what a split has not for the test: training and validation together, divided into folds.

    Args:
        listing: With all cases of the split.
        split: Whose test cases stay what they are.
        folds: How many.
        seed: Of the draw. On the same cases it gives the folds that ``divide`` gives.
        stratify: As ``data.stratify``.
        sizes: As in ``divide``.

    Raises:
        UserError: There are fewer groups than folds.
    """
    named = {*split.train, *split.validation}
    pool = [case for case in listing.cases if case.id in named]
    kinds = cells(pool, sizes) if stratify else {}
    parts = [set(fold & named) for fold in listing.folds]
    if len(parts) != folds or not all(parts) or sum(map(len, parts)) != len(named):  # else those that are published
        parts = folds_of(pool, folds, seed, kinds)
    origin = split.origin.removesuffix(TOGETHER).partition(FOLD)[0].removesuffix(SIZED) + (SIZED if kinds else "")
    return [
        Split(tuple(sorted(named - part)), tuple(sorted(part)), split.test, origin + fold_words(number, folds), seed)
        for number, part in enumerate(parts)
    ]


def folds_of(pool: Sequence[Case], folds: int, seed: int, kinds: Cells) -> list[set[str]]:
    """See ``drawing.draw_folds``.

    Raises:
        UserError: There are fewer groups than folds.
    """
    groups = {case.group for case in pool}
    if len(groups) < folds:
        raise UserError(
            f"{len(groups)} groups (patients) cannot be divided into {folds} folds: {len(pool)} cases are not for the test",
            where="data.folds",
            todo=f"choose at most {len(groups)} folds" if len(groups) > 1 else "use more patients, or data.folds=null",
        )
    return draw_folds(pool, folds, seed, kinds)


def fold_words(fold: int, folds: int) -> str:
    """How the origin of a split tells of its fold."""
    return f"{FOLD}{fold} (of 0 to {folds - 1})"


def fold_of(split: Split) -> tuple[int, int] | None:
    """The fold that a split is of, and the number of folds; ``None`` where it is of none."""
    words = split.origin.partition(FOLD)[2].split()
    return (int(words[0]), int(words[4].rstrip("),")) + 1) if words else None


def _published(listing: Listing) -> dict[str, str]:
    """What is published of each case; an unpublished one follows a held-out one of its group."""
    published = dict(listing.published)
    # sorted, so that a group that is published in both goes the same way for any order of the listing
    held_out = dict(sorted((case.group, published[case.id]) for case in listing.cases if published.get(case.id) in ("validation", "test")))
    for case in listing.cases:
        if case.id not in published and case.group in held_out:
            published[case.id] = held_out[case.group]
    return published


def _target(fraction: float, available: int) -> int:
    return max(1, round(fraction * available)) if fraction > 0 else 0


def _origin(origins: dict[str, str]) -> str:
    kinds = set(origins.values())
    if len(kinds) == 1:
        return kinds.pop()
    return ", ".join(f"{kind} {part}" for kind in ("published", "seeded", "no") for part in ("validation", "test") if origins[part] == kind)


def joined(listing: Listing, pairs: Iterable[Pair]) -> Listing:
    """The same cases, in which copies, and the groups that they belong to, are one group."""
    group_of = {case.id: case.group for case in listing.cases}
    groups = representatives(group_of.values(), ((group_of[a], group_of[b]) for a, b in pairs))
    return replace(listing, cases=tuple(replace(case, group=groups[case.group]) for case in listing.cases))


def split_apart(
    listing: Listing, data: Data, pairs: Iterable[Pair], sizes: Mapping[str, float] | None = None
) -> tuple[Split, tuple[str, ...]]:
    """As ``make_split``, but no two cases that are copies of each other come into different parts.

    Copies, and the groups that they belong to, are drawn as one group; without any copies the split is that of ``make_split``. Where a
    published split divides copies, the cases stay in their parts, and test keeps its cases before validation, and validation before
    training: the others are left out.

    Args:
        listing: All cases.
        data: As for ``make_split``.
        pairs: Ids of copies.
        sizes: As for ``divide``.

    Returns:
        The split, and the ids that are left out, sorted.

    Raises:
        UserError: Training or validation would be empty.
    """
    pairs = tuple(pairs)
    ids = {case.id for case in listing.cases}
    split = make_split(joined(listing, pairs), data, sizes)
    same = representatives(ids, pairs)
    taken: dict[str, str] = {}
    for part in reversed(PARTS):
        for name in getattr(split, part):
            taken.setdefault(same[name], part)
    kept = {part: tuple(name for name in getattr(split, part) if taken[same[name]] == part) for part in PARTS}
    for part in ("train", "validation"):
        if not kept[part]:
            raise UserError(
                f"no case is left in {part}: all of them are copies of cases in another part",
                where="data.group_duplicates",
                todo="use other data",
            )
    split = Split(origin=split.origin + TOGETHER, seed=split.seed, **kept)
    return split, tuple(sorted(ids.difference(*kept.values())))


def representatives(names: Iterable[str], pairs: Iterable[Pair]) -> dict[str, str]:
    """For each name, the first (sorted) of all names that pairs link it to, directly or through others; their order does not matter."""
    first = {name: name for name in names}

    def find(name: str) -> str:
        while first[name] != name:
            first[name] = first[first[name]]  # the next search is shorter
            name = first[name]
        return name

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        first[high] = low
    return {name: find(name) for name in first}


def shared_groups(listing: Listing, split: Split) -> tuple[str, ...]:
    """Groups (patients) that have cases in more than one part, as happens only where a published split divides them."""
    part_of = {name: part for part in PARTS for name in getattr(split, part)}
    parts: dict[str, set[str]] = defaultdict(set)
    for case in listing.cases:
        if case.id in part_of:
            parts[case.group].add(part_of[case.id])
    return tuple(sorted(group for group, found in parts.items() if len(found) > 1))


def split_text(split: Split, groups: str = "", images: Mapping[str, str] | None = None, **about: str) -> str:
    """A split as JSON.

    Args:
        split: The split.
        groups: From ``groups_digest``.
        images: From ``identity.seen_images``.
        about: What else is to be noted; nobody who reads a split looks at it.
    """
    noted = ({"groups": groups} if groups else {}) | ({"images": dict(images)} if images else {})
    return json.dumps(asdict(split) | noted | about, indent=1) + "\n"


def write_split(split: Split, path: Path, groups: str = "", images: Mapping[str, str] | None = None, **about: str) -> None:
    """Writes ``split_text`` to a temporary name beside ``path`` and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(split_text(split, groups, images, **about), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_split(path: Path) -> Split:
    """Reads what ``write_split`` wrote, or a file of that form by hand.

    Raises:
        UserError: The file is missing or malformed, or a case is in it twice.
    """
    todo = "restore the file; or delete it to draw the split anew (results before and after are then not comparable)"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read the split: {error.strerror or error}", where=str(path), todo="start the search first: it writes it"
        ) from None
    except ValueError as error:
        raise UserError(f"is no valid JSON: {error}", where=str(path), todo=todo) from None
    return parse_split(values, str(path), todo)


def parse_split(values: object, where: str, todo: str) -> Split:
    """A split from the values of its file.

    Args:
        values: What the JSON held.
        where: The file, for messages.
        todo: What to do where they are wrong.

    Raises:
        UserError: They are malformed, or a case is in them twice.
    """
    if not isinstance(values, dict) or not all(_is_names(values.get(part)) for part in PARTS):
        raise UserError(f"holds no lists of case ids under {', '.join(PARTS)}", where=where, todo=todo)
    origin, seed = values.get("origin", "given"), values.get("seed", 0)
    if not isinstance(origin, str) or type(seed) is not int:
        raise UserError("origin must be text and seed a whole number", where=where, todo=todo)
    twice = [name for name, count in Counter(name for part in PARTS for name in values[part]).items() if count > 1]
    if twice:
        raise UserError(f"{len(twice)} cases are in it twice: {first_names(twice)}", where=where, todo="leave each case in one part only")
    if not values["train"] or not values["validation"]:
        raise UserError("train or validation is empty", where=where, todo=todo)
    return Split(train=tuple(values["train"]), validation=tuple(values["validation"]), test=tuple(values["test"]), origin=origin, seed=seed)


def split_digest(split: Split) -> str:
    """64 hexadecimal digits of what a split holds, however its file is written; the order of the ids does not matter."""
    values = asdict(split) | {part: sorted(getattr(split, part)) for part in PARTS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def groups_digest(listing: Listing, split: Split) -> str:
    """64 hexadecimal digits of which cases of a split are of one group."""
    named = {name for part in PARTS for name in getattr(split, part)}
    pairs = sorted((case.id, case.group) for case in listing.cases if case.id in named)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def groups_of(path: Path) -> str:
    """What ``groups_digest`` gave when a split file was written; empty where that was not noted."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("groups", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def images_of(path: Path) -> dict[str, str]:
    """The digests of images that a split file notes (see ``identity.seen_images``); empty where an earlier version wrote it."""
    try:
        return images_in(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def images_in(values: object) -> dict[str, str]:
    """As ``images_of``, from the values of the file."""
    found = values.get("images") if isinstance(values, dict) else None
    return {str(name): str(digest) for name, digest in found.items()} if isinstance(found, dict) else {}


def check_split(split: Split, listing: Listing, path: Path, parts: Iterable[str] = PARTS) -> None:
    """Checks that every case of a stored split is in the data set.

    Raises:
        UserError: Some are not.
    """
    known = {case.id for case in listing.cases}
    missing = [name for part in parts for name in getattr(split, part) if name not in known]
    if missing:
        raise UserError(
            f"{len(missing)} cases of the stored split are not in the data set: {first_names(missing)}",
            where=str(path),
            todo=f"point data.root at the data the split was made from (now: {listing.cases[0].image.parent}), or use another split file",
        )


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
