"""Which ensembles were made of a study's models, and what is known of them: a line of JSON each, in the study's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guidino_tune import paths
from guidino_tune.study.store import StudyFolder
from guidino_tune.training.folder import append_whole

FILE = "ensembles.jsonl"
"""In a study's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeEnsemble:
    """An ensemble.

    Attributes:
        model: Its folder.
        made: When, as text.
        members: Weights by the members' names, the best alone first.
        candidates: Among how many models was chosen.
        is_chosen: False where all that were named are members.
        cases: Validation cases on which it was chosen, and scored.
        patients: How many independent ones they are.
        dice: Mean validation Dice: ``alone`` (the best member), ``ensemble``, ``flips`` (of the ensemble, with test-time flips).
        gains: Mean, and both ends of the 95 % interval, of what a choice gains over the best alone on cases that had no part in it, with
            whole patients drawn: ``greedy``, and ``best``, the plain mean of as many as are allowed. Empty where it is not known.
        seconds: For an image, by the same names as ``dice``.
        parameters: Backbones included: ``alone``, ``ensemble``.
    """

    model: str
    made: str
    members: Mapping[str, int]
    candidates: int
    is_chosen: bool
    cases: int
    patients: int
    dice: Mapping[str, float]
    gains: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)


def note_ensemble(folder: StudyFolder, made: MadeEnsemble) -> None:
    """Adds one.

    Raises:
        OSError: The folder cannot be written.
    """
    append_whole(folder.path / FILE, (json.dumps(asdict(made)) + "\n").encode())


def noted_ensembles(folder: StudyFolder) -> list[MadeEnsemble]:
    """All of a study, the latest first; one that was made again in the same place counts once, and what cannot be read is left out."""
    try:
        lines = (folder.path / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: dict[str, MadeEnsemble] = {}
    for line in lines:
        try:
            made = _read(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):  # torn, or of another version
            continue
        place = str(paths.rebased(Path(made.model)))  # the home folder may have been moved since
        found.pop(place, None)
        found[place] = made
    return list(found.values())[::-1]


def _read(line: Mapping[str, Any]) -> MadeEnsemble:
    def numbers(name: str) -> dict[str, float]:
        return {str(key): float(value) for key, value in line[name].items()}

    return MadeEnsemble(
        model=str(line["model"]),
        made=str(line["made"]),
        members={str(name): int(weight) for name, weight in line["members"].items()},
        candidates=int(line["candidates"]),
        is_chosen=bool(line["is_chosen"]),
        cases=int(line["cases"]),
        patients=int(line["patients"]),
        dice=numbers("dice"),
        gains={str(name): (float(mean), float(low), float(high)) for name, (mean, low, high) in line["gains"].items()},
        seconds=numbers("seconds"),
        parameters={str(name): int(count) for name, count in line["parameters"].items()},
    )
