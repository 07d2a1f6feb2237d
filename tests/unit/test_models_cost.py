"""Counted cost against the arithmetic of the published layers."""

from __future__ import annotations

import pytest

from guidino_tune.config import Experiment
from guidino_tune.models.cost import forward_cost


def test_a_unet_costs_what_its_convolutions_cost() -> None:
    widths, expected, side, inputs = (32, 64, 128, 256, 512), 0, 256, 3
    for width in widths:
        expected += 2 * 9 * side**2 * (inputs * width + width * width)
        inputs, side = width, side // 2
    side *= 2  # of the deepest map
    for deep, fine in ((512, 256), (256, 128), (128, 64), (64, 32)):
        expected += 2 * deep * fine * 4 * side**2  # each input pixel of the transposed convolution gives four
        side *= 2
        expected += 2 * 9 * side**2 * (2 * fine * fine + fine * fine)
    expected += 2 * 32 * 256**2
    experiment = Experiment.from_dict({"data": {"kind": "demo"}, "guide": {"kind": "none"}, "segmenter": {"kind": "unet"}})
    assert forward_cost(experiment) == (expected, 7_763_041)


@pytest.mark.parametrize(("backbone", "parameters"), [("vits16", 21.6e6), ("vit7b16", 6716e6)])
def test_a_backbone_costs_at_least_its_weights_times_its_tokens(backbone: str, parameters: float) -> None:
    guide = {"kind": "dino", "backbone": backbone, "weights": "pretrained"}  # no weights are looked for
    experiment = Experiment.from_dict({"data": {"kind": "demo"}, "guide": guide, "segmenter": {"kind": "segguidino"}})
    flops, found = forward_cost(experiment)
    assert parameters < found < 1.1 * parameters
    assert 0.95 < flops / (2 * parameters * 261) < 1.35  # attention, TokenBook and head come on top


def test_larger_images_cost_more() -> None:
    costs = [
        forward_cost(Experiment.from_dict({"data": {"kind": "demo", "image_size": size}, "guide": {"kind": "dino", "backbone": "tiny"}}))[0]
        for size in (64, 128)
    ]
    assert 3.5 < costs[1] / costs[0] < 6
