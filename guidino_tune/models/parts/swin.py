"""Attention in shifted windows (Liu et al., "Swin Transformer", 2021), which SwinUNet and H2Former share.

Maps of tokens are (B, H, W, C) here: linear layers and layer norms act on the last axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune.errors import UserError
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.drop_path import DropPath


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H, W, C), without a copy."""
    return x.permute(0, 2, 3, 1)


def to_maps(x: Tensor) -> Tensor:
    """(B, H, W, C) to (B, C, H, W), without a copy."""
    return x.permute(0, 3, 1, 2)


def gate_tokens(gate: Gate, place: str, x: Tensor) -> Tensor:
    """``gate(place, x)`` for a map of tokens (B, H, W, C)."""
    return to_tokens(gate(place, to_maps(x)))


def window_partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B, windows, window^2, C); windows, and tokens in each, in raster order. H and W are multiples of ``window``."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def window_reverse(windows: Tensor, height: int, width: int) -> Tensor:
    """The inverse of ``window_partition``: (B, windows, window^2, C) to (B, height, width, C)."""
    side = math.isqrt(windows.shape[2])
    x = windows.unflatten(2, (side, side)).unflatten(1, (height // side, width // side))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def neighbours(height: int, width: int, window: int, shift: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Which tokens of a window lay side by side before a map was rolled up and left by ``shift``.

    The roll brings the first rows behind the last ones, and a window there holds both; so for columns.

    Returns:
        (windows, window^2, window^2), bool: True where the query (second axis) may look at the key (third).
    """
    wrapped = [torch.arange(side, device=device) >= side - by for side, by in zip((height, width), shift, strict=True)]
    region = 2 * wrapped[0][:, None] + wrapped[1].long()
    region = window_partition(region[None, :, :, None], window)[0, :, :, 0]
    return region[:, :, None] == region[:, None, :]


def drop_path_rates(largest: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that grow linearly over all blocks, from 0 at the first to ``largest`` at the last; one list a stage."""
    last, rates, block = max(sum(depths) - 1, 1), [], 0
    for depth in depths:
        rates.append([largest * i / last for i in range(block, block + depth)])
        block += depth
    return rates


@lru_cache(maxsize=4)
def bias_index(window: int, device: torch.device) -> Tensor:
    """Row of the bias table for every query and key of a window: their distances in y and x, made non-negative, in raster order.

    It is no buffer of the attention: all blocks share it, and distributed training would send it to every worker in every step.

    Returns:
        (window^2, window^2), int64.
    """
    place = torch.arange(window, device=device)
    distance = place[:, None] - place + window - 1
    index = distance[:, None, :, None] * (2 * window - 1) + distance[None, :, None, :]
    return index.flatten(2).flatten(0, 1)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias for each head and relative position (section 3.2, equation 4).

    Args:
        width: Of the tokens; a multiple of ``heads``.
        heads: Attention heads.
        window: Side of a window, in tokens.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attends.

        Args:
            x: (B, windows, tokens, width).
            allowed: (windows, tokens, tokens), True where a query may look at a key; ``None``: everywhere.

        Returns:
            Like ``x``.
        """
        tokens = x.shape[2]
        bias = self.bias_table[bias_index(self.window, x.device)].permute(2, 0, 1)
        if allowed is not None:
            bias = bias.masked_fill(~allowed[:, None], -math.inf).flatten(0, 1)
        # Windows with a mask of their own count as heads, others as samples: the fused kernels want four axes and one mask a head.
        qkv = self.qkv(x).unflatten(-1, (3, self.bias_table.shape[1], -1)).permute(3, 0, 1, 4, 2, 5)
        q, k, v = qkv.reshape(3, -1, len(bias), tokens, qkv.shape[-1])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype))
        y = y.reshape(qkv.shape[1:]).transpose(2, 3).flatten(3)
        attended: Tensor = self.project(y)
        return attended


def mlp(width: int) -> nn.Module:
    """The usual one: four times as wide inside, exact GELU."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class SwinBlock(nn.Module):
    """Pre-norm residual block: attention in windows, then an MLP (section 3.2, equation 3).

    Args:
        width: Of the tokens.
        heads: Attention heads.
        window: Side of a window, in tokens.
        shifted: Move the windows by half their side along every axis that holds more than one.
        drop_path: Rate of stochastic depth, for both branches.
        mlp: Takes and gives (B, H, W, width).
    """

    def __init__(self, width: int, heads: int, window: int, *, shifted: bool, drop_path: float, mlp: nn.Module) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.norm_attention = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window)
        self.drop_path = DropPath(drop_path)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, width) to the same; H and W multiples of the window."""
        height, width = x.shape[1:3]
        down, right = (self.shift if side > self.window else 0 for side in (height, width))
        y, allowed = self.norm_attention(x), None
        if down or right:
            # The mask is made for this very size, so that images of any size and shape can pass.
            allowed = neighbours(height, width, self.window, (down, right), x.device)
            y = y.roll((-down, -right), (1, 2))
        y = window_reverse(self.attention(window_partition(y, self.window), allowed), height, width)
        if down or right:
            y = y.roll((down, right), (1, 2))
        x = x + self.drop_path(y)
        mixed: Tensor = x + self.drop_path(self.mlp(self.norm_mlp(x)))
        return mixed


def swin_stage(width: int, heads: int, window: int, rates: Sequence[float], mlp: Callable[[int], nn.Module] = mlp) -> nn.Sequential:
    """Blocks of one resolution; the second, fourth, ... have shifted windows.

    Args:
        width: Of the tokens.
        heads: Attention heads of every block.
        window: Side of a window, in tokens.
        rates: Of stochastic depth, one a block.
        mlp: Makes the MLP of a block from ``width``.

    Raises:
        UserError: ``heads`` does not divide ``width``.
    """
    if width % heads:
        raise UserError(
            f"{heads} attention heads do not divide a stage of width {width}",
            where="segmenter.heads",
            todo="take numbers of heads that divide the widths of their stages",
        )
    return nn.Sequential(
        *(SwinBlock(width, heads, window, shifted=i % 2 == 1, drop_path=rate, mlp=mlp(width)) for i, rate in enumerate(rates))
    )
