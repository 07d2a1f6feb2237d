"""What an experiment is: frozen dataclasses, YAML in and out, a stable hash."""

from guidino_tune.config.experiment import Experiment
from guidino_tune.config.sections import (
    BACKBONES,
    PATCH,
    Data,
    DINOGuide,
    Guide,
    LoRA,
    Loss,
    NNWNet,
    NoGuide,
    SegDINO,
    SegGuiDINO,
    Segmenter,
    TokenBook,
    Training,
    UNet,
    is_local_backbone,
    section_defaults,
)
from guidino_tune.config.study import Resources, Study

__all__ = [
    "BACKBONES", "PATCH", "DINOGuide", "Data", "Experiment", "Guide", "LoRA", "Loss", "NNWNet", "NoGuide", "Resources",
    "SegDINO", "SegGuiDINO", "Segmenter", "Study", "TokenBook", "Training", "UNet", "is_local_backbone", "section_defaults",
]  # fmt: skip
