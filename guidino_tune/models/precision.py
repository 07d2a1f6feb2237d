"""Parts of a network that compute in float32 whatever autocast surrounds them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off inside; on the meta device, which has none, it does nothing."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16; ``auto`` does so where the hardware multiplies it natively (else it is slower than fp32)."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(torch.cpu.get_capabilities().get(name) for name in ("amx_tile", "avx512_bf16"))
