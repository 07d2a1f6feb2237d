"""Pairs into cases: ids, groups or classes by folder, the split that folders publish, and what is said about all that."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.sources.pairing import Item, Pairs
from guidino_tune.data.sources.pairs import LISTS, with_lists
from guidino_tune.data.sources.tree import Tree
from guidino_tune.errors import UserError, first_names

CLASS_WORDS = frozenset(
    ("benign", "malignant", "normal", "abnormal", "positive", "negative", "healthy", "diseased", "disease", "polyp", "polyps", "tumor",
    "tumour", "lesion", "nevus", "melanoma", "cyst", "cancer", "yes", "no")
)  # fmt: skip
"""Names of folders that tell a class, not a patient."""

EACH = "--set 'data.group=.+'"
"""The advice for those who want no groups: each path is its own."""

BY_FOLDER = "--set 'data.group=(.+)/'"
"""The advice for those whose folders are patients."""


def gather(tree: Tree, images: list[Item], pairs: Pairs, line: str, on_bad: str, *, beside: bool = False) -> Listing:
    """Makes the listing.

    Args:
        tree: The data set.
        images: All images.
        pairs: Their masks.
        line: The layout in words.
        on_bad: ``error`` or ``skip``, for what has no partner, or doubtful ones.
        beside: Masks lie beside their images, so that a folder is rather a class than a patient.

    Raises:
        UserError: Files have no partner, an image's masks contradict each other, or no case is left.
    """
    notes, reported = _left_out(tree, pairs, on_bad)
    kept = [image for image in images if image.file.below in pairs.masks]
    if not kept:
        raise UserError("no image has a mask", where=str(tree.root), todo="see data.images and data.masks to name them")
    shared = _shared([image.folder for image in kept])
    groups, strata, folders_line, more = _by_folder(kept, pairs.rule, beside)
    cases, published = [], {}
    ids = _ids(kept, len(shared), pairs.rule)
    for image, name in zip(kept, ids, strict=True):
        masks = [mask.file.path for mask in pairs.masks[image.file.below]]
        group = groups.get(image.file.below, name)
        cases.append(Case(name, image.file.path, masks[0], group, more_masks=tuple(masks[1:]), stratum=strata.get(image.file.below, "")))
        if image.split:
            published[name] = image.split
    if several := [case for case in cases if case.more_masks]:
        number = sum(len(case.masks) for case in several)
        more += (f"{len(several)} images have several masks ({number} in all), which are united, such as {_short(several[0].id)}",)
    cases.sort(key=lambda case: case.id)
    published, split_line, split_notes = _published(tree, published, len(cases))
    left_out = notes if on_bad == "skip" else ()
    listing = with_lists(tree.root, tuple(cases), left_out, published)
    listed_notes = listing.notes[len(left_out) :]
    used = {path for case in cases for path in (*case.images, *case.masks)} | reported
    if listed := [name for name in LISTS if (tree.root / name).is_file()]:
        count = Counter(listing.published.values())
        split_line = f"{', '.join(listed)} publish a split ({', '.join(f'{part} {n}' for part, n in sorted(count.items()))})"
    first = "; ".join(part for part in (f"layout: {line}, {len(listing.cases)} cases", folders_line, split_line) if part)
    rest = tree.passed_over(used, frozenset(LISTS))
    return Listing(listing.cases, listing.published, (first, *notes, *more, *split_notes, *listed_notes, *rest))


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:37]}..."


def _left_out(tree: Tree, pairs: Pairs, on_bad: str) -> tuple[tuple[str, ...], set[Path]]:
    """Stops at what has no partner, or takes it out of ``pairs``: a whole case, never half of its truth."""
    notes: list[str] = []
    masked = {mask.split for masks in pairs.masks.values() for mask in masks}
    unpublished = [image for image in pairs.bare if image.split == "test" and "test" not in masked]
    bare = [image for image in pairs.bare if image not in unpublished]
    reported = {one.file.path for one in (*pairs.bare, *pairs.lonely)}
    if unpublished:
        notes.append(f"{len(unpublished)} test images have no masks and are not used: {first_names(i.file.below for i in unpublished)}")
    for items, lack in ((bare, "images without mask"), (pairs.lonely, "masks without image")):
        if items:
            where = _folder(tree, items)
            names = [one.file.name if where != str(tree.root) else one.file.below for one in items]
            what = f"{len(items)} {lack}: {first_names(names)}"
            if on_bad != "skip":
                raise UserError(
                    what,
                    where=where,
                    todo="add their partners, or set data.bad_cases=skip; or name the files with data.images and data.masks",
                )
            notes.append(f"{where}: left out {what}")
    for mask in pairs.lonely:  # of a truth of several files the image is left out with what cannot be told
        names = [name for name in pairs.masks if _begins(mask, pairs.masks[name], name)]
        if names:
            pairs.doubtful.setdefault(max(names, key=len), f"{mask.file.name} may be a part of its truth")
    for name, why in sorted(pairs.doubtful.items()):
        if on_bad != "skip":
            raise UserError(why, where=str(pairs.masks[name][0].file.path.parent), todo="remove one, or set data.bad_cases=skip")
        reported |= {mask.file.path for mask in pairs.masks.pop(name)} | {tree.root / name}
        notes.append(f"left out {name}: {why}")
    return tuple(notes), reported


def _begins(mask: Item, others: list[Item], image: str) -> bool:
    stem = image.rpartition("/")[2].rpartition(".")[0]
    rest = mask.file.stem[len(stem) :]
    return mask.key == others[0].key and mask.file.stem.startswith(stem) and rest[:1] in tuple(" _-.(")


def _folder(tree: Tree, items: list[Item]) -> str:
    folders = {one.file.path.parent for one in items}
    return str(folders.pop() if len(folders) == 1 else tree.root)


def _shared(folders: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The folders that all lie in."""
    first, last = min(folders), max(folders)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))]


def _ids(images: list[Item], shared: int, rule: str) -> list[str]:
    if rule == "folders" and all(len(image.folder) > shared for image in images):
        return ["/".join(image.folder[shared:]) for image in images]
    return ["/".join((*image.folder[shared:], image.file.stem)) for image in images]


def _by_folder(images: list[Item], rule: str, beside: bool) -> tuple[dict[str, str], dict[str, str], str, tuple[str, ...]]:
    """Groups and strata by path, what the layout's line says of them, and notes."""
    shared = len(_shared([image.groups for image in images]))
    names = {image.file.below: "/".join(image.groups[shared:]) for image in images}
    count = Counter(names.values())
    if len(count) < 2 or (rule == "folders" and len(count) == len(images)):
        return {}, {}, "", ()
    shown = f"{first_names(count)}" if len(count) > 3 else ", ".join(f"{name or 'none'} {number}" for name, number in sorted(count.items()))
    words = [name.casefold().rpartition("/")[2] for name in count]
    numbered = sum(any(c.isdigit() for c in word) for word in words) > len(words) / 2
    if len(count) < 3 or set(words) <= CLASS_WORDS or (beside and not (numbered and len(count) > 4)):
        note = (
            f"folders are taken for classes ({shown}): what is drawn has as much of each. If they are patients, whose images must stay "
            f"together: {BY_FOLDER}",
        )
        return {}, names, f"folders are classes ({len(count)})", note
    note = (f"folders are taken for patients or groups ({shown}), which no drawn split divides; to divide by images: {EACH}",)
    # The images beside the folders are each on their own.
    return {below: name for below, name in names.items() if name}, {}, f"folders are groups ({len(count)})", note


def _published(tree: Tree, published: dict[str, str], cases: int) -> tuple[dict[str, str], str, tuple[str, ...]]:
    parts = Counter(published.values())
    if not parts:
        return {}, "", ()
    if any((tree.root / name).is_file() for name in LISTS):
        return {}, "", ("the lists publish the split, not the folders",)
    if len(parts) == 1 and len(published) == cases:
        return {}, "", (f"all cases lie in folders that say {next(iter(parts))}: no split is published, the parts are drawn",)
    counts = ", ".join(f"{part} {parts[part]}" for part in ("train", "trainval", "validation", "test") if part in parts)
    return published, f"folders publish a split ({counts})", ()
