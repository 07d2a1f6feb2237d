"""Over which images a study searched, and which of them go wrong."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from guidino_tune import paths
from guidino_tune.data.openings import openings
from guidino_tune.data.rules import read_rules
from guidino_tune.data.splits import read_split
from guidino_tune.errors import UserError
from guidino_tune.reporting import charts
from guidino_tune.reporting.document import Block, Cell, Chart, Charts, Facts, Folded, Picture, Section, Table, Text
from guidino_tune.reporting.known import Known
from guidino_tune.reporting.material import Material, plain
from guidino_tune.reporting.words import dice_cell, many

SIDE = 1400
"""Pixels of a picture's longer side, at most."""

ENDS = 8
"""Cases in the tables of the worst and of the best."""

PICTURES = {
    "worst-and-best.png": "The worst and the best validation cases of the best trial, the worst first",
    "validation.png": "Validation cases of the best trial, the same of every trial",
}
"""In a trial's folder, by what they show."""


def searched(material: Material, known: Known) -> Section:
    """Question, data, split."""
    lead = "What was searched and on which images, and what of them the search has never seen."
    space = material.space
    training = space.base.training
    rows = [
        ("looks for", known.objective),
        ("settings of the search", known.settings),
        ("network", f"{space.base.name}, up to {space.longest} epochs, batches of {training.batch_size}, seed {training.seed}"),
        ("data", known.data),
        *_split(material),
        ("best constant mask", f"Dice {material.baseline:.4f}" if material.baseline is not None else "not stored"),
        ("fingerprint of images", str(material.attributes.get("data_fingerprint", "not stored"))),
        *_read_as(material),
    ]
    blocks: list[Block] = [Facts(rows)]
    names = list(space.parameters)
    blocks.append(Text(f"{many(len(names), 'setting')} searched; the table “What was tried” below says what each might be."))
    sheet = _sheet(material)
    blocks.append(
        Picture(sheet, "image/jpeg", "Cases as they were read, each with its mask", "Cases from the smallest foreground to the largest.")
        if sheet
        else Text("No contact sheet of the data is kept here; guidino-tune doctor --images draws one.", "absent")
    )
    return Section("data", "Question and data", lead, blocks)


def _split(material: Material) -> Iterator[tuple[str, str]]:
    if material.folder is None:
        yield "split", "the study's folder is not on this machine"
        return
    try:
        split = read_split(material.folder.split)
    except (UserError, OSError):
        yield "split", "not kept, or it cannot be read"
        return
    counts = f"{len(split.train)} training, {len(split.validation)} validation, {len(split.test)} test cases"
    yield "split", f"{counts} ({plain(split.origin)}, seed {split.seed})"
    opened = openings(material.folder.split)
    if not split.test:
        yield "sealed test", "there are no test cases"
    elif opened:
        told = "; ".join(f"{plain(one['time'])}: {plain(one['reason'])}" for one in opened[:5])
        often = "once" if len(opened) == 1 else f"{len(opened)} times"
        yield "sealed test", f"{many(len(split.test), 'case')}, which no search can read; opened {often} afterwards: {told}"
    else:
        yield "sealed test", f"{many(len(split.test), 'case')}, which no search can read; never opened, as far as is recorded here"


def _read_as(material: Material) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(UserError, OSError):
        rules = read_rules(material.folder.rules) if material.folder else None
        for line in rules.lines if rules else ():
            yield "read as", plain(line)


def _sheet(material: Material) -> bytes | None:
    fingerprint = material.attributes.get("data_fingerprint")
    if not isinstance(fingerprint, str):
        return None
    return encoded(sheet_file(fingerprint))


def sheet_file(fingerprint: str) -> Path:
    """Where the contact sheet of a data set is kept, once somebody had it drawn; may be deleted at any time."""
    return paths.cache() / "sheets" / f"{hashlib.sha256(fingerprint.encode()).hexdigest()[:12]}.png"


def cases(material: Material) -> Section:
    """Pictures, the worst and the best cases, and errors against sizes."""
    lead = "Which images go wrong: validation cases of the best trial with their scores, and whether small lesions are the hard ones."
    best = material.best
    if best is None:
        return Section("cases", "Images", lead, [Text("No trial has run its whole budget yet.", "absent")])
    folder = material.trial_folder(best.number)
    if folder is None:
        why = f"The folder of trial {best.number} is not on this machine: neither pictures nor scores of single cases."
        return Section("cases", "Images", lead, [Text(why, "absent")])
    pictures = [_picture(folder / "pictures" / name, about) for name, about in PICTURES.items()]
    first, more = pictures[0] or pictures[1], pictures[1] if pictures[0] else None
    blocks: list[Block] = [first or Text("No pictures of this trial are kept.", "absent"), *_scores(material, best.number)]
    if more:
        blocks.append(Folded(more.alt, [more]))
    return Section("cases", "Images", lead, blocks)


def _picture(file: Path, about: str) -> Picture | None:
    data = encoded(file)
    caption = f"{about}. Green: ground truth; magenta: prediction; each with its Dice."
    return Picture(data, "image/jpeg", about, caption) if data else None


def _scores(material: Material, number: int) -> Iterator[Block]:
    found = material.cases(number)
    if not found:
        yield Text(f"Scores of single cases are not kept for trial {number}: it was trained by an earlier version.", "absent")
        return
    rows = sorted(((name, row.get("foreground", 0.0), row["dice"]) for name, row in found.items()), key=lambda row: (row[2], row[0]))
    epoch = int(next(iter(found.values())).get("epoch", 0))
    scores = [score for _, _, score in rows]
    yield Text(
        f"Trial {number}, epoch {epoch}: median Dice {median(scores):.4f} over {many(len(rows), 'case')}; "
        f"{sum(score < 0.5 for score in scores)} below 0.5, {sum(score == 0 for score in scores)} at 0."
    )
    sized = [row for row in rows if row[1] > 0]
    if len(sized) >= 3:
        third = sorted(sized, key=lambda row: row[1])
        part = max(1, len(third) // 3)
        low, high = (sum(row[2] for row in some) / len(some) for some in (third[:part], third[-part:]))
        told = f"The smallest third has a mean Dice of {low:.4f}, the largest of {high:.4f}."
        empty = f" {many(len(rows) - len(sized), 'case')} without foreground left out." if len(sized) < len(rows) else ""
        caption = f"A disc is a validation case at training size. {told}{empty}"
        thin = sized if len(sized) <= charts.POINTS else sized[:: -(-len(sized) // charts.POINTS)]
        numbers = Table(
            headings=("cases", "mean Dice"),
            rows=[("smallest third", dice_cell(low)), ("largest third", dice_cell(high))],
            caption="By size of the foreground.",
        )
        yield Charts([Chart(title="Dice against the size of the lesion", svg=charts.sizes(thin), caption=caption, numbers=numbers)])
    lowest, highest = (
        Table(
            headings=("case", "Dice", "foreground, % of the image"),
            rows=[(name, dice_cell(score), Cell(f"{share * 100:.2f}", share)) for name, share, score in some],
            caption=f"{title}: validation cases of trial {number}.",
        )
        for title, some in (("Lowest Dice", rows[:ENDS]), ("Highest Dice", rows[::-1][:ENDS]))
    )
    yield Charts([lowest, highest])


def encoded(file: Path) -> bytes | None:
    """A picture as a small JPEG; ``None`` where there is none, or where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
            picture.thumbnail((SIDE, 4 * SIDE))
            text = io.BytesIO()
            picture.save(text, "JPEG", quality=82, optimize=True)
    except (OSError, ValueError):
        return None
    return text.getvalue()
