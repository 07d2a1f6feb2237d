"""The general layout, of which the others are special cases: ``images/`` and ``masks/`` with equal names."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

from guidino_tune.data.cases import Case, Listing, some
from guidino_tune.errors import UserError

IMAGE_ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"))
MASK_SUFFIXES = ("", "_mask", "_segmentation")
LISTS = {"train.txt": "train", "validation.txt": "validation", "val.txt": "validation", "test.txt": "test"}
"""Optional files of ids, one per line, with or without ending, that publish a split."""


def find(root: Path, on_bad: str = "error") -> Listing:
    """Lists ``images/NAME`` with ``masks/NAME``, ``NAME_mask`` or ``NAME_segmentation`` (endings may differ).

    ``train.txt``, ``validation.txt`` (or ``val.txt``) and ``test.txt`` publish a split. With a ``train.txt`` the cases in no list are left
    out, with a note; without one they are divided by us.

    Args:
        root: The folder that holds both.
        on_bad: ``error`` stops at an image or a mask without partner, ``skip`` leaves it out with a note.

    Raises:
        UserError: The layout is not there, files have no partner, or a list names an unknown case or one twice.
    """
    require(root, ("images", "masks"), "folder")
    cases, notes = pair(root / "images", root / "masks", on_bad=on_bad)
    return with_lists(root, cases, notes)


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
            todo += f", or fetch the data set with: guidino-tune prepare {kind}"
        raise UserError(f"{what} (data.kind is {kind!r})", where=str(root), todo=todo)


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their names without ending, sorted; hidden and other files are passed over.

    Links to files and to folders are followed, wherever they lead; folders inside the folder are not entered, so that a link that leads
    round in a circle is met as a file that cannot be read, if its name looks like an image's.

    Raises:
        UserError: Two files differ in nothing but the ending, a name is no UTF-8, or the folder cannot be listed.
    """
    found: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot be listed: {error.strerror or error}", where=str(folder), todo="make the folder readable") from None
    for path in paths:
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith("."):
            stem = _composed(path.stem)
            if not _is_text(stem):
                raise UserError(f"the name {path.name!r} is no UTF-8", where=str(folder), todo="rename the file")
            if stem in found:
                raise UserError(f"{found[stem].name} and {path.name} have the same name", where=str(folder), todo="remove one of the two")
            found[stem] = path
    return found


def _composed(name: str) -> str:
    """The same name in one spelling: a Mac writes ``ä`` as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)  # how Python shows bytes that are no UTF-8


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
    images = {stem: path for stem, path in files_by_stem(image_folder).items() if not (ignore and stem.endswith(ignore))}
    masks: dict[str, Path] = {}
    lonely: list[Path] = []
    for stem, path in files_by_stem(mask_folder).items():
        name = next((stem.removesuffix(s) for s in suffixes if stem.endswith(s) and stem.removesuffix(s) in images), None)
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
            what = f"{len(paths)} {lack}: {some(path.name for path in paths)}"
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


def with_lists(root: Path, cases: tuple[Case, ...], notes: tuple[str, ...] = ()) -> Listing:
    """Adds the split that the list files under ``root`` publish, if any (see ``find``).

    Raises:
        UserError: A list is unreadable, names an unknown case, or names one that is in another list too.
    """
    known = {case.id for case in cases}
    published: dict[str, str] = {}
    used = []
    for file, part in LISTS.items():
        path = root / file
        if not path.is_file():
            continue
        used.append(file)
        names = [_composed(line.strip()) for line in _text(path).splitlines() if line.strip()]
        ids = [name if name in known else Path(name).stem for name in names]
        unknown = [name for name in ids if name not in known]
        if unknown and not notes:  # after leaving files out, the lists may name what was left out
            raise UserError(
                f"{len(unknown)} listed cases have no files: {some(unknown)}", where=str(path), todo="correct the list, or add the files"
            )
        if unknown:
            notes += (f"{path}: {len(unknown)} listed cases have no files: {some(unknown)}",)
        for name in known.intersection(ids):
            if published.setdefault(name, part) != part:
                raise UserError(f"{name} is listed as {published[name]} too", where=str(path), todo="leave each case in one list")
    rest = known - published.keys()
    if "train" in published.values() and rest:
        notes += (f"{root}: {len(rest)} cases are left out, being in none of {', '.join(used)}: {some(rest)}",)
        cases = tuple(case for case in cases if case.id in published)
    return Listing(cases, published, notes)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), todo="write one case id per line, in UTF-8") from None
