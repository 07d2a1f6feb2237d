"""Augmentation: a function of the seed, aligned masks, nnU-Net's probabilities and formulas."""

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from guidino_tune.data import augmentation
from guidino_tune.data.augmentation import make_augmentation
from guidino_tune.errors import UserError
from guidino_tune.normalisation import normalise

SIZE = 64
augment = make_augmentation("nnunet")


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine torch's threads wait for each other tens of times longer than these small images take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    image = normalise(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 10:30, 20:50] = 1
    return image, mask


class Draws:
    """Stands for a generator: gives these numbers, one after the other."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)

    def uniform(self, low: float, high: float) -> float:
        value = self.numbers.pop(0)
        assert low <= value <= high
        return value


@examples(15)
@given(st.integers(0, 2**63 - 1))
def test_views_are_whole_finite_binary_and_repeatable(seed):
    image, mask = pair()
    before = image.clone(), mask.clone()
    view, shape = augment(image, mask, seed)
    assert (view.shape, shape.shape) == (image.shape, mask.shape)
    assert type(view) is type(shape) is torch.Tensor
    assert view.dtype == shape.dtype == torch.float32
    assert torch.isfinite(view).all()
    assert set(shape.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])
    augment(*pair(1), seed ^ 1)  # what came between has no influence
    again, shape_again = augment(image, mask, seed)
    assert torch.equal(view, again)
    assert torch.equal(shape, shape_again)


@examples(25)
@given(st.integers(0, 2**63 - 1), st.sampled_from([2, 3, 254]))
def test_a_label_map_is_moved_as_the_mask_of_each_of_its_classes(seed, num_classes):
    """So labels stay labels, and no label comes up between two others."""
    rng = np.random.default_rng(seed % 1000)
    blocks = rng.integers(0, num_classes + 1, (1, 8, 8)).repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
    labels = torch.from_numpy(blocks).float()
    image = pair()[0]
    view, moved = augment(image, labels, seed)
    assert set(moved.unique().tolist()) <= {0.0, *labels.unique().tolist()}
    for number in labels.unique()[-3:]:
        view_alone, alone = augment(image, (labels == number).float(), seed)
        assert torch.equal(view, view_alone)
        if number:  # what comes in from outside is background
            assert torch.equal(moved == number, alone == 1)


def test_outside_a_turned_image_is_its_mean_colour_when_it_was_z_scored():
    """nnU-Net's zeros are meant for z-scores: no frame to be seen, however dark the image; with ImageNet's mean there is one."""
    dark = np.random.default_rng(0).integers(0, 40, (SIZE, SIZE, 3), dtype=np.uint8)
    steps = {}
    for kind in ("zscore", "imagenet"):
        image = normalise(dark, kind)
        turned, inside = augmentation._rotate_and_scale(image, torch.ones(1, SIZE, SIZE), Draws(0.1, np.pi / 4, 0.9))
        outside = inside.expand_as(turned) == 0
        middle = turned[:, SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4]
        assert 0.1 < outside.float().mean() < 0.25
        assert turned[outside].abs().median() == 0
        steps[kind] = float(middle.mean().abs() / image.std())
    assert steps["zscore"] < 0.05
    assert steps["imagenet"] > 3


def test_mask_moves_with_the_image():
    y, x = np.mgrid[:SIZE, :SIZE]
    blob = ((y - 25) ** 2 + (x - 38) ** 2 < 14**2).astype(np.float32)
    mask = torch.from_numpy(blob)[None]
    image = mask.repeat(3, 1, 1) * 4
    overlaps = []
    for seed in range(200):
        view, shape = augment(image, mask, seed)
        truth = shape[0].numpy() > 0
        if truth.sum() > 100 and not torch.equal(shape, mask):
            smooth = ndimage.gaussian_filter(view.mean(0).numpy(), 1.5)
            found = smooth > (np.median(smooth[truth]) + np.median(smooth[~truth])) / 2
            overlaps.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert len(overlaps) > 100
    assert min(overlaps) > 0.85
    assert np.median(overlaps) > 0.97


def test_probabilities_are_nnunets(monkeypatch):
    counts: dict[str, int] = {}

    class Generator:
        def __init__(self, seed):
            self.real = np.random.Generator(np.random.PCG64(seed))

        def __getattr__(self, name):
            return getattr(self.real, name)

    def count(name, result):
        counts[name] = counts.get(name, 0) + 1
        return result

    for name in ("Affine", "GaussianSmooth", "ScaleIntensity", "ScaleIntensityFixedMean", "AdjustContrast"):
        identity = lambda x, **_: x  # noqa: E731
        monkeypatch.setattr(
            augmentation, name, lambda *args, n=name, i=identity, **kwargs: count(n + str(kwargs.get("invert_image", "")), i)
        )
    monkeypatch.setattr(augmentation.np.random, "default_rng", Generator)
    image, mask = torch.arange(64 * 3.0).reshape(3, 8, 8), torch.ones(1, 8, 8)
    runs = 4000
    for seed in range(runs):
        augment(image, mask, seed)
    expected = {
        "Affine": 1 - 0.8**2,
        "GaussianSmooth": 0.2 * 0.5 * 3,
        "ScaleIntensity": 0.15 * 3,
        "ScaleIntensityFixedMean": 0.15 * 3,
        "AdjustContrastTrue": 0.1 * 3,
        "AdjustContrast": 0.3 * 3,
    }
    assert counts.keys() == expected.keys()
    for name, share in expected.items():
        assert abs(counts[name] / runs - share) < 0.06, name


def test_flips_of_both_axes_are_even():
    image, mask = pair()
    corner = torch.zeros_like(mask)
    corner[0, :20, :20] = 1
    seen = dict.fromkeys([(0, 0), (0, 1), (1, 0), (1, 1)], 0)
    for seed in range(200):
        _, shape = augment(image, corner, seed)
        for flips in seen:
            seen[flips] += torch.equal(shape, corner.flip([axis + 1 for axis in (0, 1) if flips[axis]]))
    assert min(seen.values()) > 0.64 / 4 * 200 * 0.7


def test_gamma_keeps_statistics_and_follows_the_formula():
    channel = pair()[0][:1].double()
    low, high = channel.min(), channel.max()
    bent = ((channel - low) / (high - low)) ** 1.3 * (high - low) + low
    expected = (bent - bent.mean()) / bent.std() * channel.std() + channel.mean()
    result = augmentation._gamma(channel.float(), Draws(0.9, 1.3))
    np.testing.assert_allclose(result.numpy(), expected.numpy(), atol=1e-4)
    low, high = -channel.max(), -channel.min()
    bent = ((-channel - low) / (high - low)) ** 0.8 * (high - low) + low
    expected = -((bent - bent.mean()) / bent.std() * channel.std() - channel.mean())
    result = augmentation._gamma_inverted(channel.float(), Draws(0.1, 0.8))
    np.testing.assert_allclose(result.numpy(), expected.numpy(), atol=1e-4)


def test_contrast_brightness_and_blur_follow_their_formulas():
    channel = pair()[0][:1]
    np.testing.assert_allclose(augmentation._brightness(channel, Draws(0.1, 0.8)), channel * 0.8, rtol=1e-5)
    expected = ((channel - channel.mean()) * 1.2 + channel.mean()).clip(channel.min(), channel.max())
    np.testing.assert_allclose(augmentation._contrast(channel, Draws(0.9, 1.2)), expected, atol=1e-5)
    expected = ndimage.gaussian_filter(channel[0].numpy(), 0.9, mode="mirror", truncate=4)
    np.testing.assert_allclose(augmentation._blur(channel, Draws(0.9, 0.9))[0], expected, atol=2e-3)
    assert torch.equal(augmentation._blur(channel, Draws(0.1)), channel)


def test_blur_and_low_resolution_leave_a_constant_alone_up_to_the_border():
    flat = torch.full((1, SIZE, SIZE), 1.7)
    assert torch.allclose(augmentation._blur(flat, Draws(0.9, 1.0)), flat, atol=1e-4)
    assert torch.allclose(augmentation._lower_resolution(flat, Draws(0.9, 0.5)), flat)


def test_low_resolution_loses_detail_but_not_place():
    ramp = torch.arange(SIZE, dtype=torch.float32).repeat(1, SIZE, 1)
    lowered = augmentation._lower_resolution(ramp, Draws(0.9, 0.5))
    assert (lowered - ramp)[..., 2:-2].mean().abs() <= 0.51  # nearest takes one of two pixels
    checks = torch.tensor([0.0, 1.0]).repeat(1, SIZE, SIZE // 2)
    assert augmentation._lower_resolution(checks, Draws(0.9, 0.5)).std() < 0.01


def test_none_leaves_cases_alone_and_unknown_names_are_errors():
    image, mask = pair()
    view, shape = make_augmentation("none")(image, mask, 5)
    assert torch.equal(view, image)
    assert torch.equal(shape, mask)
    with pytest.raises(UserError, match="did you mean 'nnunet'"):
        make_augmentation("nnunett")
