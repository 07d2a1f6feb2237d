"""Segments images: ``python use.py IMAGE ... --output DIR``. Needs numpy, pillow and onnxruntime."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import portable  # noqa: E402

session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=onnxruntime.get_available_providers())


def network(images: np.ndarray) -> np.ndarray:
    """Float32 (N, C, S, S) of 0 to 255 to probabilities (N, K, S, S), background first."""
    found: np.ndarray = session.run(["probabilities"], {"images": images})[0]
    return found


if __name__ == "__main__":
    portable.run(network, portable.read_settings(HERE), sys.argv[1:])
