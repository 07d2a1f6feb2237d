"""Parts of a network that compute in float32 whatever autocast surrounds them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off inside; on the meta device, which has none, it does nothing."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
