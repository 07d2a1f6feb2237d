"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from guidino_tune.config import Training
from guidino_tune.models.lora import ADAPTER_KEY

OPTIMIZERS: dict[str, Callable[[list[dict], Training], torch.optim.Optimizer]] = {
    "adamw": lambda groups, t: torch.optim.AdamW(groups, weight_decay=t.weight_decay, fused=_can_fuse(groups)),
    "sgd": lambda groups, t: torch.optim.SGD(
        groups, momentum=t.momentum, nesterov=t.momentum > 0, weight_decay=t.weight_decay, fused=_can_fuse(groups)
    ),
}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "poly": lambda progress: (1 - progress) ** 0.9,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}
"""Factor of the learning rate at ``progress`` in [0, 1): finished epochs over the whole budget."""


def make_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], training: Training) -> torch.optim.Optimizer:
    """Groups of everything else at ``lr``, adapters at ``lora_lr``, and the backbone at ``backbone_lr``.

    Frozen parameters are left out. Weight decay and schedule are the same for all, and all layers of a backbone have the same rate, as in
    the code of MedDINOv3 and SegDINO.
    """
    rates = {"rest": training.lr, "lora": training.lora_lr, "backbone": training.backbone_lr}
    kinds: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
    for name, parameter in parameters:
        if parameter.requires_grad:
            kinds["lora" if ADAPTER_KEY in name else "backbone" if name.startswith("backbone.") else "rest"].append(parameter)
    groups = [{"params": kinds[kind], "lr": rate, "base_lr": rate} for kind, rate in rates.items() if kinds[kind]]
    return OPTIMIZERS[training.optimizer](groups, training)


def set_learning_rates(optimizer: torch.optim.Optimizer, training: Training, epoch: int) -> None:
    """Sets every group's rate for epoch ``epoch`` (from 0) of the full budget: no state, so a resumed run needs none."""
    factor = SCHEDULES[training.schedule](epoch / training.epochs) * min(1.0, (epoch + 1) / (training.warmup_epochs + 1))
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def _can_fuse(groups: list[dict]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.dtype == torch.float32 for group in groups for p in group["params"])
