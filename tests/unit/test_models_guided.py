from typing import Any

import pytest
import torch
from torch import nn

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.errors import UserError
from guidino_tune.models import Backbone, Features, build_model, load_backbone
from guidino_tune.models.guided import GuidedSegmenter

TINY = {"kind": "dino", "backbone": "tiny", "weights": "random"}


def experiment(segmenter: str = "unet", *, seed: int = 0, guide: Any = None, **options: Any) -> Experiment:
    small: dict[str, dict[str, Any]] = {
        "unet": {"base_width": 4},
        "nnwnet": {"base_width": 4},
        "segdino": {"features": 8, "branch_widths": [4, 4, 8, 8]},
        "segguidino": {"hidden": 32},
    }
    return Experiment.from_dict(
        {
            "data": {"kind": "demo", "image_size": 64},
            "guide": TINY | (guide or {}),
            "segmenter": {"kind": segmenter, **small[segmenter], **options},
            "training": {"seed": seed},
        }
    )


def build(values: Experiment, backbone: Backbone | None = None) -> Any:
    return build_model(values, backbone)


def tiny_backbone() -> Any:
    return load_backbone(DINOGuide(backbone="tiny", weights="random"))


class Counting(Backbone):
    calls = 0

    def forward(self, images: torch.Tensor, layers: Any = (), final_norm: bool = True) -> Features:
        self.calls += 1
        self.seen = (layers, final_norm, torch.is_grad_enabled())
        return super().forward(images, layers, final_norm)


def counting() -> Counting:
    return Counting(tiny_backbone().vit)


@pytest.mark.parametrize("kind", ["unet", "segdino"])
def test_given_features_skip_the_backbone(kind: str) -> None:
    torch.manual_seed(0)
    backbone = counting()
    model = build(experiment(kind, **({"final_norm": False} if kind == "segdino" else {})), backbone).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    assert backbone.calls == 1
    request = model.feature_request
    assert backbone.seen == (request.layers, request.final_norm, False)
    assert request.layers == ((0, 0, 1, 1) if kind == "segdino" else ())
    features = backbone(images, request.layers, request.final_norm)
    again = model(images, Features(features.last.clone(), tuple(x.clone() for x in features.layers)))
    assert backbone.calls == 2
    assert torch.equal(again.logits[0], expected.logits[0])
    assert torch.equal(again.guide, expected.guide)
    other = model(images, Features(features.last + torch.randn_like(features.last), features.layers))
    assert not torch.equal(other.guide, expected.guide)


def test_frozen_backbone_stays_eval_in_train_mode() -> None:
    model = build(experiment()).train()
    assert model.segmenter.training
    assert model.tokenbook.training
    assert not any(m.training for m in model.backbone.modules())


def test_adapters_train_with_gradient_through_the_backbone() -> None:
    model = build(experiment(guide={"lora": {"rank": 2, "dropout": 0.5}})).train()
    modes = {name: m.training for name, m in model.backbone.named_modules()}
    assert {name for name, on in modes.items() if on} == {n for n in modes if "lora_dropout.default" in n}
    model(torch.randn(2, 3, 64, 64)).logits[0].sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)
    assert all(p.grad is None for n, p in model.backbone.named_parameters() if "lora_" not in n)


def test_guide_is_the_tokenbooks_mask_and_float32_under_autocast() -> None:
    model = build(experiment()).eval()
    images = torch.randn(1, 3, 64, 64)
    prediction = model(images)
    assert torch.equal(prediction.guide, model.tokenbook(model.backbone(images).last))
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images)
    assert low.guide.dtype == torch.float32
    torch.testing.assert_close(low.logits[0].float(), prediction.logits[0], atol=0.05, rtol=0.05)


def test_plain_models_have_no_guide() -> None:
    plain = Experiment.from_dict({"data": {"kind": "demo"}, "guide": {"kind": "none"}, "segmenter": {"kind": "unet", "base_width": 4}})
    model = build(plain, tiny_backbone()).eval()
    assert model.backbone is None
    assert model(torch.randn(1, 3, 64, 64)).guide is None
    head = build(experiment("segdino", guide={"gate": "none"})).eval()
    assert head.tokenbook is None
    assert head(torch.randn(1, 3, 64, 64)).guide is None


def test_same_seed_same_weights_and_the_global_state_is_left_alone() -> None:
    def state(**options: Any) -> Any:
        return build(experiment(guide={"lora": {"rank": 2}}, **options)).trained_state()

    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first, second, other = state(), state(), state(seed=1)
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(first[k], second[k]) for k in first)
    for part in (
        "segmenter.head.weight",
        "tokenbook.prototypes",
        "backbone.vit.base_model.model.model.layer.0.attention.q_proj.lora_A.default.weight",
    ):
        assert not torch.equal(first[part], other[part]), part


def test_experiments_that_differ_in_the_guide_start_from_the_same_segmenter() -> None:
    plain = experiment().to_dict() | {"guide": {"kind": "none"}}
    models = [build(e) for e in (Experiment.from_dict(plain), experiment(), experiment(guide={"lora": {"rank": 4}}))]
    for other in models[1:]:
        for a, b in zip(models[0].segmenter.parameters(), other.segmenter.parameters(), strict=True):
            assert torch.equal(a, b)


def test_shared_backbone_is_shared_when_frozen_and_untouched_by_adapters() -> None:
    shared = tiny_backbone()
    images = torch.randn(1, 3, 64, 64)
    before, keys = shared(images).last, set(shared.state_dict())
    assert build(experiment(), shared).backbone is shared
    adapted = build(experiment(guide={"lora": {"rank": 4}}), shared)
    with torch.no_grad():
        for parameter in adapted.backbone.parameters():
            parameter.add_(0.1)
    assert set(shared.state_dict()) == keys
    assert shared.frozen
    assert torch.equal(shared(images).last, before)


def test_trained_state_is_strict() -> None:
    model = build(experiment())
    state = {k: v.clone() for k, v in model.trained_state().items()}
    before = {k: v.clone() for k, v in state.items()}
    assert not any(k.startswith("backbone.") for k in state)
    assert "segmenter.down.0.1.running_mean" in state

    def broken(**changes: Any) -> dict[str, torch.Tensor]:
        wrong = {k: v + 1 for k, v in state.items()}
        wrong.update(changes)
        return {k: v for k, v in wrong.items() if v is not None}

    for changes, message in (
        ({"tokenbook.alpha": None}, "missing: tokenbook.alpha"),
        ({"segmenter.tail": torch.zeros(1)}, "unexpected: segmenter.tail"),
        ({"tokenbook.prototypes": torch.zeros(3, 64)}, "another shape: tokenbook.prototypes"),
    ):
        with pytest.raises(UserError, match=message):
            model.load_trained_state(broken(**changes))
        assert all(torch.equal(v, before[k]) for k, v in model.trained_state().items())
    model.load_trained_state(broken())
    assert all(torch.equal(v, before[k] + 1) for k, v in model.trained_state().items())


def test_adapters_of_another_experiment_do_not_load() -> None:
    lora = build(experiment(guide={"lora": {"rank": 2}}))
    with pytest.raises(UserError, match="unexpected: backbone"):
        build(experiment()).load_trained_state(lora.trained_state())
    with pytest.raises(UserError, match="another shape: backbone"):
        build(experiment(guide={"lora": {"rank": 4}})).load_trained_state(lora.trained_state())


@pytest.mark.parametrize("size", [(72, 64), (64, 100)])
def test_image_size_must_fit(size: Any) -> None:
    with pytest.raises(UserError, match="multiples of 16"):
        build(experiment("nnwnet"))(torch.zeros(1, 3, *size))
    plain = Experiment.from_dict({"data": {"kind": "demo"}, "guide": {"kind": "none"}, "segmenter": {"kind": "unet", "base_width": 4}})
    with pytest.raises(UserError, match="multiples of 16"):
        build(plain)(torch.zeros(1, 3, *size))


def test_parts_must_belong_together() -> None:
    model = build(experiment())
    with pytest.raises(ValueError, match="place"):
        GuidedSegmenter(model.segmenter, backbone=model.backbone, tokenbook=model.tokenbook)
    with pytest.raises(ValueError, match="backbone"):
        GuidedSegmenter(model.segmenter, tokenbook=model.tokenbook, place="input")


def test_channels_last_gives_the_same() -> None:
    model = build(experiment("nnwnet")).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model(images).logits[0]
    model.segmenter.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)).logits[0], expected, atol=1e-4, rtol=1e-4)


def test_learns_one_image() -> None:
    """Overfits a disk: the parts are wired so that all can learn."""
    torch.manual_seed(0)
    model = build(experiment("unet")).train()
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    mask = (((rows - 24) ** 2 + (columns - 40) ** 2) < 14**2).float().expand(2, 1, -1, -1)
    images = mask + 0.3 * torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(25):
        prediction = model(images)
        loss = nn.functional.binary_cross_entropy_with_logits(prediction.logits[0], mask)
        loss = loss + nn.functional.binary_cross_entropy(prediction.guide, nn.functional.avg_pool2d(mask, 16))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    predicted = prediction.logits[0] > 0
    assert 2 * (predicted * mask).sum() / (predicted.sum() + mask.sum()) > 0.95
    guide, target = prediction.guide.flatten(), nn.functional.avg_pool2d(mask, 16).flatten()
    assert torch.corrcoef(torch.stack([guide, target]))[0, 1] > 0.8
