"""The split of a search, wherever its configuration is retrained: found again, proved to be the one, fitted to the cases that are there.

A retraining must never test on a case that the search has trained on or chosen on. Drawing the split anew gives the same one only on the
same cases, so it is not drawn: the ids travel with the exported configuration, in a file beside it whose digest the configuration holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guidino_tune import paths
from guidino_tune.config.parsing import read_yaml
from guidino_tune.data.cases import Listing
from guidino_tune.data.splits import (
    PARTS,
    Split,
    groups_digest,
    groups_of,
    images_in,
    images_of,
    parse_split,
    read_split,
    split_digest,
    split_text,
)
from guidino_tune.errors import UserError, first_names

SPLIT, DIGEST, IDS = "split", "split_sha256", "split_ids"
"""In the provenance of a configuration: path of the study's split, digest of what it holds, and its ids where no file goes along."""

SEARCHED = "searched"
"""In the split file of a retraining: digest of the search's split that it was taken from."""

FILE = "split.json"

BESIDE = ".split.json"
"""How the file of ids beside an exported ``NAME.yaml`` ends: ``NAME.split.json``."""


@dataclass(frozen=True, slots=True)
class Searched:
    """The split of a search.

    Attributes:
        split: Its ids.
        study: The study's own file, where it is on this machine: openings of the test cases are recorded beside it.
        groups: Digest of the cases' groups then; empty where it was not noted.
        images: Digests of the images that it has seen, see ``identity``; empty where an earlier version wrote the split.
        file: Where all this was read.
        proved: False where it is the split of the search because a person says so.
    """

    split: Split
    study: Path | None = None
    groups: str = ""
    images: Mapping[str, str] = field(default_factory=dict)
    file: str = ""
    proved: bool = True


def provenance_of(split_file: Path, *, ids: bool = False) -> dict[str, Any]:
    """What a configuration says of the split it was searched on.

    Args:
        split_file: Of the study; where it is gone, only its path is told.
        ids: Also every id, for a configuration that goes without a file beside it.
    """
    if not split_file.is_file():
        return {SPLIT: str(split_file)}
    split = read_split(split_file)
    found: dict[str, Any] = {SPLIT: str(split_file), DIGEST: split_digest(split)}
    return found | ({IDS: json.loads(split_text(split, groups_of(split_file), images_of(split_file)))} if ids else {})


def beside(file: Path) -> Path:
    """Where the ids of an exported configuration lie."""
    return file.with_name(file.stem + BESIDE)


def provenance_beside(file: Path) -> dict[str, Any]:
    """Where an ``experiment.yaml`` in a model's, a trial's or a retraining's folder comes from; these write it down beside or above it."""
    if file.name != "experiment.yaml":
        return {}
    written = file.with_name("provenance.yaml")
    if written.is_file():
        return read_yaml(written)
    above = (folder / FILE for folder in list(file.absolute().parents)[:3])  # the folder itself, that of all trials, and the study's
    return next(({SPLIT: str(split)} for split in above if split.is_file()), {})


def comes_from_search(provenance: Mapping[str, Any]) -> bool:
    """True when a configuration was chosen on the validation cases of some split."""
    return any(key in provenance for key in ("study", "trial", SPLIT, DIGEST, IDS))


def find_searched(
    provenance: Mapping[str, Any], file: Path, *, given: Path | None = None, studies: Sequence[Path] = (), taken: Path | None = None
) -> Searched | None:
    """The split that a configuration was searched on.

    Args:
        provenance: Of the configuration; empty where it comes from no search.
        file: The configuration's; the ids are looked for beside it.
        given: The split as a person named it.
        studies: Other places where the study's own file may be.
        taken: The split file of this retraining, if it was begun before.

    Returns:
        ``None`` where there was no search and nothing is given.

    Raises:
        UserError: The search's split is nowhere, or what is given is another one.
    """
    digest = provenance.get(DIGEST)
    named = paths.rebased(Path(str(provenance[SPLIT]))) if provenance.get(SPLIT) else None
    own = next(iter(_fitting([named, *studies] if named else studies, digest)), None) if digest else None
    if not digest and named and named.is_file():  # written by a version that noted no digest
        own = named
    if given is not None:
        split = read_split(given)
        if (digest or (own and split_digest(read_split(own)))) not in (None, split_digest(split)):
            raise UserError(
                "this is not the split that the configuration was searched on: its test cases may have been seen by the search",
                where=str(given),
                todo=f"give the split.json of study {provenance.get('study', 'it came from')}, as it was then",
            )
        return Searched(split, own, groups_of(given), images_of(given), str(given), proved=bool(digest or own))
    if IDS in provenance:
        values, place = provenance[IDS], f"{file} (provenance.{IDS})"
        return Searched(_embedded(provenance, file), own, str(values.get("groups", "")), images_in(values), place)
    if own:
        return _read(own, own)
    if digest:
        near = sorted(file.absolute().parent.glob(f"*{FILE}"))
        for found in _fitting(sorted(near, key=lambda path: path != beside(file.absolute())), digest):
            return _read(found)
        if taken and taken.is_file() and json.loads(taken.read_text(encoding="utf-8")).get(SEARCHED) == digest:
            return _read(taken)
    if not comes_from_search(provenance):
        return None
    raise _not_here(file, provenance, named)


def _not_here(file: Path, provenance: Mapping[str, Any], named: Path | None) -> UserError:
    there, study = beside(file), provenance.get("study", "it came from")
    name = "name the study's split.json as the split file"
    if not provenance.get(DIGEST):
        what = f"an earlier version exported this, without a proof of its split, and {named or 'the split of its study'} is not here"
        what += f": nothing says whether {there.name} is the split of its search" if there.is_file() else ""
        todo = f"export it again where study {study} is; or, at your own word, name the split.json of that study as the split file"
    elif there.is_file():
        what = f"{there.name} is not the split of its search, or was altered since the export"
        todo = f"put the {there.name} that `export` wrote back, or {name}"
    else:
        what, todo = "the split of its search is not here", f"put {there.name}, which `export` wrote, beside it, or {name}"
    return UserError(f"{what}; another one would test on cases that the search has seen", where=str(file), todo=todo)


def _read(file: Path, study: Path | None = None) -> Searched:
    return Searched(read_split(file), study, groups_of(file), images_of(file), str(file))


def fit(searched: Searched, listing: Listing, where: str) -> tuple[Split, tuple[str, ...]]:
    """The search's split on the cases that are there: what is missing is left out, and what is new is in no part.

    Args:
        searched: The split of the search.
        listing: The cases that are there.
        where: Their place, for messages.

    Returns:
        A split whose parts are those of the search, or smaller; and notes for a person.

    Raises:
        UserError: Of training, validation or test nothing is left.
    """
    known = {case.id for case in listing.cases}
    split, notes = searched.split, []
    kept = {part: tuple(name for name in getattr(split, part) if name in known) for part in PARTS}
    if not any(kept.values()):
        raise UserError(
            f"none of the {sum(len(getattr(split, part)) for part in PARTS)} cases of the search is here",
            where=where,
            todo="point data.root at the data of the search. To train on other data, take the section `provenance` out of "
            "the file: a split of its own is then drawn",
        )
    for part in PARTS:
        gone = sorted(set(getattr(split, part)) - set(kept[part]))
        if gone and not kept[part]:
            raise UserError(f"no {part} case of the search is here", where=where, todo="put its files back: " + first_names(gone))
        if gone:
            notes.append(
                f"{len(gone)} of {len(getattr(split, part))} {part} cases of the search are not here, and are left out: {first_names(gone)}"
            )
    fitted = Split(**kept, origin=split.origin, seed=split.seed)
    if searched.groups and len(notes) == 0 and groups_digest(listing, fitted) != searched.groups:
        notes.append("the cases are grouped (into patients) in another way than in the search; the parts are those of the search")
    return fitted, tuple(notes)


def check_taken(taken: Split, searched: Split, where: str) -> None:
    """What a retraining took over before is still a part of the search's split.

    Raises:
        UserError: A case is in another part, or in none of the search's.
    """
    if any(not set(getattr(taken, part)) <= set(getattr(searched, part)) for part in PARTS):
        raise UserError(
            "the split differs from the study's: the test cases may have been seen by the search",
            where=where,
            todo="choose another name for the result, which takes the study's split over",
        )


def _fitting(files: Sequence[Path], digest: str) -> Iterator[Path]:
    for file in files:
        try:
            if split_digest(read_split(file)) == digest:
                yield file
        except UserError:
            continue


def _embedded(provenance: Mapping[str, Any], file: Path) -> Split:
    split = parse_split(provenance[IDS], f"{file} (provenance.{IDS})", "export it again")
    if provenance.get(DIGEST) and split_digest(split) != provenance[DIGEST]:
        raise UserError("the split was altered since the export", where=f"{file} (provenance.{IDS})", todo="export it again")
    return split
