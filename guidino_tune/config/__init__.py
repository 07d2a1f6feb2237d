"""What an experiment is: frozen dataclasses, YAML in and out, a stable hash."""

from guidino_tune.config.data import IGNORED, Data
from guidino_tune.config.experiment import Experiment
from guidino_tune.config.fields import PATCH
from guidino_tune.config.protocol import Protocol
from guidino_tune.config.sections import (
    BACKBONES,
    CustomTerm,
    DINOGuide,
    Guide,
    LoRA,
    Loss,
    NoGuide,
    TokenBook,
    Training,
    is_local_backbone,
    section_defaults,
)
from guidino_tune.config.segmenters import (
    UKAN,
    Custom,
    DinoUNet,
    H2Former,
    MedDINO,
    NNUNet,
    NNWNet,
    SegDINO,
    SegGuiDINO,
    Segmenter,
    SwinUNet,
    UNet,
)
from guidino_tune.config.study import Resources, Study

__all__ = [
    "BACKBONES", "IGNORED", "PATCH", "UKAN", "Custom", "CustomTerm", "DINOGuide", "Data", "DinoUNet", "Experiment", "Guide", "H2Former",
    "LoRA", "Loss", "MedDINO", "NNUNet", "NNWNet", "NoGuide", "Protocol", "Resources", "SegDINO", "SegGuiDINO", "Segmenter", "Study",
    "SwinUNet", "TokenBook", "Training", "UNet", "is_local_backbone", "section_defaults",
]  # fmt: skip
