"""How long do the run lengths of many small objects in a large image take, against runs over the whole image for each of them?

    python tests/benchmarks/predict_objects.py --side 2000 --objects 100

Needs no data: squares on a grid. The other way draws each object into an empty image of the whole size; both give the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from measuring import interleaved, parser, ratios, report

from guidino_tune.cli import positive
from guidino_tune.workflows.prediction_objects import Box, components, run_lengths


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; the exit code is 1 where the two ways differ."""
    options = arguments(argv)
    shape = (options.side, options.side)
    parts = components(squares(options.side, options.objects))

    def ours() -> list[list[int]]:
        return [run_lengths(box, part, shape) for box, part in parts]

    def whole() -> list[list[int]]:
        return [over_the_image(box, part, shape) for box, part in parts]

    equal = ours() == whole()
    found = ratios(*interleaved(ours, whole, options.rounds))
    what = f"run lengths of {len(parts)} objects in {shape[1]}x{shape[0]} pixels: each by its box / by the whole image"
    report("predict objects", what, found, note="the same numbers" if equal else "DIFFERENT NUMBERS", output=options.output)
    return 0 if equal else 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--side", type=positive, default=2000, help="of the image, in pixels; default: %(default)s")
    made.add_argument("--objects", type=positive, default=100, help="default: %(default)s")
    made.add_argument("--rounds", type=positive, default=3, help="default: %(default)s")
    return made.parse_args(argv)


def squares(side: int, number: int) -> np.ndarray:
    """A mask with so many squares of 9 pixels a side."""
    mask = np.zeros((side, side), bool)
    rows = int(np.ceil(np.sqrt(number)))
    step = side // rows
    for index in range(number):
        top, left = index // rows * step, index % rows * step
        mask[top : top + 9, left : left + 9] = True
    return mask


def over_the_image(box: Box, part: np.ndarray, shape: tuple[int, int]) -> list[int]:
    """Run lengths by the changes along all columns of the image."""
    image = np.zeros(shape, bool)
    image[box] = part
    line = np.concatenate([[False], image.ravel(order="F"), [not image[-1, -1]]])
    return [int(length) for length in np.diff(np.concatenate([[0], np.flatnonzero(line[1:] != line[:-1])]))]


if __name__ == "__main__":
    sys.exit(main())
