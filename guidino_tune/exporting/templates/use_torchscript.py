"""Segments images: ``python use.py IMAGE ... --output DIR``. Needs numpy, pillow and torch. Load files of people you trust only."""

import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import portable  # noqa: E402

program = torch.jit.load(HERE / "model.ts", map_location="cpu")


@torch.no_grad()
def network(images: np.ndarray) -> np.ndarray:
    """Float32 (N, C, S, S) of 0 to 255 to probabilities (N, K, S, S), background first."""
    found: np.ndarray = program(torch.from_numpy(np.ascontiguousarray(images)))[0].numpy()
    return found


if __name__ == "__main__":
    portable.run(network, portable.read_settings(HERE), sys.argv[1:])
