"""Masks and overlays for images without truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

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
    threshold: float = 0.5,
    mirror: bool = False,
    keep_largest: bool = False,
    overlays: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, list[str]]:
    """Segments each image and writes its mask (0 and 255, the image's own size) and an overlay.

    Args:
        model: Model or trial folder.
        images: A folder, or one image.
        output: Gets ``masks`` and ``overlays``; files of the same name are replaced.
        threshold: Of the probability.
        mirror: Average over the four flips.
        keep_largest: Keep only the largest connected part of each mask.
        overlays: Whether to draw them.
        progress: Told (done, in all).

    Returns:
        How many masks were written, and a message for each image that could not be read.

    Raises:
        UserError: No model, or no images.
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
        result = predict_image(network, image, experiment.data.image_size, mirror=mirror, threshold=threshold, keep_largest=keep_largest)
        save_png(Image.fromarray(result.mask * 255), output / "masks" / f"{file.stem}.png")
        if overlays:
            save_png(overlay(image, None, result.guide, result.mask, title=file.stem), output / "overlays" / f"{file.stem}.png")
        if progress:
            progress(number, len(files))
    return len(files) - len(failed), failed
