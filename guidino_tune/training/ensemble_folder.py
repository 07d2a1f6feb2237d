"""An ensemble as a folder: ``ensemble.yaml`` names its members, each a model folder, and their weights where these differ.

It is loaded and measured like a single model.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.config.parsing import read_yaml
from guidino_tune.data.carrying import DIGEST
from guidino_tune.data.openings import copied_from
from guidino_tune.data.rules import RULES
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import expecting
from guidino_tune.models.ensemble import Ensemble
from guidino_tune.training.backbones import known_of_model
from guidino_tune.training.card import Scores
from guidino_tune.training.checkpoints import WEIGHTS
from guidino_tune.training.folder import replace_folder, write_text
from guidino_tune.training.model_folder import ENSEMBLE, PROVENANCE, SPLIT, describe, export_model, find_rules, find_weights, load_single
from guidino_tune.training.stored_backbone import store_backbone

ALIKE = ("kind", "image_size", "num_classes", "labels", "channels", "window", "resize", "view", "normalisation")
"""Fields of ``data`` in which members must not differ: they see the same image, and mean the same classes."""


@dataclass(frozen=True, slots=True)
class Member:
    """A trained network that goes into an ensemble: its checkpoint, what was trained, its split, where it comes from, and its scores."""

    source: Path
    experiment: Experiment
    split_file: Path
    provenance: Mapping[str, Any]
    scores: Scores | None = None


def find_ensemble(folder: Path) -> Path | None:
    """The folder of an ensemble: this one, or its ``model``; ``None`` where there is none."""
    return next((place for place in (folder, folder / "model") if (place / ENSEMBLE).is_file()), None)


def members_of(folder: Path) -> list[Path]:
    """The members' folders.

    Raises:
        UserError: The list is malformed, empty or names a folder that is not there.
    """
    file = folder / ENSEMBLE
    names = read_yaml(file).get("members")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError("holds no list of folders under 'members'", where=str(file), todo="export the ensemble again, by `retrain --folds`")
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise UserError(f"a member is not there: {missing[0]}", where=str(file), todo="copy the folder whole, with all its members")
    return [folder / name for name in names]


def weights_of(folder: Path, count: int) -> list[float] | None:
    """How much each of so many members counts; ``None``: all the same.

    Raises:
        UserError: They are no such numbers.
    """
    file = folder / ENSEMBLE
    weights = read_yaml(file).get("weights")
    if weights is None:
        return None
    if not isinstance(weights, list) or len(weights) != count or not all(type(w) in (int, float) and 0 < w < math.inf for w in weights):
        raise UserError(f"'weights' are not {count} numbers above 0", where=str(file), todo="make the ensemble again")
    return [float(weight) for weight in weights]


def load_ensemble(folder: Path, device: str = "cpu") -> tuple[Ensemble, Experiment]:
    """Loads all members; the experiment is that of the first, from which the others differ in seed and fold.

    Raises:
        UserError: As ``load_model`` for each of them, or they see their images differently.
    """
    places = members_of(folder)
    loaded = [load_single(place, device) for place in places]
    first = loaded[0][1]
    for place, (_, experiment) in zip(places, loaded, strict=True):
        differing = [name for name in ALIKE if getattr(experiment.data, name) != getattr(first.data, name)]
        if differing:
            raise UserError(
                f"{place.name} differs from {places[0].name} in data.{differing[0]}",
                where=str(folder / ENSEMBLE),
                todo="an ensemble needs members that see their images in one way",
            )
    return Ensemble([model for model, _ in loaded], weights_of(folder, len(places))).eval(), first


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights in a trial's folder, or of all members' of an ensemble."""
    if (folder / ENSEMBLE).is_file():
        members = members_of(folder)
        digests = [hashlib.sha256(find_weights(member)[0].read_bytes()).digest() for member in members]
        weights = weights_of(folder, len(members))
        return hashlib.sha256(b"".join(digests) + (repr(weights).encode() if weights else b"")).hexdigest()
    return hashlib.sha256((folder / "best" / WEIGHTS).read_bytes()).hexdigest()


def list_members(folder: Path, members: Sequence[str], weights: Sequence[float] | None = None) -> None:
    """Makes an ensemble of folders that lie elsewhere.

    Args:
        folder: Of the ensemble.
        members: Their folders, relative to it.
        weights: How much each of them counts; ``None``: all the same.
    """
    write_text(folder / ENSEMBLE, yaml.safe_dump({"members": list(members)} | ({"weights": list(weights)} if weights else {})))


def one_split(folder: Path) -> bool:
    """True where all members were trained and chosen on the same cases, so that its validation cases are new to each of them."""
    noted = [member / PROVENANCE for member in members_of(folder)]
    digests = {read_yaml(file).get(DIGEST) if file.is_file() else None for file in noted}
    return len(digests) == 1 and digests != {None}


def store_backbones(folder: Path) -> None:
    """Puts the frozen backbones of an ensemble's members into its folder: once where all have the same, else into each member's own.

    Raises:
        UserError: No member has one, or its weights cannot be had.
    """
    members = [(place, find_weights(place)[1]) for place in members_of(folder)]
    guided = [(place, experiment) for place, experiment in members if isinstance(experiment.guide, DINOGuide)]
    known = [{key: one.fingerprint for key, one in known_of_model(place, experiment).items()} for place, experiment in guided]
    same = all(one == known[0] for one in known)
    for place, experiment in (guided[:1] or members[:1]) if same else guided:
        with expecting(known_of_model(place, experiment)):
            store_backbone(experiment, folder if same else place)


def export_ensemble(
    members: Sequence[Member],
    target: Path,
    provenance: Mapping[str, Any],
    split_file: Path,
    weights: Sequence[float] | None = None,
    *,
    scores: Scores | None = None,
    with_backbone: bool = False,
) -> Path:
    """Copies members into one model folder, whole or not at all.

    Args:
        members: Each becomes ``member-0``, ``member-1`` ..., with its own split inside.
        target: The new folder; an older one is replaced.
        provenance: Of the whole, in plain YAML types.
        split_file: Its test cases are those of every member.
        weights: See ``list_members``.
        scores: What is known of its quality, for its card.
        with_backbone: The frozen backbone's weights go along, see ``store_backbones``.

    Raises:
        UserError: As ``export_model``.
    """
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    names = [f"member-{number}" for number in range(len(members))]
    for name, member in zip(names, members, strict=True):
        export_model(member.source, member.experiment, draft / name, member.provenance, member.split_file, scores=member.scores)
    if (target / SPLIT).is_file():
        copied_from(target / SPLIT, split_file)
    for name, member in zip(names, members, strict=True):
        if (target / name / SPLIT).is_file():
            copied_from(target / name / SPLIT, member.split_file)
    shutil.copy2(split_file, draft / SPLIT)
    if (split_file.parent / RULES).is_file():
        shutil.copy2(split_file.parent / RULES, draft / RULES)
    copied_from(draft / SPLIT, split_file)
    (draft / PROVENANCE).write_text(yaml.safe_dump(dict(provenance), sort_keys=False), encoding="utf-8")
    list_members(draft, names, weights)
    first = members[0].experiment
    if with_backbone:
        store_backbones(draft)
    describe(draft, first, find_rules(draft, first.data), provenance, scores=scores)
    replace_folder(draft, target)
    return target
