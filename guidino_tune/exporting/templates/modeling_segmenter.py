"""The segmenter of this folder for ``transformers``: ``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)``.

The network is not written here again: it is the graph in ``model.pt2``, exactly as it was trained, whatever its architecture.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, cached_file

WEIGHTS = "model.pt2"


class SegmenterConfig(PretrainedConfig):  # type: ignore[misc]
    """What ``config.json`` says."""

    model_type = "guidino_segmenter"


@dataclass
class SegmenterOutput(ModelOutput):  # type: ignore[misc]
    """Probabilities (N, K, S, S), background first; and the guide mask (N, 1, S / 16, S / 16) of a guided network."""

    probabilities: torch.Tensor | None = None
    guide: torch.Tensor | None = None


class Segmenter(PreTrainedModel):  # type: ignore[misc]
    """Pixels to probabilities. It predicts; it cannot be trained on."""

    config_class = SegmenterConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SegmenterConfig, program: Any = None) -> None:
        super().__init__(config)
        self.program = program
        self.training = False

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *_: Any, config: Any = None, **options: Any) -> Segmenter:  # type: ignore[override]
        """Loads a folder, or a repository of the hub (``revision``, ``cache_dir``, ``token`` ... as usual)."""
        known = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")
        place = {key: value for key, value in options.items() if key in known and value is not None}
        config = config or SegmenterConfig.from_pretrained(name, **place)
        file = cached_file(str(name), WEIGHTS, **place)
        return cls(config, torch.export.load(str(file)).module())

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> SegmenterOutput:
        """Segments.

        Args:
            pixel_values: (N, C, S, S), float32, 0 to 255, already of the training size; see ``portable.py``.
        """
        return SegmenterOutput(*self.program(pixel_values))

    def eval(self) -> Segmenter:
        """It is always in eval mode."""
        return self

    def train(self, mode: bool = True) -> Segmenter:
        """It cannot be trained.

        Raises:
            ValueError: ``mode`` is true.
        """
        if mode:
            raise ValueError("this is a graph that predicts; train with guidino_tune")
        return self
