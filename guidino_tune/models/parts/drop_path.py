"""Stochastic depth (Huang et al., 2016). MONAI has it too, but importing MONAI's layers takes seconds that every command would pay."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, a sample's whole branch becomes zero with probability ``rate``.

    What is kept is divided by ``1 - rate``, so that the expectation stays.

    Args:
        rate: In [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; the first axis counts samples."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand([len(x)] + [1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept.to(x.dtype).div(1 - self.rate)
