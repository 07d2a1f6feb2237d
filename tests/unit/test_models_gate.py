import numpy as np
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from guidino_tune.models.gate import Gate


def bilinear(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize with pixel centres at halves (corners not aligned), one pixel at a time."""
    out = np.empty((height, width))
    for i, j in np.ndindex(height, width):
        y = max((i + 0.5) * mask.shape[0] / height - 0.5, 0)
        x = max((j + 0.5) * mask.shape[1] / width - 0.5, 0)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, mask.shape[0] - 1), min(x0 + 1, mask.shape[1] - 1)
        top = mask[y0, x0] * (1 - x + x0) + mask[y0, x1] * (x - x0)
        bottom = mask[y1, x0] * (1 - x + x0) + mask[y1, x1] * (x - x0)
        out[i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return out


@examples(10)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_multiplies_by_the_resized_mask(height: int, width: int, factor: int, seed: int) -> None:
    torch.manual_seed(seed)
    mask, x = torch.rand(1, 1, height, width), torch.randn(1, 2, height * factor, width * factor)
    expected = x.numpy() * bilinear(mask[0, 0].numpy(), height * factor, width * factor)
    np.testing.assert_allclose(Gate(mask, "input")("input", x).numpy(), expected, atol=1e-5)


def test_only_at_its_place() -> None:
    x = torch.randn(1, 2, 8, 8)
    assert Gate(torch.zeros(1, 1, 4, 4), "input")("bottleneck", x) is x
    assert Gate()("input", x) is x
    assert Gate(None, "input")("input", x) is x


def test_same_size_is_exact_and_the_dtype_stays() -> None:
    mask, x = torch.rand(2, 1, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(Gate(mask, "features")("features", x), x * mask)
    low = Gate(mask, "features")("features", x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, (x.bfloat16().float() * mask).bfloat16())
