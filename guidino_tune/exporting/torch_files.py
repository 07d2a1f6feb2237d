"""The formats of torch itself: a program of ``torch.export``, and TorchScript."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidino_tune.errors import UserError
from guidino_tune.exporting.graph import Graph
from guidino_tune.models.weights import quiet

Network = Callable[[Tensor], Sequence[Tensor]]
"""Pixels to what a graph gives for them."""

PT2, TORCHSCRIPT = "model.pt2", "model.ts"


def write_pt2(graph: Graph, folder: Path) -> list[str]:
    """Writes ``model.pt2``; returns what a person should know of it."""
    assert graph.program is not None
    torch.export.save(graph.program, folder / PT2)
    return []


def load_pt2(file: Path) -> Network:
    """What the file gives for pixels, as a function."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs pages of what it raises anyway
    try:
        module: Any = torch.export.load(file).module()
    finally:
        logger.setLevel(level)
    return lambda images: tuple(module(images))


def write_torchscript(graph: Graph, folder: Path) -> list[str]:
    """Writes ``model.ts`` by following one run.

    Returns:
        Notes: which sides are fixed.

    Raises:
        UserError: This torch or this network cannot do it.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad(), quiet():
            warnings.simplefilter("ignore")  # that it is deprecated stands in the notes
            script: Any = torch.jit.trace(graph.module, (graph.example,), check_trace=False)
            torch.jit.save(script, str(folder / TORCHSCRIPT))
    except Exception as error:  # of torch's own compiler
        what = f"torch.jit.trace cannot follow this network: {str(error).strip().partition(chr(10))[0]}"
        raise UserError(what, where="format torchscript", todo="take torch-export or onnx") from None
    return ["TorchScript is deprecated in torch: torch-export is its successor"]


def load_torchscript(file: Path) -> Network:
    """What the file gives for pixels, as a function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = torch.jit.load(str(file), map_location="cpu")
    return lambda images: tuple(module(images))
