"""In which precision networks compute, and parts that compute in float32 whatever autocast surrounds them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from guidino_tune.models.segmenters.base import Segmenter


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


def has_fp16(device: torch.device) -> bool:
    """Whether it is a GPU that multiplies fp16 quickly: one with tensor cores, from Volta on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def autocast_in(precision: str, device: torch.device) -> torch.autocast:
    """The autocast of a training in this precision; switched off in float32. May be entered again and again."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=dtype == torch.float16 or use_bf16(precision, device))


def channels_last_pays(segmenter: Segmenter, device: torch.device, bf16: bool) -> bool:
    """Whether a segmenter trains more quickly in channels_last than in torch's own memory format.

    It does on GPUs, in bf16 and on processors with AVX-512 (0.80 to 0.93 of the time of a step of U-Net and nnWNet). In float32 on one that
    has AVX2 only, gradients of weights take twice the time in it: U-Net (1.05 to 1.12), nnU-Net (1.32) and Seg-GuiDINO (1.02 to 1.08) lose,
    nnWNet (0.93), U-KAN (0.92), H2Former (0.98) and Swin-UNet (0.99) still gain.
    """
    return bf16 or device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2" or segmenter.channels_last_on_avx2
