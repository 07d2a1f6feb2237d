"""Images and masks that ``data.images`` and ``data.masks`` name: a folder, or a pattern such as ``*/images/*.tif``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import translate

from guidino_tune.config.data import Data
from guidino_tune.data.cases import Listing
from guidino_tune.data.sources.gathering import gather
from guidino_tune.data.sources.pairing import Item, Pairs, item, pair_up
from guidino_tune.data.sources.tree import SPLIT_WORDS, File, Tree, composed, kind_of, role_of
from guidino_tune.errors import UserError, first_names

_WILD = re.compile(r"\*\*/?|[*?]|\[!?\]?[^\]]*\]")


def find(
    tree: Tree,
    on_bad: str,
    data: Data,
    *,
    find_masks: Callable[..., Listing],
    find_images: Callable[[Tree, list[File], list[Item]], tuple[str, list[File]] | None],
) -> Listing:
    """Lists the cases of a tree whose images, masks or both are named.

    A name without wildcard is a folder: that at this path, or every folder of that name. In a pattern ``*`` and ``?`` stay inside the name
    of a folder or file, ``**`` does not, and a pattern without ``/`` is one of files in any folder. Images that are not named are those
    in folders whose names say so, else all that are no masks.

    Pairs have the same text where the patterns have wildcards; else equal names (see ``pairing``). They must be one to one.

    Raises:
        UserError: Nothing is found, or not in pairs; two names of each side are shown.
    """
    images, masks = data.images, data.mask_pattern
    chosen = {option: matched(tree, option, text) for option, text in (("images", images), ("masks", masks)) if text is not None}
    if masks is None:
        return find_masks(tree, on_bad, data, list(chosen["images"]), _dropped(images))
    truth = chosen["masks"]
    taken = {file.below for file in truth}
    if images is None:
        rest = _rest(tree, taken)
        found = find_images(tree, rest, [item(file, _dropped(masks) | _own(truth, rest)) for file in truth])
        rest = found[1] if found else rest
    else:
        rest = list(chosen["images"])
    source = {file: chosen["images"][file] if images is not None else () for file in rest if file.below not in taken}
    if not source:
        raise UserError(
            f"leaves no images: all {len(taken)} files are masks then",
            where=f"data.masks={masks}",
            todo="name the images too, with data.images",
        )
    sides = [[item(file, _dropped(text) | _own(a, b)) for file in a] for a, b, text in ((source, truth, images), (truth, source, masks))]
    pairs = _by_captures(sides[0], sides[1], source, truth) if images is not None else None
    if pairs is None or not pairs.complete:
        pairs = pair_up(*sides)
    if not pairs.masks:
        raise UserError(
            f"no name of a mask is that of an image: images such as {_two(sides[0])}; masks such as {_two(sides[1])}",
            where=str(tree.root),
            todo="name both so that the same text stands for their wildcards, such as --set 'data.images=photos/*.jpg' --set "
            "'data.masks=outlines/*_outline.png'; or list them in a table cases.csv with the columns image, mask",
        )
    line = f"images {images or 'found'} and masks {masks}" if images else f"masks {masks} and their images"
    beside = all(role_of(one.file)[0] == "" and one.file.parts == pairs.masks[one.file.below][0].file.parts for one in sides[0][:1]
                 if one.file.below in pairs.masks)  # fmt: skip
    return gather(tree, sides[0], pairs, line, on_bad, beside=beside)


def matched(tree: Tree, option: str, text: str) -> dict[File, tuple[str, ...]]:
    """Files that a folder's name or a pattern means, with what stands for its wildcards.

    Raises:
        UserError: None does.
    """
    wanted = composed(text).removeprefix("./").rstrip("/")
    root = tree.root.as_posix().rstrip("/") + "/"
    wanted = wanted.removeprefix(root)
    if not _WILD.search(wanted):
        found: dict[File, tuple[str, ...]] = {file: () for file in tree.files if f"{file.below}/".startswith(f"{wanted}/")}
        if not found and "/" not in wanted:
            found = {file: () for file in tree.files if any(_same(part, wanted) for part in file.parts)}
        elif not found:
            found = {file: () for file in tree.files if f"/{wanted}/" in f"/{'/'.join(file.parts)}/"}
        # A name such as `masks` is every folder of that name, not the first one only.
        if "/" not in wanted:
            found |= {file: () for file in tree.files if any(_same(part, wanted) for part in file.parts)}
    else:
        expression = pattern(wanted)
        found = {file: match.groups() for file in tree.files if (match := expression.fullmatch(file.below))}
    if not found:
        raise UserError(
            f"no image is called so. What lies there: {tree.described()}",
            where=f"data.{option}={text}",
            todo="give the name of a folder, or a pattern on the path below the root such as */images/*.tif",
        )
    return dict(sorted(found.items(), key=lambda entry: entry[0].below))


def _same(part: str, wanted: str) -> bool:
    return part.casefold() == wanted.casefold() or kind_of(part) == wanted.casefold()


def pattern(text: str) -> re.Pattern[str]:
    """The regular expression of a pattern on paths; each wildcard is a group."""
    parts, end = ["" if "/" in text else "(?:.*/)?"], 0
    for wild in _WILD.finditer(text):
        parts.append(re.escape(text[end : wild.start()]))
        if wild[0].startswith("**"):
            parts.append("((?:[^/]+/)*)" if wild[0].endswith("/") else "(.*)")
        elif wild[0] in "*?":
            parts.append("([^/]*)" if wild[0] == "*" else "([^/])")
        else:
            parts.append(f"({translate(wild[0])[:-2]})")  # without the end that it adds
        end = wild.end()
    return re.compile("".join((*parts, re.escape(text[end:]))), re.DOTALL)


def _dropped(text: str | None) -> frozenset[str]:
    """The folders that a text names and that say nothing of split or patient, being the same for all files of a side."""
    if text is None:
        return frozenset()
    parts = [part for part in composed(text).strip("/").split("/") if part not in ("", ".")]
    folders = parts if not _WILD.search(text) else parts[:-1]
    return frozenset(part.casefold() for part in folders if not _WILD.search(part) and part.casefold() not in SPLIT_WORDS)


def _own(side: Iterable[File], other: Iterable[File]) -> frozenset[str]:
    """The folders that all files of a side lie in, and none of the other: they say which side it is."""
    mine, theirs = ([{part.casefold() for part in file.parts} for file in files] for files in (side, other))
    return frozenset(set.intersection(*mine).difference(*theirs) if mine else ())


def _rest(tree: Tree, taken: set[str]) -> list[File]:
    """The images where only the masks are named: folders called so, else what is in no folder of masks, else all but the masks."""
    rest = [file for file in tree.files if file.below not in taken]
    roles = [role_of(file)[0] for file in rest]
    for wanted in (("image",), ("",)):
        if found := [file for file, role in zip(rest, roles, strict=True) if role in wanted]:
            return found
    return rest


def _by_captures(images: list[Item], masks: list[Item], source: dict[File, tuple[str, ...]], truth: dict[File, tuple[str, ...]]) -> Pairs:
    """Pairs files whose wildcards stand for the same text, one to one."""
    by_text: dict[tuple[str, ...], list[Item]] = {}
    for mask in masks:
        by_text.setdefault(truth[mask.file], []).append(mask)
    result = Pairs("wildcards")
    used: set[tuple[str, ...]] = set()
    for image in images:
        text = source[image.file]
        if text and text not in used and len(by_text.get(text, [])) == 1:
            result.masks[image.file.below] = by_text[text]
            used.add(text)
        else:
            result.bare.append(image)
    result.lonely = [mask for text, several in by_text.items() if text not in used for mask in several]
    return result


def _two(side: list[Item]) -> str:
    return first_names((one.file.below for one in side), 2)
