"""A table that lists the cases: CSV or JSON lines with the columns ``image``, ``mask``, ``group``, ``split``, and others."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.files import ending, slice_of, stem
from guidino_tune.data.sources.tree import composed
from guidino_tune.errors import UserError, first_names, nearest

NAMES = ("cases.csv", "cases.jsonl")
"""Tables that are found by themselves in the folder of a data set."""

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    "trainval": "trainval",
}
"""What may stand in the column ``split``, and the part that is meant; nothing: divided by us."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: values by column, as text; of several files a list."""

    line: int
    values: Mapping[str, tuple[str, ...]]

    def one(self, column: str) -> str:
        """The single value of a column, or nothing."""
        return (self.values.get(column) or ("",))[0]


def table_of(root: Path) -> Path | None:
    """The table that a root is or holds; ``None`` for a folder without.

    Raises:
        UserError: The root is another file, or holds two tables.
    """
    if root.is_file():
        if root.suffix.lower() in ENDINGS:
            return root
        raise UserError(
            "is no folder and no table",
            where=str(root),
            todo=f"give the folder of the data set, or a table of its cases ({', '.join(ENDINGS)}), with --data-root",
        )
    there = [root / name for name in NAMES if (root / name).is_file()]
    if len(there) > 1:
        raise UserError(
            f"holds {' and '.join(path.name for path in there)}",
            where=str(root),
            todo=f"name one of them: --data-root {there[0]}",
        )
    return there[0] if there else None


def columns(path: Path) -> tuple[str, ...]:
    """The names of a table's columns, in its order."""
    return tuple(dict.fromkeys(column for row in _rows(path) for column in row.values))


def find(path: Path, on_bad: str = "error", group: str | None = None) -> Listing:
    """Lists the cases of a table. Its paths are relative to the folder it lies in.

    ``mask`` may name several files, separated by ``;`` (in JSON a list), which are united; ``image`` one for each channel. ``group``
    keeps cases together; ``split`` is ``train``, ``validation``, ``test``, or empty. Without a column ``id`` the id is the path of
    the image below what all of them share, without ending.

    Args:
        path: The table.
        on_bad: ``skip`` leaves out the lines whose files are not there.
        group: Another column to group by; what is no column is left to the caller.

    Raises:
        UserError: Names line and column.
    """
    rows = list(_rows(path))
    names = tuple(dict.fromkeys(column for row in rows for column in row.values))
    for column in ("image", "mask"):
        if column not in names:
            what = f"has no column {column!r}; {nearest(column, names) if names else 'it is empty'}"
            raise UserError(what, where=str(path), todo="name the columns in the first line: image,mask,group,split")
    by = group if group in names else "group" if "group" in names else ""
    kept, notes = _with_files(rows, path, on_bad)
    if not kept:
        raise UserError("lists no case", where=str(path), todo="write a line for each image, under image,mask,group,split")
    cases, published, channels = [], {}, Counter[int]()
    seen: dict[str, int] = {}
    for (row, images, masks), name in zip(kept, _ids(kept, path), strict=True):
        if name in seen:
            raise _wrong(path, row, "id" if "id" in names else "image", f"{name!r} is that of line {seen[name]} too", "list each case once")
        seen[name] = row.line
        channels[len(images)] += 1
        if len(channels) > 1:
            usual = channels.most_common(1)[0][0]
            raise _wrong(path, row, "image", f"has {len(images)} files, and other lines {usual}", "give all cases the same channels")
        chosen = row.one(by) if by else ""
        cases.append(Case(name, images[0], masks[0], chosen or name, images[1:], masks[1:], row.one("stratum")))
        if part := row.one("split"):
            if part.lower() not in PARTS:
                raise _wrong(path, row, "split", f"{part!r} is no part", f"write one of {', '.join(PARTS)}, or nothing")
            published[name] = PARTS[part.lower()]
    rest = [case.id for case in cases if case.id not in published]
    if "train" in published.values() and rest:
        notes += (f"{path}: {len(rest)} cases are left out, having nothing in the column split: {first_names(rest)}",)
        cases = [case for case in cases if case.id in published]
    line = f"layout: table {path.name}, {len(cases)} cases"
    if by:
        line += f"; column {by} is the group ({len({case.group for case in cases})})"
    if published:
        count = Counter(published.values())
        line += f"; column split publishes {', '.join(f'{part} {number}' for part, number in sorted(count.items()))}"
    if several := sum(bool(case.more_masks) for case in cases):
        notes += (f"{several} images have several masks, which are united",)
    files = len(kept[0][1])
    notes += _unused(names, by, kept) + _shared_masks(cases)
    return Listing(tuple(cases), published, (line, *notes), {"channels": files} if files > 1 else {})


def _unused(names: tuple[str, ...], by: str, kept: Sequence[tuple[Row, tuple[Path, ...], tuple[Path, ...]]]) -> tuple[str, ...]:
    """Columns that are not read; of those that say the same of several cases, how to keep these together."""
    rest = [name for name in names if name and name not in ("image", "mask", "group", "split", "id", "stratum", by)]
    if not rest:
        return ()
    several = []
    for name in rest:
        values = {row.one(name) for row, _, _ in kept}
        if not by and "" not in values and 2 < len(values) <= len(kept) / 2:
            several.append(name)
    todo = f"; if {several[0]} names patients, keep each in one part: --set {shlex.quote(f'data.group={several[0]}')}" if several else ""
    return (f"columns that are not used: {', '.join(rest)}{todo}",)


def _shared_masks(cases: Sequence[Case]) -> tuple[str, ...]:
    """A note on masks that several images share: by mistake, or because one thing was photographed several times."""
    owners: dict[Path, set[str]] = {}
    for case in cases:
        for path in case.masks:
            owners.setdefault(path, set()).add(case.group)
    shared = {path: groups for path, groups in owners.items() if len(groups) > 1}
    if not shared:
        return ()
    path = min(shared)
    return (
        f"{len(shared)} masks belong to several images that may come into different parts, such as {path.name} to {len(shared[path])}: if "
        "they show the same thing, give them one value in the column group; else correct the column mask",
    )


def _with_files(rows: list[Row], path: Path, on_bad: str) -> tuple[list[tuple[Row, tuple[Path, ...], tuple[Path, ...]]], tuple[str, ...]]:
    """Rows with the paths of their images and masks, and notes on those that are left out."""
    kept, gone = [], []
    for row in rows:
        try:
            sides = [tuple(_file(path, row, column, text) for text in row.values.get(column, ())) for column in ("image", "mask")]
            for column, side in zip(("image", "mask"), sides, strict=True):
                if not side:
                    raise _wrong(path, row, column, "is empty", f"name the file, or remove the line ({' '.join(row.one('image').split())})")
        except UserError as error:
            if on_bad != "skip":
                raise
            gone.append(f"{error.where.rpartition(', line ')[2]}: {error.what}")
        else:
            kept.append((row, sides[0], sides[1]))
    return kept, (f"{path}: left out {len(gone)} lines: {first_names((f'line {text}' for text in gone), 2)}",) if gone else ()


def _file(path: Path, row: Row, column: str, text: str) -> Path:
    found = path.parent / Path(text).expanduser()
    if not found.exists() and not slice_of(found)[0].is_file():
        mend = "write / between folders, not \\" if "\\" in text else "correct the path"
        raise _wrong(path, row, column, f"there is no file {found}", f"{mend}, or set data.bad_cases=skip to leave such lines out")
    if not ending(found):
        raise _wrong(path, row, column, f"{found.name} has no ending of an image", "convert it, such as to .png or .tif")
    return found


def _wrong(path: Path, row: Row, column: str, what: str, todo: str) -> UserError:
    return UserError(what, where=f"{path}, line {row.line}, column {column}", todo=todo)


def _ids(kept: list[tuple[Row, tuple[Path, ...], tuple[Path, ...]]], path: Path) -> list[str]:
    if all(row.one("id") for row, _, _ in kept):
        return [composed(row.one("id")) for row, _, _ in kept]
    parts = [Path(composed(row.one("image"), path)).parts for row, _, _ in kept]
    first, last = min(parts), max(parts)
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    names = [("/".join((*p[shared:-1], stem(Path(p[-1])))), "/".join(p[shared:])) for p in parts]
    count = Counter(short for short, _ in names)
    return [short if count[short] == 1 else whole for short, whole in names]  # `a.png` and `a.tif` are two cases


def _rows(path: Path) -> Iterator[Row]:
    """The lines of a table that hold anything."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), todo="save it as UTF-8 text") from None
    yield from (_json_rows if path.suffix.lower() in (".jsonl", ".ndjson") else _csv_rows)(text, path)


def _csv_rows(text: str, path: Path) -> Iterator[Row]:
    first = text.partition("\n")[0]
    tabs = "\t" in first and "," not in first
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",")
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                lower = [name.lower() for name in header]
                header = [
                    low if low in ("image", "mask", "group", "split", "id", "stratum") else name
                    for low, name in zip(lower, header, strict=True)
                ]
                if twice := [name for name, count in Counter(header).items() if count > 1]:
                    raise UserError(f"two columns are called {twice[0]!r}", where=f"{path}, line {reader.line_num}", todo="rename one")
                if len(header) == 1 and ";" in header[0]:
                    todo = "separate them by commas: the semicolon separates several masks of an image"
                    raise UserError("has its columns separated by semicolons", where=f"{path}, line {reader.line_num}", todo=todo)
                continue
            if len(cells) > len(header):
                what = f"has {len(cells)} values for {len(header)} columns"
                raise UserError(what, where=f"{path}, line {reader.line_num}", todo='put a name that holds a comma into "quotes"')
            values = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
            yield Row(reader.line_num, {name: _several(cell) if name in ("image", "mask") else (cell,) for name, cell in values.items()})
    except csv.Error as error:
        raise UserError(f"is no valid CSV: {error}", where=f"{path}, line {reader.line_num}", todo="mend that line") from None


def _several(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(";") if part.strip())


def _json_rows(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"is no valid JSON: {error}", where=where, todo="write one object a line") from None
        if not isinstance(values, dict):
            raise UserError("is no object", where=where, todo='write {"image": "a.png", "mask": "a_mask.png", "group": "P1"}')
        found: dict[str, tuple[str, ...]] = {}
        for name, value in values.items():
            several = value if isinstance(value, list) else [] if value is None else [value]
            if not all(isinstance(one, str | int | float) for one in several):
                raise UserError(
                    f"{value!r} is no text", where=f"{where}, column {name}", todo="give the path of a file, or a list of paths"
                )
            texts = [str(one).strip() for one in several if str(one).strip()]
            found[name] = _several(texts[0]) if name in ("image", "mask") and not isinstance(value, list) and texts else tuple(texts)
        yield Row(number, found)
