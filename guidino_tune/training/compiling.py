"""``torch.compile`` of a segmenter, for batches of one size: any other would be compiled once more, or slow all down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

NONE, GRAPHS = "none", "cuda-graphs"

MODES = {"default": None, GRAPHS: "reduce-overhead"}
"""Torch's name of each way to compile; ``none`` is not among them."""


def way_of(how: str, parts: int) -> str:
    """``training.compile`` of a batch that goes through the network in so many parts.

    Gradients of parts are added up in memory that the next replay of a graph would write over.
    """
    return "default" if how == GRAPHS and parts > 1 else how


class Compiled:
    """Compiles a segmenter in place, when it is first called; see ``training.compile``.

    Args:
        segmenter: Whose calls are compiled.
        how: ``none``, ``default`` or ``cuda-graphs``; ``auto``: ``none`` until ``take`` says otherwise.
        batch: Images of the calls that are; the last, incomplete batch of a pass and those of a validation run as they are.

    Attributes:
        way: ``none``, ``default`` or ``cuda-graphs``, in which whole batches run now.
        changed: Called when ``way`` has changed.
    """

    def __init__(self, segmenter: nn.Module, how: str, batch: int) -> None:
        self.segmenter, self.batch, self.way = segmenter, batch, NONE
        self.changed: Callable[[], None] = lambda: None
        self._ever = self._paused = False
        if how in MODES:
            self.take(how)

    def __call__(self, batch: int = 0) -> AbstractContextManager[object]:
        """Around a call with so many images."""
        if not self._ever or (self.way != NONE and batch == self.batch and not self._paused):
            return nullcontext()
        return torch.compiler.set_stance("force_eager")

    def take(self, way: str) -> None:
        """From now on whole batches run so; they are compiled by the first of them. What was compiled before gives its memory back."""
        self.close()
        if way != NONE:
            if next(self.segmenter.parameters()).is_cuda:
                torch.cuda.empty_cache()  # a graph takes memory of its own, and none of what is kept for other calls
            self.segmenter.compile(mode=MODES[way], dynamic=False)
            self._ever = True
        if self.way != way:
            self.way = way
            self.changed()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Whole batches run as they are, inside."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def close(self) -> None:
        """Forgets what was compiled in this process: graphs keep memory, and after eight networks torch compiles no further one."""
        if self._ever:
            torch.compiler.reset()
            if next(self.segmenter.parameters()).is_cuda:
                torch.cuda.empty_cache()
