"""A trial on shared views and tokens is the trial that it would be without them; validation and memory on a schedule."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data_views_shared import chunks
from training_helpers import GUIDE, LORA, Listener, make_data, make_experiment, values

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.data.opening import SearchData
from guidino_tune.data.store import ChunkStore
from guidino_tune.models.backbone import FeatureRequest, load_backbone, segmentation_layers
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.tokens import TokenEncoder, fingerprint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    torch.set_num_threads(1)
    return make_data(tmp_path_factory.mktemp("cases"))


def run(experiment: Experiment, data: SearchData, path: Path, **options: Any) -> TrainingRun:
    trained = TrainingRun(experiment, data, Listener(path), **options)
    trained.run()
    trained.close()
    return trained


def left(views: Path, count: int) -> list[str]:
    """Groups of the chunks that lie there, once the threads of closed trainings have removed theirs."""
    deadline = time.monotonic() + 10
    while len(found := [file.parent.name for file in chunks(views)]) > count and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


SEGDINO = {"segmenter": {"kind": "segdino"}}
GATELESS = {**GUIDE, "gate": "none"}


def made(kind: str, guide: dict[str, Any] | None) -> Experiment:
    if kind != "segdino":
        return make_experiment(kind, guide=guide, epochs=3, lr=3e-4)
    return Experiment.from_dict(make_experiment("segguidino", guide=guide, epochs=3, lr=3e-4).to_dict() | SEGDINO)


@pytest.mark.parametrize(
    ("kind", "guide", "encoded"),
    [
        ("tiny", None, False),
        ("unet", GUIDE, True),
        ("segguidino", GUIDE, True),
        ("segguidino", LORA, False),
        ("segdino", GATELESS, True),  # reads several layers
    ],
)
def test_on_and_off_give_the_same_loss_curve(
    kind: str, guide: dict[str, Any] | None, encoded: bool, data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = made(kind, guide)
    off = values(run(experiment, data, tmp_path / "off"))
    run(experiment, data, tmp_path / "first", store=ChunkStore(tmp_path / "views", 10**8))
    store = ChunkStore(tmp_path / "views", 10**8)
    second = TrainingRun(experiment, data, Listener(tmp_path / "on"), store=store)
    if encoded:
        # The tokens are there: nobody runs the backbone any more.
        monkeypatch.setattr(second.model.backbone, "forward", lambda *_, **__: pytest.fail("the backbone ran"))
    second.run()
    second.close()
    assert store.made == 0
    on = values(second)
    assert on == off  # bit by bit
    assert bool(list((tmp_path / "views").glob("tokens-*"))) == encoded


def test_seeds_of_a_retraining_leave_what_validation_reads_and_what_others_made(data: SearchData, tmp_path: Path) -> None:
    """They see other training images, and the same validation images."""
    experiment, views = made("segguidino", GUIDE), tmp_path / "views"
    other = Experiment.from_dict({**experiment.to_dict(), "training": {**experiment.to_dict()["training"], "seed": 1}})
    off = [values(run(seed, data, tmp_path / f"off{number}")) for number, seed in enumerate((experiment, other))]
    on = [
        values(run(seed, data, tmp_path / f"on{number}", store=ChunkStore(views, 10**8), share_views="once"))
        for number, seed in enumerate((experiment, other))
    ]
    assert on == off
    assert left(views, 1) == ["validation"]  # of both
    run(experiment, data, tmp_path / "searched", store=ChunkStore(views, 10**8))
    before = sorted(views.rglob("*.arrow"))
    store = ChunkStore(views, 10**8)
    assert values(run(experiment, data, tmp_path / "again", store=store, share_views="once")) == off[0]
    left(views, len(before))
    assert sorted(views.rglob("*.arrow")) == before  # what a search may read
    assert store.made == 0


def test_a_trial_that_augments_on_its_device_keeps_validation_tokens_alone(data: SearchData, tmp_path: Path) -> None:
    """Here the device is the CPU, and so the numbers are the same."""
    experiment, views = made("segguidino", GUIDE), tmp_path / "views"
    off = values(run(experiment, data, tmp_path / "off"))
    assert values(run(experiment, data, tmp_path / "on", store=ChunkStore(views, 10**8), share_views="device")) == off
    assert [file.parent.name for file in views.rglob("*.arrow")] == ["validation"]


def test_a_trial_that_goes_on_reads_shared_views_too(data: SearchData, tmp_path: Path) -> None:
    experiment, views = made("segguidino", GUIDE), tmp_path / "views"
    straight = run(experiment, data, tmp_path / "straight", store=ChunkStore(views, 10**8))
    first = TrainingRun(experiment, data, Listener(tmp_path / "halves", 2), store=ChunkStore(views, 10**8))
    first.run()
    again = run(experiment, data, tmp_path / "halves", store=ChunkStore(views, 10**8), reported=2)
    assert values(again) == values(straight)


def test_a_training_counts_once_among_the_readers(data: SearchData, tmp_path: Path) -> None:
    """However often it validates, and from the first one on, who made what is read."""
    experiment, views = made("segguidino", GUIDE), tmp_path / "views"
    for number in (1, 2):
        run(experiment, data, tmp_path / str(number), store=ChunkStore(views, 10**8))
        readers = {file.parent.name: file.stat().st_size for file in views.glob("tokens-*/*/readers")}
        assert readers == dict.fromkeys(("00000", "00001", "00002", "validation"), number)


def test_tokens_are_the_backbone_s_maps_in_half_precision() -> None:
    torch.set_num_threads(1)
    guide = made("segdino", GUIDE).guide
    backbone = load_backbone(guide)  # type: ignore[arg-type]
    images = torch.randn(5, 3, 32, 32)
    request = FeatureRequest((0, 1), final_norm=False)
    tokens = TokenEncoder(backbone, DINOGuide(), request, bf16=False, batch_size=2)(images)
    expected = backbone(images, request.layers, request.final_norm)
    for name, value in zip(("last", "layer_0", "layer_1"), (expected.last, *expected.layers), strict=True):
        assert tokens[name].dtype == np.float16
        np.testing.assert_allclose(tokens[name].astype(np.float32), value.numpy(), rtol=2**-11, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["tiny", "vits16", "dinov2_vits14", "convnext_tiny"])
def test_the_last_layer_is_kept_once(name: str, bf16: bool) -> None:
    """A head reads it as the last map and as its deepest layer: both are the same numbers."""
    torch.set_num_threads(1)
    backbone = load_backbone(DINOGuide(backbone=name, weights="random"))
    request = FeatureRequest(segmentation_layers(backbone.shape.num_layers))
    images = torch.randn(3, 3, 32, 32)
    encoder = TokenEncoder(backbone, DINOGuide(backbone=name, weights="random"), request, bf16=bf16, batch_size=2)
    kept = encoder(images)
    assert len(kept) == len(set(request.layers))  # those before the last one, and the last map
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        plain = [backbone(part, request.layers, request.final_norm) for part in images.split(2)]
    expected = [torch.cat(maps).half() for maps in zip(*((x.last, *x.layers) for x in plain), strict=True)]
    for name, told, value in zip(encoder.names, encoder.maps(images[:2]), expected, strict=True):
        assert np.array_equal(kept[name], value.numpy())
        assert torch.equal(told, value[:2])  # of the first two alone: a ConvNeXt's last bits follow the size of the batch


def test_what_is_beyond_float16_is_cut_not_infinite() -> None:
    from guidino_tune.training.tokens import _half

    assert _half(torch.tensor([1e6, -1e6, 3.0])).tolist() == [65504.0, -65504.0, 3.0]


def test_a_fingerprint_follows_the_weights_and_the_request_the_key(tmp_path: Path) -> None:
    guide = DINOGuide(backbone="tiny", weights="random")
    backbone, again = load_backbone(guide), load_backbone(guide)
    assert fingerprint(backbone) == fingerprint(again)
    with torch.no_grad():
        next(again.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(backbone) != fingerprint(again)
    again.vit.save_pretrained(tmp_path)
    keys = [
        TokenEncoder(backbone, of, request, bf16=bf16, batch_size=4).key
        for of in (guide, DINOGuide(backbone=str(tmp_path)))
        for request in (
            FeatureRequest(),
            FeatureRequest((0,)),
            FeatureRequest((0,), final_norm=False),
            FeatureRequest((1,), final_norm=False),
        )
        for bf16 in (False, True)
    ]
    assert len(set(keys)) == len(keys)
    same = (FeatureRequest(), FeatureRequest((1,)), FeatureRequest(final_norm=False))  # of two layers the second is the last map
    assert len({TokenEncoder(backbone, guide, request, bf16=False, batch_size=4).key for request in same}) == 1


def test_a_trial_in_bf16_holds_its_frozen_guide_in_bf16_and_one_in_fp32_does_not(data: SearchData, tmp_path: Path) -> None:
    held = {}
    for precision in ("bf16", "fp32"):
        trial = run(make_experiment("segguidino", guide=GUIDE, epochs=1, precision=precision), data, tmp_path / precision, measure=True)
        assert trial.model.backbone is not None
        held[precision] = {module.weight.dtype for module in trial.model.backbone.modules() if isinstance(module, torch.nn.Linear)}
    assert held == {"bf16": {torch.bfloat16}, "fp32": {torch.float32}}


def test_adapters_are_never_encoded() -> None:
    from guidino_tune.models import build_model

    model = build_model(made("segguidino", LORA))
    assert model.backbone is not None
    with pytest.raises(ValueError, match="learns"):
        TokenEncoder(model.backbone, DINOGuide(), model.feature_request, bf16=False, batch_size=4)


def test_only_epochs_on_the_schedule_and_the_last_are_validated(data: SearchData, tmp_path: Path) -> None:
    experiment = make_experiment(epochs=5)
    every = run(experiment, data, tmp_path / "every")
    some = run(experiment, data, tmp_path / "some", validated=(2, 3))
    assert [r.epoch for r in some.history if OBJECTIVE in r.metrics] == [2, 3, 5]
    for ours, others in zip(values(some), values(every), strict=True):
        assert ours.items() <= others.items()  # training does not notice, and the scores are the same
    assert [r.epoch for r in some.history if "val_hd95" in r.metrics] == [5]
    assert some.best == max(r.metrics[OBJECTIVE] for r in every.history if r.epoch in (2, 3, 5))
    assert some.reporter.epochs == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["nnunet", "segguidino"])
def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(kind: str, data: SearchData, tmp_path: Path) -> None:
    """Of networks without batch normalisation, with a loss that is a mean over cases."""
    values_ = make_experiment(kind, guide=GUIDE, batch_size=5).to_dict()
    values_["loss"]["batch_dice"] = False
    values_["segmenter"] |= {"dropout": 0.0} if kind == "segguidino" else {}
    experiment = Experiment.from_dict(values_)
    gradients, losses = [], []
    for number, parts in enumerate((1, 2, 5, 9)):
        trial = TrainingRun(experiment, data, Listener(tmp_path / f"{kind}{number}"), micro_batches=parts)
        trial.model.train()
        batch = trial._to_device(next(iter(trial.views.epoch(0))))
        losses.append(trial._backward(batch)["total"].item())
        gradients.append([p.grad.clone() for p in trial.model.parameters() if p.grad is not None])
    assert losses[1:] == pytest.approx(losses[:1] * 3, rel=1e-5)
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert not math.isclose(float(gradients[0][0].abs().sum()), 0)


def test_the_number_of_micro_batches_is_on_record(data: SearchData, tmp_path: Path) -> None:
    trial = run(make_experiment(epochs=1), data, tmp_path, micro_batches=2)
    assert trial.history[0].metrics["micro_batches"] == 2
