"""Masks and overlays for images without truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from guidino_tune.config import Protocol
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.data.decoding import read_image
from guidino_tune.errors import UserError
from guidino_tune.inference import predict_image
from guidino_tune.tracking.pictures import overlay, save_png
from guidino_tune.training.model_folder import best_device, load_model

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def predict_folder(
    model: Path,
    images: Path,
    output: Path,
    *,
    protocol: Protocol = DEFAULT_PROTOCOL,
    threshold: float = 0.5,
    overlays: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, list[str]]:
    """Segments each image and writes its mask (the image's own size) and an overlay.

    A mask is 0 and 255, so that it can be looked at. For several classes it holds the labels 0 (background) to ``num_classes``, as the
    masks that the model was trained with: values that a reader does not have to guess.

    Args:
        model: Model or trial folder.
        images: A folder, or one image.
        output: Gets ``masks`` and ``overlays``; files of the same name are replaced.
        protocol: How to predict and to post-process.
        threshold: Of the probability; for binary masks only.
        overlays: Whether to draw them.
        progress: Told (done, in all).

    Returns:
        How many masks were written, and a message for each image that could not be read.

    Raises:
        UserError: No model, no images, or a threshold that does not fit.
    """
    files = [images] if images.is_file() else sorted(p for p in images.glob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"no images ({', '.join(sorted(SUFFIXES))})", where=str(images), todo="name a folder that holds images")
    names = [p.stem for p in files]
    if len(set(names)) < len(names):
        double = next(n for n in names if names.count(n) > 1)
        raise UserError(f"two images are called {double!r}: their masks would overwrite each other", where=str(images), todo="rename one")
    network, experiment = load_model(model, best_device())
    failed: list[str] = []
    for number, file in enumerate(files, 1):
        try:
            image = read_image(file)
        except UserError as error:
            failed.append(str(error))
            continue
        result = predict_image(network, image, experiment.data, protocol, threshold=threshold)
        levels = result.mask * 255 if experiment.data.num_classes == 1 else result.mask
        save_png(Image.fromarray(levels), output / "masks" / f"{file.stem}.png")
        if overlays:
            picture = overlay(image, None, result.guide, result.mask, title=file.stem, num_classes=experiment.data.num_classes)
            save_png(picture, output / "overlays" / f"{file.stem}.png")
        if progress:
            progress(number, len(files))
    return len(files) - len(failed), failed
