"""Segments images: ``python use.py IMAGE ... --output DIR``. Needs numpy, pillow, torch and transformers."""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import portable  # noqa: E402

# The code is modeling_segmenter.py of this folder: look at it before you trust it.
model = AutoModel.from_pretrained(HERE, trust_remote_code=True)


@torch.no_grad()
def network(images: np.ndarray) -> np.ndarray:
    """Float32 (N, C, S, S) of 0 to 255 to probabilities (N, K, S, S), background first."""
    found: np.ndarray = model(torch.from_numpy(np.ascontiguousarray(images))).probabilities.numpy()
    return found


if __name__ == "__main__":
    portable.run(network, portable.read_settings(HERE), sys.argv[1:])
