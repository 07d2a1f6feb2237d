"""Kolmogorov-Arnold layers: learned B-splines on every edge of a linear layer (Liu et al., 2024, "KAN", section 2.2)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def bspline_bases(x: Tensor, grid: int, order: int) -> Tensor:
    """The B-splines of a uniform grid on [-1, 1] that goes on for ``order`` intervals at both ends.

    They are what the Cox-de Boor recursion gives. On a uniform grid all have one shape, which has a closed form (Schoenberg, 1946), so
    there is no recursion and nothing is kept for the backward pass but ``x``. Inside [-1, 1] they sum to 1; they fade to 0 outside.

    Args:
        x: Of any shape, float32 or float64.
        grid: Intervals on [-1, 1], at least 1.
        order: Degree of the polynomials, at least 1; 3 is cubic.

    Returns:
        (*x.shape, grid + order), of the type of ``x``. First derivatives only.
    """
    if not torch.is_grad_enabled():  # the same without a derivative, which TorchScript can follow
        return _powers(_offsets(x, grid, order).abs_(), order, order)
    bases: Tensor = _Bases.apply(x, grid, order)  # type: ignore[no-untyped-call]
    return bases


class _Bases(torch.autograd.Function):
    """``bspline_bases`` with its derivative written out: autograd would keep six tensors as large as the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: int, order: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.grid, ctx.order = grid, order
        return _powers(_offsets(x, grid, order).abs_(), order, order)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        offsets = _offsets(x, ctx.grid, ctx.order)
        slopes = _powers(offsets.abs(), ctx.order, ctx.order - 1).mul_(offsets.sign_())
        return (slopes.mul_(gradient).sum(-1) * (-ctx.grid / 2), None, None)


def _offsets(x: Tensor, grid: int, order: int) -> Tensor:
    """Distance with sign to the middle of every spline, in intervals."""
    # Multiples of a half, so exact in any precision.
    middles = torch.arange(grid + order, dtype=x.dtype, device=x.device) + (1 - order) / 2
    return ((x + 1) * (grid / 2)).unsqueeze(-1) - middles


def _powers(distances: Tensor, order: int, exponent: int) -> Tensor:
    """``sum_j (-1)^j binomial(order + 1, j) (reach - j - distance)_+^exponent / exponent!``, ``reach`` being half of the spline's support.

    With ``exponent == order`` that is the spline itself, with one less minus its slope. It is counted from the nearer end of the support,
    so that the terms stay small: at most half of them differ from 0.
    """
    total = torch.zeros_like(distances)
    for j in range((order + 2) // 2):
        inside = ((order + 1) / 2 - j - distances).clamp_(min=0)
        power = inside.pow_(exponent) if exponent else inside.sign_()
        total.add_(power, alpha=(-1) ** j * math.comb(order + 1, j) / math.factorial(exponent))
    return total


class KANLinear(nn.Module):
    """``y_o = sum_i w_oi SiLU(x_i) + s_oi sum_k c_oik B_k(x_i)`` on the last dimension: a function of its own on every edge, no bias.

    Args:
        inputs: Size of the last dimension.
        outputs: Its new size.
        grid: Intervals of the splines on [-1, 1]; beyond, the splines fade to 0 and SiLU is left.
        order: Of the splines.
    """

    def __init__(self, inputs: int, outputs: int, *, grid: int = 5, order: int = 3) -> None:
        super().__init__()
        self.grid, self.order = grid, order
        self.base_weight = nn.Parameter(torch.empty(outputs, inputs))
        self.scaler = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.kaiming_uniform_(self.base_weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.scaler, a=math.sqrt(5))
        # Least squares from small noise at the grid points, with the least coefficients: there are more of them than points.
        points = torch.linspace(-1, 1, grid + 1, dtype=torch.float64, device="cpu")
        fit = torch.linalg.pinv(bspline_bases(points, grid, order))
        noise = (torch.rand(outputs, inputs, grid + 1) - 0.5) * (0.1 / grid)
        self.coefficients = nn.Parameter(noise @ fit.T.to(noise))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        # The eight bits of bf16 are too few for a place between splines and for differences of powers.
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        bases = bspline_bases(precise, self.grid, self.order).flatten(-2)
        return F.linear(F.silu(x), self.base_weight) + F.linear(bases, (self.coefficients * self.scaler.unsqueeze(-1)).flatten(1))
