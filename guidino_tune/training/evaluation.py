"""Scores of a trained model on cases at their native size."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from guidino_tune.config import Data
from guidino_tune.config.parsing import parse
from guidino_tune.data.cases import Case
from guidino_tune.data.decoding import read_case
from guidino_tune.data.sealed import open_test
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import read_split
from guidino_tune.errors import UserError
from guidino_tune.inference import predict_image
from guidino_tune.metrics import CaseScore, score_case
from guidino_tune.models import GuidedSegmenter
from guidino_tune.training.folder import write_text

RESOLUTION = "native resolution"
"""Where Dice, IoU, HD95 and ASD of this module are measured; distances are in native pixels."""


SEEN = "all cases include those it was trained on, and the sealed test"
OTHERS = "name another data set by --kind and --data-root (--kind folder fits any images/ and masks/)"


def evaluate_cases(
    model: GuidedSegmenter,
    cases: Sequence[Case],
    image_size: int,
    *,
    mirror: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, CaseScore]:
    """Predicts and scores each case.

    Args:
        model: In eval mode, on its device.
        cases: With masks.
        image_size: Side of the square that the model sees.
        mirror: Average over the four flips.
        progress: Told (done, in all).

    Raises:
        UserError: A case cannot be read.
    """
    scores = {}
    for number, case in enumerate(cases, 1):
        image, mask = read_case(case)
        scores[case.id] = score_case(predict_image(model, image, image_size, mirror=mirror).mask, mask)
        if progress:
            progress(number, len(cases))
    return scores


def write_scores(scores: dict[str, CaseScore], path: Path) -> None:
    """One line per case: id, Dice, IoU, HD95 and ASD."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "dice", "iou", "hd95", "asd"])
    for name, score in scores.items():
        writer.writerow([name, *(f"{v:.6g}" for v in (score.dice, score.iou, score.hd95, score.asd))])
    write_text(path, text.getvalue())


def choose_cases(
    model: Path, data: Data, part: str, *, kind: str | None, root: str | None, split_file: str | None, reason: str | None
) -> list[Case]:
    """The cases that ``evaluate`` scores.

    Args:
        model: The model or trial folder; its study's split is looked for in the folders above it.
        data: What the model was trained on.
        part: ``validation``, ``test`` or ``all``.
        kind: Another data set; only with ``all``, for its own split has nothing to do with this model.
        root: Its folder, or where the model's data set is now.
        split_file: The split, if it is not found.
        reason: Why the test split is opened.

    Raises:
        UserError: No split, no such data set, or parts of another data set asked for.
    """
    trained_on = data
    other = kind is not None and kind != data.kind
    if part != "all" and other:
        raise UserError(f"the model knows no {part} split of {kind!r}", where="--kind", todo="use --split all")
    values = {**dataclasses.asdict(data), "root": root or (None if other else data.root), "kind": kind or data.kind}
    data = parse(Data, values, "--kind")
    if part == "all":
        if not other and (data.kind != "folder" or root is None):
            raise UserError(SEEN, where="--split all", todo=OTHERS)
        cases = list(find_cases(data).cases)
        if {case.image.resolve() for case in cases} & _images(trained_on):
            raise UserError(SEEN, where="--split all", todo=OTHERS)
        return cases
    file = (
        Path(split_file) if split_file else next((p / "split.json" for p in model.absolute().parents if (p / "split.json").exists()), None)
    )
    if file is None or not file.exists():
        raise UserError("no split.json beside this model or above it", where=str(file or model), todo="name it with --split-file")
    if part == "test":
        return open_test(data, file, reason=str(reason))
    wanted = set(read_split(file).validation)
    return [case for case in find_cases(data).cases if case.id in wanted]


def _images(data: Data) -> set[Path]:
    """Files of a model's own data set; none where it is not on this machine."""
    try:
        return {case.image.resolve() for case in find_cases(data).cases}
    except UserError:
        return set()
