"""The way from an image to a mask, with networks whose answer is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from guidino_tune.errors import UserError
from guidino_tune.inference import largest_component, normalise, predict_image, predict_logits, resize_image


class _Prediction(NamedTuple):
    logits: tuple[Tensor, ...]
    guide: Tensor | None


class _Brightness(nn.Module):
    """Logits are the mean colour of a pixel, on [-10, 10]; the guide is the brightness on a 16 times coarser grid."""

    def __init__(self, guided: bool = True) -> None:
        super().__init__()
        self.guided = guided
        self.mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        self.std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    def forward(self, images: Tensor) -> _Prediction:
        grey = (images * self.std + self.mean).mean(1, keepdim=True)
        logits = (grey - 0.5) * 20
        return _Prediction((logits, logits[:, :, ::2, ::2]), nn.functional.avg_pool2d(grey, 16) if self.guided else None)


class _Ramp(_Brightness):
    """Adds a ramp from left to right, so that the answer depends on how the image is held."""

    def forward(self, images: Tensor) -> _Prediction:
        logits, guide = super().forward(images)
        return _Prediction((logits[0] + torch.linspace(0, 5, images.shape[-1]),), guide)


def _square(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    y0, y1, x0, x1 = box
    image = np.full((height, width, 3), 20, np.uint8)
    image[y0:y1, x0:x1] = 230
    return image


@pytest.mark.parametrize(("height", "width"), [(617, 528), (528, 617), (64, 64), (33, 41), (1, 7)])
def test_a_bright_square_keeps_its_place_and_size(height: int, width: int) -> None:
    box = (height // 4, height // 2 + 1, width // 2, width - width // 8)
    truth = _square(height, width, box)[..., 0] > 128
    prediction = predict_image(_Brightness().eval(), _square(height, width, box), 64)
    assert prediction.mask.shape == prediction.probability.shape == (height, width)
    assert prediction.mask.dtype == np.uint8
    assert prediction.probability.dtype == np.float32
    assert prediction.guide is not None
    assert prediction.guide.shape == (height, width)
    assert prediction.guide.dtype == np.float32
    wrong = np.argwhere(prediction.mask.astype(bool) != truth)
    # Resizing to 64 blurs by one of its pixels; nothing further from the border may change, in any direction.
    reach_y, reach_x = max(height / 64, 1), max(width / 64, 1)
    for y, x in wrong:
        near_y = min(abs(y - box[0]), abs(y - box[1] + 1)) <= reach_y
        near_x = min(abs(x - box[2]), abs(x - box[3] + 1)) <= reach_x
        assert near_y or near_x, (y, x)
    assert abs(int(prediction.mask.sum()) - int(truth.sum())) <= 0.05 * truth.sum() + 2


def test_at_training_size_nothing_is_resampled() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    prediction = predict_image(_Brightness(guided=False).eval(), image, 64)
    logits = (image.astype(np.float64).mean(-1) / 255 - 0.5) * 20
    assert np.allclose(prediction.probability, 1 / (1 + np.exp(-logits)), atol=1e-4)
    assert prediction.guide is None


@pytest.mark.parametrize(("height", "width"), [(24, 17), (150, 201)])
def test_logits_are_resized_back_with_pillow_s_bilinear_filter(height: int, width: int) -> None:
    """Logits, not masks; half-pixel centres; antialiased for images smaller than the network's."""
    image = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    logits = ((resize_image(image, 64).astype(np.float32).mean(-1) / 255 - 0.5) * 20).astype(np.float32)
    native = np.asarray(Image.fromarray(logits).resize((width, height), Image.Resampling.BILINEAR))
    assert np.allclose(predict_image(_Brightness().eval(), image, 64).probability, 1 / (1 + np.exp(-native)), atol=1e-4)


def test_normalisation_is_imagenet_s() -> None:
    image = np.random.default_rng(1).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    tensor = normalise(image)
    assert tensor.dtype == torch.float32
    assert np.allclose(tensor.numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_resize_antialiases() -> None:
    """Stripes of one pixel become grey; without antialiasing they would become stripes again."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize_image(stripes, 32)
    assert small.shape == (32, 32, 3)
    assert np.abs(small[:, 2:-2].astype(int) - 127).max() <= 2
    assert np.array_equal(small, np.asarray(Image.fromarray(stripes).resize((32, 32), Image.Resampling.BILINEAR)))


def test_mirroring_a_symmetric_network_changes_nothing() -> None:
    images = torch.randn(2, 3, 64, 64)
    plain, guide = predict_logits(_Brightness().eval(), images)
    mirrored, mirrored_guide = predict_logits(_Brightness().eval(), images, mirror=True)
    assert plain.shape == (2, 1, 64, 64)
    assert torch.allclose(plain, mirrored, atol=1e-5)
    assert guide is not None
    assert mirrored_guide is not None
    assert guide.shape == (2, 1, 4, 4)
    assert torch.allclose(guide, mirrored_guide, atol=1e-6)


def test_mirroring_averages_the_four_flips() -> None:
    images = torch.randn(1, 3, 64, 64)
    model = _Ramp().eval()
    mirrored, _ = predict_logits(model, images, mirror=True)
    expected = torch.zeros(1, 1, 64, 64)
    for flip in ([], [2], [3], [2, 3]):
        expected += torch.flip(model(torch.flip(images, flip)).logits[0], flip) / 4
    assert torch.allclose(mirrored, expected, atol=1e-5)
    # Half of the views see the ramp reversed: a constant 2.5 remains of it.
    assert torch.allclose(mirrored, _Brightness().eval()(images).logits[0] + 2.5, atol=1e-4)


def test_finest_head_no_gradient_float32() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1)).eval()

    class _Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, images: Tensor) -> _Prediction:
            return _Prediction((self.net(images).bfloat16(), torch.zeros(1)), images[:, :1].bfloat16())

    logits, guide = predict_logits(_Low().eval(), torch.randn(1, 3, 32, 32))
    assert guide is not None
    assert logits.dtype == guide.dtype == torch.float32
    assert not logits.requires_grad


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval"):
        predict_logits(_Brightness().train(), torch.randn(1, 3, 32, 32))


def test_threshold_moves_the_mask() -> None:
    image = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    areas = [int(predict_image(_Brightness().eval(), image, 64, threshold=t).mask.sum()) for t in (0.1, 0.5, 0.9)]
    assert areas[0] > areas[1] > areas[2] > 0
    assert areas[1] == 64 * 32
    with pytest.raises(UserError, match="threshold"):
        predict_image(_Brightness().eval(), image, 64, threshold=1.0)


def test_only_rgb_bytes_are_images() -> None:
    for bad in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match="uint8"):
            predict_image(_Brightness().eval(), bad, 64)


def test_largest_component_by_hand() -> None:
    drawn = ["1101", "1100", "0010", "0111"]
    mask = np.array([[int(c) for c in row] for row in drawn], np.uint8)
    kept = largest_component(mask)  # two pieces of four touch at a corner only: the first stays
    assert np.array_equal(kept, np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert kept.dtype == np.uint8
    assert not largest_component(np.zeros((4, 4), np.uint8)).any()
    assert largest_component(np.ones((4, 4), np.uint8)).all()


def test_keep_largest_drops_the_smaller_square() -> None:
    image = _square(64, 64, (4, 34, 4, 34))
    image[50:56, 50:56] = 230
    both = predict_image(_Brightness().eval(), image, 64).mask
    one = predict_image(_Brightness().eval(), image, 64, keep_largest=True).mask
    assert both[53, 53] == 1
    assert one[53, 53] == 0
    assert np.array_equal(one[:40], both[:40])
