"""A trained model as a folder: ``weights.safetensors``, ``experiment.yaml`` and ``provenance.yaml``; no pickle, no code.

Beside them stands what this package does not need, and others do: ``config.json``, ``preprocessor_config.json``, ``scores.json`` and
``README.md``. Folders of earlier versions lack these.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from guidino_tune import targets
from guidino_tune.config import Data, DINOGuide, Experiment
from guidino_tune.config.parsing import read_yaml
from guidino_tune.data.carrying import DIGEST
from guidino_tune.data.openings import copied_from
from guidino_tune.data.rules import RULES, Rules, plain_rules, read_rules
from guidino_tune.data.splits import read_split, split_digest
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import check_of_use, expecting, key_of
from guidino_tune.models import GuidedSegmenter, build_model
from guidino_tune.models.ensemble import Ensemble
from guidino_tune.models.precision import channels_last_pays, use_bf16
from guidino_tune.training.backbones import is_unnoted, known_of_model, provenance_of
from guidino_tune.training.card import Scores, card_of
from guidino_tune.training.checkpoints import WEIGHTS, check_finite, checksum_of, load_weights, noted_checksum
from guidino_tune.training.description import CARD, CONFIG, PREPROCESSOR, SCORES, as_json, config_of, numbers_in, preprocessor_of
from guidino_tune.training.folder import HISTORY, replace_folder
from guidino_tune.training.stored_backbone import BACKBONE, find_stored, load_stored, store_backbone

log = logging.getLogger(__name__)

WEIGHTS_CRC = "weights_crc32"
"""In the provenance of a model."""

OWN_CODE = "own_code"
"""In the provenance of a model: SHA-256 of the file of each of the user's own targets."""

EXPERIMENT, PROVENANCE, SPLIT, ENSEMBLE = "experiment.yaml", "provenance.yaml", "split.json", "ensemble.yaml"


def export_model(
    source: Path,
    experiment: Experiment,
    target: Path,
    provenance: Mapping[str, Any],
    split_file: Path | None = None,
    *,
    scores: Scores | None = None,
    with_backbone: bool = False,
) -> Path:
    """Copies the weights of a checkpoint into a model folder, whole or not at all.

    Args:
        source: A checkpoint folder, such as a trial's ``best``.
        experiment: What was trained.
        target: The new folder; an older one is replaced.
        provenance: Where the weights come from, in plain YAML types; the backbone's fingerprint, the split's digest and the weights'
            checksum are added.
        split_file: What it was trained, chosen and tested on: the ids go along, so that another machine tests on no other cases; and with
            them the rules of reading beside it.
        scores: What is known of its quality, for its card.
        with_backbone: The frozen backbone's weights go along.

    Raises:
        UserError: The weights are not as the training wrote them, or the backbone that is to go along cannot be had.
    """
    check_unchanged(source / WEIGHTS)
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    shutil.copy2(source / WEIGHTS, draft / WEIGHTS)
    (draft / EXPERIMENT).write_text(experiment.to_yaml(), encoding="utf-8")
    split = {DIGEST: split_digest(read_split(split_file))} if split_file is not None else {}
    own = {OWN_CODE: targets.digests(experiment.targets.values())} if experiment.targets else {}
    whole = {**provenance, **split, **own, **provenance_of(experiment, source), WEIGHTS_CRC: checksum_of(draft / WEIGHTS)}
    (draft / PROVENANCE).write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    if split_file is not None:
        if (target / SPLIT).is_file():
            copied_from(target / SPLIT, split_file)  # openings that only the older one's record has
        shutil.copy2(split_file, draft / SPLIT)
        copied_from(draft / SPLIT, split_file)
        if (split_file.parent / RULES).is_file():
            shutil.copy2(split_file.parent / RULES, draft / RULES)
    if with_backbone:
        with expecting(known_of_model(draft, experiment)):
            store_backbone(experiment, draft)
    rules = (read_rules(draft / RULES) if split_file is not None else None) or find_rules(source, experiment.data)
    describe(draft, experiment, rules, whole, scores=scores)
    replace_folder(draft, target)
    return target


def describe(folder: Path, experiment: Experiment, rules: Rules, provenance: Mapping[str, Any], *, scores: Scores | None = None) -> None:
    """Writes what tells people and other programs about a model: architecture, preprocessing, scores and a card.

    Args:
        folder: Of the model or the ensemble; its other files are there.
        experiment: What was trained (of an ensemble: its first member).
        rules: How its images are read.
        provenance: As the folder has it.
        scores: What is known of its quality.
    """
    noted = provenance.get("backbone")
    inside = {"inside": any(folder.rglob(f"{BACKBONE}/config.json"))}
    backbone = {**noted, **inside} if isinstance(noted, Mapping) else None
    if backbone is None and isinstance(experiment.guide, DINOGuide):
        backbone = {"name": key_of(experiment.guide), "fingerprint": "", **inside}
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(folder.glob(f"*/{WEIGHTS}"))
    config = config_of(experiment, backbone=backbone, parameters=sum(map(numbers_in, files)))
    split = read_split(folder / SPLIT) if (folder / SPLIT).is_file() else None
    (folder / CONFIG).write_text(as_json(config), encoding="utf-8")
    (folder / PREPROCESSOR).write_text(as_json(preprocessor_of(experiment, rules)), encoding="utf-8")
    if scores:
        (folder / SCORES).write_text(as_json(scores), encoding="utf-8")
    card = card_of(experiment, rules, config, scores=scores or {}, split=split, provenance=provenance)
    (folder / CARD).write_text(card, encoding="utf-8")


def find_weights(folder: Path) -> tuple[Path, Experiment]:
    """Where the weights of a model or trial folder are, and the experiment they belong to.

    Raises:
        UserError: The folder holds no model.
    """
    for weights in (folder / WEIGHTS, folder / "best" / WEIGHTS, folder / "model" / WEIGHTS):
        for experiment in (weights.parent / EXPERIMENT, weights.parent.parent / EXPERIMENT):
            if weights.exists() and experiment.exists():
                return weights, Experiment.from_yaml(experiment)
    trained = (folder / HISTORY).exists() and (folder / EXPERIMENT).exists()
    raise UserError(
        f"holds no model ({WEIGHTS} with {EXPERIMENT})",
        where=str(folder),
        todo="give the model folder that `guidino-tune retrain` printed, or a trial's folder in a study"
        + ("; of this trial no weights were kept (study.keep_weights): export the trial, and retrain what that gives" if trained else ""),
    )


def find_rules(folder: Path, data: Data) -> Rules:
    """How the images of a model are to be read: the rules in its folder, or of the study or retraining above it.

    Models that were trained before there were rules have the plain ones.

    Args:
        folder: Of the model, or of a trial.
        data: What it was trained on.
    """
    for place in (folder, folder / "model", *folder.absolute().parents):
        rules = read_rules(place / RULES)
        if rules is not None:
            return rules
    return plain_rules(data)


def load_model(folder: Path, device: str = "cpu") -> tuple[GuidedSegmenter | Ensemble, Experiment]:
    """A trained network, or an ensemble of them (see ``ensemble_folder``), ready for inference; see ``load_single``."""
    from guidino_tune.training.ensemble_folder import find_ensemble, load_ensemble  # which loads its members from here

    ensemble = find_ensemble(folder)
    return load_ensemble(ensemble, device) if ensemble else load_single(folder, device)


def load_single(folder: Path, device: str = "cpu") -> tuple[GuidedSegmenter, Experiment]:
    """Builds the network and loads its weights strictly, ready for inference in the precision and memory format of its training.

    Raises:
        UserError: No model there, weights that are damaged, not as they were written or of another network; or the backbone is not the one
            it was trained on.
    """
    file, experiment = find_weights(folder)
    if unnoted := is_unnoted(file.parent, experiment):
        log.warning("note: %s", unnoted)
    check_of_use(experiment.guide)
    with expecting(known_of_model(file.parent, experiment)):
        model = build_model(experiment, load_stored(find_stored(file.parent), experiment.guide))
    noted = read_yaml(file.parent / PROVENANCE).get(OWN_CODE) if (file.parent / PROVENANCE).is_file() else None
    for target, digest in targets.digests(experiment.targets.values()).items():
        if isinstance(noted, dict) and noted.get(target, digest) != digest:
            log.warning("note: the file of %s is not as it was when this model was trained; see that it computes the same", target)
    weights = load_weights(file)
    check_finite(weights, file)
    check_unchanged(file)
    try:
        model.load_trained_state(weights)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"the weights do not fit the experiment: {error}", where=str(file)) from None
    training = experiment.training
    model.bf16 = use_bf16(training.precision, torch.device(device))
    if training.channels_last and channels_last_pays(model.segmenter, torch.device(device), model.bf16):
        model.segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(torch.device(device)).eval(), experiment


def check_unchanged(file: Path) -> None:
    """Compares weights with the checksum that was noted when they were written; an earlier version noted none for a model folder.

    Raises:
        UserError: They differ.
    """
    noted = file.parent / PROVENANCE
    wanted = read_yaml(noted).get(WEIGHTS_CRC) if noted.is_file() else noted_checksum(file.parent)
    if wanted is not None and file.is_file() and wanted != checksum_of(file):
        raise UserError("the weights are not as they were written", where=str(file), todo="copy the model again, or retrain")


def best_device() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
