"""The guide backbones of a study, a retraining or a model, as its folder notes them: ``backbones.yaml``, checkpoints and provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.config.parsing import read_yaml
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import Known, key_of, name_in, other_weights, place_of
from guidino_tune.training.folder import STATE, write_text

if TYPE_CHECKING:  # what a folder notes is read without torch
    from guidino_tune.models import GuidedSegmenter

FILE = "backbones.yaml"
"""In the folder of a study or a retraining: of each backbone its fingerprint, and where it was read from last."""

LEVELS = 4
"""Folders above a model's weights in which ``FILE`` is looked for: a trial's lie three below their study's."""

_HEAD = "# The guide backbones of this folder: what they are (a fingerprint of weights and architecture), and where they were read last.\n"


def read_known(folder: Path, *, owner: str = "", otherwise: str = "") -> dict[str, Known]:
    """What a folder notes of its backbones, by ``key_of``; empty where it notes nothing.

    A place is given only where it is not what the name says, and still there.

    Args:
        folder: Of a study or a retraining.
        owner: See ``Known``.
        otherwise: See ``Known``.

    Raises:
        UserError: The file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    found = {}
    for key, noted in read_yaml(file).items():
        if not isinstance(noted, Mapping):
            raise UserError(
                f"holds no fingerprint of {key!r}", where=str(file), todo="restore it from a copy, or remove it to note it anew"
            )
        found[str(key)] = _known(str(key), noted, owner=owner or str(folder), otherwise=otherwise)
    return found


def write_known(folder: Path, fingerprints: Mapping[str, str]) -> None:
    """Notes fingerprints, by ``key_of``, and where each backbone is read from now; what is noted of others stays."""
    file = folder / FILE
    before = read_yaml(file) if file.is_file() else {}
    now = {key: {"fingerprint": found, "place": place_of(name_in(key))} for key, found in fingerprints.items()}
    if now and {**before, **now} != before:
        write_text(file, _HEAD + yaml.safe_dump({**before, **now}, sort_keys=True))


def known_of_model(folder: Path, experiment: Experiment) -> dict[str, Known]:
    """What the folder of trained weights, or one above it, notes of their backbone; empty without one, or where nothing is noted.

    Args:
        folder: In which the weights lie.
        experiment: What was trained.
    """
    guide = experiment.guide
    if not isinstance(guide, DINOGuide):
        return {}
    key, owner = key_of(guide), f"the model in {folder}"
    noted = noted_in(_read(folder / "provenance.yaml"), guide)
    fingerprint = str(noted.get("fingerprint") or backbone_in(folder))
    above = next((a for a in (folder, *folder.absolute().parents[:LEVELS]) if (a / FILE).is_file()), None)
    around = read_known(above).get(key, Known()) if above else Known()
    model = _known(key, {**noted, "fingerprint": fingerprint or around.fingerprint}, owner=owner)
    return {key: Known(fingerprint=model.fingerprint, place=model.place or around.place, owner=owner)}


def is_unnoted(folder: Path, experiment: Experiment) -> str:
    """A note for users of a model whose backbone was never noted; empty otherwise."""
    guide = experiment.guide
    if not isinstance(guide, DINOGuide) or any(known.fingerprint for known in known_of_model(folder, experiment).values()):
        return ""
    return f"an earlier version did not note the fingerprint of {guide.backbone}; whether these are its weights cannot be checked"


def provenance_of(experiment: Experiment, checkpoint: Path) -> dict[str, Any]:
    """What the provenance of a model says of its backbone: name, fingerprint and place; empty without one.

    Args:
        experiment: What was trained.
        checkpoint: The folder of its weights and ``state.json``.
    """
    guide = experiment.guide
    if not isinstance(guide, DINOGuide):
        return {}
    fingerprint = backbone_in(checkpoint)
    return {"backbone": in_words(guide, fingerprint)} if fingerprint else {}


def backbone_in(folder: Path) -> str:
    """The fingerprint of the backbone that a checkpoint or a trial's best weights were trained on; empty where none is noted."""
    try:
        return str(json.loads((folder / STATE).read_text(encoding="utf-8")).get("backbone", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def noted_of_trial(experiment: Experiment, folder: Path) -> dict[str, str]:
    """What an export says of the backbone of a trial: name, fingerprint and place; empty where the folder of its study notes none."""
    guide = experiment.guide
    if not isinstance(guide, DINOGuide):
        return {}
    try:
        known = read_known(folder).get(key_of(guide), Known())
    except UserError:
        return {}
    if not known.fingerprint:
        return {}
    return {**in_words(guide, known.fingerprint), **({"place": known.place} if known.place else {})}


def in_words(guide: DINOGuide, fingerprint: str) -> dict[str, str]:
    """A backbone in plain YAML types, as exports and models note it."""
    return {"name": key_of(guide), "fingerprint": fingerprint, "place": place_of(guide.backbone)}


def noted_in(provenance: Mapping[str, Any], guide: DINOGuide) -> Mapping[str, Any]:
    """What the provenance of an export or a model says of this backbone; empty where it speaks of none, or of another."""
    noted = provenance.get("backbone")
    return noted if isinstance(noted, Mapping) and noted.get("name") == key_of(guide) else {}


def known_in(provenance: Mapping[str, Any], guide: DINOGuide, *, owner: str, otherwise: str = "") -> dict[str, Known]:
    """As ``noted_in``, for ``expecting``."""
    noted = noted_in(provenance, guide)
    return {key_of(guide): _known(key_of(guide), noted, owner=owner, otherwise=otherwise)} if noted else {}


def check_fingerprint(experiment: Experiment, model: GuidedSegmenter, noted: str, where: str) -> None:
    """Compares the backbone of a model with the one that a checkpoint was trained on.

    Raises:
        UserError: They differ.
    """
    if isinstance(experiment.guide, DINOGuide) and noted and model.fingerprint and noted != model.fingerprint:
        raise other_weights(experiment.guide.backbone, model.fingerprint, Known(fingerprint=noted, owner=f"the checkpoint {where}"))


def _known(key: str, noted: Mapping[str, Any], *, owner: str, otherwise: str = "") -> Known:
    place = str(noted.get("place") or "")
    moved = place not in ("", name_in(key)) and Path(place).is_dir()
    return Known(fingerprint=str(noted.get("fingerprint") or ""), place=place if moved else "", owner=owner, otherwise=otherwise)


def _read(file: Path) -> Mapping[str, Any]:
    return read_yaml(file) if file.is_file() else {}
