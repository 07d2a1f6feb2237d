"""In which precision and memory format does each segmenter train fastest, and does bf16 learn as well?

    python tests/benchmarks/precision.py --data /data/kvasir --segmenters unet,nnwnet --all

Each is guided by a random backbone, gated where it is by default, and trained on a few real images without augmentation; two ways start
from the same weights and take their steps in turns on the same batches. The ratio is the time of a training step; the note tells how far
the mean losses of the last ten steps are apart. ``--all`` adds fp32 with channels_last and bf16 without; ``--compile`` adds
``torch.compile`` of the segmenter, with CUDA graphs too on a GPU. One line at the end names the fastest way of each segmenter.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from measuring import interleaved, kvasir_root, parser, ratios, report, seconds_of
from torch import nn

from guidino_tune import config
from guidino_tune.cli import positive
from guidino_tune.config import Experiment
from guidino_tune.data.batches import Batch
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.views import validation_batches
from guidino_tune.errors import UserError, nearest
from guidino_tune.losses import SegmentationLoss
from guidino_tune.models import build_model
from guidino_tune.training.optimisers import make_optimizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KINDS = [type_().kind for type_ in get_args(get_args(config.Segmenter)[0]) if type_ is not config.Custom]
BATCH = 4
NUM_BATCHES = 4
LAST = 10  # steps whose mean loss is compared

PLAIN = (False, False)
BEST = (True, True)
WAYS = {"bf16, channels_last": BEST, "fp32, channels_last": (False, True), "bf16": (True, False)}
"""Compared with fp32 in the default memory format: whether bf16, whether channels_last."""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and prints; the exit code is 2 for a mistake in the arguments or the data."""
    options = arguments(argv)
    kinds = options.segmenters.split(",")
    compiled = options.compile.split(",") if options.compile else []
    try:
        for kind in (*kinds, *compiled):
            if kind not in KINDS:
                raise UserError(f"unknown segmenter {kind!r}", where="--segmenters", todo=nearest(kind, KINDS))
        batches = read_batches(experiment_of(kinds[0], options))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    fastest = {}
    for kind in kinds:
        medians = {"fp32": 1.0}
        for way, (bf16, channels_last) in WAYS.items():
            if options.all or (bf16, channels_last) == BEST or (way == "fp32, channels_last" and kind in compiled):
                medians[way] = compare(kind, way, bf16, channels_last, batches, options)
        fastest[kind] = min(medians, key=lambda way: medians[way])
    for kind in compiled:
        for mode in (None, "reduce-overhead") if DEVICE.type == "cuda" else (None,):
            compare_compiled(kind, mode, batches, options)
    if options.all:
        print("fastest: " + "; ".join(f"{kind} {way}" for kind, way in fastest.items()))
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--segmenters", default=",".join(KINDS), help="some of them, with commas; default: all")
    made.add_argument("--image-size", type=positive, default=128, help="in pixels; default: %(default)s")
    made.add_argument("--steps", type=positive, default=4, help="of each way; default: %(default)s")
    made.add_argument("--backbone", default="vits16", help="of the guide, with random weights; default: %(default)s")
    made.add_argument("--all", action="store_true", help="all four combinations of precision and memory format")
    made.add_argument("--compile", metavar="SEGMENTERS", help="those to measure with torch.compile too, which takes minutes each")
    options = made.parse_args(argv)
    options.data = kvasir_root(options)
    return options


def experiment_of(kind: str, options: argparse.Namespace) -> Experiment:
    """The guided segmenter at its defaults."""
    data = {"kind": "kvasir", "root": options.data, "image_size": options.image_size, "augmentation": "none"}
    limits = {"max_train_cases": BATCH * NUM_BATCHES, "max_validation_cases": 1}
    guide = {"kind": "dino", "backbone": options.backbone, "weights": "random"}
    return Experiment.from_dict({"data": data | limits, "guide": guide, "segmenter": {"kind": kind}})


def read_batches(experiment: Experiment) -> list[Batch]:
    """The same for all."""
    with tempfile.TemporaryDirectory() as cache:
        return list(validation_batches(open_for_search(experiment.data, cache=Path(cache)).train, experiment.data, BATCH))


class Trainer:
    """One experiment, trained step by step over the same batches again and again.

    Args:
        experiment: What to train; its own ``precision`` and ``channels_last`` have no part in it.
        batches: On the CPU.
        bf16: Autocast.
        channels_last: Memory format of the segmenter.
    """

    def __init__(self, experiment: Experiment, batches: Sequence[Batch], *, bf16: bool, channels_last: bool) -> None:
        self.model = build_model(experiment).to(DEVICE).train()
        self.autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16)
        layout: Any = torch.channels_last if channels_last else torch.contiguous_format
        self.model.segmenter.to(memory_format=layout)  # type: ignore[call-overload]
        self.batches = [(b.images.to(DEVICE).contiguous(memory_format=layout), b.masks.to(DEVICE)) for b in batches]
        self.loss = SegmentationLoss(experiment.loss).to(DEVICE)
        self.optimizer = make_optimizer(self.model.named_parameters(), experiment.training)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.losses: list[torch.Tensor] = []

    def step(self) -> None:
        """Forward, backward and the optimiser's step, as in a trial."""
        torch.manual_seed(len(self.losses))  # of dropout, the same in every way
        images, masks = self.batches[len(self.losses) % len(self.batches)]
        with self.autocast:
            prediction = self.model(images)
        total = self.loss(prediction.logits, prediction.guide, masks)["total"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.parameters, 12.0)
        self.optimizer.step()
        self.losses.append(total.detach())

    @property
    def mean_loss(self) -> float:
        """Of the last steps."""
        return torch.stack(self.losses[-LAST:]).mean().item()


def compare(kind: str, way: str, bf16: bool, channels_last: bool, batches: Sequence[Batch], options: argparse.Namespace) -> float:
    """Prints the line of one way against fp32 in the default format; gives the median ratio."""
    experiment = experiment_of(kind, options)
    ours = Trainer(experiment, batches, bf16=bf16, channels_last=channels_last)
    plain = Trainer(experiment, batches, bf16=False, channels_last=False)
    found = ratios(*interleaved(ours.step, plain.step, options.steps, warmup=2))
    apart = (ours.mean_loss - plain.mean_loss) / abs(plain.mean_loss)
    note = f"loss after {len(ours.losses)} steps {ours.mean_loss:.4f}, {apart:+.2%}"
    report(f"precision {kind} {way}", f"training step of {experiment.name}: {way} / fp32", found, output=options.output, note=note)
    del ours, plain
    gc.collect()
    return statistics.median(found)


def compare_compiled(kind: str, mode: str | None, batches: Sequence[Batch], options: argparse.Namespace) -> None:
    """Prints the line of the compiled segmenter against the same without, both in bf16 and channels_last."""
    experiment = experiment_of(kind, options)
    ours, plain = (Trainer(experiment, batches, bf16=True, channels_last=True) for _ in range(2))
    torch._dynamo.reset()
    ours.model.segmenter.compile(mode=mode)
    seconds = seconds_of(ours.step)
    plain.step()
    times = interleaved(ours.step, plain.step, options.steps, warmup=2)
    found = ratios(*times)
    saved = statistics.median(times[1]) - statistics.median(times[0])
    pays = f"pays after {seconds / saved:.0f} steps" if saved > 0 else "never pays"
    name = f"compile {kind}" + (f" {mode}" if mode else "")
    note = f"the first step took {seconds:.0f} s: {pays}; loss {(ours.mean_loss - plain.mean_loss) / abs(plain.mean_loss):+.2%}"
    report(
        name, f"training step of {experiment.name}: torch.compile ({mode or 'default'}) / eager", found, output=options.output, note=note
    )


if __name__ == "__main__":
    sys.exit(main())
