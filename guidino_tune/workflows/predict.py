"""Masks and overlays for images without truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from guidino_tune.analysis.pictures import overlay, save_png
from guidino_tune.config import Protocol
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.data.decoding import read_image
from guidino_tune.data.predicted import MASKS, OVERLAYS
from guidino_tune.errors import UserError, about
from guidino_tune.framing import viewable
from guidino_tune.inference import predict_image
from guidino_tune.training.model_folder import best_device, find_rules, load_model
from guidino_tune.workflows.prediction_files import by_channels, check_output, find_images, mark_of, png


def predict_folder(
    model: Path,
    images: Path,
    output: Path,
    *,
    protocol: Protocol = DEFAULT_PROTOCOL,
    threshold: float = 0.5,
    overlays: bool = True,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> tuple[int, list[str], Protocol]:
    """Segments each image and writes its mask (the image's own size) and an overlay.

    A mask is 0 and 255, so that it can be looked at. For several classes it holds the labels 0 (background) to ``num_classes``, as the
    masks that the model was trained with: values that a reader does not have to guess.

    Args:
        model: Model or trial folder.
        images: A folder with its sub-folders, or one image.
        output: Gets ``masks`` and ``overlays``. What an earlier call wrote there is replaced, and nothing else.
        protocol: How to predict and to post-process.
        threshold: Of the probability; for binary masks only.
        overlays: Whether to draw them.
        progress: Told (done, in all).
        tell: Told what was passed over, what is named otherwise than its image, and what was replaced.

    Returns:
        How many masks were written, a message for each image that could not be read, and the protocol as it is for this model.

    Raises:
        UserError: No model, no images, a threshold that does not fit, a network that gives NaN for an image, or ``output`` holds what
            would be replaced and is not of ``predict``.
    """
    tell = tell or (lambda _: None)
    found = find_images(images, output)
    network, experiment = load_model(model, best_device())
    rules = find_rules(model, experiment.data)
    names, failed = by_channels(found.names, len(rules.intensity.depths))
    replaced = check_output(output, names.values(), overlays=overlays)
    used = protocol.of(experiment.data)
    if used != protocol:
        tell("the model was trained on patches: images are seen in windows at their own scale")
    for note in found.notes:
        tell(note)
    done = 0
    for number, (files, name) in enumerate(names.items()):
        if progress:
            progress(number, len(names))
        try:
            image = read_image(files, rules)
        except UserError as error:
            failed.append(f"{error.where or files[0]}: {error.what}")  # what to do about it in training does not help here
            continue
        with about(str(files[0])):
            result = predict_image(network, image, experiment.data, used, threshold=threshold)
        levels = Image.fromarray(result.mask * 255 if experiment.data.num_classes == 1 else result.mask)
        save_png(levels, output / MASKS / png(name), mark_of(levels))
        done += 1
        if overlays:
            picture = overlay(viewable(image), None, result.guide, result.mask, title=name.name, names=experiment.data.class_names)
            save_png(picture, output / OVERLAYS / png(name), mark_of(picture))
    if replaced:
        tell(f"{replaced} masks of an earlier run were replaced")
    return done, failed, used
