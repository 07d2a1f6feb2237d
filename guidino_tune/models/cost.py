"""What a network costs, counted instead of timed: the same on every machine."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.config.sections import Loss, Training
from guidino_tune.models import build_model


def forward_cost(experiment: Experiment) -> tuple[int, int]:
    """Floating point operations of one forward pass of one image (2 per multiplication and addition), and parameters, backbone included.

    Only matrix products, convolutions and attention are counted; the rest is small beside them. The network is built on the meta device:
    no weights are read, and even a backbone of 7 billion parameters takes no memory.
    """
    if isinstance(experiment.guide, DINOGuide):
        experiment = dataclasses.replace(experiment, guide=dataclasses.replace(experiment.guide, weights="random", sha256=None))
    size = experiment.data.image_size
    with torch.device("meta"), torch.no_grad():
        model = build_model(experiment).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, experiment.data.channels, size, size))
    return counter.get_total_flops(), sum(p.numel() for p in model.parameters())


def network_cost(experiment: Experiment) -> dict[str, float]:
    """``parameters`` and ``operations`` of an experiment's network, as objectives and constraints know them; see ``forward_cost``."""
    # How a network is trained does not change it: most trials of a study differ in nothing else.
    return dict(_once(dataclasses.replace(experiment, loss=Loss(), training=Training())))


@lru_cache(maxsize=256)
def _once(experiment: Experiment) -> dict[str, float]:
    operations, parameters = forward_cost(experiment)
    return {"parameters": parameters, "operations": operations}
