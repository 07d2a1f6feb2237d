"""Patches: within the image, on the foreground as often as asked for, and the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from training_helpers import train

from guidino_tune.config import Experiment, Protocol
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.patches import centre, cut_patch
from guidino_tune.data.views import TrainViews
from guidino_tune.errors import UserError
from guidino_tune.inference import predict_image


def case(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pixel of the image is its own number, from 1."""
    image = torch.arange(1, height * width + 1, dtype=torch.float32).reshape(1, height, width)
    mask = torch.zeros(1, height, width)
    mask[0, height // 3, width // 3] = 1
    return image, mask


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 50), st.floats(0, 1), st.sampled_from([1.0, 1.5]))
@examples(40)
def test_a_patch_is_a_window_of_the_image(height: int, width: int, seed: int, foreground: float, margin: float) -> None:
    image, mask = case(height, width)
    large, labels = cut_patch(image, mask, 32, foreground, np.random.default_rng(seed), margin=margin)
    assert large.shape[1:] == labels.shape[1:] == (int(32 * margin),) * 2
    patch, truth = centre(large, 32), centre(labels, 32)
    assert patch.shape == (1, 32, 32)
    assert (patch > 0).sum() == min(height, 32) * min(width, 32), "as much of the image as fits"
    rows, columns = torch.nonzero(patch[0], as_tuple=True)
    numbers = patch[0, rows, columns].long() - 1
    shift = (numbers // width - rows, numbers % width - columns)
    assert all(len(part.unique()) == 1 for part in shift), "one piece, in its own order"
    assert torch.equal(truth[0, rows, columns], mask[0, numbers // width, numbers % width])
    again, _ = cut_patch(image, mask, 32, foreground, np.random.default_rng(seed), margin=margin)
    assert torch.equal(large, again)


def test_the_foreground_is_met_as_often_as_asked_for() -> None:
    image, mask = case(400, 400)
    hits = {
        chance: np.mean([bool(cut_patch(image, mask, 32, chance, np.random.default_rng(seed))[1].any()) for seed in range(400)])
        for chance in (0.0, 0.33, 0.99)
    }
    by_luck = (32 / 369) ** 2  # of all places of the window, those that hold the one pixel
    for chance, share in hits.items():
        expected = chance + (1 - chance) * by_luck
        assert share == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / 400) + 0.003)


def test_rare_classes_are_drawn_as_often_as_others() -> None:
    mask = torch.ones(1, 300, 300)
    mask[0, 250, 40] = 2
    image = torch.zeros(3, 300, 300)
    seen = [bool((cut_patch(image, mask, 32, 1.0, np.random.default_rng(seed))[1] == 2).any()) for seed in range(200)]
    assert np.mean(seen) == pytest.approx(0.5, abs=0.12)


def test_a_network_is_trained_on_patches_and_validated_at_the_images_own_sizes(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number, (height, width) in enumerate([(90, 70), (64, 100), (40, 120), (75, 75), (80, 60), (66, 66)]):
        mask = np.zeros((height, width), bool)
        mask[10:30, 15 : 15 + 4 * number + 8] = True
        rng = np.random.default_rng(number)
        image = np.clip(60 + 120 * mask[..., None] + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "masks" / f"{number}.png")
    experiment = Experiment.from_dict(
        {
            "data": {
                "kind": "folder", "root": str(tmp_path), "image_size": 32, "view": "patch",
                "validation_fraction": 0.34, "test_fraction": 0, "augmentation": "none",
            },
            "guide": {"kind": "none"},
            "segmenter": {"kind": "unet", "base_width": 2},
            "training": {"epochs": 6, "batch_size": 2, "lr": 1e-2, "steps_per_epoch": 12, "precision": "fp32"},
        }
    )  # fmt: skip
    data = open_for_search(experiment.data, cache=tmp_path / "cache")
    assert data.train.native
    views = TrainViews(data.train, experiment.data, 0, 2)
    (image,), (mask,) = views.views(0, data.train.ids[:1])
    assert (image.shape, mask.shape) == ((3, 32, 32), (1, 32, 32))
    assert torch.equal(image, views.views(0, data.train.ids[:1])[0][0])
    run = train(experiment, data, tmp_path / "run")
    assert [case.prediction.shape for case in run.shown] == [data.validation.original_size(i) for i in range(2)]
    assert run.best > 0.8
    # The full protocol sees windows too, without being told.
    whole = np.asarray(Image.open(tmp_path / "images" / "0.png"))
    model = run.model.eval()
    sliding = predict_image(model, whole, experiment.data, Protocol(inference="sliding"))
    assert np.array_equal(predict_image(model, whole, experiment.data).probability, sliding.probability)
    with pytest.raises(UserError, match="no training size"):
        predict_image(model, whole, experiment.data, Protocol(resolution="training"))
