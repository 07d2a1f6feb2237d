"""Augmentation: a function of the seed, aligned masks, nnU-Net's probabilities and formulas."""

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from monai_views import monai_view
from scipy import ndimage

from guidino_tune.data import augmentation
from guidino_tune.data.augmentation import make_augmentation
from guidino_tune.errors import UserError
from guidino_tune.normalisation import normalise

SIZE = 64
together = make_augmentation("nnunet")


def augment(image: torch.Tensor, mask: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One view."""
    (view,), (shape,) = together(image[None], mask[None], [seed])
    return view, shape


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


def changed(name: str, channel: torch.Tensor, parameter: float) -> torch.Tensor:
    """One channel (1, S, S), by the change of that name."""
    return dict(augmentation._CHANGES)[name](channel.clone(), torch.tensor([parameter])[:, None, None])


class Drawn:
    """Plans that a test gives in place of drawn ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *plans: augmentation.Plan) -> None:
        self.plans = list(plans)
        monkeypatch.setattr(augmentation, "draw", lambda rng, shape: self.plans.pop(0))


def plan(**changes) -> augmentation.Plan:
    return augmentation.Plan(**{"angle": 0.0, "scale": 1.0, "noise": None, "channels": {}, "flips": (), **changes})


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


def test_outside_a_turned_image_is_its_mean_colour_when_it_was_z_scored(monkeypatch):
    """nnU-Net's zeros are meant for z-scores: no frame to be seen, however dark the image; with ImageNet's mean there is one."""
    dark = np.random.default_rng(0).integers(0, 40, (SIZE, SIZE, 3), dtype=np.uint8)
    steps = {}
    for kind in ("zscore", "imagenet"):
        image = normalise(dark, kind)
        Drawn(monkeypatch, plan(angle=np.pi / 4))
        turned, inside = augment(image, torch.ones(1, SIZE, SIZE), 0)
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


def test_probabilities_are_nnunets():
    runs, counts = 4000, dict.fromkeys(["moved", "noise", *dict(augmentation._CHANGES)], 0)
    for seed in range(runs):
        drawn = augmentation.draw(np.random.default_rng(seed), (3, 4, 4))
        counts["moved"] += drawn.angle != 0 or drawn.scale != 1
        counts["noise"] += drawn.noise is not None
        for name, values in drawn.channels.items():
            assert len(values) == 3
            counts[name] += sum(value is not None for value in values)
    expected = {
        "moved": 1 - 0.8**2,
        "noise": 0.1,
        "blur": 0.2 * 0.5 * 3,
        "brightness": 0.15 * 3,
        "contrast": 0.15 * 3,
        "resolution": 0.25 * 0.5 * 3,
        "gamma of the inverted image": 0.1 * 3,
        "gamma": 0.3 * 3,
    }
    assert counts.keys() == expected.keys()
    for name, share in expected.items():
        assert abs(counts[name] / runs - share) < 0.06, name


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("size", "channels"), [(64, 3), (75, 3), (200, 1)])  # the sum over a single large channel is divided among threads
def test_a_view_is_the_same_alone_and_among_others(size, channels, threads):
    rng = np.random.default_rng(1)
    images = torch.stack([normalise(rng.integers(0, 256, (size, size, channels), dtype=np.uint8)) for _ in range(40)])
    masks, seeds = (images[:, :1] > 0).float(), [7 * row for row in range(40)]
    views, shapes = together(images, masks, seeds)
    torch.set_num_threads(threads)
    for row, seed in enumerate(seeds):
        view, shape = augment(images[row], masks[row], seed)
        assert torch.equal(view, views[row])
        assert torch.equal(shape, shapes[row])


def test_monais_transforms_make_the_same_views_of_the_same_draws():
    """Its Gaussian is the exception, whose weights do not add up to 1: up to 3 % brighter at sigma 0.5."""
    rng = np.random.default_rng(2)
    seeds, same, moved_pixels = range(60), 0, 0
    for seed in seeds:
        blocks = rng.integers(0, 200, (8, 8, 3)).repeat(8, 0).repeat(8, 1) + rng.integers(0, 56, (SIZE, SIZE, 3))
        image, mask = normalise(blocks.astype(np.uint8)), torch.from_numpy(blocks[None, ..., 0] > 100).float()
        drawn = augmentation.draw(np.random.default_rng(seed), image.shape)
        if "blur" in drawn.channels:
            continue
        expected, shape = monai_view(image, mask, drawn)
        view, found = augment(image, mask, seed)
        assert (view - expected).abs().max() < 2e-4
        moved_pixels += int((found != shape).sum())  # ties of the nearest pixel
        same += 1
    assert same > 25
    assert moved_pixels / (same * SIZE**2) < 1e-3


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
    np.testing.assert_allclose(changed("gamma", channel.float(), 1.3).numpy(), expected.numpy(), atol=1e-4)
    low, high = -channel.max(), -channel.min()
    bent = ((-channel - low) / (high - low)) ** 0.8 * (high - low) + low
    expected = -((bent - bent.mean()) / bent.std() * channel.std() - channel.mean())
    np.testing.assert_allclose(changed("gamma of the inverted image", channel.float(), 0.8).numpy(), expected.numpy(), atol=1e-4)


def test_contrast_brightness_and_blur_follow_their_formulas():
    channel = pair()[0][:1]
    np.testing.assert_allclose(changed("brightness", channel, 0.8), channel * 0.8, rtol=1e-5)
    expected = ((channel - channel.mean()) * 1.2 + channel.mean()).clip(channel.min(), channel.max())
    np.testing.assert_allclose(changed("contrast", channel, 1.2), expected, atol=1e-5)
    for sigma in (0.5, 0.9, 1.0):
        expected = ndimage.gaussian_filter(channel[0].numpy(), sigma, mode="mirror", truncate=4)
        np.testing.assert_allclose(changed("blur", channel, sigma)[0], expected, atol=2e-4)


@pytest.mark.parametrize("name", ["blur", "contrast", "resolution", "gamma", "gamma of the inverted image"])
def test_a_channel_of_one_value_stays_as_it_is_up_to_the_border(name):
    flat = torch.full((1, SIZE, SIZE), 1.7)
    assert torch.allclose(changed(name, flat, 0.75), flat, atol=1e-5)


def test_low_resolution_loses_detail_but_not_place():
    ramp = torch.arange(SIZE, dtype=torch.float32).repeat(1, SIZE, 1)
    lowered = changed("resolution", ramp, 0.5)
    assert (lowered - ramp)[..., 2:-2].mean().abs() <= 0.51  # nearest takes one of two pixels
    checks = torch.tensor([0.0, 1.0]).repeat(1, SIZE, SIZE // 2)
    assert changed("resolution", checks, 0.5).std() < 0.01


def test_none_leaves_cases_alone_and_unknown_names_are_errors():
    image, mask = pair()
    (view,), (shape,) = make_augmentation("none")(image[None], mask[None], [5])
    assert torch.equal(view, image)
    assert torch.equal(shape, mask)
    with pytest.raises(UserError, match="did you mean 'nnunet'"):
        make_augmentation("nnunett")
