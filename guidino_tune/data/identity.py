"""Which image each case of a search had, so that files which were renumbered since then do not bring a seen image into the test.

A split names cases by ids, and ids follow the names of files. Beside the ids its file notes a few digits of each image for training and
validation: of the bytes, which a copy keeps on every machine, and not of dates or paths. Masks have no part in it: a corrected outline is
no other case. Nor have images for the test, which a search must not open; they are compared with the seen ones when they are tested.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.files import slice_of
from guidino_tune.data.splits import Split
from guidino_tune.errors import UserError, first_names

DIGITS = 16

SEEN = ("train", "validation")
"""Parts of a split whose images are noted."""

_BLOCK = 16 * 1024  # bytes, read at three places: whole files would be gigabytes, and two photographs differ in one of them
_THREADS = 8  # on a disk of another machine the opening of files is what takes time


def image_digests(cases: Iterable[Case]) -> dict[str, str]:
    """Case id -> ``DIGITS`` hexadecimal digits of the length, beginning, middle and end of its image's files.

    Cases with a file that cannot be read are left out; so are those that lie nowhere.
    """
    cases = list(cases)
    files = sorted({slice_of(path)[0] for case in cases for path in case.images})
    with ThreadPoolExecutor(_THREADS) as threads:
        known = dict(zip(files, threads.map(_digest, files), strict=True))
    found = {}
    for case in cases:
        parts = [(known[slice_of(path)[0]], slice_of(path)[1]) for path in case.images]
        if all(content for content, _ in parts):
            found[case.id] = hashlib.sha256(repr(parts).encode()).hexdigest()[:DIGITS]
    return found


def seen_images(listing: Listing, split: Split) -> dict[str, str]:
    """What a split's file notes: the digests of the images for training and validation that are there."""
    names = {name for part in SEEN for name in getattr(split, part)}
    return image_digests(case for case in listing.cases if case.id in names)


def same_images(cases: Iterable[Case], noted: Mapping[str, str]) -> list[str]:
    """Ids of the cases whose image is among the noted ones, whatever it is called there."""
    known = set(noted.values())
    return sorted(name for name, digest in image_digests(cases).items() if digest in known) if known else []


def check_images(
    listing: Listing, split: Split, noted: Mapping[str, str], file: str, same: Sequence[str] = SEEN, *, tested: bool = True
) -> None:
    """Compares the images that are here with those that a search has seen.

    Args:
        listing: The cases that are here; some of the split may be missing.
        split: Its ids.
        noted: Digests of the seen images, as its file notes them; empty in one of an earlier version, of which nothing can be said.
        file: That file, for messages.
        same: Parts of which every image must be the one that is noted.
        tested: Whether the test cases matter: each of their files is opened.

    Raises:
        UserError: One is not, or a test case has the image of a seen case that has it no more.
    """
    here = {case.id: case for case in listing.cases}
    owners = defaultdict(list)
    for name, digest in noted.items():
        owners[digest].append(name)

    def now(names: Iterable[str]) -> dict[str, str]:
        return image_digests(here[name] for name in names if name in here)

    wanted = [name for part in same for name in getattr(split, part) if name in noted]
    found = now(wanted)
    changed = {name: digest for name, digest in found.items() if digest != noted[name]}
    if changed:
        what = f"{len(changed)} of {len(found)} cases have another image than in the search: {first_names(changed)}"
        swapped = sorted(name for name, digest in changed.items() if digest in owners)
        what += f"; {swapped[0]} has that of {owners[changed[swapped[0]]][0]}: the files were renumbered" if swapped else ""
        raise _others(what, listing, file)
    if not noted or not tested:
        return
    copies = {name: digest for name, digest in now(split.test).items() if digest in owners}
    still = now({owner for digest in copies.values() for owner in owners[digest]})
    # Where a seen case still has the image, the one in the test is a copy, as it was when the split was made.
    leaked = sorted(name for name, digest in copies.items() if digest not in still.values())
    if leaked:
        owner = owners[copies[leaked[0]]][0]
        what = f"{len(leaked)} test cases have an image that the search has seen: {first_names(leaked)}; {leaked[0]} has that of {owner}"
        raise _others(f"{what}: the files were renumbered", listing, file)


def _others(what: str, listing: Listing, file: str) -> UserError:
    return UserError(
        what,
        where=str(listing.cases[0].image.parent),
        todo="put the images of the search there, under the names of then. If these are the same images, saved anew, take the entry "
        f"'images' out of {file}: nothing then checks them",
    )


def _digest(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            length = os.fstat(stream.fileno()).st_size
            digest = hashlib.sha256(str(length).encode())
            for place in sorted({0, max(0, (length - _BLOCK) // 2), max(0, length - _BLOCK)}):
                stream.seek(place)
                digest.update(stream.read(_BLOCK))
            return digest.hexdigest()
    except OSError:
        return ""
