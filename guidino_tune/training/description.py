"""What a trained model is, and how its images are prepared, in plain JSON: for people and for programs without this package."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import safe_open

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.config.data import BACKGROUND
from guidino_tune.data.rules import Rules
from guidino_tune.normalisation import imagenet_constants

CONFIG, PREPROCESSOR, SCORES, CARD = "config.json", "preprocessor_config.json", "scores.json", "README.md"
"""In a model folder, beside its weights."""

FORMAT_VERSION = 1
"""Of ``CONFIG`` and ``PREPROCESSOR``."""

_LIBRARIES = ("torch", "transformers", "peft", "monai", "numpy", "pillow", "safetensors")


def config_of(experiment: Experiment, *, backbone: Mapping[str, Any] | None = None, parameters: int | None = None) -> dict[str, Any]:
    """Architecture, classes and versions of a model.

    Args:
        experiment: What was trained.
        backbone: Name and fingerprint of the guide's backbone, and whether its weights lie ``inside`` the folder. Of a folder on this
            machine only the last part is told: what is passed on does not say how the folders here are called.
        parameters: Numbers in the model's own weights.
    """
    data, values = experiment.data, experiment.to_dict()
    names = (BACKGROUND, *data.class_names)
    colours = ((0, 0, 0), *data.class_colours)
    guide = values["guide"]
    if isinstance(experiment.guide, DINOGuide):
        guide = {**guide, "backbone": _without_folders(experiment.guide.backbone)}
    return {
        "format": "guidino_tune",
        "format_version": FORMAT_VERSION,
        "name": experiment.name,
        "task": "image-segmentation",
        "image_size": data.image_size,
        "num_channels": data.channels,
        "num_labels": len(names),
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "classes": [
            {"label": number, "name": name, "colour": list(colour)}
            for number, (name, colour) in enumerate(zip(names, colours, strict=True))
        ],
        "architecture": {"segmenter": values["segmenter"], "guide": guide, "gate": experiment.gate},
        "parameters": parameters,
        "backbone": _without_place(backbone) if backbone else None,
        "experiment_hash": experiment.hash,
        "versions": {"guidino_tune": metadata.version("guidino-tune"), "python": platform.python_version()}
        | {name: metadata.version(name) for name in _LIBRARIES},
    }


def _without_place(backbone: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in backbone.items() if name != "place"}
    return {**known, "name": _without_folders(str(backbone["name"]))}


def _without_folders(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", "~")) else name


def preprocessor_of(experiment: Experiment, rules: Rules) -> dict[str, Any]:
    """How a file becomes what the network sees, and its output a mask; see ``exporting.templates.portable``, which does as it says."""
    data = experiment.data
    mean, deviation = imagenet_constants(data.channels)
    constants = {"mean": list(mean), "std": list(deviation)} if data.normalisation == "imagenet" else {"least_std": 1}
    return {
        "format_version": FORMAT_VERSION,
        "num_channels": data.channels,
        "guide_channels": list(experiment.guide_channels) if isinstance(experiment.guide, DINOGuide) else None,
        "intensity": rules.intensity.to_dict(),
        "image_size": data.image_size,
        "size_multiple": experiment.segmenter.size_multiple(data.image_size),
        "view": data.view,
        "resize": data.resize,
        "resample": "bilinear",
        "pixel_range": [0, 255],
        "normalisation": {"kind": data.normalisation, **constants},
        "overlap": 0.5,
    }


def numbers_in(weights: Path) -> int:
    """How many numbers a safetensors file holds; reads its head only."""
    total = 0
    with safe_open(weights, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            count = 1
            for side in file.get_slice(name).get_shape():
                count *= side
            total += count
    return total


def as_json(values: Mapping[str, Any]) -> str:
    """Text of a JSON file."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
