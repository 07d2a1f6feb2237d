"""Small networks and a small space over them, for tests that train nothing and need no torch."""

from __future__ import annotations

from typing import Any

from guidino_tune.space.space import Space, read_space

SMALL: dict[str, dict[str, Any]] = {
    "tiny": {"segmenter": {"kind": "custom", "target": "own_parts:TinyNet", "gates": ["bottleneck", "input"], "options": {"width": 2}}},
    "unet": {"segmenter": {"kind": "unet", "base_width": 2}},
    "nnunet": {"segmenter": {"kind": "nnunet", "base_width": 2, "num_stages": 4}},
    "nnwnet": {"segmenter": {"kind": "nnwnet", "base_width": 2}},
    "segguidino": {"segmenter": {"kind": "segguidino", "hidden": 8, "dropout": 0.2}},
}
"""One small network of each family, and the smallest, which trains in a third of the time of the others."""

NO_GUIDE = {"kind": "none"}
GUIDE = {"kind": "dino", "backbone": "tiny", "weights": "random", "tokenbook": {"num_prototypes": 4}}
LORA = {**GUIDE, "lora": {"rank": 2, "dropout": 0.1}}


def search_space(**changes: Any) -> Space:
    """A space over rate and width; ``changes`` are merged into its sections (``first_trials`` is replaced)."""
    sections: dict[str, Any] = {
        "experiment": {
            "data": {"kind": "demo", "image_size": 32},
            "guide": GUIDE,
            **SMALL["unet"],
            "training": {"epochs": 4, "batch_size": 3, "precision": "fp32", "steps_per_epoch": "cases"},
        },
        "space": {
            "training.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "segmenter.base_width": {"choices": [2, 4]},
        },
        "study": {"name": "small", "trials": 6, "seed": 3, "startup_trials": 2, "pruner": "asha"},
        "resources": {},
    }
    for name, section in changes.items():
        if name == "experiment":
            section = {key: {**sections["experiment"].get(key, {}), **value} for key, value in section.items()}
        if isinstance(section, dict):
            sections[name] = {**sections[name], **section}
    first = [{"training.lr": 1e-3, "segmenter.base_width": 2}, {"training.lr": 2e-3}]
    return read_space({**sections, "first_trials": changes.get("first_trials", first)}, source="small.yaml")
