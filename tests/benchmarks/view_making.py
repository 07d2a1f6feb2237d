"""How long does a view take to make?

    python tests/benchmarks/view_making.py --data /data/kvasir

Ours augments some images at once, in plain torch; the other applies MONAI's transforms to one channel after the other, as this project did
before, from the same draws. Both read the same decoded images of 256 x 256, normalise them and store float16, on one thread. The second
line has two processes of ours, which two cores can run side by side.

The other lines are of a trial that trains a small U-Net on one thread meanwhile: how long until the views of the next passes are there,
made by two makers (``resources.view_makers``) or by the trial's own thread, and how long its steps take then, next to steps beside which
nothing is made. Where there are fewer than three cores, training and makers share them.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import interleaved, kvasir_root, parser, ratios, report, seconds_of

sys.path.insert(0, str(Path(__file__).parents[1]))

from monai_views import monai_view

from guidino_tune import config as sections
from guidino_tune.cli import positive
from guidino_tune.config.data import Data
from guidino_tune.data.augmentation import draw
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.shared_views import CHUNK
from guidino_tune.data.store import ChunkStore
from guidino_tune.data.table import CaseTable
from guidino_tune.data.views import TrainViews, view_seed
from guidino_tune.models.gate import Gate
from guidino_tune.models.segmenters.unet import UNet
from guidino_tune.normalisation import normalise

SIZE = 256
AIM_CPU, AIM_PROCESSES = 0.4, 0.55
PATIENCE = 600  # seconds
PASSES = 2
"""That a trial asks for at once."""


class Training:
    """Steps of a trial, and what makes views beside them.

    Args:
        table: Training cases.
        data: Of them.
        folder: For stores; each measurement has an empty one.
    """

    def __init__(self, table: CaseTable, data: Data, folder: Path) -> None:
        self.table, self.data, self.folder = table, data, folder
        self.network = UNet(sections.UNet(base_width=8), image_size=SIZE)
        self.images = torch.randn(4, 3, SIZE, SIZE)

    def step(self) -> None:
        """Forward and backward."""
        self.network(self.images, Gate())[0].mean().backward()

    def beside(self, makers: int, passes: int) -> tuple[float, float]:
        """Seconds until the views of some passes are there while it trains, and the median seconds of a step meanwhile."""
        store = ChunkStore(self.folder / uuid.uuid4().hex, 10**11, makers=makers)
        views = TrainViews(self.table, self.data, 0, 4, store=store, num_epochs=passes)
        if makers:
            self._warm(store)
        batches = views.epoch(0)  # asks for this pass and the next one
        next(batches)
        steps, begun = [], time.perf_counter()
        while self._missing(views, passes) and time.perf_counter() - begun < PATIENCE:
            steps.append(seconds_of(self.step))
        seconds = time.perf_counter() - begun
        batches.close()
        views.close()
        return seconds, statistics.median(steps)

    def _warm(self, store: ChunkStore) -> None:
        """Makers start in some seconds, once for all trials that follow."""
        other = TrainViews(self.table, self.data, 1, 4, store=store, num_epochs=1)
        other.epoch(0).close()
        while self._missing(other, 1):
            time.sleep(0.1)
        other.close()

    def _missing(self, views: TrainViews, passes: int) -> bool:
        shared = views._shared
        assert shared is not None
        chunks = -(-len(self.table) // CHUNK)
        return not all(len(shared.store.names(f"{shared._views}/{number:05d}")) >= chunks for number in range(passes))


class Maker:
    """Makes the views of a pass over some cases, in both ways."""

    def __init__(self, root: str, images: int, cache: Path) -> None:
        torch.set_num_threads(1)
        self.data = Data(kind="kvasir", root=root, image_size=SIZE, max_train_cases=images)
        self.table = open_for_search(self.data, cache=cache).train
        self.made = TrainViews(self.table, self.data, 0, 4)

    def ours(self, number: int, ids: tuple[str, ...]) -> None:
        """At once."""
        self.made.views(number, ids)

    def monais(self, number: int, ids: tuple[str, ...]) -> None:
        """One after the other."""
        for name in ids:
            row = self.table.positions[name]
            image = normalise(self.table.image(row), self.data.normalisation)
            mask = torch.tensor(self.table.mask(row), dtype=torch.float32)[None]
            plan = draw(np.random.default_rng(view_seed(0, number, name)), image.shape)
            view, shape = monai_view(image, mask, plan)
            view.half(), shape.to(torch.uint8)


def half(number: int, root: str, images: int, cache: Path, passes: int, barrier: Barrier) -> None:
    """One of two processes: every second case, pass after pass, each as soon as it is told."""
    maker = Maker(root, images, cache)
    ids = maker.table.ids[number::2]
    maker.ours(0, ids)
    for index in range(passes):
        barrier.wait(PATIENCE)
        maker.ours(index, ids)
        barrier.wait(PATIENCE)


def cpu_seconds(call: Callable[..., object], *arguments: object) -> float:
    """Of this process."""
    begun = time.process_time()
    call(*arguments)
    return time.process_time() - begun


def main(argv: Any = None) -> int:
    """Measures, and gives the exit code."""
    made = parser(__doc__)
    made.add_argument("--images", type=positive, default=32, help="of a pass; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=7, help="passes of each; default: %(default)s")
    options = made.parse_args(argv)
    root = kvasir_root(options)
    with tempfile.TemporaryDirectory() as scratch:
        maker = Maker(root, options.images, Path(scratch))
        ids = maker.table.ids
        maker.ours(0, ids)
        maker.monais(0, ids)
        cpu = [(cpu_seconds(maker.ours, number, ids), cpu_seconds(maker.monais, number, ids)) for number in range(options.rounds)]
        each = statistics.median(ours for ours, _ in cpu) / len(ids)
        note = f"{each * 1e3:.1f} ms each here"
        compared = "CPU time of a view, batched / MONAI's transforms one by one, 256 px"
        report("view_making.cpu", compared, [a / b for a, b in cpu], output=options.output, aim=AIM_CPU, note=note)

        context = get_context("spawn")
        barrier = context.Barrier(3)
        arguments = (root, options.images, Path(scratch), options.rounds + 1, barrier)
        processes = [context.Process(target=half, args=(number, *arguments), daemon=True) for number in range(2)]
        for process in processes:
            process.start()

        def both() -> None:
            barrier.wait(PATIENCE)
            barrier.wait(PATIENCE)

        ours, other = interleaved(both, lambda: maker.monais(1, ids), options.rounds)
        for process in processes:
            process.join(PATIENCE)
        compared = "time of a pass, two processes / MONAI's transforms in one thread, 256 px"
        report("view_making.processes", compared, ratios(ours, other), output=options.output, aim=AIM_PROCESSES)
        beside_training(root, options, Path(scratch))
    return 0


def beside_training(root: str, options: Any, scratch: Path) -> None:
    """Makers against the thread of a trial."""
    torch.set_num_threads(1)
    data = Data(kind="kvasir", root=root, image_size=SIZE, max_train_cases=4 * options.images)
    training = Training(open_for_search(data, cache=scratch).train, data, scratch)
    training.step()
    rounds: list[tuple[tuple[float, float], tuple[float, float], float]] = []
    for _ in range(options.rounds):
        alone = statistics.median(seconds_of(training.step) for _ in range(10))
        rounds.append((training.beside(2, PASSES), training.beside(0, PASSES), alone))
    made = f"{PASSES} passes of {4 * options.images} views beside training"
    report(
        "view_making.makers", f"time of {made}, two makers / a thread of the trial", output=options.output,
        found=[makers[0] / thread[0] for makers, thread, _ in rounds], note=f"{os.cpu_count()} cores",
    )  # fmt: skip
    steps = {"makers": [one[0][1] / one[2] for one in rounds], "thread": [one[1][1] / one[2] for one in rounds]}
    for name, found in steps.items():
        words = "two makers at work" if name == "makers" else "a thread of the trial at work"
        report(
            f"view_making.steps.{name}", f"time of a training step, {words} / nothing made", output=options.output,
            found=found,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
