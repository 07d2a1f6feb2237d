"""The way from an image to a mask, with networks whose answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from known_networks import DATA, Brightness, KnownPrediction, Ramp
from PIL import Image
from torch import Tensor, nn

from guidino_tune.config import Data, Protocol
from guidino_tune.errors import UserError
from guidino_tune.framing import place, resize_array
from guidino_tune.inference import (
    largest_component,
    predict_image,
    predict_logits,
    to_labels,
    to_probabilities,
)
from guidino_tune.normalisation import normalise

SLIDING = Protocol(inference="sliding")


def _square(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    y0, y1, x0, x1 = box
    image = np.full((height, width, 3), 20, np.uint8)
    image[y0:y1, x0:x1] = 230
    return image


@pytest.mark.parametrize(("height", "width"), [(617, 528), (528, 617), (64, 64), (33, 41), (1, 7)])
def test_a_bright_square_keeps_its_place_and_size(height: int, width: int) -> None:
    box = (height // 4, height // 2 + 1, width // 2, width - width // 8)
    truth = _square(height, width, box)[..., 0] > 128
    prediction = predict_image(Brightness().eval(), _square(height, width, box), DATA)
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
    prediction = predict_image(Brightness(guided=False).eval(), image, DATA)
    logits = (image.astype(np.float64).mean(-1) / 255 - 0.5) * 20
    assert np.allclose(prediction.probability, 1 / (1 + np.exp(-logits)), atol=1e-4)
    assert prediction.guide is None


@pytest.mark.parametrize(("height", "width"), [(24, 17), (150, 201)])
def test_logits_are_resized_back_with_pillow_s_bilinear_filter(height: int, width: int) -> None:
    """Logits, not masks; half-pixel centres; antialiased for images smaller than the network's."""
    image = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    logits = ((place(image, 64).astype(np.float32).mean(-1) / 255 - 0.5) * 20).astype(np.float32)
    native = np.asarray(Image.fromarray(logits).resize((width, height), Image.Resampling.BILINEAR))
    assert np.allclose(predict_image(Brightness().eval(), image, DATA).probability, 1 / (1 + np.exp(-native)), atol=1e-4)


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
    small = place(stripes, 32)
    assert small.shape == (32, 32, 3)
    assert np.abs(small[:, 2:-2].astype(int) - 127).max() <= 2
    assert np.array_equal(small, np.asarray(Image.fromarray(stripes).resize((32, 32), Image.Resampling.BILINEAR)))


def test_mirroring_a_symmetric_network_changes_nothing() -> None:
    images = torch.randn(2, 3, 64, 64)
    plain, guide = predict_logits(Brightness().eval(), images)
    mirrored, mirrored_guide = predict_logits(Brightness().eval(), images, mirror=True)
    assert plain.shape == (2, 1, 64, 64)
    assert torch.allclose(plain, mirrored, atol=1e-5)
    assert guide is not None
    assert mirrored_guide is not None
    assert guide.shape == (2, 1, 4, 4)
    assert torch.allclose(guide, mirrored_guide, atol=1e-6)


def test_mirroring_averages_the_four_flips() -> None:
    images = torch.randn(1, 3, 64, 64)
    model = Ramp().eval()
    mirrored, _ = predict_logits(model, images, mirror=True)
    expected = torch.zeros(1, 1, 64, 64)
    for flip in ([], [2], [3], [2, 3]):
        expected += torch.flip(model(torch.flip(images, flip)).logits[0], flip) / 4
    assert torch.allclose(mirrored, expected, atol=1e-5)
    # Half of the views see the ramp reversed: a constant 2.5 remains of it.
    assert torch.allclose(mirrored, Brightness().eval()(images).logits[0] + 2.5, atol=1e-4)


def test_finest_head_no_gradient_float32() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1)).eval()

    class _Low(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, images: Tensor) -> KnownPrediction:
            return KnownPrediction((self.net(images).bfloat16(), torch.zeros(1)), images[:, :1].bfloat16())

    logits, guide = predict_logits(_Low().eval(), torch.randn(1, 3, 32, 32))
    assert guide is not None
    assert logits.dtype == guide.dtype == torch.float32
    assert not logits.requires_grad


class _Asked(Ramp):
    """Notes what it is given, and whether it computes under bf16 autocast."""

    def __init__(self, bf16: bool = False) -> None:
        super().__init__()
        self.bf16 = bf16
        self.sizes: list[int] = []
        self.autocast: list[bool] = []

    def forward(self, images: Tensor) -> KnownPrediction:
        self.sizes.append(len(images))
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        return super().forward(images)


@pytest.mark.parametrize(
    ("batch", "num_views", "sizes"), [(1, 4, [4]), (1, 3, [3, 1]), (3, 4, [4, 4, 4]), (5, 4, [5, 5, 5, 5]), (2, 1, [2] * 4)]
)
def test_flips_go_through_the_network_together(batch: int, num_views: int, sizes: list[int]) -> None:
    """Also where a pass holds flips of several images: each is flipped back by its own axes, and counted for its own image."""
    images = torch.randn(batch, 3, 64, 64)
    model = _Asked().eval()
    logits, guide = predict_logits(model, images, mirror=True, num_views=num_views)
    assert model.sizes == sizes
    plain, plain_guide = Brightness().eval()(images)
    assert torch.allclose(logits, plain[0] + 2.5, atol=1e-4)
    assert guide is not None
    assert torch.allclose(guide, plain_guide, atol=1e-6)


def test_the_training_image_is_one_pass_with_its_flips() -> None:
    model = _Asked().eval()
    predict_image(model, np.zeros((80, 70, 3), np.uint8), DATA, Protocol(mirror=True))
    assert model.sizes == [4]


@pytest.mark.parametrize("protocol", [Protocol(), SLIDING])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_network_predicts_in_the_precision_of_its_training(bf16: bool, protocol: Protocol) -> None:
    model = _Asked(bf16).eval()
    prediction = predict_image(model, np.zeros((80, 70, 3), np.uint8), DATA, protocol)
    assert set(model.autocast) == {bf16}
    assert prediction.probability.dtype == np.float32


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval"):
        predict_logits(Brightness().train(), torch.randn(1, 3, 32, 32))


def test_threshold_moves_the_mask() -> None:
    image = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    areas = [int(predict_image(Brightness().eval(), image, DATA, threshold=t).mask.sum()) for t in (0.1, 0.5, 0.9)]
    assert areas[0] > areas[1] > areas[2] > 0
    assert areas[1] == 64 * 32
    with pytest.raises(UserError, match="threshold"):
        predict_image(Brightness().eval(), image, DATA, threshold=1.0)


def test_only_rgb_bytes_are_images() -> None:
    for bad in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match="uint8"):
            predict_image(Brightness().eval(), bad, DATA)


def test_mirroring_is_the_protocol_s() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    plain, mirrored = (predict_image(Ramp().eval(), image, DATA, Protocol(mirror=m)).probability for m in (False, True))
    logits = (image.astype(np.float64).mean(-1) / 255 - 0.5) * 20
    assert np.allclose(plain, 1 / (1 + np.exp(-logits - np.linspace(0, 5, 64))), atol=1e-4)
    assert np.allclose(mirrored, 1 / (1 + np.exp(-logits - 2.5)), atol=1e-4)


def test_at_training_resolution_nothing_is_resized_back() -> None:
    image = np.random.default_rng(3).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    prediction = predict_image(Brightness().eval(), image, DATA, Protocol(resolution="training"))
    logits = (place(image, 64).astype(np.float64).mean(-1) / 255 - 0.5) * 20
    assert prediction.mask.shape == (64, 64)
    assert np.array_equal(prediction.mask, logits > 0)
    assert np.allclose(prediction.probability, 1 / (1 + np.exp(-logits)), atol=1e-4)
    assert prediction.guide is not None
    assert prediction.guide.shape == (64, 64)


# ---------------------------------------------------------------------------------------------------------------------- frames

PAD = dataclasses.replace(DATA, resize="pad")


def test_a_padded_image_is_cut_out_and_enlarged_as_it_was_made_smaller() -> None:
    """The network's logits are a function of the pixel alone: what comes back is that function of the smaller image, enlarged."""
    image = np.random.default_rng(4).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    small = resize_array(image, (38, 64))  # 64 * 90 / 150 = 38.4
    logits = ((small.astype(np.float32).mean(-1) / 255 - 0.5) * 20).astype(np.float32)
    training = predict_image(Brightness().eval(), image, PAD, Protocol(resolution="training"))
    assert np.allclose(training.probability, 1 / (1 + np.exp(-logits)), atol=1e-4)
    assert training.guide is not None
    assert training.mask.shape == training.guide.shape == (38, 64)
    native = np.asarray(Image.fromarray(logits).resize((150, 90), Image.Resampling.BILINEAR))
    prediction = predict_image(Brightness().eval(), image, PAD)
    assert np.allclose(prediction.probability, 1 / (1 + np.exp(-native)), atol=1e-4)
    assert prediction.guide is not None
    assert prediction.guide.shape == (90, 150)


@pytest.mark.parametrize(("height", "width"), [(64, 40), (31, 64)])
def test_an_image_of_the_network_s_size_comes_back_pixel_by_pixel(height: int, width: int) -> None:
    image = np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)
    prediction = predict_image(Brightness().eval(), image, PAD)
    assert np.allclose(prediction.probability, 1 / (1 + np.exp(-(image.astype(np.float64).mean(-1) / 255 - 0.5) * 20)), atol=1e-4)


def test_a_square_image_is_the_same_padded_and_squashed() -> None:
    image = np.random.default_rng(6).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    squashed, padded = (predict_image(Brightness().eval(), image, data) for data in (DATA, PAD))
    assert np.array_equal(squashed.probability, padded.probability)
    assert np.array_equal(squashed.guide, padded.guide)  # type: ignore[arg-type]


def test_the_guide_lies_over_the_image_and_not_over_its_margin() -> None:
    """A bright half: the guide's own cells of 16 pixels do not end where the margin ends."""
    image = np.full((64, 24, 3), 20, np.uint8)
    image[32:] = 230
    guide = predict_image(Brightness().eval(), image, PAD).guide
    assert guide is not None
    assert guide.shape == (64, 24)
    assert guide[:16].max() < 0.5 < guide[48:].min()


def test_channels_and_sixteen_bits() -> None:
    """uint16 of 257 times the value is the same image."""

    class First(nn.Module):
        def forward(self, images: Tensor) -> KnownPrediction:
            return KnownPrediction((images[:, :1],), None)

    data = dataclasses.replace(DATA, channels=5)
    image = np.random.default_rng(7).integers(0, 256, (40, 50, 5), dtype=np.uint8)
    eight = predict_image(First().eval(), image, data).probability
    sixteen = predict_image(First().eval(), image.astype(np.uint16) * 257, data).probability
    assert np.allclose(eight, sixteen, atol=0.01)  # eight bits are rounded once more where the image is made larger
    for wrong in (image[..., :3], image.astype(np.float32), image[..., 0]):
        with pytest.raises(ValueError, match=r"\(H, W, 5\) uint8 or uint16"):
            predict_image(First().eval(), wrong, data)


# ---------------------------------------------------------------------------------------------------------------------- classes


def test_binary_labels_are_above_the_threshold() -> None:
    logits = torch.tensor([[[[-1.0, 0.0, 1e-3, 3.0]]]])
    assert to_labels(logits).tolist() == [[[0, 0, 1, 1]]]
    assert to_labels(logits, threshold=0.9).tolist() == [[[0, 0, 0, 1]]]
    assert to_labels(logits).dtype == torch.uint8


def test_labels_of_several_classes_are_the_likeliest() -> None:
    logits = torch.randn(3, 5, 6, 7)
    labels, probabilities = to_labels(logits).numpy(), to_probabilities(logits).numpy()
    exponential = np.exp(logits.double().numpy())
    for b, y, x in np.ndindex(3, 6, 7):
        assert labels[b, y, x] == np.argmax(exponential[b, :, y, x])
        assert probabilities[b, :, y, x] == pytest.approx(exponential[b, :, y, x] / exponential[b, :, y, x].sum(), rel=1e-4)
    assert labels.dtype == np.uint8


class _Levels(Brightness):
    """Three classes: background, dark, bright; logits from the brightness."""

    def forward(self, images: Tensor) -> KnownPrediction:
        logits, guide = super().forward(images)
        grey = logits[0] / 20 + 0.5
        return KnownPrediction((torch.cat([10 * (0.25 - grey).clamp(min=-0.1), 0 * grey, 10 * (grey - 0.75)], dim=1),), guide)


@pytest.mark.parametrize("protocol", [Protocol(), SLIDING])
def test_an_image_of_several_classes(protocol: Protocol) -> None:
    image = np.full((96, 120, 3), 10, np.uint8)
    image[10:50, 10:70], image[60:90, 40:110] = 128, 250
    expected = np.zeros((96, 120), np.uint8)
    expected[10:50, 10:70], expected[60:90, 40:110] = 1, 2
    data = Data(kind="demo", image_size=64, num_classes=2)
    prediction = predict_image(_Levels().eval(), image, data, protocol)
    assert set(np.unique(prediction.mask)) == {0, 1, 2}
    # An edge between black and white passes through grey when it was resized; a window sees it as it is.
    assert (prediction.mask != expected).mean() <= (0.04 if protocol.inference == "resized" else 0)
    assert prediction.probability[20, 20] > 0.5 > prediction.probability[0, 0]
    with pytest.raises(UserError, match="without a threshold"):
        predict_image(_Levels().eval(), image, data, protocol, threshold=0.4)


# -------------------------------------------------------------------------------------------------------------- post-processing


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
    both = predict_image(Brightness().eval(), image, DATA).mask
    one = predict_image(Brightness().eval(), image, DATA, Protocol(largest_component="always")).mask
    assert both[53, 53] == 1
    assert one[53, 53] == 0
    assert np.array_equal(one[:40], both[:40])


def test_largest_component_of_each_class() -> None:
    drawn = ["11022", "10020", "00300", "22211", "33300"]
    labels = np.array([[int(c) for c in row] for row in drawn], np.uint8)
    expected = np.array([[int(c) for c in row] for row in ["11022", "10020", "00000", "00000", "33300"]], np.uint8)
    assert np.array_equal(largest_component(labels), expected)  # of the two pieces of class 2 with three pixels the first stays
    assert largest_component(labels).dtype == np.uint8


def test_what_is_undecided_is_refused() -> None:
    with pytest.raises(ValueError, match="decided"):
        predict_image(Brightness().eval(), np.zeros((8, 8, 3), np.uint8), DATA, Protocol(largest_component="validation"))
