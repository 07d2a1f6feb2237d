"""Scores of a trained model on cases, by a protocol."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from guidino_tune.config import Data, Protocol
from guidino_tune.config.data import INSTANCES
from guidino_tune.config.parsing import parse, read_yaml
from guidino_tune.data.carrying import DIGEST
from guidino_tune.data.cases import Case
from guidino_tune.data.decoding import read_case
from guidino_tune.data.files import slice_of
from guidino_tune.data.identity import check_images, same_images
from guidino_tune.data.rules import Rules, label_rule, survey_masks
from guidino_tune.data.sealed import open_test
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import check_split, images_of, read_split, split_digest
from guidino_tune.errors import UserError, about, first_names
from guidino_tune.framing import cut, frame, place_mask
from guidino_tune.inference import ImagePrediction, largest_component, predict_image
from guidino_tune.metrics import NAMES, CaseScore, case_dice, score_case, values, with_classes
from guidino_tune.training.ensemble_folder import find_ensemble, one_split
from guidino_tune.training.folder import write_text
from guidino_tune.training.model_folder import PROVENANCE

SEEN = "all cases include those it was trained on, and the sealed test"
OTHERS = "name another data set by --kind and --data-root (--kind folder fits any images/ and masks/)"

Progress = Callable[[int, int], None]


def evaluate_cases(
    model: nn.Module, cases: Sequence[Case], data: Data, protocol: Protocol, progress: Progress | None = None, *, rules: Rules
) -> dict[str, CaseScore]:
    """Predicts and scores each case.

    Args:
        model: In eval mode, on its device.
        cases: With masks.
        data: What the model was trained with: how images and masks are resized, ``normalisation`` and ``num_classes`` count here.
        protocol: How to predict, post-process and score.
        progress: Told (done, in all).
        rules: How the cases' files are read.

    Returns:
        The scores by the cases' ids; distances are in native pixels, or at training resolution in pixels of the squeezed image.

    Raises:
        UserError: A case cannot be read.
        ValueError: ``largest_component`` is still to be decided (see ``choose_largest_component``).
    """
    scores = {}
    for number, case in enumerate(cases, 1):
        predicted, truth = predict_case(model, case, data, protocol, rules)
        mask = predicted.mask
        scores[case.id] = score_case(mask, truth, num_classes=data.num_classes, hd95=protocol.hd95, ignore=data.has_ignored)
        if progress:
            progress(number, len(cases))
    return scores


def predict_case(model: nn.Module, case: Case, data: Data, protocol: Protocol, rules: Rules) -> tuple[ImagePrediction, np.ndarray]:
    """What a model says of a case, and its true labels, of one size.

    Args:
        model: In eval mode, on its device.
        case: With a mask.
        data: As in ``evaluate_cases``.
        protocol: Its ``largest_component`` is decided.
        rules: How the case's files are read.

    Raises:
        UserError: The case cannot be read.
    """
    image, truth = read_case(case, rules)
    with about(str(case.image)):
        found = predict_image(model, image, data, protocol)
    if protocol.resolution == "native":
        return found, truth
    placed = place_mask(truth, data.image_size, data.resize, data.mask_resize, data.num_classes)
    return found, cut(placed, frame(truth.shape[0], truth.shape[1], data.image_size, data.resize))


def choose_largest_component(
    model: nn.Module,
    validation_cases: Sequence[Case],
    data: Data,
    protocol: Protocol,
    progress: Progress | None = None,
    *,
    rules: Rules,
) -> tuple[Protocol, dict[str, float]]:
    """Decides by the mean Dice of validation cases whether to keep only the largest component of each class.

    Each case is predicted once and post-processed in both ways. Test cases have no part in it; chosen on them, the score would be too
    good. A tie is decided against it.

    Args:
        model: In eval mode, on its device.
        validation_cases: At least one.
        data: As in ``evaluate_cases``.
        protocol: Its ``largest_component`` is left aside.
        progress: Told (done, in all).
        rules: How the cases' files are read.

    Returns:
        The protocol with ``never`` or ``always``, and the mean Dice of both.

    Raises:
        UserError: A case cannot be read.
        ValueError: There is no case.
    """
    if not validation_cases:
        raise ValueError("no validation cases to choose on")
    plain = dataclasses.replace(protocol, largest_component="never")
    never, always = [], []
    for number, case in enumerate(validation_cases, 1):
        predicted, truth = predict_case(model, case, data, plain, rules)
        mask = predicted.mask
        never.append(case_dice(mask, truth, num_classes=data.num_classes, ignore=data.has_ignored))
        always.append(case_dice(largest_component(mask), truth, num_classes=data.num_classes, ignore=data.has_ignored))
        if progress:
            progress(number, len(validation_cases))
    dice = {"never": math.fsum(never) / len(never), "always": math.fsum(always) / len(always)}
    return dataclasses.replace(protocol, largest_component="always" if dice["always"] > dice["never"] else "never"), dice


def write_scores(scores: Mapping[str, CaseScore], path: Path, protocol: Protocol, data: Data) -> None:
    """Writes one line per case (CSV): id, Dice, IoU, HD95 and ASD, the same of each class by its name, and the protocol.

    The protocol is a column, not a comment: spreadsheets and ``pandas.read_csv`` read the file as it is, and joined files stay clear.
    """
    rows = {name: with_classes(values(score), data.class_keys) for name, score in scores.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", *next(iter(rows.values()), NAMES), "protocol"])
    for name, row in rows.items():
        writer.writerow([name, *(f"{value:.6g}" for value in row.values()), protocol.describe()])
    write_text(path, text.getvalue())


def check_scores_file(path: Path) -> None:
    """Refuses to replace a file that does not look like one of ``write_scores``; asked before hours are spent on scores.

    Raises:
        UserError: There is such a file, or a folder.
    """
    if not os.path.lexists(path):
        return
    head = b""
    if path.is_file():
        with open(path, "rb") as file:
            head = file.readline(10_000).strip()
    if not (head.startswith(b"case,") and head.endswith(b",protocol")):
        raise UserError("is there already and holds no scores of evaluate", where=f"--output {path}", todo="choose another --output")


def choose_cases(
    model: Path, data: Data, part: str, *, kind: str | None, root: str | None, split_file: str | None, reason: str | None
) -> list[Case]:
    """The cases that ``evaluate`` scores.

    Args:
        model: The model or trial folder; its split is looked for in it and in the folders above it.
        data: What the model was trained on.
        part: ``validation``, ``test`` or ``all``.
        kind: Another data set; only with ``all``, for its own split has nothing to do with this model.
        root: Its folder, or where the model's data set is now.
        split_file: The split, if it is not found.
        reason: Why the test split is opened.

    Raises:
        UserError: No split, one that is not the model's, no such data set, parts of another data set asked for, or with ``all`` a copy of
            what the model has seen; or validation cases are missing.
    """
    trained_on = data
    other = kind is not None and kind != data.kind
    if part != "all" and other:
        raise UserError(f"the model knows no {part} split of {kind!r}", where="--kind", todo="use --split all")
    values = {**dataclasses.asdict(data), "root": root or (None if other else data.root), "kind": kind or data.kind}
    if other:  # names of its own files and patients say nothing of others
        values |= {"images": None, "masks": INSTANCES if data.instances else None, "group": None}
    data = parse(Data, values, "--kind")
    if part == "all":
        if not other and (data.kind != "folder" or root is None):
            raise UserError(SEEN, where="--split all", todo=OTHERS)
        cases = list(find_cases(data).cases)
        if {slice_of(case.image)[0].resolve() for case in cases} & _images(trained_on):
            raise UserError(SEEN, where="--split all", todo=OTHERS)
        own = find_split(model, split_file)
        if own and (copies := same_images(cases, images_of(own))):
            what = f"{len(copies)} of these {len(cases)} images are copies of those that the model was trained or chosen on"
            raise UserError(f"{what}: {first_names(copies)}", where="--split all", todo=OTHERS)
        return cases
    file = find_split(model, split_file)
    if file is None or not file.exists():
        what = "no such file" if split_file else "no split.json in this model, beside it or above it"
        raise UserError(what, where=str(file or model), todo="name the split.json of its study with --split-file")
    check_model_split(model, file)
    if part == "test":
        return open_test(data, file, reason=str(reason))
    ensemble = find_ensemble(model)
    if ensemble and not one_split(ensemble):
        raise UserError(
            "every case that is not tested was trained on by some member of this ensemble",
            where=str(model),
            todo="evaluate its members one by one, each on the fold that it has not seen (MODEL/member-0, ...), or with --split test",
        )
    split, listing = read_split(file), find_cases(data)
    check_split(split, listing, file, ("validation",))
    check_images(listing, split, images_of(file), str(file), same=("validation",), tested=False)
    wanted = set(split.validation)
    return [case for case in listing.cases if case.id in wanted]


def check_model_split(model: Path, file: Path) -> None:
    """Refuses a split that the model was not trained and chosen on: it may hold the model's training cases for validation.

    Args:
        model: The model or trial folder; its provenance holds the digest of its split; else its own is in it, beside it or above it.
        file: The split.

    Raises:
        UserError: It is another one, or was altered.
    """
    provenance = model / PROVENANCE
    known = read_yaml(provenance).get(DIGEST) if provenance.is_file() else None
    own = find_split(model, None)
    if known is None and own is not None and not own.samefile(file):
        known = split_digest(read_split(own))
    if known not in (None, split_digest(read_split(file))):
        raise UserError(
            "is not the split that this model was trained and chosen on, or was altered since: by it, training cases may be scored",
            where=str(file),
            todo=f"put the split.json of then back, or name a copy of it with --split-file (its digest is in {provenance})"
            if provenance.is_file()
            else "leave out --split-file, or name a copy of its own",
        )


def find_split(model: Path, split_file: str | None) -> Path | None:
    """The split that is named, or else the one in the model's folder, beside it or above it, if there is any."""
    beside = (folder / "split.json" for folder in (model.absolute(), *model.absolute().parents))
    return Path(split_file) if split_file else next((file for file in beside if file.exists()), None)


def validation_cases(model: Path, data: Data, *, root: str | None, split_file: str | None) -> list[Case]:
    """The validation cases of the model's own study, on which post-processing is chosen whatever is evaluated.

    Args:
        model: As in ``choose_cases``.
        data: What the model was trained on.
        root: Where that data set is now.
        split_file: As in ``choose_cases``.

    Raises:
        UserError: The study's split or its images are not here.
    """
    try:
        return choose_cases(model, data, "validation", kind=None, root=root, split_file=split_file, reason=None)
    except UserError as error:
        raise UserError(
            f"the choice needs the validation cases of the model's study; {error.where}: {error.what}",
            where="--largest-component validation",
            todo=f"{error.todo or 'make them available'}, or choose 'never' or 'always'",
        ) from None


def rules_for(cases: Sequence[Case], data: Data, rules: Rules) -> Rules:
    """The rules for another data set: for its masks their own rule where one is found, for its images that of the model."""
    try:
        return dataclasses.replace(rules, labels=label_rule(survey_masks(cases, data), data))
    except UserError:
        return rules  # all empty, say; what does not fit the model's rule is named


def _images(data: Data) -> set[Path]:
    """Files of a model's own data set; none where it is not on this machine."""
    try:
        return {slice_of(case.image)[0].resolve() for case in find_cases(data).cases}
    except UserError:
        return set()
