"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from guidino_tune.config import Training

OPTIMIZERS: dict[str, Callable[[list[dict], Training], torch.optim.Optimizer]] = {
    "adamw": lambda groups, t: torch.optim.AdamW(groups, weight_decay=t.weight_decay, fused=_can_fuse(groups)),
    "sgd": lambda groups, t: torch.optim.SGD(
        groups, momentum=t.momentum, nesterov=t.momentum > 0, weight_decay=t.weight_decay, fused=_can_fuse(groups)
    ),
}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "poly": lambda progress: (1 - progress) ** 0.9,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}
"""Factor of the learning rate at ``progress`` in [0, 1): finished epochs over the whole budget."""


def make_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], training: Training) -> torch.optim.Optimizer:
    """Two groups: adapters (``lora_`` in the name) at ``lora_lr``, everything else at ``lr``; frozen parameters are left out."""
    rest: list[nn.Parameter] = []
    lora: list[nn.Parameter] = []
    for name, parameter in parameters:
        if parameter.requires_grad:
            (lora if "lora_" in name else rest).append(parameter)
    groups = [{"params": ps, "lr": lr, "base_lr": lr} for ps, lr in ((rest, training.lr), (lora, training.lora_lr)) if ps]
    return OPTIMIZERS[training.optimizer](groups, training)


def set_learning_rates(optimizer: torch.optim.Optimizer, training: Training, epoch: int) -> None:
    """Sets every group's rate for epoch ``epoch`` (from 0) of the full budget: no state, so a resumed run needs none."""
    factor = SCHEDULES[training.schedule](epoch / training.epochs)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def _can_fuse(groups: list[dict]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.dtype == torch.float32 for group in groups for p in group["params"])
