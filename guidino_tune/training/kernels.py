"""Which kernels CUDA's libraries may take while trainings run in this process; settings of CPUs are not touched.

``cudnn.benchmark`` tries cuDNN's algorithms for each new shape, which pays where shapes stay as they are for thousands of steps: in
training and its validations, not where every image has a size of its own. TF32 multiplies float32 with ten bits of mantissa on tensor
cores; torch allows it for convolutions only. Where autocast computes in bf16 or fp16, what is left in float32 (the TokenBook, upsampling,
losses) gains little; a training in fp32 gains most.

``torch.set_float32_matmul_precision`` would change what oneDNN does on CPUs too, whose trainings repeat bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_users: list[object] = []
_before: list[bool] = []


def quick_kernels(device: torch.device) -> Callable[[], None]:
    """Allows what a training on ``device`` may take; nothing on a CPU.

    Returns:
        To be called once it is over. After the last of several trainings in a process all is as before the first.
    """
    if device.type != "cuda":
        return lambda: None
    user = object()
    if not _users:
        _before[:] = [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark]
    _users.append(user)
    _set(True, True, True)

    def end() -> None:
        if user in _users:
            _users.remove(user)
            if not _users:
                _set(*_before)

    return end


def _set(products: bool, convolutions: bool, benchmark: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cudnn.benchmark = benchmark
