"""How long does a view take to make?

    python tests/benchmarks/view_making.py --data /data/kvasir

Ours augments some images at once, in plain torch; the other applies MONAI's transforms to one channel after the other, as this project did
before, from the same draws. Both read the same decoded images of 256 x 256, normalise them and store float16, on one thread. The second
line has two processes of ours, which two cores can run side by side.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import interleaved, kvasir_root, parser, ratios, report

sys.path.insert(0, str(Path(__file__).parents[1]))

from monai_views import monai_view

from guidino_tune.cli import positive
from guidino_tune.config.data import Data
from guidino_tune.data.augmentation import draw
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.views import TrainViews, view_seed
from guidino_tune.normalisation import normalise

SIZE = 256
AIM_CPU, AIM_PROCESSES = 0.4, 0.55
PATIENCE = 600  # seconds


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
    return 0


if __name__ == "__main__":
    sys.exit(main())
