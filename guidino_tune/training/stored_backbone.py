"""The frozen backbone of a model inside its own folder, so that the model needs nothing else."""

from __future__ import annotations

from pathlib import Path

from guidino_tune import known_backbones as known
from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.errors import UserError
from guidino_tune.models.backbone import Backbone, load_backbone
from guidino_tune.models.fingerprints import fingerprint
from guidino_tune.models.weights import load_pretrained, quiet

BACKBONE = "backbone"
"""Folder in a model's, or in that of the ensemble around it, in the form that Hugging Face gives its models."""


def find_stored(folder: Path) -> Path | None:
    """The backbone inside a model's folder, or inside the ensemble's of which it is a member; ``None`` where there is none."""
    return next((place / BACKBONE for place in (folder, folder.parent) if (place / BACKBONE / "config.json").is_file()), None)


def store_backbone(experiment: Experiment, folder: Path) -> None:
    """Writes the backbone of an experiment into a model's folder.

    Raises:
        UserError: There is none, or its weights cannot be had.
    """
    if not isinstance(experiment.guide, DINOGuide):
        raise UserError(
            f"{experiment.name} has no backbone that could go along", where="--with-backbone", todo="leave it out: the model is whole"
        )
    backbone = load_backbone(experiment.guide)
    with quiet():
        backbone.vit.save_pretrained(folder / BACKBONE)  # type: ignore[operator]  # a transformers model, before any adapter


def load_stored(folder: Path | None, guide: object) -> Backbone | None:
    """The backbone that lies inside a model; ``None`` where none does, or a person names another place for it.

    Args:
        folder: As ``find_stored`` gives it.
        guide: Of the experiment.

    Raises:
        UserError: It is damaged, or not the one that the model was trained on.
    """
    if folder is None or not isinstance(guide, DINOGuide) or known.is_placed():
        return None
    backbone = Backbone(load_pretrained(str(folder.absolute())))
    backbone.fingerprint = fingerprint(backbone, values=guide.weights != "random")
    known.check(guide, backbone.fingerprint)
    return backbone
