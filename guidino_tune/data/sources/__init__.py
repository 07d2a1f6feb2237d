"""Where cases come from: one file per layout, and the registry that ``data.kind`` chooses from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from guidino_tune import paths
from guidino_tune.config.data import BACKGROUND, Data
from guidino_tune.config.parsing import parse
from guidino_tune.data.cases import Listing
from guidino_tune.data.sources import folder, isic2017, kvasir, tables, tn3k
from guidino_tune.data.sources.groups import regroup, with_guess
from guidino_tune.data.sources.volumes import sliced
from guidino_tune.errors import UserError


def _demo(root: Path, on_bad: str = "error") -> Listing:
    from guidino_tune.data.sources.demo import find  # needs scipy, which the others do not

    return find(root)


SOURCES: dict[str, Callable[[Path, str], Listing]] = {
    "kvasir": kvasir.find,
    "isic2017": isic2017.find,
    "tn3k": tn3k.find,
    "folder": folder.find,
    "demo": _demo,
}
"""``data.kind`` -> ``find(root, on_bad)``: lists the cases under ``root`` by name; ``on_bad="skip"`` leaves out files without a partner."""


def find_cases(data: Data) -> Listing:
    """Lists the cases of a data set, in the groups that ``data.group`` tells, volumes as their slices.

    By names only: no image is read, but for the headers of volumes and, where endings do not tell images from masks, of a few files for
    training.

    The listing names test files too: it is for ``opening``, ``sealed``, the evaluation and for counting, and nobody opens those files
    but through ``sealed``. The first note of kind ``folder`` is the layout that was found.

    Raises:
        UserError: The folder or its layout is not there, files have no partner, or ``data.group`` does not fit.
    """
    root = paths.rebased(Path(data.root).expanduser()) if data.root else paths.datasets() / data.kind
    if data.kind != "folder":
        listing = SOURCES[data.kind](root, data.bad_cases)
        return listing if data.kind == "demo" else _grouped(listing, data, root)
    listing = sliced(folder.find(root, data.bad_cases, data), data.bad_cases)
    table = tables.table_of(root)
    if table and data.group in tables.columns(table):
        return listing
    return _grouped(listing, data, table.parent if table else root)


def _grouped(listing: Listing, data: Data, root: Path) -> Listing:
    return regroup(listing, data.group, root) if data.group else with_guess(listing, root)


def apply_implied(data: Data, listing: Listing) -> Data:
    """Takes over what the data set itself tells (``Listing.implied``) where the user left the default.

    Raises:
        UserError: The user said something else.
    """
    found: dict[str, Any] = dict(listing.implied)
    where = "what the data set tells of itself"
    implied = parse(Data, {"kind": "folder", **found}, where) if found else data
    changed: dict[str, Any] = {}
    default = Data(kind="folder")
    for name in found:
        mine, its = getattr(data, name), getattr(implied, name)
        if mine == getattr(default, name):
            changed[name] = its
        elif name == "labels":
            _known_values(data, implied)
        elif mine != its:
            raise UserError(
                f"is {mine}, but the data set tells {its}", where=f"data.{name}", todo=f"leave it out, or set data.{name}={its}"
            )
    if "labels" in changed and data.num_classes not in (1, implied.num_classes):
        raise UserError(
            f"is {data.num_classes}, but the data set tells {implied.num_classes} classes: {', '.join(implied.class_names)}",
            where="data.num_classes",
            todo="leave it out, or name the classes that you mean with data.labels",
        )
    return _with(data, changed) if changed else data


def _known_values(data: Data, implied: Data) -> None:
    """The user may name classes otherwise, but of values that are there."""
    known = {value for values in (implied.labels or {}).values() for value in values} | {0, implied.ignore_label}
    unknown = [value for name, values in (data.labels or {}).items() if name != BACKGROUND for value in values if value not in known]
    if unknown:
        raise UserError(
            f"names the value {unknown[0]}, which the data set does not know: "
            f"{', '.join(f'{name} = {list(values) if len(values) > 1 else values[0]}' for name, values in (implied.labels or {}).items())}",
            where="data.labels",
            todo="leave it out, or use its values; if the masks hold others, correct the labels in dataset.json",
        )


def _with(data: Data, changed: dict[str, Any]) -> Data:
    from dataclasses import fields

    values = {field.name: getattr(data, field.name) for field in fields(data)} | changed
    return parse(Data, values, "data, with what the data set tells of itself")
