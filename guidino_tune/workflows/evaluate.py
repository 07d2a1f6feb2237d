"""The scores of a trained model on validation, the sealed test, or another data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from guidino_tune.config import Experiment, Protocol
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.data.openings import earlier_openings, openings
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import chosen, expecting
from guidino_tune.metrics import CaseScore, summarise
from guidino_tune.training.evaluation import (
    check_scores_file,
    choose_cases,
    choose_largest_component,
    evaluate_cases,
    find_split,
    rules_for,
    validation_cases,
    write_scores,
)
from guidino_tune.training.model_folder import best_device, find_rules, load_model
from guidino_tune.workflows.progress import silent_console


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a model scored.

    Attributes:
        experiment: That was trained.
        protocol: How the masks were made and measured.
        scores: By case.
        mean: Over the cases, by metric: ``dice``, ``iou``, ``hd95`` and ``asd`` (pixels); of several classes also ``dice_class_1``...
    """

    experiment: Experiment
    protocol: Protocol
    scores: Mapping[str, CaseScore]
    mean: Mapping[str, float]


def evaluate_model(
    model: str | Path,
    *,
    split: Literal["validation", "test", "all"] = "validation",
    reason: str | None = None,
    kind: str | None = None,
    data_root: str | None = None,
    split_file: str | None = None,
    backbones: Sequence[str] = (),
    protocol: Protocol = DEFAULT_PROTOCOL,
    output: str | Path | None = None,
    console: Console | None = None,
) -> Evaluated:
    """Scores a model case by case.

    Args:
        model: The model folder of a retraining, or a trial's folder of a study.
        split: ``all``: every case of another data set.
        reason: Why the test split is opened; it is written down beside the split.
        kind: Another data set, as ``data.kind``.
        data_root: Its folder.
        split_file: Of the study; ``None``: beside the model.
        backbones: Where the folder of the model's backbone is now.
        protocol: How masks are made and measured.
        output: A CSV file with a line for each case; it replaces scores, and no other file.
        console: For progress and notes; ``None`` prints nothing.

    Raises:
        UserError: No model or no cases are there, the test would be opened without a reason, or ``output`` is no file of scores.
    """
    if split == "test" and not reason:
        raise UserError("opening the sealed test split needs a reason", where="--split test", todo='add --reason "..."')
    if output:
        check_scores_file(Path(output))
    console, folder = console or silent_console(), Path(model)
    with expecting(chosen(backbones)):
        network, experiment = load_model(folder, best_device())
    data, rules = experiment.data, find_rules(folder, experiment.data)
    protocol = protocol.of(data)
    choosing = protocol.largest_component == "validation"
    # With all cases the folder is that of another data set, and post-processing is chosen on the model's own.
    own_root = None if split == "all" else data_root
    chosen_on = validation_cases(folder, data, root=own_root, split_file=split_file) if choosing else []
    found = find_split(folder, split_file)
    before = earlier_openings(openings(found)) if found and split == "test" else ""
    cases = choose_cases(folder, data, split, kind=kind, root=data_root, split_file=split_file, reason=reason)
    if before:
        console.print(f"note: {before}", style="yellow", highlight=False, soft_wrap=True)
    own = rules_for(cases, data, rules) if split == "all" else rules
    with console.status("evaluating") as status:
        if choosing:
            protocol, dice = choose_largest_component(
                network, chosen_on, data, protocol,
                lambda done, total: status.update(f"choosing the post-processing: {done} of {total} validation images"),
                rules=rules,
            )  # fmt: skip
            console.print(
                f"largest component {protocol.largest_component}: on {len(chosen_on)} validation cases Dice {dice['always']:.4f} with it, "
                f"{dice['never']:.4f} without"
                + (" (the cases that are scored too: their score is a little too good)" if split == "validation" else ""),
                highlight=False,
                soft_wrap=True,
            )
        scores = evaluate_cases(
            network, cases, data, protocol, lambda done, total: status.update(f"evaluating: {done} of {total} images"), rules=own
        )
    if output:
        write_scores(scores, Path(output), protocol, data)
    return Evaluated(experiment, protocol, scores, summarise(list(scores.values())))
