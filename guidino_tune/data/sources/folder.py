"""The kind ``folder``: finds out by names how a data set lies, says it in one line, and refuses what could be meant in two ways."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

from guidino_tune.config.data import Data
from guidino_tune.data.cases import Listing
from guidino_tune.data.predicted import MASKS, OVERLAYS, mark_in
from guidino_tune.data.sources import nnunet, patterns, tables
from guidino_tune.data.sources.beside import beside, side_by_side
from guidino_tune.data.sources.gathering import gather
from guidino_tune.data.sources.pairing import Item, Pairs, item, pair_up
from guidino_tune.data.sources.tree import File, Tree, kind_of, meaning, role_of, scan
from guidino_tune.errors import UserError, first_names

NO_TRUTH = frozenset(
    ("overlay", "overlays", "edge", "edges", "depth", "depths", "preview", "previews", "thumbnail", "thumbnails", "visualisation",
    "visualisations", "visualization", "visualizations", "heatmap", "heatmaps", "superpixels", "prediction", "predictions")
)  # fmt: skip
"""Names of folders that hold no truth though their files are called like the images."""

LOOKED_FOR = (
    "images/ with masks/ (or labels/, annotations/, gt/, ...), masks beside images (NAME_mask.png), images and masks of one name and two "
    "endings, nnU-Net's imagesTr/ with labelsTr/, or a table cases.csv"
)


def find(root: Path, on_bad: str = "error", data: Data | None = None) -> Listing:
    """Lists the cases under ``root``: the first of these that is there.

    - A table (see ``tables``): ``root`` itself, or ``cases.csv`` or ``cases.jsonl`` in it.
    - What ``data.images`` and ``data.masks`` name (see ``patterns``).
    - nnU-Net's raw layout (see ``nnunet``).
    - Folders whose names say image or mask (``tree.IMAGE_WORDS``, ``tree.MASK_WORDS``), nested or not, in folders of a split or not; also a
      folder per image, with its masks.
    - Masks beside images with a suffix, or with another ending (see ``beside``).

    Args:
        root: The folder, or the table.
        on_bad: ``error`` stops at an image or a mask without partner, ``skip`` leaves the case out with a note.
        data: The other settings.

    Raises:
        UserError: None of them is there, several folders could be the truth, or files have no partner.
    """
    data = data or Data(kind="folder", root=str(root))
    if table := tables.table_of(root):
        return tables.find(table, on_bad, data.group)
    if data.images is None and data.mask_pattern is None and nnunet.is_there(root):
        return nnunet.find(root, on_bad, data)
    tree = scan(root)
    if inner := nnunet.inside(tree):
        names = first_names(path.name for path in inner)
        raise UserError(
            f"holds {len(inner)} data set{'s' if len(inner) > 1 else ''} in nnU-Net's raw layout: {names}",
            where=str(root),
            todo=f"name one: --data-root {shlex.quote(str(inner[0]))}",
        )
    if not tree.files:
        raise _unknown(tree, "holds no image")
    if data.images is not None or data.mask_pattern is not None:
        return patterns.find(tree, on_bad, data, find_masks=_find, find_images=images_for)
    kept, folders = _without_predictions(tree)
    if not folders:
        return _find(tree, on_bad, data)
    note = f"{first_names(folders)} {'were' if len(folders) > 1 else 'was'} written by predict, and passed over: predictions are no truth"
    try:
        listing = _find(kept, on_bad, data)
    except UserError as error:
        todo = f"{error.todo}. To train on predictions all the same, name them: {_choices('masks', [folders[0].rstrip('/')])}"
        raise UserError(f"{error.what}; {note}", where=error.where, todo=todo) from None
    return replace(listing, notes=(*listing.notes, note))


def _without_predictions(tree: Tree) -> tuple[Tree, list[str]]:
    """The tree without what ``predict`` wrote into it (one file of each folder is looked at), and these folders, masks first."""
    folders: dict[str, list[File]] = {}
    for file in tree.files:
        if place := next((place for place in (MASKS, OVERLAYS) if place in file.parts), None):
            folders.setdefault("/".join((*file.parts[: file.parts.index(place) + 1], "")), []).append(file)
    predicted = {name: files for name, files in folders.items() if mark_in(files[0].path) is not None}
    left_out = {file.below for files in predicted.values() for file in files}
    kept = replace(tree, files=tuple(file for file in tree.files if file.below not in left_out))
    return kept, sorted(predicted, key=lambda name: (name.endswith(f"{OVERLAYS}/"), name))


def _find(tree: Tree, on_bad: str, data: Data, given: list[File] | None = None, named: frozenset[str] = frozenset()) -> Listing:
    """Finds images (unless they are given, in folders that are named so) and masks by the names of their folders."""
    roles = {file.below: role_of(file) for file in tree.files}
    images, masks = _by_name(tree.files, roles, "image"), _by_name(tree.files, roles, "mask")
    rest = [file for file in tree.files if not roles[file.below][0]]
    if given is not None:
        chosen = {file.below for file in given}
        images = {"the images": given}
        masks = {name: kept for name, files in masks.items() if (kept := [f for f in files if f.below not in chosen])}
        rest = [file for file in rest if file.below not in chosen]
    if len(images) > 1:
        names = sorted(images)
        raise UserError(
            f"several folders could be the images: {', '.join(f'{name}/' for name in names)}",
            where=str(tree.root),
            todo=f"name one: {_choices('images', names)}",
        )
    if not images and masks:
        images = dict([_images_for(tree, rest, masks)])
        rest = [file for file in rest if file not in next(iter(images.values()), [])]
    if not images:
        return _in_same_folders(tree, list(tree.files), on_bad, data)
    name, files = next(iter(images.items()))
    side = [item(file, named or frozenset((name,))) for file in files]
    if not masks and given is None and (found := beside(tree, side, on_bad) or side_by_side(tree, side, on_bad, data)):
        return found
    chosen_name, pairs = _truth(tree, side, masks, rest)
    line = f"{_shown(name, files)} and {_shown(chosen_name, masks[chosen_name])}"
    if pairs.rule == "folders":
        line = f"a folder per image, with {line}"
    elif pairs.rule == "middles":
        line += " (names agree but for what all begin or end with)"
    return gather(tree, side, pairs, line, on_bad)


def _shown(name: str, files: list[File]) -> str:
    several = {part for file in files for part in file.parts if kind_of(part) == name}
    return "/, ".join(sorted(several)) + "/" if several else name or "the folder itself"


def _by_name(files: tuple[File, ...], roles: dict[str, tuple[str, str]], role: str) -> dict[str, list[File]]:
    """Files of a role by the name of their folder; names that differ in a split's word, as ``train_masks``, are one."""
    found: dict[str, list[File]] = {}
    for file in files:
        has, name = roles[file.below]
        if has == role:
            found.setdefault(kind_of(name), []).append(file)
    return found


def _images_for(tree: Tree, rest: list[File], masks: dict[str, list[File]]) -> tuple[str, list[File]]:
    """The images of masks whose folders alone say what they are, and the name of their folder.

    Raises:
        UserError: None can be, or several.
    """
    found = images_for(tree, rest, [item(file) for files in masks.values() for file in files])
    if found is None:
        what = f"found masks ({', '.join(f'{name}/' for name in sorted(masks))}) but no images that agree with them in name"
        raise _unknown(tree, what)
    return found


def images_for(tree: Tree, rest: list[File], truth: list[Item]) -> tuple[str, list[File]] | None:
    """Finds the images among files whose names say nothing: all of them, or those in folders of one name, if they pair with the masks.

    Raises:
        UserError: Folders of several names do.
    """
    found: dict[str, list[File]] = {}
    for name in ["", *_names(rest)]:
        files = [file for file in rest if not name or name in (part.casefold() for part in file.parts)]
        if files and pair_up([item(file, frozenset((name,))) for file in files], truth).complete:
            found[name] = files
    distinct = {tuple(file.below for file in files): name for name, files in found.items()}
    if len(distinct) > 1:
        names = [name for name in found if name]
        raise UserError(
            f"several folders could be the images: {', '.join(f'{name}/' for name in names)}",
            where=str(tree.root),
            todo=f"name one: {_choices('images', names)}",
        )
    return next(((name, found[name]) for name in distinct.values()), None)


def _names(files: list[File]) -> list[str]:
    """Names of the folders of these files, the most frequent first; of folders of a split none."""
    count = Counter(part.casefold() for file in files for part in set(file.parts) if meaning(part) == ("", ""))
    return [name for name, _ in count.most_common(40)]


def _truth(tree: Tree, images: list[Item], masks: dict[str, list[File]], rest: list[File]) -> tuple[str, Pairs]:
    """The folder that holds the truth, when only one can, with its pairs.

    Raises:
        UserError: None can, or several.
    """
    pairs = {name: pair_up(images, [item(file, frozenset((name,))) for file in files]) for name, files in masks.items()}
    pairs = {name: found for name, found in pairs.items() if found.masks}
    others = []
    for name in _names(rest):
        if name not in NO_TRUTH:
            side = [item(file, frozenset((name,))) for file in rest if name in (part.casefold() for part in file.parts)]
            if pair_up(images, side).complete:
                others.append(name)
    names = [*pairs, *others]
    if len(pairs) == 1 and not others:
        return next(iter(pairs.items()))
    if names:
        spelled = {part.casefold(): part for file in tree.files for part in file.parts}
        names = sorted(spelled.get(name, name) for name in names)
        raise UserError(
            f"several folders could be the truth: {', '.join(f'{name}/' for name in names)}"
            if len(names) > 1
            else f"{names[0]}/ may be the truth, but its name does not say so",
            where=str(tree.root),
            todo=f"name {'one' if len(names) > 1 else 'it'}: {_choices('masks', names)}",
        )
    if not masks:
        raise _unknown(tree, "found images, but no masks that agree with them in name")
    truth = [file for files in masks.values() for file in files]
    raise UserError(
        f"no name of a mask is that of an image: images such as {first_names((i.file.below for i in images), 2)}; masks such as "
        f"{first_names((file.below for file in truth), 2)}",
        where=str(tree.root),
        todo="rename them, or list them in a table: a file cases.csv with the columns image, mask",
    )


def _choices(option: str, names: list[str]) -> str:
    return " or ".join(f"--set 'data.{option}={name}'" if " " in name else f"--set data.{option}={name}" for name in names)


def _in_same_folders(tree: Tree, files: list[File], on_bad: str, data: Data) -> Listing:
    """Images and masks in the same folders."""
    side = [item(file) for file in files]
    found = beside(tree, side, on_bad) or side_by_side(tree, side, on_bad, data)
    if found:
        return found
    raise _unknown(tree, "found no layout that is known")


def _unknown(tree: Tree, what: str) -> UserError:
    inner = sorted({file.parts[0] for file in tree.files if len(file.parts) > 1 and (meaning(file.parts[1])[0])})
    deeper = f" (for example {tree.root / inner[0]})" if inner else ""
    return UserError(
        f"{what} (data.kind is 'folder'); looked for {LOOKED_FOR}. What lies there: {tree.described()}",
        where=str(tree.root),
        todo=f"give the folder that holds them with --data-root (data.root){deeper}, or name them, such as --set data.images=photos --set "
        "data.masks=outlines (folders) or --set 'data.masks=*_outline.png' (a pattern)",
    )
