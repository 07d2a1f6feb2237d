"""How long does the full protocol take against the plain way of published code, and is the answer the same?

    python tests/benchmarks/inference.py --data /data/kvasir --images 2

Ours is what ``evaluate --inference sliding --mirror`` does with a trained model. The plain way is a loop over windows and flips, one
forward pass each, in fp32 and the default memory format. Both take the same windows (overlap 0.5, four flips, Gaussian weights) of the same
images with the same network, which has learned from a few images first: of an untrained one all masks are noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from measuring import interleaved, kvasir_root, parser, ratios, report
from precision import BEST, DEVICE, Trainer, experiment_of, read_batches
from torch import Tensor

from guidino_tune.cli import positive
from guidino_tune.config import Experiment, Protocol
from guidino_tune.data.decoding import read_image
from guidino_tune.data.rules import plain_rules
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError
from guidino_tune.inference import predict_image
from guidino_tune.metrics import case_dice
from guidino_tune.models import GuidedSegmenter
from guidino_tune.normalisation import normalise
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.model_folder import EXPERIMENT, load_single

PROTOCOL = Protocol(inference="sliding", mirror=True)
AIM = 0.6
FLIPS: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))
LEARNING_SIZE = 128  # pixels: enough for the few steps before


def main(argv: Sequence[str] | None = None) -> int:
    """Measures each system and prints its line; the exit code is 1 for a missed aim, 2 for a mistake in the arguments or the data."""
    options = arguments(argv)
    try:
        missed = [kind for kind in options.segmenters.split(",") if not measure(kind, options)]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return int(bool(missed))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--segmenters", default="unet,segguidino", help="guided ones, with commas; default: %(default)s")
    made.add_argument("--image-size", type=positive, default=256, help="of a window, in pixels; default: %(default)s")
    made.add_argument("--images", type=positive, default=1, help="default: %(default)s")
    made.add_argument("--rounds", type=positive, default=2, help="over all images; default: %(default)s")
    made.add_argument("--steps", type=positive, default=10, help="of training before; default: %(default)s")
    made.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of our way; default: %(default)s")
    made.add_argument("--backbone", default="vits16", help="of the guide, with random weights; default: %(default)s")
    options = made.parse_args(argv)
    options.data = kvasir_root(options)
    return options


def measure(kind: str, options: argparse.Namespace) -> bool:
    """Prints the line of one system, and says whether the aim is met."""
    experiment = experiment_of(kind, options)
    training = dataclasses.replace(experiment.training, lr=1e-3, precision=options.precision)
    experiment = dataclasses.replace(experiment, training=training)
    ours, plain = trained(experiment, options.steps)
    images = [read_image(case.images, plain_rules(experiment.data)) for case in find_cases(experiment.data).cases[: options.images]]

    def run_ours() -> list[np.ndarray]:
        return [predict_image(ours, image, experiment.data, PROTOCOL).probability for image in images]

    def run_plain() -> list[np.ndarray]:
        return [plain_probability(plain, image, options.image_size) for image in images]

    found = ratios(*interleaved(run_ours, run_plain, options.rounds))
    results = list(zip(run_ours(), run_plain(), strict=True))
    largest = max(float(np.abs(a - b).max()) for a, b in results)
    dice = min(case_dice(a > 0.5, b > 0.5) for a, b in results)
    area = float(np.mean([b > 0.5 for _, b in results]))
    protocol = f"{experiment.name}, {PROTOCOL.describe(scores=False)}, windows of {options.image_size}"
    return report(
        f"inference {kind} {options.precision}", f"{protocol}: ours ({options.precision}) / plain loop (fp32)", found,
        note=f"probabilities differ by {largest:.2g} at most, Dice between the masks {dice:.4f} (foreground {area:.0%})",
        aim=AIM, output=options.output,
    )  # fmt: skip


def trained(experiment: Experiment, steps: int) -> tuple[GuidedSegmenter, GuidedSegmenter]:
    """The same trained network twice: as ``evaluate`` loads it from its folder, and in fp32 and the default memory format."""
    small = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, image_size=LEARNING_SIZE))
    trainer = Trainer(experiment, read_batches(small), bf16=BEST[0], channels_last=BEST[1])
    for _ in range(steps):
        trainer.step()
    with tempfile.TemporaryDirectory() as folder:
        save_weights(Path(folder) / WEIGHTS, trainer.model.trained_state())
        (Path(folder) / EXPERIMENT).write_text(experiment.to_yaml(), encoding="utf-8")
        ours, _ = load_single(Path(folder), DEVICE.type)
    trainer.model.segmenter.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return ours, trainer.model.eval()


@torch.no_grad()
def plain_probability(model: GuidedSegmenter, image: np.ndarray, window: int) -> np.ndarray:
    """Probabilities (H, W) of an image that is no smaller than the window: one window and one flip after the other."""
    pixels = normalise(image, "imagenet")[None]
    height, width = pixels.shape[-2:]
    weight = gaussian(window)
    total, weights = torch.zeros(1, 1, height, width), torch.zeros(height, width)
    for top, left in product(starts(height, window), starts(width, window)):
        place = (..., slice(top, top + window), slice(left, left + window))
        part = pixels[place].to(DEVICE)
        logits = sum(model(part.flip(axes)).logits[0].flip(axes) for axes in FLIPS) / len(FLIPS)
        total[place] += weight * logits.cpu()
        weights[place] += weight
    probability: np.ndarray = (total / weights).sigmoid()[0, 0].numpy()
    return probability


def starts(length: int, window: int) -> list[int]:
    """Of windows that overlap by half, the last one at the end."""
    step = window // 2
    return sorted({min(start, length - window) for start in range(0, length - window + step, step)})


def gaussian(window: int) -> Tensor:
    """Weights (S, S): 1 at the centre, sigma S / 8."""
    distance = torch.arange(window) - (window - 1) / 2
    return torch.exp(-(distance[:, None] ** 2 + distance**2) / (2 * (window / 8) ** 2))


if __name__ == "__main__":
    sys.exit(main())
