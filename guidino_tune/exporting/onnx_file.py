"""ONNX, by torch's exporter, and run by onnxruntime: both are the extra ``export``."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidino_tune.errors import UserError
from guidino_tune.exporting.graph import INPUT, Graph

ONNX = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_installed() -> None:
    """Raises where the extra is missing, before anything is computed.

    Raises:
        UserError: Names the packages and the way to install them.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            where="format onnx",
            todo="install the extra: pip install 'guidino-tune[export]'; or take another format, such as torch-export",
        )


def write_onnx(graph: Graph, folder: Path) -> list[str]:
    """Writes ``model.onnx`` (from 2 GB on with its weights in a file beside it).

    Returns:
        Its opset.

    Raises:
        UserError: torch knows no ONNX operator for something in the network.
    """
    assert graph.program is not None
    try:
        with _silent():
            program: Any = torch.onnx.export(
                graph.program, dynamo=True, input_names=[INPUT], output_names=list(graph.outputs), verbose=False
            )
            program.save(folder / ONNX)
    except Exception as error:  # the exporter's own, and those of onnxscript below it
        what = f"this network cannot be written as ONNX: {str(error).strip().partition(chr(10))[0]}"
        raise UserError(what, where="format onnx", todo="take torch-export") from None
    return [f"opset {program.model.opset_imports['']}"]


def load_onnx(file: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """What the file gives for pixels, as a function, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(found) for found in session.run(None, {INPUT: images.numpy()})]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the exporter's progress and its remarks on names of axes."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
