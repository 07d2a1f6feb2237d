"""Ensembles of a study's models: what each gains over its best member alone, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from guidino_tune import paths
from guidino_tune.reporting.document import Block, Cell, Folded, Section, Table, Text
from guidino_tune.reporting.known import Known
from guidino_tune.reporting.material import Material, plain
from guidino_tune.reporting.words import NONE, dice_cell, figure, interval, listed, many
from guidino_tune.study.ensembles import MadeEnsemble

SHOWN = 5
"""Of the latest; older ones are folded away."""

ROWS = {"alone": "the best member alone", "ensemble": "the ensemble", "flips": "the ensemble with test-time flips (--mirror)"}


def ensembles(material: Material, known: Known) -> Section:
    """All that were made of the study's models, the latest first."""
    lead = "Several of the models averaged as one: what that gains over the best of them alone, and how much longer an image takes."
    if not known.ensembles:
        told = f"None was made of this study's models. What one would give is found out by: {known.try_ensemble}"
        why = "None was made of this study's models, for which two that have kept their weights must be here."
        return Section("ensembles", "Ensembles", lead, [Text(told if known.try_ensemble else why, "absent")])
    blocks: list[Block] = [block for made in known.ensembles[:SHOWN] for block in _one(made)]
    if older := known.ensembles[SHOWN:]:
        blocks.append(Folded(many(len(older), "earlier ensemble"), [block for made in older for block in _one(made)]))
    return Section("ensembles", "Ensembles", lead, blocks)


def _one(made: MadeEnsemble) -> Iterator[Block]:
    model = paths.rebased(Path(made.model))
    yield _gain(made, plain(model.name))
    gone = "" if model.is_dir() else "; it is not there now"
    chosen = (
        f"chosen among {made.candidates} on these very cases, so that their Dice is too good for it"
        if made.is_chosen
        else "all models that were named, none chosen"
    )
    yield Text(f"Made {plain(made.made)} of {_members(made)}: {chosen}. Folder: {plain(model)}{gone}.")
    yield Table(
        headings=("model", "validation Dice", "difference", "s an image", "times as long", "parameters"),
        rows=[_row(made, name) for name in ROWS if name in made.dice],
        caption="Dice at training size; seconds of the machine that made it.",
    )


def _gain(made: MadeEnsemble, name: str) -> Text:
    question = f"Is {name} better than its best member alone?"
    found = made.gains.get("greedy")
    if found is None:
        why = "there were too few cases to hold some of them back" if made.is_chosen else "none of its members was chosen"
        return Text(f"By how much it is on cases that had no part in the choice was not measured: {why}.", "open", question)
    mean, low, high = found
    sure = "beyond" if low > 0 else "a loss beyond" if high < 0 else "not beyond"
    told = (
        f"Chosen on one half of the cases and scored on the other, such a choice gains {mean:+.4f} Dice; that is {sure} the chance of "
        f"these images (95 % interval {interval(low, high)} over {_cases(made)})"
    )
    if "best" in made.gains:
        other, *ends = made.gains["best"]
        told += f"; the plain mean of as many of the best gains {other:+.4f} ({interval(ends[0], ends[1])})"
    return Text(f"{told}.", "good" if low > 0 else "bad" if high < 0 else "open", question)


def _cases(made: MadeEnsemble) -> str:
    patients = f" of {many(made.patients, 'patient')}, drawn whole" if made.patients < made.cases else ""
    return f"{many(made.cases, 'case')}{patients}"


def _members(made: MadeEnsemble) -> str:
    return listed([plain(name) + (f" ×{weight}" if weight > 1 else "") for name, weight in made.members.items()], 20)


def _row(made: MadeEnsemble, name: str) -> tuple[str | Cell, ...]:
    score, alone = made.dice[name], made.dice.get("alone")
    seconds, before = made.seconds.get(name), made.seconds.get("alone")
    parameters = made.parameters.get("ensemble" if name == "flips" else name)
    is_first = name == "alone"
    return (
        ROWS[name],
        dice_cell(score),
        Cell(NONE) if is_first or alone is None else Cell(f"{score - alone:+.4f}", score - alone),
        Cell(NONE) if seconds is None else Cell(figure(seconds), seconds),
        Cell(NONE) if not seconds or not before else Cell(f"{seconds / before:.1f}", seconds / before),
        Cell(NONE) if parameters is None else Cell(f"{parameters / 1e6:,.1f} million", float(parameters)),
    )
