"""Deformable cross attention (Deformable DETR, Zhu et al., 2021, section 4.1) on one map of values, in plain PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune.models.precision import without_autocast


def pixel_centres(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Centres of a grid's cells as (height * width, 2), each (x, y) in (0, 1) of the whole side, in raster order, float32."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)


def deformable_sampling(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of values read at points, bilinearly between cell centres, zero outside the map.

    Args:
        values: (B, heads, D, h, w).
        locations: (B, N, heads, points, 2) as (x, y); 0 and 1 are the outer borders of the map.
        weights: (B, N, heads, points).

    Returns:
        (B, N, heads * D), the channels of a head side by side.
    """
    grid = 2 * locations.transpose(1, 2).flatten(0, 1) - 1
    sampled = F.grid_sample(values.flatten(0, 1), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    mixed = (sampled * weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)).sum(-1)
    return mixed.unflatten(0, values.shape[:2]).permute(0, 3, 1, 2).flatten(2)


class DeformableCrossAttention(nn.Module):
    """Every query reads ``num_points`` points around its own place in each head; their offsets and weights are linear in the query.

    Values have half the width, as in the ViT-Adapter (Chen et al., 2023). At the start every query reads alike: head i looks in the
    direction of angle 2 pi i / heads, and its points lie 1, 2, ... cells away along the larger axis, equally weighted.

    Args:
        width: Channels of queries, values and result.
        num_heads: Attention heads; divides ``width // 2``.
        num_points: Sampling points of each head.

    Raises:
        ValueError: The heads do not divide half of the width.
    """

    def __init__(self, width: int, *, num_heads: int, num_points: int) -> None:
        super().__init__()
        value_width = width // 2
        if value_width % num_heads:
            raise ValueError(f"{num_heads} attention heads do not divide {value_width}, half of the width {width}")
        self.num_heads, self.num_points = num_heads, num_points
        self.offsets = nn.Linear(width, num_heads * num_points * 2)
        self.weights = nn.Linear(width, num_heads * num_points)
        self.value = nn.Linear(width, value_width)
        self.output = nn.Linear(value_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial weights as described above; Xavier's uniform ones for values and output, biases 0."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        with torch.no_grad():
            self.offsets.bias.copy_((directions[:, None] * steps[:, None]).flatten())
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for linear in (self.value, self.output):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, places: Tensor, values: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attends.

        Args:
            queries: (B, N, width).
            places: (N, 2), where the queries are, as ``pixel_centres`` gives them.
            values: (B, h * w, width) in raster order.
            grid: (h, w).

        Returns:
            (B, N, width).
        """
        height, width = grid
        maps = self.value(values).transpose(1, 2).unflatten(1, (self.num_heads, -1)).unflatten(-1, grid)
        # In bf16 a location on a grid of 32 cells is only known to a sixteenth of a cell, and bilinear weights to as much.
        with without_autocast(queries.device):
            queries = queries.float()
            offsets = self.offsets(queries).unflatten(-1, (self.num_heads, self.num_points, 2))
            x, y = offsets.unbind(-1)
            locations = places[:, None, None] + torch.stack([x / width, y / height], dim=-1)
            weights = self.weights(queries).unflatten(-1, (self.num_heads, self.num_points)).softmax(-1)
            mixed = deformable_sampling(maps.float(), locations, weights)
        output: Tensor = self.output(mixed)
        return output
