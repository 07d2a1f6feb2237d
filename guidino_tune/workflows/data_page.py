"""How a data set was understood, on one page: what a person should see in ten seconds before anything is spent on it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from guidino_tune.analysis.pictures import case_picture, contact_sheet, save_png
from guidino_tune.config.data import IGNORED, Data
from guidino_tune.data.opening import LOW_CEILING, SearchData, open_for_search
from guidino_tune.data.sources import apply_implied, find_cases
from guidino_tune.data.table import CaseTable
from guidino_tune.findings import Finding
from guidino_tune.framing import viewable
from guidino_tune.reporting.data import sheet_file

SHOWN = 6
"""Cases on the sheet."""


def data_page(data: Data) -> Iterator[Finding]:
    """Decodes every training and validation image and mask, and says how they were understood; those of the test split stay closed.

    Args:
        data: The data set. Cases that cannot be read are named, whatever ``bad_cases`` says.

    Yields:
        A line for the layout, images, masks, sizes, foreground and split, and one that names a picture of six cases; ``missing`` for what
        cannot be decoded or does not fit, ``note`` for copies, inverted masks and the like.

    Raises:
        UserError: The data set is not there, or it cannot be understood.
    """
    listing = find_cases(data)
    lenient = replace(apply_implied(data, listing), bad_cases="skip")
    with tempfile.TemporaryDirectory() as folder:
        opened = open_for_search(lenient, cache=Path(folder))
        layout, *others = listing.notes or ("layout: that of the published data set",)
        groups = {case.group for case in listing.cases}
        text = f"; {len(groups)} groups" if len(groups) < len(listing.cases) else "; no groups: each case may go into another part"
        yield Finding("ok", "layout", layout.removeprefix("layout: ") + text)
        yield Finding("ok", "read as", opened.rules.intensity.describe())
        yield Finding("ok", "read as", opened.rules.labels.text + _named(lenient))
        yield Finding("ok", "sizes", _sizes(opened, lenient))
        yield Finding("ok", "foreground", _foreground(opened, lenient))
        split = opened.split
        parts = f"{len(split.train)} training, {len(split.validation)} validation, {len(split.test)} sealed test ({split.origin})"
        yield Finding("ok", "split", parts)
        for note in (*others, *(note for note in opened.notes if note not in listing.notes)):
            damaged = note.startswith("left out ") and ": " in note
            todo = "put the right files there, or set data.bad_cases=skip to search without them" if damaged else "look at these files"
            if not damaged and "--set " in note:  # it brings its own remedy
                todo = ""
            yield Finding("missing" if damaged else "note", "images", note.removeprefix("left out "), todo)
        sheet = save_png(_sheet(opened, lenient), sheet_file(opened.fingerprint))
        yield Finding("ok", "six cases", f"as they were read: {sheet}")


def _named(data: Data) -> str:
    if data.num_classes == 1 and not data.labels:
        return ""
    return f"; {data.num_classes} class{'es' * (data.num_classes > 1)}: {', '.join(data.class_names)}"


def _tables(opened: SearchData) -> tuple[CaseTable, CaseTable]:
    return opened.train, opened.validation


def _sizes(opened: SearchData, data: Data) -> str:
    sizes = Counter(table.original_size(i)[::-1] for table in _tables(opened) for i in range(len(table)))
    usual, count = sizes.most_common(1)[0]
    text = f"all {usual[0]}x{usual[1]}"
    if len(sizes) > 1:
        least, most = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
        text = f"{least[0]}x{least[1]} to {most[0]}x{most[1]}, most often {usual[0]}x{usual[1]} ({count} of {sizes.total()})"
    if data.view == "patch":
        return f"{text}; seen in patches of {data.image_size} px"
    ceiling = opened.train.ceiling
    kept = "" if np.isnan(ceiling) else f", masks there and back: Dice {ceiling:.2f} to themselves"
    low = " (the most that any network can score)" if ceiling < LOW_CEILING else ""
    how = "squashed" if data.resize == "squash" else "padded"
    return f"{text}; {how} to {data.image_size} px{kept}{low}"


def _foreground(opened: SearchData, data: Data) -> str:
    shares = np.concatenate([table.foreground for table in _tables(opened)])
    empty = int((shares == 0).sum())
    text = f"{np.median(shares):.1%} of an image (median), {shares.min():.1%} to {shares.max():.1%}; {empty} of {len(shares)} masks empty"
    if data.num_classes > 1:
        found = Counter(
            number
            for table in _tables(opened)
            for i in range(len(table))
            for number in np.unique(table.mask(i))
            if number not in (0, IGNORED)
        )
        text += "; " + ", ".join(f"{name} in {found[number]} cases" for number, name in enumerate(data.class_names, 1))
    return text


def _sheet(opened: SearchData, data: Data) -> Image.Image:
    """Cases from the smallest foreground to the largest, each as a photograph and with its truth."""
    every = [(share, table, i) for table in _tables(opened) for i, share in enumerate(table.foreground)]
    every.sort(key=lambda item: item[0])
    chosen = [every[round(place)] for place in np.linspace(0, len(every) - 1, min(SHOWN, len(every)))]
    pictures = [
        case_picture(viewable(table.image(i)), table.mask(i), title=table.ids[i], names=data.class_names, ignore=data.has_ignored)
        for _, table, i in chosen
    ]
    return contact_sheet(pictures, columns=2)
