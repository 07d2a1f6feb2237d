"""Pairs of two folders with equal names, as data sets are published, and the lists that publish a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.files import ending, stem
from guidino_tune.data.sources.tree import composed, entries
from guidino_tune.errors import UserError, first_names
from guidino_tune.paths import next_command

MASK_SUFFIXES = ("", "_mask", "_segmentation")
LISTS = {"train.txt": "train", "validation.txt": "validation", "val.txt": "validation", "test.txt": "test"}
"""Optional files of ids, one per line, with or without ending, that publish a split."""


def require(root: Path, folders: tuple[str, ...], kind: str) -> None:
    """Checks that all ``folders`` are under ``root``.

    Raises:
        UserError: Names those that are missing, and how to get them.
    """
    missing = [name for name in folders if not (root / name).is_dir()]
    if missing:
        what = f"found no {' and no '.join(f'{name}/' for name in missing)}" if root.is_dir() else "there is no such folder"
        todo = f"give the folder that holds {', '.join(f'{name}/' for name in folders)} with --data-root (data.root)"
        if kind != "folder":
            todo += f", or fetch the data set with: {next_command(f'prepare {kind}')}"
        raise UserError(f"{what} (data.kind is {kind!r})", where=str(root), todo=todo)


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their names without ending, sorted; hidden and other files are passed over.

    Links to files and to folders are followed, wherever they lead; folders inside the folder are not entered, so that a link that leads
    round in a circle is met as a file that cannot be read, if its name looks like an image's.

    Raises:
        UserError: Two files differ in nothing but the ending, a name is no UTF-8, or the folder cannot be listed.
    """
    found: dict[str, Path] = {}
    for path in (Path(entry.path) for entry in entries(folder)):
        if ending(path):
            name = composed(stem(path), folder)
            if name in found:
                raise UserError(f"{found[name].name} and {path.name} have the same name", where=str(folder), todo="remove one of the two")
            found[name] = path
    return found


def pair(
    image_folder: Path,
    mask_folder: Path,
    *,
    on_bad: str = "error",
    suffixes: tuple[str, ...] = MASK_SUFFIXES,
    ignore: str = "",
    prefix: str = "",
    group: Callable[[str], str] | None = None,
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Pairs images with masks by name.

    Args:
        image_folder: Folder of the images.
        mask_folder: Folder of the masks.
        on_bad: ``error`` or ``skip``, for files without partner.
        suffixes: What may follow the image's name in the mask's.
        ignore: Files whose names end so are no images.
        prefix: Put before each name to make the id.
        group: Name -> group; by default the id.

    Returns:
        The cases, sorted by id, and notes on what was left out.

    Raises:
        UserError: Files have no partner (a few are named, and the count), or one image has two masks.
    """
    images = {name: path for name, path in files_by_stem(image_folder).items() if not (ignore and name.endswith(ignore))}
    masks: dict[str, Path] = {}
    lonely: list[Path] = []
    for mask, path in files_by_stem(mask_folder).items():
        name = next((mask.removesuffix(s) for s in suffixes if mask.endswith(s) and mask.removesuffix(s) in images), None)
        if name is None:
            lonely.append(path)
        elif name in masks:
            raise UserError(
                f"{masks[name].name} and {path.name} are both masks of {images[name].name}", where=str(mask_folder), todo="remove one"
            )
        else:
            masks[name] = path
    notes = []
    bare = [images[name] for name in images.keys() - masks.keys()]
    for paths, lack, folder in ((bare, "images without mask", image_folder), (lonely, "masks without image", mask_folder)):
        if paths:
            what = f"{len(paths)} {lack}: {first_names(path.name for path in paths)}"
            if on_bad != "skip":
                other = mask_folder if folder == image_folder else image_folder
                raise UserError(what, where=str(folder), todo=f"add their partners to {other}, or set data.bad_cases=skip")
            notes.append(f"{folder}: left out {what}")
    cases = tuple(
        Case(id=prefix + name, image=images[name], mask=masks[name], group=group(name) if group else prefix + name)
        for name in sorted(masks)
    )
    if not cases:
        raise UserError("holds no image with a mask", where=str(image_folder), todo=f"put images there and their masks into {mask_folder}")
    return cases, tuple(notes)


def with_lists(root: Path, cases: tuple[Case, ...], notes: tuple[str, ...] = (), published: Mapping[str, str] | None = None) -> Listing:
    """Adds the split that the list files under ``root`` publish, if any.

    ``train.txt``, ``validation.txt`` (or ``val.txt``) and ``test.txt`` name a case a line, with or without ending. With a ``train.txt``
    the cases in no list are left out, with a note; without one they are divided by us.

    Args:
        root: The folder of the lists.
        cases: All cases.
        notes: What was left out of them, if anything: the lists may name it.
        published: What is published where there are no lists.

    Raises:
        UserError: A list is unreadable, names an unknown case, or names one that is in another list too.
    """
    known = {case.id for case in cases}
    ends: dict[str, str] = {}
    for case in cases:  # an empty name is shared by two cases
        end = case.id.rpartition("/")[2]
        ends[end] = "" if end in ends else case.id
    listed: dict[str, str] = {}
    used = []
    for file, part in LISTS.items():
        path = root / file
        if not path.is_file():
            continue
        used.append(file)
        ids = [_known(composed(line.strip()), known, ends) for line in _text(path).splitlines() if line.strip()]
        unknown = [name for name in ids if name not in known]
        if unknown and not notes:  # after leaving files out, the lists may name what was left out
            raise UserError(
                f"{len(unknown)} listed cases have no files: {first_names(unknown)}",
                where=str(path),
                todo="correct the list, or add the files",
            )
        if unknown:
            notes += (f"{path}: {len(unknown)} listed cases have no files: {first_names(unknown)}",)
        for name in known.intersection(ids):
            if listed.setdefault(name, part) != part:
                raise UserError(f"{name} is listed as {listed[name]} too", where=str(path), todo="leave each case in one list")
    if not used:
        return Listing(cases, published or {}, notes)
    rest = known - listed.keys()
    if "train" in listed.values() and rest:
        notes += (f"{root}: {len(rest)} cases are left out, being in none of {', '.join(used)}: {first_names(rest)}",)
        cases = tuple(case for case in cases if case.id in listed)
    return Listing(cases, listed, notes)


def _known(name: str, known: set[str], ends: Mapping[str, str]) -> str:
    """The id that a line of a list means; the name without ending where there is none."""
    bare = stem(Path(name))
    whole = name[: len(name) - len(ending(Path(name)))]
    return next((one for one in (name, whole, ends.get(name, ""), ends.get(bare, ""), bare) if one in known), bare)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), todo="write one case id per line, in UTF-8") from None
