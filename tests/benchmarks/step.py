"""A training step of ours beside that of a plain training script, of the same network on the same batch.

    python tests/benchmarks/step.py --threads 1,2 --sizes 128,256
    python tests/benchmarks/step.py --isa avx2

Ours is the step of a trial: bf16 where the processor computes in it, channels_last where it pays, the guide's tokens from the shared views,
memory that is kept. Plain is the script as one writes it down: float32, torch's memory format and own AdamW and clipping, cross-entropy and
Dice, the guide run without gradients at every step (``--tokens`` spares it that). Both start from the same weights and take their steps in
turns in one process. ``--isa avx2`` starts again as on a processor without AVX-512 and bf16.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import interleaved, parser, ratios, report
from torch import Tensor, nn

from guidino_tune.cli import positive
from guidino_tune.config import Experiment
from guidino_tune.data.batches import Batch
from guidino_tune.data.opening import open_for_search
from guidino_tune.losses import deep_supervision_weights
from guidino_tune.models import build_model
from guidino_tune.models.backbone import Features
from guidino_tune.models.precision import use_bf16
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.machine_memory import keep_freed_memory
from guidino_tune.training.reporter import Decision, EpochRecord

ISA = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
BATCH, WIDTH, WARMUP = 4, 384, 2
AIM = 0.6


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    options = arguments(argv)
    if options.isa and any(os.environ.get(name) != value for name, value in ISA.items()):
        # Both libraries read them when they are loaded.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ISA)
    for kind in options.segmenters.split(","):
        for size in map(int, options.sizes.split(",")):
            with tempfile.TemporaryDirectory() as scratch:
                compare(kind, size, Path(scratch), options)
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--segmenters", default="unet,nnwnet,segguidino", help="with commas; default: %(default)s")
    made.add_argument("--sizes", default="128", help="of the images in pixels, with commas; default: %(default)s")
    made.add_argument("--threads", default="1", help="of torch, with commas; default: %(default)s")
    made.add_argument("--steps", type=positive, default=5, help="of each way; default: %(default)s")
    made.add_argument("--isa", choices=["avx2"], help="of the processor, in place of all that it has; trials then compute in fp32")
    made.add_argument("--tokens", action="store_true", help="the plain script has the guide's tokens too")
    return made.parse_args(argv)


def experiment_of(kind: str, size: int, precision: str) -> Experiment:
    """The guided segmenter at its defaults, on generated images."""
    data = {"kind": "demo", "image_size": size, "augmentation": "none", "max_train_cases": BATCH, "max_validation_cases": 1}
    guide = {"kind": "dino", "backbone": "vits16", "weights": "random"}
    return Experiment.from_dict({"data": data, "guide": guide, "segmenter": {"kind": kind}, "training": {"precision": precision}})


class Quiet(TrialFolder):
    """Tells nobody."""

    def report(self, record: EpochRecord) -> Decision:
        """See ``Reporter.report``."""
        return Decision.CONTINUE


class Plain:
    """The training script as one writes it down."""

    def __init__(self, experiment: Experiment, batch: Batch, tokens: bool) -> None:
        self.model = build_model(experiment).train()
        self.images, self.masks = batch.images.float(), batch.masks.float()
        self.features = Features(batch.tokens[0].float()) if tokens else None
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=3e-5)
        self.trained = trained

    def step(self) -> None:
        """Forward, backward, clipping, optimiser."""
        prediction = self.model(self.images, self.features)
        weights = deep_supervision_weights(len(prediction.logits))
        loss: Tensor = sum(weight * self.loss(head) for weight, head in zip(weights, prediction.logits, strict=True))  # type: ignore[assignment]
        if prediction.guide is not None:
            target = F.adaptive_avg_pool2d(self.masks, prediction.guide.shape[-2:])
            loss = loss + 0.1 * F.binary_cross_entropy(prediction.guide, target)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 12.0)
        self.optimizer.step()

    def loss(self, logits: Tensor) -> Tensor:
        """Cross-entropy and Dice of one head."""
        masks = F.interpolate(self.masks, size=logits.shape[-2:], mode="nearest-exact")
        likely = logits.sigmoid()
        dice = 1 - (2 * (likely * masks).sum() + 1e-5) / (likely.sum() + masks.sum() + 1e-5)
        return F.binary_cross_entropy_with_logits(logits, masks) + dice


def as_glibc_does() -> None:
    """What glibc keeps by itself once large blocks have come and gone: blocks of up to 32 MiB."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        library.mallopt(-3, 32 << 20)
        library.mallopt(-1, 64 << 20)


def compare(kind: str, size: int, scratch: Path, options: argparse.Namespace) -> None:
    """Prints a line for each number of threads."""
    precision = "fp32" if options.isa else "auto"
    experiment = experiment_of(kind, size, precision)
    data = open_for_search(experiment.data, cache=scratch)
    run = TrainingRun(experiment, data, Quiet(scratch))
    run.module.train()
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.randn(BATCH, 3, size, size, generator=generator).half(),
        (torch.rand(BATCH, 1, size, size, generator=generator) > 0.7).to(torch.uint8),
        tuple(map(str, range(BATCH))),
        (torch.randn(BATCH, WIDTH, size // 16, size // 16, generator=generator).half(),),
    )
    plain = Plain(experiment, batch, options.tokens)
    bf16 = use_bf16(precision, run.device)

    cpu: list[float] = []

    def ours() -> None:
        keep_freed_memory()
        start = time.process_time()
        run.step(batch)
        cpu.append(time.process_time() - start)

    def other() -> None:
        as_glibc_does()
        start = time.process_time()
        plain.step()
        cpu.append(time.process_time() - start)

    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        cpu.clear()
        times = interleaved(ours, other, options.steps, warmup=WARMUP)
        spent = statistics.median(ratios(cpu[2 * WARMUP :: 2], cpu[2 * WARMUP + 1 :: 2]))
        way = "a plain script in fp32 that has the tokens" if options.tokens else "a plain script in fp32 that computes the tokens"
        computed = f"{'bf16' if bf16 else 'fp32'}{', AVX2 only' if options.isa else ''}"
        report(
            f"step {kind} {size} px {threads} threads {computed}{' tokens' if options.tokens else ''}",
            f"training step of {experiment.name} in a trial / {way}",
            ratios(*times),
            aim=None if kind == "segguidino" else AIM,
            output=options.output,
            note=f"CPU time {spent:.3g}; {statistics.median(times[0]) * 1e3:.0f} / {statistics.median(times[1]) * 1e3:.0f} ms",
        )
    run.close()


if __name__ == "__main__":
    sys.exit(main())
