"""Which mask belongs to which image, by names alone; every rule pairs all files, or says which have no partner."""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from guidino_tune.data.sources.tree import SPLIT_WORDS, File, meaning
from guidino_tune.errors import UserError

_WORDS = "masks?|labels?|gts?|ground[_ -]?truths?|seg|segmentations?|annotations?|annot"
_MASK = re.compile(rf"(?:(?P<base>.*?)[ _.-]+)?(?P<word>{_WORDS})(?:[ _.-]*\(?(?P<number>[0-9]+)\)?)?", re.IGNORECASE | re.DOTALL)
_MASK_FIRST = re.compile(rf"(?P<word>{_WORDS})[ _.-]+(?P<base>.+)", re.IGNORECASE | re.DOTALL)
_IMAGE = re.compile(r"(?:(?P<base>.+)[ _.-]+)?(?:image|img|im)", re.IGNORECASE | re.DOTALL)
_IMAGE_FIRST = re.compile(r"(?:image|img|im)[ _.-]+(?P<base>.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Item:
    """A file as one side of a pair.

    Attributes:
        file: The file.
        folder: The folders below the root, but for those that say image or mask: the two sides of a pair have the same.
        split: The part of the split that a folder names, as in ``PARTS``, or nothing.
        groups: ``folder`` without the folder of the split.
    """

    file: File
    folder: tuple[str, ...]
    split: str = ""
    groups: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """``folder``, for comparisons: capitals do not count."""
        return tuple(part.casefold() for part in self.folder)


@dataclass
class Pairs:
    """What a rule found.

    Attributes:
        rule: The rule in a word.
        masks: Path of an image below the root -> its masks.
        bare: Images without a mask.
        lonely: Masks without an image.
        doubtful: Path of an image -> why its masks cannot be all right.
    """

    rule: str
    masks: dict[str, list[Item]] = field(default_factory=dict)
    bare: list[Item] = field(default_factory=list)
    lonely: list[Item] = field(default_factory=list)
    doubtful: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all files have their partner; images of a test may have none."""
        masked = {mask.split for masks in self.masks.values() for mask in masks}
        bare = [item for item in self.bare if item.split != "test" or "test" in masked]
        return bool(self.masks) and not bare and not self.lonely and not self.doubtful


def item(file: File, drop: frozenset[str] = frozenset()) -> Item:
    """Reads the folders of a file.

    Args:
        file: The file.
        drop: Names of folders, as ``casefold`` writes them, that say image or mask besides those that ``tree`` knows.
    """
    folder: list[str] = []
    groups: list[str] = []
    split = ""
    for part in file.parts:
        role, word = meaning(part)
        if word and not split:
            split = SPLIT_WORDS[word]
        if word:
            folder.append(part if not role else word)
        elif not role and part.casefold() not in drop:
            folder.append(part)
            groups.append(part)
    return Item(file, tuple(folder), split, tuple(groups))


def mask_names(stem: str) -> list[tuple[str, str, str]]:
    """What a name may say as that of a mask: (image's name, form, number), the most likely first."""
    found = [(stem, "", "")]
    for pattern in (_MASK, _MASK_FIRST):
        if match := pattern.fullmatch(stem):
            found.append((match["base"] or "", match["word"].lower(), match.groupdict().get("number") or ""))
    return found


def image_names(stem: str) -> list[str]:
    """The names by which masks may call an image."""
    return [stem, *(match["base"] or "" for pattern in (_IMAGE, _IMAGE_FIRST) if (match := pattern.fullmatch(stem)))]


def by_names(images: list[Item], masks: list[Item]) -> Pairs:
    """Same folder, and ``NAME``, ``NAME_mask``, ``NAME_mask_1`` or the like; several of one form are one truth."""
    known: dict[tuple[tuple[str, ...], str], Item] = {}
    for name in range(2):  # a whole name goes before one that lacks `_image`
        for image in images:
            for base in image_names(image.file.stem)[name : name + 1 if not name else None]:
                known.setdefault((image.key, base), image)
    found: dict[str, list[tuple[str, int, Item]]] = defaultdict(list)
    result = Pairs("names")
    for mask in masks:
        for base, form, number in mask_names(mask.file.stem):
            if owner := known.get((mask.key, base)):
                found[owner.file.below].append((form, int(number or 0), mask))
                break
        else:
            result.lonely.append(mask)
    for image in images:
        several = sorted(found.get(image.file.below, []), key=lambda entry: (entry[1], entry[2].file.name))
        if not several:
            result.bare.append(image)
            continue
        result.masks[image.file.below] = [mask for _, _, mask in several]
        if len(several) > 1 and (len({form for form, _, _ in several}) > 1 or len({number for _, number, _ in several}) < len(several)):
            names = " and ".join(mask.file.name for _, _, mask in several[:2])
            result.doubtful[image.file.below] = f"{names} are both masks of {image.file.name}"
    return result


def by_folders(images: list[Item], masks: list[Item]) -> Pairs:
    """A folder per image: all masks in it are those of its image."""
    inside: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for image in images:
        inside[image.key].append(image)
    result = Pairs("folders")
    for mask in masks:
        here = inside.get(mask.key, [])
        if len(here) == 1 and mask.key:
            result.masks.setdefault(here[0].file.below, []).append(mask)
        else:
            result.lonely.append(mask)
    result.bare = [image for image in images if image.file.below not in result.masks]
    return result


def by_names_alone(images: list[Item], masks: list[Item]) -> Pairs:
    """As ``by_names``, wherever the files lie; only where each name is there once."""
    for side in (images, masks):
        if max(Counter(one.file.stem for one in side).values(), default=0) > 1:
            return Pairs("names alone", bare=images, lonely=masks)
    flat = [[Item(one.file, (), "", ()) for one in side] for side in (images, masks)]
    found = by_names(flat[0], flat[1])
    whole = {one.file.below: one for one in (*images, *masks)}
    found.masks = {name: [whole[mask.file.below] for mask in several] for name, several in found.masks.items()}
    found.bare, found.lonely = ([whole[one.file.below] for one in side] for side in (found.bare, found.lonely))
    found.rule = "names alone"
    return found


def by_middles(images: list[Item], masks: list[Item]) -> Pairs:
    """Pairs what is left of names without their common beginning and end, such as ``21_training`` and ``21_manual1``."""
    result = Pairs("middles")
    sides: list[dict[tuple[str, ...], dict[str, list[Item]]]] = []
    for side in (images, masks):
        folders: dict[tuple[str, ...], list[Item]] = defaultdict(list)
        for one in side:
            folders[one.key].append(one)
        sides.append({key: middles(inside) for key, inside in folders.items()})
    for key in sides[0].keys() | sides[1].keys():
        here, there = sides[0].get(key, {}), sides[1].get(key, {})
        for name in here.keys() | there.keys():
            image, mask = here.get(name, []), there.get(name, [])
            if len(image) == len(mask) == 1 and name:
                result.masks[image[0].file.below] = mask
            else:
                result.bare += image
                result.lonely += mask
    return result


def middles(side: Iterable[Item]) -> dict[str, list[Item]]:
    """Items by their names without what all names begin and end with; a number is never cut."""
    side = list(side)
    names = [one.file.stem for one in side]
    before = re.sub(r"[0-9]+$", "", shared_beginning(names))
    after = re.sub(r"^[0-9]+", "", shared_beginning([name[len(before) :][::-1] for name in names])[::-1])
    found: dict[str, list[Item]] = defaultdict(list)
    for one, name in zip(side, names, strict=True):
        found[name[len(before) : len(name) - len(after)]].append(one)
    return found


def shared_beginning(texts: list[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts), max(texts)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))]


RULES: tuple[Callable[[list[Item], list[Item]], Pairs], ...] = (by_names, by_folders, by_names_alone, by_middles)


def pair_up(images: list[Item], masks: list[Item]) -> Pairs:
    """The first rule that pairs all files; where none does, what the names say.

    Raises:
        UserError: Two images, or two masks, differ in nothing but the ending.
    """
    for side, option in ((images, "images"), (masks, "masks")):
        refuse_twins(side, option)
    tried = []
    for rule in RULES:
        tried.append(rule(images, masks))
        if tried[-1].complete:
            return tried[-1]
    return max(tried[:2], key=lambda pairs: len(pairs.masks))


def _inside(side: list[Item]) -> str:
    """The folder that all files of a side lie in, or the name of their nearest one, as the beginning of a pattern."""
    parts = [one.file.parts for one in side]
    shared = parts[0][: next((i for i, several in enumerate(zip(*parts, strict=False)) if len(set(several)) > 1), min(map(len, parts)))]
    if shared:
        return "/".join((*shared, "**", ""))
    names = {name for name in parts[0] if all(name in others for others in parts)}
    return f"**/{next(name for name in parts[0] if name in names)}/**/" if names else ""


def refuse_twins(side: list[Item], option: str) -> None:
    """Names that differ in nothing but the ending would be one case.

    Raises:
        UserError: Names two of them.
    """
    seen: dict[tuple[tuple[str, ...], str], Item] = {}
    for one in side:
        other = seen.setdefault((one.file.parts, one.file.stem), one)
        if other is not one:
            ways = (shlex.quote(f"data.{option}={_inside(side)}*{file.ending}") for file in (one.file, other.file))
            kinds = f"take one kind: --set {' or --set '.join(ways)}"
            raise UserError(
                f"{other.file.name} and {one.file.name} have the same name",
                where=str(one.file.path.parent),
                todo=f"remove one of the two{'' if one.file.ending == other.file.ending else f', or {kinds}'}",
            )
