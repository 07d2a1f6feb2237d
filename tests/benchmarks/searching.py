"""What the benchmarks of whole searches share: the two families of models, and their search spaces on real images."""

from __future__ import annotations

from typing import Any

from guidino_tune.space.space import Space, read_space

BATCH = 4

VALIDATION_SHARE = 8
"""Training images for each validation image, as in the published split of the 995 images: 795 and 100."""

FAMILIES: dict[str, dict[str, Any]] = {
    "segguidino": {
        "experiment": {"segmenter": {"kind": "segguidino"}},
        "space": {},
        "words": "Seg-GuiDINO",
    },
    "convolutional": {
        "experiment": {"segmenter": {"kind": "unet"}},
        "space": {"segmenter.kind": {"choices": ["unet", "nnwnet"]}, "segmenter.base_width": {"choices": [8]}},
        "words": "GuiDINO-U and GuiDINO-W, base width 8",
    },
}
"""What differs: in ``convolutional`` the segmenter is searched too, at a half (nnWNet) or a quarter (U-Net) of its width."""

PARAMETERS: dict[str, Any] = {
    "guide.tokenbook.aggregation": {"choices": ["weighted", "softmax"]},
    "guide.tokenbook.num_prototypes": {"type": "int", "low": 8, "high": 1024, "log": True},
    "loss.lambda_guide": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
    "loss.hinge_weight": {"choices": [0.0, 0.05, 0.1, 0.3]},
    "training.lr": {"type": "float", "low": 1e-5, "high": 3e-3, "log": True},
}
"""Searched in both, within the limits of the shipped space of Kvasir-SEG."""


def make_space(
    family: str, *, root: str, image_size: int, images: int, epochs: int, study: dict[str, Any], resources: dict[str, Any]
) -> Space:
    """The space of a family, guided by a random ViT-S/16.

    Args:
        family: A name in ``FAMILIES``.
        root: Folder of Kvasir-SEG.
        image_size: In pixels.
        images: For training; an eighth as many are for validation.
        epochs: Budget of a trial.
        study: Its settings.
        resources: Of its trials.
    """
    limits = {"max_train_cases": images, "max_validation_cases": max(1, images // VALIDATION_SHARE)}
    return read_space(
        {
            "experiment": {
                "data": {"kind": "kvasir", "root": root, "image_size": image_size, **limits},
                "guide": {"kind": "dino", "backbone": "vits16", "weights": "random"},
                "training": {"epochs": epochs, "batch_size": BATCH, "steps_per_epoch": "cases"},
                **FAMILIES[family]["experiment"],
            },
            "space": FAMILIES[family]["space"] | PARAMETERS,
            "study": study,
            "resources": resources,
        },
        source="benchmark",
    )
