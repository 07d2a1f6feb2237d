"""The KAN layer against SciPy's B-splines."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from guidino_tune.models.parts import kan
from guidino_tune.models.parts.kan import KANLinear, bspline_bases

CASES = [(grid, order) for grid in (1, 2, 5, 9) for order in (1, 2, 3, 4, 5)]


def scipy_bases(x: np.ndarray, grid: int, order: int, *, derivative: int = 0) -> np.ndarray:
    """(*x.shape, grid + order): every spline by itself on its own knots, 0 beyond them."""
    knots = -1 + 2 / grid * np.arange(-order, grid + order + 1)
    splines = [BSpline.basis_element(knots[i : i + order + 2], extrapolate=False) for i in range(grid + order)]
    return np.stack([np.nan_to_num(spline.derivative(derivative)(x) if derivative else spline(x)) for spline in splines], -1)


@pytest.mark.parametrize(("grid", "order"), CASES)
def test_bases_and_slopes_are_scipys_inside_and_outside(grid: int, order: int) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-1, 1, 300), rng.uniform(-4, 4, 300), rng.uniform(-50, 50, 20)])
    points = torch.tensor(x, requires_grad=True)
    actual = bspline_bases(points, grid, order)
    assert actual.shape == (620, grid + order)
    np.testing.assert_allclose(actual.detach().numpy(), scipy_bases(x, grid, order), atol=1e-12)
    np.testing.assert_allclose(bspline_bases(torch.tensor(x).float(), grid, order).numpy(), scipy_bases(x, grid, order), atol=5e-6)
    weights = rng.normal(size=actual.shape)
    (actual * torch.tensor(weights)).sum().backward()
    assert points.grad is not None
    expected = (weights * scipy_bases(x, grid, order, derivative=1)).sum(-1)
    np.testing.assert_allclose(points.grad.numpy(), expected, atol=1e-10)


@pytest.mark.parametrize(("grid", "order"), CASES)
def test_bases_at_the_knots(grid: int, order: int) -> None:
    knots = -1 + 2 / grid * np.arange(-order - 1, grid + order + 2)
    # Just beside them, for at its last knot SciPy's hat belongs to the next interval.
    expected = (scipy_bases(knots - 1e-9, grid, order) + scipy_bases(knots + 1e-9, grid, order)) / 2
    np.testing.assert_allclose(bspline_bases(torch.tensor(knots), grid, order).numpy(), expected, atol=1e-7)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(-1, 1, width=32), min_size=1), st.integers(1, 12), st.integers(1, 5))
def test_bases_are_weights_of_a_mean_inside_the_grid(points: list[float], grid: int, order: int) -> None:
    bases = bspline_bases(torch.tensor(points), grid, order)
    assert (bases >= 0).all()
    assert ((bases > 0).sum(-1) <= order + 1).all()
    torch.testing.assert_close(bases.sum(-1), torch.ones(len(points)), atol=1e-5, rtol=0)


@settings(deadline=None)  # the machine may be busy
@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 12), st.integers(1, 5))
def test_bases_are_never_negative_and_vanish_far_away(point: float, grid: int, order: int) -> None:
    bases = bspline_bases(torch.tensor([point]), grid, order)
    assert (bases >= -1e-6).all()
    if abs(point) > 1 + 2.001 * order / grid:
        assert (bases == 0).all()


def test_only_the_input_is_kept_for_the_backward_pass() -> None:
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        bspline_bases(torch.randn(7, 3, requires_grad=True), 5, 3)
    assert kept == [(7, 3)]


@pytest.mark.parametrize(("grid", "order"), [(5, 3), (3, 1), (4, 4)])
def test_layer_is_the_sum_over_edges(grid: int, order: int) -> None:
    torch.manual_seed(0)
    layer = KANLinear(4, 3, grid=grid, order=order)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    x = 1.5 * torch.randn(2, 5, 4)
    base, scaler, coefficients = (p.detach().double().numpy() for p in (layer.base_weight, layer.scaler, layer.coefficients))
    points = x.double().numpy()
    bases = scipy_bases(points, grid, order)
    expected = np.zeros((2, 5, 3))
    for output in range(3):
        for edge in range(4):
            value = points[..., edge]
            expected[..., output] += base[output, edge] * value / (1 + np.exp(-value))
            for k in range(grid + order):
                expected[..., output] += scaler[output, edge] * coefficients[output, edge, k] * bases[..., edge, k]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=2e-5)
    torch.testing.assert_close(layer(x.permute(1, 0, 2)), layer(x).permute(1, 0, 2))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    layer = KANLinear(100, 80, grid=5, order=3)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "base_weight": (80, 100),
        "scaler": (80, 100),
        "coefficients": (80, 100, 8),
    }
    for weight in (layer.base_weight, layer.scaler):  # uniform within 1 / sqrt(inputs)
        assert weight.abs().max() <= 0.1
        assert weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.03)
    assert not torch.equal(layer.base_weight, layer.scaler)
    with torch.device("meta"):
        assert KANLinear(4, 3).coefficients.shape == (3, 4, 8)


@pytest.mark.parametrize(("grid", "order"), [(5, 3), (2, 1), (8, 5)])
def test_initial_splines_pass_through_the_noise(monkeypatch: pytest.MonkeyPatch, grid: int, order: int) -> None:
    uniform = torch.rand(3, 4, grid + 1)
    monkeypatch.setattr(torch, "rand", lambda *shape: uniform.reshape(shape))
    coefficients = KANLinear(4, 3, grid=grid, order=order).coefficients.detach().double().numpy()
    noise = (uniform.double().numpy() - 0.5) * 0.1 / grid
    matrix = scipy_bases(np.linspace(-1, 1, grid + 1) * (1 - 1e-12), grid, order)
    np.testing.assert_allclose(coefficients @ matrix.T, noise, atol=1e-7)
    # Of all that do, the least: no part of them is invisible at the grid points.
    least = np.linalg.lstsq(matrix, noise.reshape(-1, grid + 1).T, rcond=1e-8)[0].T
    np.testing.assert_allclose(coefficients.reshape(least.shape), least, atol=1e-7)


def test_splines_are_computed_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watch(x: torch.Tensor, grid: int, order: int) -> torch.Tensor:
        seen.append((x.dtype, bases := bspline_bases(x, grid, order)))
        return bases

    layer = KANLinear(16, 8)
    x = torch.randn(32, 16).bfloat16()
    expected = layer(x.float())
    monkeypatch.setattr(kan, "bspline_bases", watch)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert [(given, bases.dtype) for given, bases in seen] == [(torch.float32, torch.float32)]
    torch.testing.assert_close(low.float(), expected, atol=0.02 * expected.abs().max().item(), rtol=0)
