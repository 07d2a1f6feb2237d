"""All image files below a folder, by name only, and what the names of folders say: images or masks, training or test."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from guidino_tune.data.cases import Case, stable_hash
from guidino_tune.data.files import ending, slice_of, stem
from guidino_tune.errors import UserError

IMAGE_WORDS = frozenset(
    ("image", "images", "img", "imgs", "im", "ims", "picture", "pictures", "photo", "photos", "original", "originals", "scan", "scans",
    "frame", "frames", "input", "inputs")
)  # fmt: skip
"""Words in the name of a folder of images; capitals do not count."""

MASK_WORDS = frozenset(
    ("mask", "masks", "label", "labels", "gt", "gts", "ground", "truth", "truths", "groundtruth", "groundtruths",
    "annotation", "annotations", "segmentation", "segmentations", "seg", "segs", "target", "targets")
)  # fmt: skip
"""Words in the name of a folder of masks."""

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "ts"), "test"),
    "trainval": "trainval",
}
"""Words in the name of a folder that publish a split."""

_NEUTRAL = frozenset(("png", "jpg", "jpeg", "bmp", "tif", "tiff", "gif", "nii", "dicom", "set", "data", "the", "and", "of", "all", "files"))
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True, slots=True)
class File:
    """A file below the root of a data set.

    Attributes:
        path: As it is opened.
        parts: The folders it lies in, from the root.
        name: Its name; like ``parts`` in one spelling (see ``composed``).
    """

    path: Path
    parts: tuple[str, ...]
    name: str

    @property
    def stem(self) -> str:
        """Its name without ending."""
        return stem(Path(self.name))

    @property
    def ending(self) -> str:
        """Its ending in lower case."""
        return ending(Path(self.name))

    @property
    def below(self) -> str:
        """Its path from the root."""
        return "/".join((*self.parts, self.name))


@dataclass(frozen=True, slots=True)
class Tree:
    """What lies below a folder.

    Attributes:
        root: The folder.
        files: What has an image's ending, sorted by path.
        others: All other files, sorted.
    """

    root: Path
    files: tuple[File, ...]
    others: tuple[File, ...]

    def described(self, limit: int = 8) -> str:
        """What lies where, in words: ``a/ (20 .png), b/ (3 .txt)``."""
        folders: dict[str, Counter[str]] = {}
        for file in (*self.files, *self.others):
            folders.setdefault("/".join((*file.parts[:3], "")) or "in it", Counter())[known_as(file)] += 1
        lines = [f"{name} ({in_numbers(count)})" for name, count in folders.items()]
        return ", ".join(lines[:limit]) + (f" and {len(lines) - limit} more folders" if len(lines) > limit else "") or "nothing"

    def passed_over(self, used: set[Path], known: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """A note that counts by ending what is not used; none where all is.

        Args:
            used: Files of the cases, and those that another note tells of.
            known: Names of other files at the root that were read.
        """
        rest = Counter(known_as(file) for file in self.others if file.parts or file.name not in known)
        unused: dict[str, Counter[str]] = {}
        for file in self.files:
            if file.path not in used:
                unused.setdefault("/".join((*file.parts[:3], "")) or "the folder itself", Counter())[known_as(file)] += 1
        lines = ([in_numbers(rest)] if rest else []) + [f"{in_numbers(count)} in {name}" for name, count in list(unused.items())[:6]]
        if len(unused) > 6:
            lines.append(f"images in {len(unused) - 6} more folders")
        return (f"passed over: {', '.join(lines)}",) if lines else ()


def known_as(file: File) -> str:
    """The ending by which it is counted."""
    return file.ending or Path(file.name).suffix.lower() or "without ending"


def in_numbers(count: Counter[str]) -> str:
    """Such as ``12 .xml, 3 .txt``."""
    return ", ".join(f"{number} {name}" for name, number in sorted(count.items(), key=lambda item: (-item[1], item[0])))


def scan(root: Path) -> Tree:
    """Lists all files below ``root``. Hidden ones are passed over; links are followed, but not round in a circle.

    A folder whose name ends like an image's counts as a file, which nobody can read, unless images lie in it.

    Raises:
        UserError: There is no such folder, one cannot be listed, or a name is no UTF-8.
    """
    if not root.is_dir():
        raise UserError(
            "there is no such folder (data.kind is 'folder')",
            where=str(root),
            todo="give the folder of the images and masks, or a CSV file that lists them, with --data-root (data.root)",
        )
    files: list[File] = []
    others: list[File] = []
    _enter(root, (), frozenset((os.path.realpath(root),)), files, others)
    return Tree(root, tuple(files), tuple(others))


def _enter(folder: Path, parts: tuple[str, ...], above: frozenset[str], files: list[File], others: list[File]) -> None:
    for entry in entries(folder):
        image = ending(Path(entry.name)) != ""
        if _is_folder(entry):
            place = os.path.realpath(entry.path)
            if place not in above and not (image and not _holds_images(Path(entry.path))):
                _enter(Path(entry.path), (*parts, composed(entry.name, folder)), above | {place}, files, others)
                continue
            if not image:
                continue
        if image:
            files.append(File(Path(entry.path), parts, composed(entry.name, folder)))
        else:
            others.append(File(Path(entry.path), parts, entry.name.encode(errors="replace").decode()))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _holds_images(folder: Path) -> bool:
    return any(ending(Path(entry.name)) for entry in entries(folder))


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, without what is hidden.

    Raises:
        UserError: It cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if not e.name.startswith(".") and e.name != "__MACOSX"), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"cannot be listed: {error.strerror or error}", where=str(folder), todo="make the folder readable") from None


def composed(name: str, folder: Path | None = None) -> str:
    """The same name in one spelling: a Mac writes ``ä`` as two characters, others as one.

    Raises:
        UserError: It is no UTF-8.
    """
    if any("\ud800" <= character <= "\udfff" for character in name):  # how Python shows bytes that are no UTF-8
        raise UserError(f"the name {name!r} is no UTF-8", where=str(folder or ""), todo="rename the file")
    return unicodedata.normalize("NFC", name)


def meaning(folder: str) -> tuple[str, str]:
    """What the name of a folder says: ``image``, ``mask`` or nothing; and the split's word in it or nothing.

    All its words must be known: ``train_images`` says both, ``1st_manual`` says nothing.
    """
    words = _words(folder)
    known = [word for word in words if word not in _NEUTRAL]
    splits = [word for word in known if word in SPLIT_WORDS]
    if not known or len(splits) > 1 or any(word not in IMAGE_WORDS | MASK_WORDS | SPLIT_WORDS.keys() for word in known):
        return "", ""
    role = "mask" if MASK_WORDS.intersection(known) else "image" if IMAGE_WORDS.intersection(known) else ""
    split = splits[0] if splits else ""
    return ("", "") if not role and split in ("tr", "ts") else (role, split)


def _words(folder: str) -> list[str]:
    return [word for word in re.split(r"[-_ .&()]+", _CAMEL.sub(" ", folder).lower()) if word]


def kind_of(folder: str) -> str:
    """The name of a folder without capitals and without a split's word: ``train_masks`` and ``masks`` are of one kind."""
    role, split = meaning(folder)
    return " ".join(word for word in _words(folder) if word != split) if role and split else folder.casefold()


def role_of(file: File) -> tuple[str, str]:
    """``image``, ``mask`` or nothing, by the last folder that says so; and the name of that folder."""
    return next(((role, part) for part in reversed(file.parts) if (role := meaning(part)[0])), ("", ""))


def below(case: Case, root: Path) -> str:
    """The path of a case's image below the root of its data set, without the number of a slice."""
    path = slice_of(case.image)[0]
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix())


def few(files: list[File], count: int = 5) -> list[File]:
    """Some of them, chosen by their names alone."""
    return sorted(files, key=lambda file: stable_hash("few", file.below))[:count]
