"""What a trial takes of its machine, measured while it trains: memory of its first epoch, time of a forward pass."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch
from torch import nn

from guidino_tune.config import Data

WARM_UP, PASSES = 3, 20
"""Forward passes before the measurement, and those of which the quickest is taken."""

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def forget_peak(device: torch.device) -> None:
    """Begins a measurement that ``peak_gigabytes`` ends; what a process did before it does not count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5", encoding="ascii")  # Linux: resets VmHWM, see proc(5)
    except OSError:
        return


def peak_gigabytes(device: torch.device) -> float:
    """The most memory that was taken since ``forget_peak``, in 10^9 bytes.

    On a GPU what torch's tensors of this process took; else the resident memory of the whole process, libraries included. Where a process
    cannot forget its peak, that of its whole life.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    for line in _STATUS.read_text(encoding="ascii").splitlines() if _STATUS.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def costs_of(model: nn.Module, data: Data, device: torch.device, autocast: torch.autocast, *, channels_last: bool) -> dict[str, float]:
    """``memory`` since ``forget_peak``, and ``latency``, see ``forward_seconds``."""
    memory = peak_gigabytes(device)
    latency = forward_seconds(model, data.image_size, device, autocast, channels_last=channels_last, channels=data.channels)
    return {"memory": memory, "latency": latency}


@torch.no_grad()
def forward_seconds(
    model: nn.Module, size: int, device: torch.device, autocast: torch.autocast, *, channels_last: bool, channels: int = 3
) -> float:
    """Seconds of a forward pass of one image, without compilation: of several the quickest, which neighbours disturbed least.

    Args:
        model: Put into eval mode.
        size: Side of the image in pixels.
        device: Of the model.
        autocast: Its precision.
        channels_last: Layout of the image.
        channels: Of the image.
    """
    model.eval()
    image = torch.zeros(1, channels, size, size, device=device)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    seconds = []
    # One image after a compiled epoch of batches would have the network compiled anew for every size.
    with autocast, torch.compiler.set_stance("force_eager"):
        for _ in range(WARM_UP + PASSES):
            start = time.perf_counter()
            model(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return min(seconds[WARM_UP:])
