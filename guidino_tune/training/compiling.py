"""``torch.compile`` of a segmenter, for batches of one size: any other would be compiled once more, or slow all down."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


class Compiled:
    """Compiles a segmenter in place, when it is first called; see ``training.compile``.

    Args:
        segmenter: Whose calls are compiled.
        how: ``none``, ``default`` or ``cuda-graphs``.
        batch: Images of the calls that are; the last, incomplete batch of a pass and those of a validation run as they are.
    """

    def __init__(self, segmenter: nn.Module, how: str, batch: int) -> None:
        self._batch = None if how == "none" else batch
        if how != "none":
            segmenter.compile(mode="reduce-overhead" if how == "cuda-graphs" else None, dynamic=False)

    def __call__(self, batch: int = 0) -> AbstractContextManager[object]:
        """Around a call with so many images."""
        return nullcontext() if self._batch in (None, batch) else torch.compiler.set_stance("force_eager")
