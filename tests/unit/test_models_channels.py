"""Images of any number of channels: what the segmenter and the guide backbone see of them, and what depends on their number."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_helpers import GUIDE, NO_GUIDE, SMALL

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.data.store import ChunkStore
from guidino_tune.errors import UserError
from guidino_tune.models import GuideView, build_model, check_segmenter
from guidino_tune.models.cost import forward_cost
from guidino_tune.normalisation import normalise
from guidino_tune.running.probing import _two_steps, estimate, shape_of
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.costs import forward_seconds
from guidino_tune.training.model_folder import EXPERIMENT, load_model
from guidino_tune.training.tokens import make_encoder

RNG = np.random.default_rng(0)


def experiment_of(channels: int, kind: str = "unet", guide: dict[str, Any] | None = None, **data: Any) -> Experiment:
    return Experiment.from_dict(
        {
            "data": {"kind": "demo", "image_size": 32, "channels": channels, **data},
            "guide": guide or NO_GUIDE,
            **SMALL[kind],
            "training": {"precision": "fp32", "batch_size": 2},
        }
    )


def photo(channels: int, kind: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(kind).max + 1, (32, 32, channels)).astype(kind)


@pytest.mark.parametrize(
    ("channels", "chosen", "seen"),
    [
        (1, None, (0, 0, 0)),  # grey three times
        (2, None, (0, 1, 0)),
        (3, None, (0, 1, 2)),
        (3, (2, 1, 0), (2, 1, 0)),
        (4, None, (0, 1, 2)),
        (5, (4, 4, 1), (4, 4, 1)),
    ],
)
def test_the_guide_sees_three_channels_as_an_image_of_them(channels: int, chosen: Any, seen: tuple[int, int, int]) -> None:
    experiment = experiment_of(channels, guide={**GUIDE, "channels": chosen})
    assert experiment.guide_channels == seen
    image = photo(channels)
    model = build_model(experiment).eval()
    expected = normalise(np.ascontiguousarray(image[..., list(seen)]))[None]
    torch.testing.assert_close(model.view(normalise(image)[None]), expected, atol=2e-6, rtol=1e-5)
    told: list[Tensor] = []
    assert model.backbone is not None
    model.backbone.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    with torch.no_grad():
        model(normalise(image)[None])
    torch.testing.assert_close(told[0], expected, atol=2e-6, rtol=1e-5)


def test_three_channels_in_their_order_are_not_touched() -> None:
    images = torch.randn(1, 3, 8, 8)
    assert GuideView()(images) is images
    assert GuideView((0, 1, 2), 3).whole
    assert not GuideView((0, 1, 2), 4).whole


def test_a_grey_image_of_one_channel_and_of_three_give_the_same_guide() -> None:
    grey = photo(1)
    one, three = (build_model(experiment_of(n, guide=GUIDE)).eval() for n in (1, 3))
    with torch.no_grad():
        a, b = one(normalise(grey)[None]).guide, three(normalise(np.repeat(grey, 3, axis=2))[None]).guide
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_tokens_that_are_shared_are_what_the_model_computes(channels: int) -> None:
    experiment = experiment_of(channels, "segguidino", GUIDE)
    model = build_model(experiment).eval()
    encoder = make_encoder(experiment, model, bf16=False)
    assert encoder is not None
    images = normalise(photo(channels))[None]
    with torch.no_grad():
        features = model._features(images)
    assert features is not None
    torch.testing.assert_close(torch.from_numpy(encoder(images)["last"]).float(), features.last, atol=2e-3, rtol=2e-3)


def test_another_choice_of_channels_has_tokens_of_its_own() -> None:
    keys = set()
    for guide in (GUIDE, {**GUIDE, "channels": (2, 1, 0)}):
        experiment = experiment_of(3, "segguidino", guide)
        encoder = make_encoder(experiment, build_model(experiment), bf16=False)
        assert encoder is not None
        keys.add(encoder.key)
    assert len(keys) == 2


def test_the_number_of_channels_changes_the_first_layer_only() -> None:
    three, five = (build_model(experiment_of(n)) for n in (3, 5))
    shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in (three, five)]
    assert {name for name in shapes[0] if shapes[0][name] != shapes[1][name]} == {"segmenter.down.0.0.weight"}
    assert [forward_cost(experiment_of(n))[1] for n in (3, 5)] == [sum(p.numel() for p in m.parameters()) for m in (three, five)]
    first = 2 * 9 * 32**2 * 2  # operations of one input channel: 3x3 products and sums, at every pixel, for two outputs
    assert forward_cost(experiment_of(5))[0] - forward_cost(experiment_of(3))[0] == 2 * first


@pytest.mark.parametrize("guide", [NO_GUIDE, GUIDE])
def test_what_a_search_measures_beforehand_takes_n_channels(guide: dict[str, Any]) -> None:
    experiment = experiment_of(4, guide=guide)
    check_segmenter(experiment)
    assert _two_steps(experiment, 1, torch.device("cpu")) > 0
    assert estimate(experiment) > estimate(experiment_of(1, guide=guide)) > 0
    assert shape_of(experiment, 1) != shape_of(experiment_of(1, guide=guide), 1)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=False)
    assert forward_seconds(build_model(experiment), 32, torch.device("cpu"), autocast, channels_last=True, channels=4) > 0


def test_a_model_folder_knows_its_channels(tmp_path: Path) -> None:
    experiment = experiment_of(2, guide=GUIDE)
    model = build_model(experiment).eval()
    save_weights(tmp_path / WEIGHTS, model.trained_state())
    (tmp_path / EXPERIMENT).write_text(experiment.to_yaml())
    loaded, read = load_model(tmp_path)
    assert read.data.channels == 2
    images = normalise(photo(2))[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits[0], model(images).logits[0])  # in another memory format


def test_a_channel_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"guide\.channels"):
        experiment_of(2, guide={**GUIDE, "channels": (0, 1, 2)})


def test_views_and_their_tokens_have_all_channels(tmp_path: Path) -> None:
    """Training, with and without shared views, on images of four channels: the table is played by arrays in memory."""
    from guidino_tune.data.views import TrainViews

    class Table:
        def __init__(self) -> None:
            self.ids, self.fingerprint = ("a", "b", "c"), "f" * 64
            self.positions = {"a": 0, "b": 1, "c": 2}
            self.native = False

        def __len__(self) -> int:
            return 3

        def image(self, i: int) -> np.ndarray:
            return np.random.default_rng(i).integers(0, 65536, (32, 32, 4)).astype(np.uint16)

        def mask(self, i: int) -> np.ndarray:
            return (np.random.default_rng(i).random((32, 32)) < 0.5).astype(np.uint8)

    experiment = experiment_of(4, guide=GUIDE)
    encoder = make_encoder(experiment, build_model(experiment), bf16=False)
    plain = TrainViews(Table(), experiment.data, 0, 3)  # type: ignore[arg-type]
    shared = TrainViews(Table(), experiment.data, 0, 3, store=ChunkStore(tmp_path, 10**8), encoder=encoder)  # type: ignore[arg-type]
    for epoch in range(3):
        (a,), (b,) = list(plain.epoch(epoch)), list(shared.epoch(epoch))
        assert a.images.shape == (3, 4, 32, 32)
        assert torch.equal(a.images, b.images)
        assert b.tokens[0].shape == (3, 64, 2, 2)
    shared.close()


def test_the_guide_s_frozen_weights_do_not_depend_on_the_channels() -> None:
    guide = experiment_of(4, guide={**GUIDE, "channels": (3, 0, 1)}).guide
    assert isinstance(guide, DINOGuide)
    assert dataclasses.replace(guide, channels=None) == experiment_of(3, guide=GUIDE).guide
