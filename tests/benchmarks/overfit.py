"""Can every segmenter learn a few real images by heart? One that cannot is wired wrongly, or starts from hopeless weights.

    python tests/benchmarks/overfit.py --data /data/kvasir --segmenters unet,ukan

Trains each at full size on eight images of Kvasir-SEG without augmentation, and prints a Markdown table as it goes. Exit code 0 when
every one reaches a mean Dice above 0.95 on them, 1 when one does not, 2 for a mistake in the arguments or the data.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from guidino_tune import config
from guidino_tune.cli import positive
from guidino_tune.config import Experiment
from guidino_tune.data.batches import Batch
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.views import validation_batches
from guidino_tune.errors import UserError, nearest
from guidino_tune.inference import to_labels
from guidino_tune.losses import SegmentationLoss
from guidino_tune.metrics import case_dice
from guidino_tune.models import GuidedSegmenter, build_model
from guidino_tune.training.optimisers import make_optimizer

NUM_IMAGES = 8
EVERY = 10  # steps from one check to the next
ENOUGH = 0.95  # mean Dice over the images

OPTIONS: dict[str, Any] = {type_().kind: type_ for type_ in get_args(get_args(config.Segmenter)[0]) if type_ is not config.Custom}
TINY = {"kind": "dino", "backbone": "tiny", "weights": "random"}
GUIDED = ("unet", "nnwnet", "segguidino")
"""Those that GuiDINO gates."""

LR = 1e-3
LRS = {"swinunet": 1e-4, "h2former": 3e-4, "meddino": 3e-3}
"""Learning rates of those that ``LR`` does not suit."""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, prints the table, and gives the exit code."""
    options = arguments(argv)
    kinds = options.segmenters.split(",") if options.segmenters else list(OPTIONS)
    try:
        for kind in kinds:
            if kind not in OPTIONS:
                raise UserError(f"unknown segmenter {kind!r}", where="--segmenters", todo=nearest(kind, OPTIONS))
        if not options.data:
            raise UserError("no images", where="--data", todo="name a folder of Kvasir-SEG, or set GUIDINO_TUNE_DATA")
        experiments = [one for kind in kinds for one in experiments_of(kind, options)]
        images = read_images(experiments[0])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"| system | trained parameters | steps to Dice > {ENOUGH} | best Dice |\n|---|---:|---:|---:|", flush=True)
    failed = False
    for experiment in experiments:
        model = build_model(experiment)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        steps, best = overfit(model, experiment, images, options.steps)
        failed |= steps is None
        print(f"| {experiment.name} | {parameters:,} | {steps or f'not in {options.steps}'} | {best:.4f} |", flush=True)
    return int(failed)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    root = os.environ.get("GUIDINO_TUNE_DATA")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=f"{root}/kvasir-352" if root else None, help="default: $GUIDINO_TUNE_DATA/kvasir-352")
    parser.add_argument("--segmenters", help="some of them, with commas; default: all")
    parser.add_argument("--image-size", type=positive, default=128, help="in pixels; default: %(default)s")
    parser.add_argument("--steps", type=positive, default=400, help="at most; default: %(default)s")
    parser.add_argument("--lr", type=float, help="learning rate of AdamW; default: one that suits the system")
    return parser.parse_args(argv)


def experiments_of(kind: str, options: argparse.Namespace) -> Iterator[Experiment]:
    """The plain system, or a head on features of a random backbone; then the guided one for those of GuiDINO."""
    plain = TINY | {"gate": "none"} if OPTIONS[kind].needs_features else {"kind": "none"}
    for guide in (plain, TINY) if kind in GUIDED else (plain,):
        data = {"kind": "kvasir", "root": options.data, "image_size": options.image_size, "augmentation": "none"}
        limits = {"max_train_cases": NUM_IMAGES, "max_validation_cases": 1}
        training = {"lr": options.lr or LRS.get(kind, LR), "batch_size": NUM_IMAGES}
        yield Experiment.from_dict({"data": data | limits, "guide": guide, "segmenter": {"kind": kind}, "training": training})


def read_images(experiment: Experiment) -> Batch:
    """All images in one batch, the same for every system."""
    with tempfile.TemporaryDirectory() as cache:
        table = open_for_search(experiment.data, cache=Path(cache)).train
        return next(validation_batches(table, experiment.data, NUM_IMAGES))


def overfit(model: GuidedSegmenter, experiment: Experiment, batch: Batch, most: int) -> tuple[int | None, float]:
    """Steps until the Dice is enough (``None``: never), and the best Dice; every step is on all images, in float32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    images, masks = batch.images.to(device), batch.masks.to(device)
    if experiment.training.channels_last:
        model.segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    loss = SegmentationLoss(experiment.loss)
    optimizer = make_optimizer(model.named_parameters(), experiment.training)
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(experiment.training.seed)  # of dropout
    best = 0.0
    for step in range(1, most + 1):
        prediction = model.train()(images)
        optimizer.zero_grad(set_to_none=True)
        loss(prediction.logits, prediction.guide, masks)["total"].backward()
        if experiment.training.grad_clip is not None:
            nn.utils.clip_grad_norm_(parameters, experiment.training.grad_clip)
        optimizer.step()
        if step % EVERY == 0:
            best = max(best, mean_dice(model.eval(), images, masks))
            if best > ENOUGH:
                return step, best
    return None, best


@torch.no_grad()
def mean_dice(model: GuidedSegmenter, images: Tensor, masks: Tensor) -> float:
    """Of the thresholded predictions; every image counts the same."""
    predictions, truths = to_labels(model(images).logits[0]).cpu().numpy(), masks[:, 0].bool().cpu().numpy()
    return sum(case_dice(p, t) for p, t in zip(predictions, truths, strict=True)) / len(truths)


if __name__ == "__main__":
    sys.exit(main())
