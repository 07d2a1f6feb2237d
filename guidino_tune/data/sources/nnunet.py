"""nnU-Net's raw layout: ``imagesTr/CASE_0000.png``, one file a channel, ``labelsTr/CASE.png``, ``dataset.json``, ``splits_final.json``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from guidino_tune.config.data import Data
from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.sources.pairs import files_by_stem
from guidino_tune.data.sources.tree import Tree
from guidino_tune.errors import UserError, first_names

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = "imagesTr", "labelsTr", "imagesTs", "labelsTs"
CHANNEL = re.compile(r"(.+)_([0-9]{4})", re.DOTALL)


def is_there(root: Path) -> bool:
    """True when a folder holds ``imagesTr`` and ``labelsTr``."""
    return (root / IMAGES).is_dir() and (root / LABELS).is_dir()


def inside(tree: Tree) -> list[Path]:
    """The folders below a root that ``is_there`` is true of."""
    found = {file.parts[: file.parts.index(IMAGES)] for file in tree.files if IMAGES in file.parts}
    return sorted(path for parts in found if is_there(path := tree.root.joinpath(*parts)))


def find(root: Path, on_bad: str = "error", data: Data | None = None) -> Listing:
    """Lists the cases; what ``dataset.json`` says of channels, classes and the ignore label is ``Listing.implied``.

    ``imagesTs`` with ``labelsTs`` are the published test. Of ``splits_final.json`` the fold ``data.fold`` is the published validation;
    ``data.folds`` must be the number of its folds, or ``None``.
    Also the Medical Segmentation Decathlon's older form: ``modality``, labels by number, and names without channel.

    Args:
        root: The folder of the data set (``Dataset001_NAME``).
        on_bad: ``error`` or ``skip``, for cases that are not whole.
        data: For its fold.

    Raises:
        UserError: A file is malformed, or cases are not whole.
    """
    described = _described(root / "dataset.json")
    cases, channels, notes = _cases(root, IMAGES, LABELS, on_bad)
    if not cases:
        raise UserError(
            f"no case is whole: {IMAGES} and {LABELS} hold no image with a label",
            where=str(root),
            todo=f"put {IMAGES}/CASE_0000.png and {LABELS}/CASE.png there, or another ending that is known",
        )
    published: dict[str, str] = {}
    folds: tuple[frozenset[str], ...] = ()
    parts = [f"{len(cases)} cases"]
    if (root / "splits_final.json").is_file():
        fold = data.fold if data else 0
        published, folds = _fold(root / "splits_final.json", fold, data.folds if data else None, {case.id for case in cases})
        if rest := [case.id for case in cases if case.id not in published]:
            notes += (f"{len(rest)} cases are left out, being in no part of fold {fold} of splits_final.json: {first_names(rest)}",)
            cases = [case for case in cases if case.id in published]
        another = f"; for another: --set data.folds={len(folds)} --set data.fold=1" if len(folds) > 1 and not (data and data.folds) else ""
        parts.append(f"fold {fold} (of {len(folds)}, from 0) of splits_final.json is the published split{another}")
    if (root / TEST_IMAGES).is_dir():
        if (root / TEST_LABELS).is_dir() and files_by_stem(root / TEST_LABELS):
            tests, test_channels, more = _cases(root, TEST_IMAGES, TEST_LABELS, on_bad)
            if test_channels != channels:
                what = f"cases of {channels} channels in {IMAGES} and of {test_channels} in {TEST_IMAGES}"
                raise UserError(what, where=str(root), todo="give all cases the same channels")
            if {case.id for case in tests} & {case.id for case in cases}:
                tests = [Case(f"test/{c.id}", c.image, c.mask, f"test/{c.id}", c.more_images) for c in tests]
            cases, notes = cases + tests, notes + more
            published |= dict.fromkeys((case.id for case in tests), "test")
            parts.append(f"{len(tests)} of {TEST_IMAGES} are the published test")
        elif number := len(files_by_stem(root / TEST_IMAGES)):
            notes += (f"{number} files of {TEST_IMAGES} have no labels and are not used: the test is drawn from {IMAGES}",)
    implied, json_notes = _implied(described, channels, root / "dataset.json", named=data is not None and data.labels is not None)
    line = f"layout: nnU-Net raw, {'; '.join(parts)}"
    return Listing(tuple(cases), published, (line, *json_notes, *notes), implied, folds)


def _cases(root: Path, image_folder: str, label_folder: str, on_bad: str) -> tuple[list[Case], int, tuple[str, ...]]:
    """Cases, the number of their files, and notes."""
    images, labels = files_by_stem(root / image_folder), files_by_stem(root / label_folder)
    numbered: dict[str, dict[int, Path]] = {}
    matches = {name: CHANNEL.fullmatch(name) for name in images}
    # A data set without channels in its names may call its cases `case_0001`.
    if set(images) == set(labels) or not any(matches.values()):
        numbered = {name: {0: path} for name, path in images.items()}
    else:
        if odd := [name for name, match in matches.items() if not match]:
            raise UserError(
                f"names without a channel, beside others with one: {first_names(odd)}",
                where=str(root / image_folder),
                todo="call them NAME_0000 for the first channel, NAME_0001 for the second",
            )
        for name, match in matches.items():
            if match:
                numbered.setdefault(match[1], {})[int(match[2])] = images[name]
    channels = max((number + 1 for files in numbered.values() for number in files), default=0)
    lacking = {name: sorted(set(range(channels)) - set(files)) for name, files in numbered.items()}
    problems = {name: f"lacks channel {', '.join(f'{n:04}' for n in gone)}" for name, gone in lacking.items() if gone}
    problems |= {name: f"has no label in {label_folder}" for name in numbered if name not in labels}
    problems |= {name: f"has no image in {image_folder}" for name in labels if name not in numbered}
    if problems and on_bad != "skip":
        name, what = min(problems.items())
        more = f" (and {len(problems) - 1} more cases like it)" if len(problems) > 1 else ""
        raise UserError(f"{name} {what}{more}", where=str(root), todo="add the file, or set data.bad_cases=skip to leave such cases out")
    notes = tuple(f"left out {name}: {what}" for name, what in sorted(problems.items()))
    cases = [
        Case(name, files[0], labels[name], name, tuple(files[number] for number in range(1, channels)))
        for name, files in sorted(numbered.items())
        if name not in problems
    ]
    return cases, channels, notes


def _described(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values = _json(path)
    if not isinstance(values, dict):
        raise UserError("holds no names with values", where=str(path), todo="write it as nnU-Net asks: channel_names, labels, ...")
    return values


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot be read as JSON: {error}", where=str(path), todo="mend the file") from None


def _fold(path: Path, fold: int, wanted: int | None, known: set[str]) -> tuple[dict[str, str], tuple[frozenset[str], ...]]:
    """What a fold publishes, and the cases for validation of each fold."""
    folds = _json(path)
    good = isinstance(folds, list) and all(
        isinstance(one, dict) and all(isinstance(one.get(part), list) for part in ("train", "val")) for one in folds
    )
    if not good:
        raise UserError("is no list of folds with train and val", where=str(path), todo="restore it, or remove it to draw the parts anew")
    if wanted not in (None, len(folds)) or not folds:
        takes = f"--set data.folds={len(folds) if len(folds) > 1 else 'null --set data.fold=0'} takes what it publishes; " if folds else ""
        raise UserError(
            f"publishes {len(folds)} folds, but data.folds is {wanted}",
            where=str(path),
            todo=f"{takes}to draw others, move the file away",
        )
    published: dict[str, str] = {}
    for part, name in (("train", "train"), ("val", "validation")):
        for case in map(str, folds[fold][part]):
            if case not in known:
                raise UserError(f"{case} has no files", where=f"{path}, fold {fold}, {part}", todo="add them, or correct the list")
            if published.setdefault(case, name) != name:
                raise UserError(f"{case} is in train and in val", where=f"{path}, fold {fold}", todo="leave it in one of them")
    return published, tuple(frozenset(map(str, one["val"])) for one in folds)


def _implied(values: dict[str, Any], files: int, path: Path, *, named: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of ``Data``, and what is said of them."""
    if not values:
        if files > 1:
            return {"channels": files}, (f"no dataset.json: {files} channels, by the names of files; classes are not told",)
        return {}, ("no dataset.json: channels and classes are not told",)
    names = values.get("channel_names", values.get("modality")) or {}
    if not isinstance(names, dict):
        raise UserError("channel_names is no mapping of numbers to names", where=str(path), todo='write {"0": "T1", "1": "T2"}')
    if names and files not in (1, len(names)):
        raise UserError(
            f"names {len(names)} channels ({', '.join(map(str, names.values()))}), but the cases have {files} files each",
            where=str(path),
            todo="correct channel_names, or complete the files",
        )
    implied: dict[str, Any] = {}
    channels = max(len(names), files)
    if channels > 1:  # a single one is seen as grey, in three equal channels
        implied["channels"] = channels
    labels, ignore = _labels(values.get("labels"), path, named=named)
    if labels:
        implied["labels"] = labels
    if ignore is not None:
        implied["ignore_label"] = ignore
    parts = [f"{channels} channel{'s' if channels > 1 else ''}" + (f" ({', '.join(map(str, names.values()))})" if names else "")]
    parts += [f"labels {', '.join(f'{name} = {_shown(value)}' for name, value in labels.items())}"] if labels else []
    parts += [f"ignore label {ignore}"] if ignore is not None else []
    return implied, (f"dataset.json tells: {'; '.join(parts)}",)


def _shown(value: Any) -> str:
    return " or ".join(str(one[0] if isinstance(one, list) else one) for one in (value if isinstance(value, list) else [value]))


def _labels(values: Any, path: Path, *, named: bool) -> tuple[dict[str, Any], int | None]:
    """Class name -> value or values, without the background; and the ignore label."""
    if values is None:
        return {}, None
    if not isinstance(values, dict):
        raise UserError("labels is no mapping of names to values", where=str(path), todo='write {"background": 0, "lesion": 1}')
    if all(str(name).isdigit() and isinstance(value, str) for name, value in values.items()):  # as the Decathlon wrote it
        values = {name: int(number) for number, name in values.items()}
    labels: dict[str, Any] = {}
    ignore = None
    for name, value in values.items():
        several = value if isinstance(value, list) else [value]
        if not several or not all(type(one) is int for one in several):
            raise UserError(f"labels: {name}: {value!r} is no value or list of values", where=str(path), todo="mend the file")
        if str(name).lower() == "ignore":
            ignore = several[0]
        elif several != [0]:
            labels[str(name)] = several[0] if len(several) == 1 else several
    flat = [one for value in labels.values() for one in (value if isinstance(value, list) else [value])]
    if len(flat) > len(set(flat)):
        if named:
            return {}, ignore
        example = ", ".join(f"class {value}: {value}" for value in sorted(set(flat)))
        raise UserError(
            "its labels are regions that overlap, and a pixel has one class here",
            where=str(path),
            todo=f"name classes that exclude each other, by their values: --set 'data.labels={{{example}}}'",
        )
    # Three numbers would be a colour; three greys are three values.
    return {
        name: [[v] * 3 for v in value] if isinstance(value, list) and len(value) == 3 else value for name, value in labels.items()
    }, ignore
