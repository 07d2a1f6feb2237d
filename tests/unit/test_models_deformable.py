"""Deformable cross attention against direct loops."""

import math

import pytest
import torch
from torch import Tensor

from guidino_tune.models.parts.deformable import DeformableCrossAttention, deformable_sampling, pixel_centres


def read(values: Tensor, x: float, y: float) -> Tensor:
    """One location of a map (D, h, w), x and y in cells with 0 at the centre of the first: four neighbours, zero outside."""
    total = torch.zeros(values.shape[0])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < values.shape[1] and 0 <= column < values.shape[2]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * values[:, row, column]
    return total


def loop(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, heads, depth, height, width = values.shape
    output = torch.zeros(batch, locations.shape[1], heads * depth)
    for b in range(batch):
        for n in range(locations.shape[1]):
            for head in range(heads):
                for point in range(locations.shape[3]):
                    x, y = (float(v) for v in locations[b, n, head, point])
                    sample = read(values[b, head], x * width - 0.5, y * height - 0.5)
                    output[b, n, head * depth : (head + 1) * depth] += weights[b, n, head, point] * sample
    return output


def test_pixel_centres() -> None:
    expected = [
        [1 / 8, 1 / 4],
        [3 / 8, 1 / 4],
        [5 / 8, 1 / 4],
        [7 / 8, 1 / 4],
        [1 / 8, 3 / 4],
        [3 / 8, 3 / 4],
        [5 / 8, 3 / 4],
        [7 / 8, 3 / 4],
    ]
    assert pixel_centres(2, 4).tolist() == expected


def test_sampling_is_bilinear_with_zeros_outside() -> None:
    torch.manual_seed(0)
    values, weights = torch.randn(2, 2, 3, 3, 5), torch.randn(2, 7, 2, 4)
    locations = torch.rand(2, 7, 2, 4, 2) * 1.6 - 0.3
    assert ((locations < 0) | (locations > 1)).any()
    torch.testing.assert_close(deformable_sampling(values, locations, weights), loop(values, locations, weights), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_is_the_published_one() -> None:
    torch.manual_seed(0)
    heads, points, grid, depth = 3, 2, (4, 6), 2
    attention = DeformableCrossAttention(12, num_heads=heads, num_points=points)
    for parameter in attention.parameters():
        parameter.normal_(std=0.4)
    queries, values, places = torch.randn(2, 5, 12), torch.randn(2, 24, 12), torch.rand(5, 2)
    projected = values @ attention.value.weight.T + attention.value.bias
    maps = torch.empty(2, heads, depth, *grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            for head in range(heads):
                maps[:, head, :, row, column] = projected[:, row * grid[1] + column, head * depth : (head + 1) * depth]
    offsets = queries @ attention.offsets.weight.T + attention.offsets.bias
    scores = queries @ attention.weights.weight.T + attention.weights.bias
    locations, weights = torch.empty(2, 5, heads, points, 2), torch.empty(2, 5, heads, points)
    for head in range(heads):
        exponentials = scores[..., head * points : (head + 1) * points].exp()
        weights[:, :, head] = exponentials / exponentials.sum(-1, keepdim=True)
        for point in range(points):
            first = 2 * (head * points + point)
            locations[:, :, head, point, 0] = places[:, 0] + offsets[..., first] / grid[1]
            locations[:, :, head, point, 1] = places[:, 1] + offsets[..., first + 1] / grid[0]
    expected = loop(maps, locations, weights) @ attention.output.weight.T + attention.output.bias
    torch.testing.assert_close(attention(queries, places, values, grid), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_new_head_looks_in_its_own_direction() -> None:
    """Values are the coordinates of their cells, so that each head says where it looked: the mean of its points."""
    height, width = 11, 13
    attention = DeformableCrossAttention(64, num_heads=16, num_points=4)
    attention.value.weight.zero_()
    for head in range(16):
        attention.value.weight[2 * head, 0] = attention.value.weight[2 * head + 1, 1] = 1
    attention.output.weight.copy_(torch.eye(64)[:, :32])
    values = torch.zeros(1, height * width, 64)
    values[0, :, 0] = torch.arange(width).repeat(height)
    values[0, :, 1] = torch.arange(height).repeat_interleave(width)
    centre = 5 * width + 6
    places = pixel_centres(height, width)[centre : centre + 1]
    looked = attention(torch.randn(1, 1, 64), places, values, (height, width))[0, 0, :32].view(16, 2) - torch.tensor([6.0, 5.0])
    for head, (x, y) in {0: (2.5, 0), 2: (2.5, 2.5), 4: (0, 2.5), 6: (-2.5, 2.5), 8: (-2.5, 0), 12: (0, -2.5), 14: (2.5, -2.5)}.items():
        assert looked[head].tolist() == pytest.approx([x, y], abs=1e-4)
    angles = torch.atan2(looked[:, 1], looked[:, 0]) % (2 * math.pi)
    torch.testing.assert_close(angles, torch.arange(16) * math.pi / 8, atol=1e-4, rtol=0)


def test_initial_points_lie_one_to_four_cells_away() -> None:
    attention = DeformableCrossAttention(64, num_heads=16, num_points=4)
    farthest = attention.offsets.bias.detach().view(16, 4, 2).abs().amax(-1)
    torch.testing.assert_close(farthest, torch.tensor([1.0, 2, 3, 4]).expand(16, 4))
    for zero in (attention.offsets.weight, attention.weights.weight, attention.weights.bias, attention.value.bias, attention.output.bias):
        assert not zero.any()
    for linear in (attention.value, attention.output):  # Xavier: uniform within sqrt(6 / (inputs + outputs))
        assert 0.9 * math.sqrt(6 / 96) < linear.weight.abs().max() <= math.sqrt(6 / 96)


@pytest.mark.parametrize(("width", "heads"), [(64, 5), (24, 16)])
def test_heads_must_divide_half_of_the_width(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"{heads} attention heads do not divide {width // 2}, half of the width {width}"):
        DeformableCrossAttention(width, num_heads=heads, num_points=4)


@torch.no_grad()
def test_locations_stay_exact_under_bf16_autocast() -> None:
    """On rough values a location that is off by a sixteenth of a cell shows."""
    torch.manual_seed(0)
    attention = DeformableCrossAttention(64, num_heads=16, num_points=4)
    attention.offsets.weight.normal_(std=0.1)
    queries, values, places = torch.randn(1, 1024, 64), torch.randn(1, 1024, 64), pixel_centres(32, 32)
    expected = attention(queries, places, values, (32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        low = attention(queries, places, values, (32, 32))
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).std() < 0.01 * expected.std()
