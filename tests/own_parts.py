"""What a user might bring along: networks, a loss term, a sampler and a pruner, by targets such as ``own_parts:TinyNet``."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TinyNet(nn.Module):
    """Two levels, two heads, gated where it says."""

    def __init__(self, in_channels: int, num_outputs: int, image_size: int, width: int = 4, deep: bool = True) -> None:
        super().__init__()
        self.deep = deep
        self.fine = nn.Conv2d(in_channels, width, 3, padding=1)
        self.coarse = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.heads = nn.ModuleList([nn.Conv2d(3 * width, num_outputs, 1), nn.Conv2d(2 * width, num_outputs, 1)])
        self.heads[1].requires_grad_(deep)

    def forward(self, images: Tensor, gate: Callable[[str, Tensor], Tensor]) -> list[Tensor]:
        fine = F.relu(self.fine(images))
        coarse = gate("bottleneck", F.relu(self.coarse(fine)))
        logits = self.heads[0](torch.cat([fine, F.interpolate(coarse, scale_factor=2)], dim=1))
        return [logits, self.heads[1](coarse)] if self.deep else [logits]


def plain(in_channels: int, num_outputs: int, image_size: int, width: int = 4) -> nn.Module:
    """Knows of no gate; its logits are half as fine as the image."""
    return nn.Sequential(nn.Conv2d(in_channels, width, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(width, num_outputs, 1))


def monai_unet(in_channels: int, num_outputs: int, image_size: int) -> nn.Module:
    """A network out of MONAI, behind the arguments that a target is called with."""
    from monai.networks.nets.unet import UNet

    return UNet(2, in_channels, num_outputs, channels=(4, 8, 8), strides=(2, 2), num_res_units=1)


class OtherNet(TinyNet):
    """Another one."""

    def forward(self, images: Tensor, gate: Callable[[str, Tensor], Tensor]) -> list[Tensor]:
        return [2 * head for head in super().forward(images, gate)]


def absolute_error(logits: Tensor, masks: Tensor, power: float = 1.0) -> Tensor:
    """Mean of ``|p - y| ** power``."""
    return ((logits.sigmoid() - masks).abs() ** power).mean()


class AbsoluteError:
    """The same as a class."""

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def __call__(self, logits: Tensor, masks: Tensor) -> Tensor:
        return absolute_error(logits, masks, self.power)


class OddPruner(optuna.pruners.BasePruner):
    """Stops every odd trial at a chosen epoch or later."""

    def __init__(self, epoch: int = 2) -> None:
        self.epoch = epoch

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number % 2 == 1 and (trial.last_step or 0) >= self.epoch
