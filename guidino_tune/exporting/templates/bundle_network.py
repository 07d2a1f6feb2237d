"""The network of this bundle as a PyTorch module, and its way from a file to a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import portable


class Network(torch.nn.Module):
    """Pixels (N, C, S, S), float32 of 0 to 255, to probabilities (N, K, S, S), background first: the graph in ``model.pt2``."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.graph = (torch.export.load(file).module(),)  # in a tuple: a graph has no modes that could be switched

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The first output of the graph."""
        found: torch.Tensor = self.graph[0](pixels)[0]
        return found


class Pipeline:
    """From image files to mask files.

    Args:
        network: See ``Network``.
        inferer: Of MONAI; it is called with pixels and network.
        settings: The folder with ``preprocessor_config.json``.
    """

    def __init__(self, network: torch.nn.Module, inferer: Any, settings: str) -> None:
        self.network, self.inferer = network, inferer
        self.settings = portable.read_settings(settings)

    @torch.no_grad()
    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """As ``portable`` calls it."""
        found: torch.Tensor = self.inferer(torch.from_numpy(np.ascontiguousarray(pixels)), self.network)
        return found.numpy()

    def run(self, images: str, output: str) -> list[str]:
        """Writes ``NAME.mask.png`` for every image in a folder, or for one image."""
        place = Path(images)
        files = sorted(file for file in place.iterdir() if file.is_file()) if place.is_dir() else [place]
        portable.run(self.probabilities, self.settings, [*map(str, files), "--output", output])
        return [str(Path(output) / f"{file.stem}.mask.png") for file in files]
