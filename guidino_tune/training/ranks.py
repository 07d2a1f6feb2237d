"""What the workers of one training (DDP) agree on; alone each call gives back what it was given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Ranks:
    """The workers of a training. All of them must make the same calls in the same order.

    Args:
        world_size: How many; more than one talk over ``torch.distributed``.
    """

    def __init__(self, world_size: int = 1) -> None:
        self.world_size = world_size

    def first(self, value: Any) -> Any:
        """The value of rank 0, anything that can be pickled."""
        if self.world_size > 1:
            shared = [value]
            torch.distributed.broadcast_object_list(shared, 0)
            value = shared[0]
        return value

    def gathered(self, value: Any) -> list[Any]:
        """The values of all, by rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def all_good(self, good: Tensor) -> bool:
        """Whether it is true in all of them: a scalar on the device over which they talk."""
        good = good.float()
        if self.world_size > 1:
            torch.distributed.all_reduce(good, torch.distributed.ReduceOp.MIN)
        return bool(good)
