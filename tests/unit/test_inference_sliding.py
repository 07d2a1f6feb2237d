"""Windows over an image at its own scale, with networks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_networks import DATA, Brightness, Ramp, Seen
from torch import Tensor, nn

from guidino_tune.config import Data, Protocol
from guidino_tune.inference import predict_image, slide

SLIDING = Protocol(inference="sliding")
ODD_SIZES = [(64, 64), (65, 64), (100, 131), (200, 33), (17, 90), (41, 23), (1, 7)]
"""Heights and widths around a window of 64 pixels."""


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("height", "width"), ODD_SIZES)
def test_windows_of_a_pixelwise_network_give_the_image_back(height: int, width: int, mirror: bool) -> None:
    """At the image's own scale, without a trace of the windows' borders; mirroring such a network changes nothing."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    protocol = Protocol(inference="sliding", mirror=mirror)
    prediction = predict_image(Brightness().eval(), image, DATA, protocol)
    logits = (image.astype(np.float64).mean(-1) / 255 - 0.5) * 20
    assert prediction.mask.shape == (height, width)
    assert np.allclose(prediction.probability, 1 / (1 + np.exp(-logits)), atol=1e-4)
    assert prediction.guide is not None
    assert prediction.guide.shape == (height, width)


@pytest.mark.parametrize("kind", ["imagenet", "zscore"])
def test_the_native_image_is_normalised_before_windows_and_margin(kind: str) -> None:
    """The z-score is that of the image, not of a window; the margin of an image that is too small is zeros, not black."""
    image = np.random.default_rng(1).integers(0, 256, (40, 150, 3), dtype=np.uint8)
    image[:, 75:] //= 4
    pixels = image.astype(np.float64)
    if kind == "imagenet":
        expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    else:
        expected = (pixels - pixels.mean((0, 1))) / pixels.std((0, 1))
    model = Seen().eval()
    predict_image(model, image, Data(kind="demo", image_size=64, normalisation=kind), SLIDING)
    first, last = model.batches[0][0].numpy(), model.batches[-1][-1].numpy()
    assert np.allclose(first[:, 12:52], expected[:, :64].transpose(2, 0, 1), atol=1e-5)
    assert np.allclose(last[:, 12:52], expected[:, -64:].transpose(2, 0, 1), atol=1e-5)
    assert not first[:, :12].any()
    assert not first[:, 52:].any()


def test_zscore_is_the_data_s_when_the_image_is_resized_too() -> None:
    image = np.random.default_rng(1).integers(0, 128, (64, 64, 3), dtype=np.uint8)
    model = Seen().eval()
    predict_image(model, image, Data(kind="demo", image_size=64, normalisation="zscore"))
    assert model.batches[0].mean((0, 2, 3)).abs().max() < 1e-4
    assert torch.allclose(model.batches[0].std((0, 2, 3)), torch.ones(3), atol=0.05)


@pytest.mark.parametrize(("overlap", "starts"), [(0.5, [0, 32, 64, 68]), (0.25, [0, 48, 68]), (0.0, [0, 64, 68])])
def test_windows_are_blended_with_a_gaussian(overlap: float, starts: list[int]) -> None:
    """Logits and guide, averaged before the sigmoid, against sums over the windows, also at the image's edges."""
    width = 132
    image = np.random.default_rng(2).integers(0, 256, (64, width, 3), dtype=np.uint8)
    grey = image.astype(np.float64).mean(-1) / 255
    weight = np.exp(-((np.arange(64) - 31.5) ** 2) / (2 * 8.0**2))
    total, guides, weights = np.zeros((64, width)), np.zeros((64, width)), np.zeros(width)
    for start in starts:
        part = slice(start, start + 64)
        total[:, part] += weight * ((grey[:, part] - 0.5) * 20 + np.linspace(0, 5, 64))
        coarse = torch.from_numpy(grey[:, part].reshape(4, 16, 4, 16).mean((1, 3)))[None, None]
        guides[:, part] += weight * nn.functional.interpolate(coarse, (64, 64), mode="bilinear").numpy()[0, 0]
        weights[part] += weight
    logits, guide = total / weights, guides / weights
    prediction = predict_image(Ramp().eval(), image, DATA, Protocol(inference="sliding", overlap=overlap))
    assert np.allclose(prediction.probability, 1 / (1 + np.exp(-logits)), atol=1e-4)
    assert prediction.guide is not None
    assert np.allclose(prediction.guide, guide, atol=1e-4)


@pytest.mark.parametrize("num_windows", [2, 4, 7, 100])
def test_windows_in_batches_are_windows_one_by_one(num_windows: int) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 150, 171)
    model = Ramp().eval()
    one, guide_one = slide(model, image, 64, num_windows=1)
    many, guide_many = slide(model, image, 64, num_windows=num_windows)
    assert torch.allclose(one, many, atol=1e-5)
    assert guide_one is not None
    assert guide_many is not None
    assert torch.allclose(guide_one, guide_many, atol=1e-6)
    assert one.shape == (1, 1, 150, 171)


def test_batches_hold_no_more_windows_than_asked_for() -> None:
    model = Seen().eval()
    slide(model, torch.randn(1, 3, 150, 171), 64, num_windows=3)
    assert max(len(batch) for batch in model.batches) == 3
    assert sum(len(batch) for batch in model.batches) == 4 * 5  # starts 0, 32, 64, 86 and 0, 32, 64, 96, 107
    assert all(batch.shape[1:] == (3, 64, 64) for batch in model.batches)


def test_mirroring_within_windows_is_that_of_each_window() -> None:
    image = torch.randn(1, 3, 100, 100)
    mirrored, _ = slide(Ramp().eval(), image, 64, mirror=True)
    plain, _ = slide(Brightness().eval(), image, 64)
    assert torch.allclose(mirrored, plain + 2.5, atol=1e-4)  # the ramp and its mirror image


def test_sums_stay_where_the_image_is_and_windows_go_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a large image takes main memory, and of the GPU's only what a batch of windows needs."""
    from guidino_tune import monai_parts

    asked: dict[str, object] = {}

    def record(image: Tensor, *_: object, **options: object) -> Tensor:
        asked.update(options)
        return image[:, :1]

    monkeypatch.setattr(monai_parts, "sliding_window_inference", record)
    predict_image(Brightness().eval(), np.zeros((100, 100, 3), np.uint8), DATA, SLIDING, device="cuda:7")
    assert (str(asked["device"]), str(asked["sw_device"])) == ("cpu", "cuda:7")


def test_a_plain_network_slides_without_a_guide() -> None:
    prediction = predict_image(Brightness(guided=False).eval(), np.zeros((70, 80, 3), np.uint8), DATA, SLIDING)
    assert prediction.guide is None
    assert prediction.mask.shape == (70, 80)
