"""Masks in the folders of their images: with a suffix, or with another ending."""

from __future__ import annotations

from collections import defaultdict

from guidino_tune.config.data import Data
from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.files import DICOM, RASTER
from guidino_tune.data.sources.gathering import gather
from guidino_tune.data.sources.pairing import Item, by_names, image_names, mask_names, refuse_twins
from guidino_tune.data.sources.tree import File, Tree, few
from guidino_tune.data.splits import make_split
from guidino_tune.errors import UserError

COLOURS, GREYS = ("RGB", "RGBA", "CMYK", "YCbCr", "LAB"), ("1", "L", "P")
"""Pillow's modes of images that are certainly no masks beside files of the second ones."""


def beside(tree: Tree, files: list[Item], on_bad: str) -> Listing | None:
    """``NAME.png`` with ``NAME_mask.png``, ``NAME_mask_1.png`` and the like in the same folder; ``None`` where there are none.

    Raises:
        UserError: Images have no mask, or masks no image.
    """
    known = {(one.key, base) for one in files for base in image_names(one.file.stem)}
    masks = [one for one in files if any(form and (one.key, base) in known for base, form, _ in mask_names(one.file.stem))]
    if not masks:
        return None
    chosen = {one.file.below for one in masks}
    images = [one for one in files if one.file.below not in chosen]
    refuse_twins(images, "images")
    refuse_twins(masks, "masks")
    pairs = by_names(images, masks)
    form = next(form for base, form, _ in mask_names(masks[0].file.stem) if form)
    return gather(tree, images, pairs, f"masks beside images, called NAME_{form}", on_bad, beside=True) if pairs.masks else None


def side_by_side(tree: Tree, files: list[Item], on_bad: str, data: Data | None) -> Listing | None:
    """``001.bmp`` with ``001.png`` in one folder; ``None`` where names do not come in twos.

    Raises:
        UserError: Which of the two endings is the masks' cannot be told for certain, or files have no partner.
    """
    names: dict[tuple[tuple[str, ...], str], list[Item]] = defaultdict(list)
    for one in files:
        names[one.key, one.file.stem].append(one)
    twos = [several for several in names.values() if len(several) == 2]
    endings = {one.file.ending for several in twos for one in several}
    if len(twos) < 2 or len(twos) < len(names) / 2 or len(endings) != 2:
        return None
    twins = {ending: [one for one in files if one.file.ending == ending] for ending in sorted(endings)}
    mask = _masks_ending(tree, twins, data)
    image = next(ending for ending in twins if ending != mask)
    pairs = by_names(twins[image], twins[mask])
    return gather(tree, twins[image], pairs, f"images {image} and masks {mask} of equal names", on_bad, beside=True)


def _masks_ending(tree: Tree, twins: dict[str, list[Item]], data: Data | None) -> str:
    """The ending of the masks, told by the endings or by the headers of a few files that are for training."""
    a, b = twins
    for one, other in ((a, b), (b, a)):
        if one in DICOM and other in RASTER:
            return other
    modes = {ending: _modes([one.file for one in items], tree, data) for ending, items in twins.items()}
    for one, other in ((a, b), (b, a)):
        if modes[one] and modes[other] and modes[one] <= set(COLOURS) and modes[other] <= set(GREYS):
            return other
    raise UserError(
        f"every name is there twice, as {a} and as {b}: which of them are the masks cannot be told",
        where=str(tree.root),
        todo=f"say it: --set 'data.masks=*{a}' or --set 'data.masks=*{b}'",
    )


def _modes(files: list[File], tree: Tree, data: Data | None) -> set[str]:
    """Pillow's modes of a few files, by their headers; of files that will be tested on none is opened."""
    from PIL import Image

    data = data or Data(kind="folder")
    try:
        cases = tuple(Case("/".join((*f.parts, f.stem)), f.path, f.path, "/".join((*f.parts, f.stem))) for f in files)
        train = set(make_split(Listing(cases), data).train)
    except UserError:
        return set()
    listed = tree.root / "test.txt"
    text = listed.read_text(encoding="utf-8-sig", errors="replace").split() if listed.is_file() else []
    chosen = [f for f in files if "/".join((*f.parts, f.stem)) in train and not {f.name, f.stem, f.below}.intersection(text)]
    found = set()
    for file in few([f for f in chosen if not any("test" in part.lower() for part in f.parts)]):
        try:
            with Image.open(file.path) as image:
                found.add(image.mode)
        except Exception:
            return set()
    return found
