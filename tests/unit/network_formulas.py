"""What the tests of networks share: weights that hide no mistake, and layers written out again with functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def scramble(model: Any, std: float | Callable[[Tensor], float] = 0.3) -> Any:
    """Every weight and statistic random, so that no initial zero or one hides a mistake; eval mode. ``std`` may depend on the weight."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 2)
            elif value.is_floating_point():
                value.normal_(std=std(value) if callable(std) else std)
    return model.eval()


def norm(x: Tensor, batch_norm: Any) -> Tensor:
    """Batch norm by its stored statistics."""
    shape = (1, -1, 1, 1)
    scale = batch_norm.weight / torch.sqrt(batch_norm.running_var + 1e-5)
    y: Tensor = (x - batch_norm.running_mean.view(shape)) * scale.view(shape) + batch_norm.bias.view(shape)
    return y
