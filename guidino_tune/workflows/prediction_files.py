"""Which images ``predict`` takes, what their masks are called, and which files it wrote itself: no other file is ever replaced."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from guidino_tune.config import Data
from guidino_tune.config.parsing import parse
from guidino_tune.data.files import ENDINGS, VOLUMES, ending, slice_of, stem
from guidino_tune.data.predicted import MARK, MASKS, OVERLAYS, is_signed, mark_in
from guidino_tune.data.reading import volume_slices
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError, first_names

_CHANNEL = re.compile(r"(.+)_(\d{4})(#\d+)?")  # of a slice of a volume its number follows


class NoImages(UserError):
    """A folder that holds none."""


class Found(NamedTuple):
    """The images of a folder.

    Attributes:
        names: By file: of its mask and overlay, without ``.png``, relative to their folders; sub-folders are kept.
        notes: What was passed over, and which names keep the ending of their image.
    """

    names: Mapping[Path, Path]
    notes: tuple[str, ...]


def find_images(images: Path, output: Path) -> Found:
    """The image files in a folder and its sub-folders, or the one image; of a volume every slice (``volume.nii.gz#12``).

    Passed over are hidden and other files, the masks of a data set (in folders of their own, or named otherwise than their images), and
    what ``predict`` itself wrote: a second run does not take the masks of the first for images.

    Raises:
        NoImages: The folder holds none.
        UserError: There is no such path, the file is no image, or a name is no UTF-8.
    """
    if not os.path.lexists(slice_of(images)[0]):
        raise UserError("no such file or folder", where=str(images), todo="correct the path of the images")
    if not images.is_dir():
        if not ending(images):
            raise UserError("the name is not that of an image", where=str(images), todo=f"name a folder, or an image ({' '.join(ENDINGS)})")
        return Found({file: Path(stem(file)) for file in _slices(images)}, ())
    passed: Counter[str] = Counter()
    files: list[Path] = []
    truth = _true_masks(images)
    for file in _walk(images, {(output / MASKS).resolve(), (output / OVERLAYS).resolve()}, passed):
        if file.name.startswith("."):
            passed["hidden"] += 1
        elif not ending(file):
            passed[file.suffix.lower()] += 1
        elif mark_in(file) is not None:
            passed["of predict itself"] += 1
        elif file in truth:
            passed["true masks"] += 1
        elif any("\ud800" <= letter <= "\udfff" for letter in str(file)):  # how Python shows bytes that are no UTF-8
            raise UserError(f"the name {str(file)!r} is no UTF-8", todo="rename it")
        else:
            files += _slices(file)
    over = ", ".join(f"{count} {end or 'without an ending'}" for end, count in sorted(passed.items()))
    if not files:
        what = f"no images ({' '.join(ENDINGS)})" + (f"; passed over: {over}" if over else "")
        raise NoImages(what, where=str(images), todo="name a folder that holds images")
    names = output_names([file.relative_to(images) for file in files])
    notes = [f"passed over: {over}"] if over else []
    whole = [name for file, name in names.items() if name.name == file.name]
    if whole:
        notes.append(
            f"images of one folder that differ only in their ending keep it in the names of their masks: {first_names(map(png, whole))}"
        )
    return Found({images / file: name for file, name in names.items()}, tuple(notes))


def _true_masks(root: Path) -> set[Path]:
    """The masks of a data set, as training finds them; of other folders none. ``a.png`` beside ``a.jpg`` is an image for all we know."""
    try:
        cases = find_cases(parse(Data, {"kind": "folder", "root": str(root), "bad_cases": "skip"}, "images")).cases
    except UserError:
        return set()
    pairs = ((slice_of(case.image)[0], slice_of(mask)[0]) for case in cases for mask in case.masks)
    return {mask for image, mask in pairs if mask.parent != image.parent or stem(mask) != stem(image)}


def _slices(file: Path) -> list[Path]:
    """Every slice of a volume; of any other file, and of one whose header cannot be read, the file itself: that is told when it is read."""
    if ending(file) not in VOLUMES or slice_of(file)[1] is not None:
        return [file]
    try:
        number = volume_slices(file)
    except UserError:
        return [file]
    return [file.with_name(f"{file.name}#{index:0{len(str(number - 1))}}") for index in range(number)] if number > 1 else [file]


def _walk(folder: Path, left_out: set[Path], passed: Counter[str]) -> Iterator[Path]:
    """All files below a folder, sorted; links to folders are followed, but each folder is entered once."""
    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_not_listed):
        real = Path(place).resolve()
        if real in seen or (real in left_out and Path(place) != folder):
            folders.clear()
            continue
        seen.add(real)
        passed["hidden"] += sum(name.startswith(".") for name in folders)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names))
    passed += Counter()  # drops what is 0


def _not_listed(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder that is not there yet holds nothing
        raise UserError(f"cannot be listed: {error.strerror}", where=str(error.filename), todo="make the folder readable") from None


def output_names(files: Sequence[Path]) -> dict[Path, Path]:
    """A name without ending for each file, no two alike: its own, or with its ending where another one would have the same.

    Nor does a mask get the name of a folder in which others lie.

    Args:
        files: Relative paths, no two alike.
    """
    names = {file: file.with_name(stem(file)) for file in files}
    folders = {folder for file in files for folder in file.parents}
    while True:
        count = Counter(names.values())
        alike = [file for file, name in names.items() if (count[name] > 1 or png(name) in folders) and name != file]
        if not alike:
            return names
        names |= {file: file for file in alike}


def image_of(file: Path) -> Path:
    """The image to which one of several files belongs, as a path without number and ending."""
    match = _CHANNEL.fullmatch(stem(file))
    return file.with_name(f"{match[1]}{match[3] or ''}" if match else stem(file))


def by_channels(names: Mapping[Path, Path], files: int) -> tuple[dict[tuple[Path, ...], Path], list[str]]:
    """Images of several files each, named ``CASE_0000.png``, ``CASE_0001.png``, ... as nnU-Net has them.

    Args:
        names: As in ``Found``; of a single file the others are looked for beside it.
        files: Of one image.

    Returns:
        By the files of an image, in the order of their numbers: the name of its mask. And a message for each image that is not whole.
    """
    if files == 1:
        return {(file,): name for file, name in names.items()}, []
    channels: dict[Path, dict[int, Path]] = {}
    problems = []
    for file, name in names.items():
        match = _CHANNEL.fullmatch(name.name)
        if match is None:
            problems.append(f"{file}: the model sees images of {files} files, which are called NAME_0000, NAME_0001, ...")
            continue
        found = channels.setdefault(name.with_name(f"{match[1]}{match[3] or ''}"), {})
        beside = (one.with_name(f"{one.name}{match[3] or ''}") for one in file.parent.iterdir()) if len(names) == 1 else [file]
        found |= {int(m[2]): one for one in beside if (m := _CHANNEL.fullmatch(stem(one))) and (m[1], m[3]) == (match[1], match[3])}
    whole: dict[tuple[Path, ...], Path] = {}
    for name, found in channels.items():
        if sorted(found) == list(range(files)):
            whole[tuple(found[number] for number in range(files))] = name
        else:
            have = ", ".join(f"_{number:04d}" for number in sorted(found))
            problems.append(f"{next(iter(found.values()))}: the model sees images of {files} files, and of {name.name} there is {have}")
    return whole, problems


def check_output(output: Path, names: Iterable[Path], *, overlays: bool, masks: Collection[Path] | None = None) -> set[Path]:
    """Refuses to replace, or to write among, what ``predict`` did not write. Nothing is changed.

    Args:
        output: The folder that is to get ``masks`` and ``overlays``.
        names: Of the masks, as in ``Found``.
        overlays: Whether there will be overlays.
        masks: The files of masks, below their folder; ``None``: a PNG of each name.

    Returns:
        The masks of an earlier run, below their folder, that will be replaced.

    Raises:
        UserError: Names the first such file, and how many there are.
    """
    todo = "choose another --output, or move these files away"
    folders = [output / MASKS, *([output / OVERLAYS] if overlays else [])]
    for folder in (output, *folders):
        if os.path.lexists(folder) and not folder.is_dir():
            what = "a link that leads nowhere" if folder.is_symlink() else "a file"
            raise UserError(f"here is {what}, where a folder must be", where=str(folder), todo="choose another --output, or move it away")
    pictures = [png(name) for name in names]
    targets = [folders[0] / file for file in dict.fromkeys(pictures if masks is None else masks)]
    targets += [folder / file for folder in folders[1:] for file in pictures]
    there = [target for target in targets if os.path.lexists(target)]
    foreign = [target for target in there if not is_own(target)]
    if foreign:
        what = "predict did not write this file, or it was changed since, and a prediction would replace it"
        raise UserError(f"{what} ({len(foreign)} of {len(targets)} files; nothing was changed)", where=str(foreign[0]), todo=todo)
    for folder in folders:
        others = [
            file for file in _walk(folder, set(), Counter()) if ending(file) and not file.name.startswith(".") and mark_in(file) is None
        ]
        if others:
            what = f"{len(others)} images here are not of predict (such as {others[0].name}): its own would lie among them"
            raise UserError(f"{what}, and could be taken for them", where=str(folder), todo=todo)
    return {target.relative_to(folders[0]) for target in there if target.is_relative_to(folders[0])}


def png(name: Path) -> Path:
    """The file of a mask or an overlay of this name."""
    return name.with_name(f"{name.name}.png")


def mark_of(picture: Image.Image) -> dict[str, str]:
    """The text that says that ``predict`` wrote these pixels."""
    return {"Software": "guidino_tune", MARK: _digest(picture)}


def is_own(file: Path) -> bool:
    """Whether ``predict`` wrote this file, and nobody has changed it since (of a PNG: its pixels)."""
    digest = mark_in(file)
    if digest is None or file.is_symlink():
        return False
    if file.suffix != ".png":
        return is_signed(file)
    try:
        with Image.open(file) as picture:
            return _digest(picture) == digest
    except Exception:  # damaged: Pillow's decoders raise whatever comes
        return False


def _digest(picture: Image.Image) -> str:
    return hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()
