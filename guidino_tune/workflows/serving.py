"""A registered model as MLflow loads it: ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` find ``_load_pyfunc`` here."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from guidino_tune.data.windowing import decode_image
from guidino_tune.errors import UserError
from guidino_tune.framing import Array
from guidino_tune.workflows.predict import TrainedModel, load_model

LOADER = __name__
"""What ``MLmodel`` names."""

OUTPUTS = ("mask", "png", "probabilities")

_SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
"""MLflow sets it in its server."""

_LONGEST = 4096
"""Characters of a path: a longer text is none."""


def _load_pyfunc(path: str) -> Segmenter:
    """Called by MLflow with the folder of the model's files."""
    return Segmenter(load_model(path))


class Segmenter:
    """What ``mlflow.pyfunc`` wraps.

    Args:
        model: Does the work.
    """

    def __init__(self, model: TrainedModel) -> None:
        self.model = model

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Segments one image, or each of several.

        Args:
            data: An array (H, W) or (H, W, C), a path, a Pillow image, or a file's bytes; (N, H, W, C), a list or a table with a column
                ``image`` are several. In a request an image is the text of its file in base64, or nested lists of numbers; a server
                opens no path.
            params: ``threshold`` of a binary mask, and ``output``: ``mask`` (H, W) of labels, ``png`` (the mask as such a file in base64,
                0 and 255 or labels), or ``probabilities`` (C, H, W), background first.

        Returns:
            Of one image an array (a text of ``png``), of several a list of them.

        Raises:
            UserError: It is no image of the kind that the model was trained on, or a parameter has no such value.
        """
        wanted = dict(params or {})
        output, threshold = str(wanted.get("output", "mask")), float(wanted.get("threshold", 0.5))
        if output not in OUTPUTS:
            raise UserError(f"no output {output!r}", where="params", todo=f"choose one of {', '.join(OUTPUTS)}")
        images, several = _images(data)
        found = [self._one(image, output, threshold) for image in images]
        return found if several else found[0]

    def _one(self, image: Any, output: str, threshold: float) -> Any:
        pixels = self._pixels(image)
        if output == "probabilities":
            return self.model.segment(pixels).probabilities
        mask = self.model.segment(pixels, threshold).mask
        return mask if output == "mask" else _png(mask * np.uint8(255) if len(self.model.class_names) == 2 else mask)

    def _pixels(self, image: Any) -> Array:
        if isinstance(image, bytes):
            return self._decoded(image)
        if isinstance(image, list):
            return self.model.decode(self._array(image))
        if not isinstance(image, str):
            return self.model.decode(image)
        served = os.environ.get(_SERVING, "").lower() == "true"
        try:
            return self._decoded(base64.b64decode(image.rpartition("base64,")[2], validate=True))
        except UserError:
            if served or len(image) > _LONGEST:
                raise
        except ValueError:
            if served:
                todo = "send the image file's bytes in base64; a server opens no path"
                raise UserError("is no image in base64", where=f"inputs: {image[:40]!r}", todo=todo) from None
        return self.model.decode(Path(image))

    def _decoded(self, content: bytes) -> Array:
        """A file's bytes, as the training decoded files: the same formats, bits and transparency."""
        rules = self.model.rules
        try:
            return decode_image([Path("bytes")], rules.intensity, rules.channels, [content])
        except UserError as error:
            todo = f"give the bytes of an image file like those of the training ({rules.intensity.form})"
            raise UserError(error.what, where="bytes", todo=todo) from None

    def _array(self, rows: list[Any]) -> np.ndarray:
        """Nested lists as the kind of numbers that the training images had."""
        try:
            array = np.asarray(rows)
            if array.dtype.kind not in "iuf" or array.ndim not in (2, 3):
                raise ValueError
        except ValueError:
            raise UserError("is no array (H, W) or (H, W, C) of numbers", where="inputs", todo="send a list of images") from None
        kind: Literal["u1", "u2", "f4"] = "f4"
        if array.dtype.kind != "f" and array.min() >= 0:
            eight = self.model.rules.intensity.kind == "8-bit"
            kind = "u1" if eight and array.max() <= 255 else "u2" if array.max() <= 65535 else "f4"
        return array.astype(kind)


def _images(data: Any) -> tuple[list[Any], bool]:
    """The images in whatever was given, and whether these are several."""
    if isinstance(data, pd.DataFrame):
        if data.empty:
            return [], True
        return list(data["image"] if "image" in data else data.iloc[:, 0]), True
    if isinstance(data, Mapping):
        return (list(value), True) if isinstance(value := data.get("image"), list | tuple) else ([value], False)
    if isinstance(data, np.ndarray) and (data.ndim == 4 or data.dtype == object or data.dtype.kind in "US"):
        return list(data.ravel() if data.ndim != 4 else data), True
    return (list(data), True) if isinstance(data, list | tuple) else ([data], False)


def _png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def example_image(channels: int, deep: bool) -> list[Any]:
    """A small picture as a request holds it: 32 rows of 32 pixels."""
    ramp = np.linspace(0, 65535 if deep else 255, 32).astype(int)
    image = np.broadcast_to(ramp[:, None, None], (32, 32, channels))
    return list(image.tolist())
