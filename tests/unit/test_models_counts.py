"""Parameter counts and shapes of the published systems, to the unit; everything on the meta device but the shapes."""

from typing import Any

import pytest
import torch

from guidino_tune.config import Experiment
from guidino_tune.models import build_model
from guidino_tune.models.gate import Gate
from guidino_tune.models.segmenters import SEGMENTERS

VITS = 21_596_544
NONE = {"kind": "none"}
DINO = {"kind": "dino", "weights": "random", "tokenbook": {"aggregation": "mean"}}
LORA = DINO | {"lora": {"rank": 8}}
PLAIN_HEAD = {"kind": "dino", "weights": "random", "gate": "none"}


def build(segmenter: str, guide: Any, size: int = 256, **options: Any) -> Any:
    return build_model(
        Experiment.from_dict({"data": {"kind": "demo", "image_size": size}, "guide": guide, "segmenter": {"kind": segmenter, **options}})
    )


@pytest.mark.parametrize(
    ("segmenter", "guide", "size", "total", "trainable"),
    [
        ("unet", NONE, 256, 7_763_041, 7_763_041),
        ("unet", DINO, 256, 29_605_729, 8_009_185),
        ("unet", DINO, 352, 8_096_737 + VITS, 8_096_737),
        ("unet", DINO, 512, 8_304_097 + VITS, 8_304_097),
        ("nnwnet", NONE, 256, 7_043_541, 7_043_541),
        ("nnwnet", DINO, 256, 28_886_229, 7_289_685),
        ("nnwnet", DINO, 352, 7_377_237 + VITS, 7_377_237),
        ("nnwnet", DINO, 512, 7_584_597 + VITS, 7_584_597),
        ("nnwnet", LORA, 256, 29_181_141, 7_584_597),
        ("segdino", PLAIN_HEAD, 256, 24_072_481, 2_475_937),
        ("segguidino", DINO, 256, 23_318_529, 1_721_985),
        ("segguidino", DINO, 352, 1_809_537 + VITS, 1_809_537),
        ("segguidino", DINO, 512, 2_016_897 + VITS, 2_016_897),
        ("segguidino", LORA, 256, 23_613_441, 2_016_897),
    ],
)
def test_published_counts(segmenter: str, guide: Any, size: int, total: int, trainable: int) -> None:
    with torch.device("meta"):
        model = build(segmenter, guide, size)
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == total
    assert sum(p.numel() for p in parameters if p.requires_grad) == trainable
    frozen_keys = {f"backbone.{name}" for name, p in model.backbone.named_parameters() if not p.requires_grad} if model.backbone else set()
    assert set(model.trained_state()) == set(model.state_dict()) - frozen_keys


def test_aggregations_differ_by_their_own_parameters_only() -> None:
    counts = {}
    for aggregation in ("mean", "weighted", "softmax"):
        with torch.device("meta"):
            model = build("segguidino", DINO | {"tokenbook": {"aggregation": aggregation, "num_prototypes": 7}})
        counts[aggregation] = sum(p.numel() for p in model.tokenbook.parameters())
    assert counts == {"mean": 384 * 384 + 384 + 7 * 384, "weighted": counts["mean"] + 7, "softmax": counts["mean"] + 3}


def test_coarse_heads_without_deep_supervision_are_counted_but_not_trained() -> None:
    with torch.device("meta"):
        model = build("nnwnet", NONE, deep_supervision=False)
    assert sum(p.numel() for p in model.parameters()) == 7_043_541
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 7_043_541 - (32 + 64 + 128 + 256 + 4)


UNET_SHAPES = {
    "down.0": (32, 256), "down.1": (64, 128), "down.2": (128, 64), "down.3": (256, 32), "down.4": (512, 16),
    "merge.0": (256, 32), "merge.1": (128, 64), "merge.2": (64, 128), "merge.3": (32, 256), "head": (1, 256),
}  # fmt: skip
NNWNET_SHAPES = {
    "stem": (16, 256),
    "encoder1_local.0": (32, 128), "encoder1_local.1": (64, 64), "encoder1_local.2": (128, 32), "encoder1_local.3": (256, 16),
    "encoder1_global.0": (8, 256), "encoder1_global.1": (16, 128), "encoder1_global.2": (32, 64), "encoder1_global.3": (64, 32),
    "decoder1_local.3": (128, 32), "decoder1_local.2": (64, 64), "decoder1_local.1": (32, 128), "decoder1_local.0": (16, 256),
    "decoder1_global.3": (128, 16), "decoder1_global.2": (64, 32), "decoder1_global.1": (32, 64), "decoder1_global.0": (16, 128),
    "encoder2_local.0": (32, 128), "encoder2_local.1": (64, 64), "encoder2_local.2": (128, 32), "encoder2_local.3": (256, 16),
    "encoder2_global.0": (8, 256), "encoder2_global.1": (16, 128), "encoder2_global.2": (32, 64), "encoder2_global.3": (64, 32),
    "decoder2_local.3": (128, 32), "decoder2_local.2": (64, 64), "decoder2_local.1": (32, 128), "decoder2_local.0": (16, 256),
    "coarse_heads.3": (1, 16), "coarse_heads.2": (1, 32), "coarse_heads.1": (1, 64), "coarse_heads.0": (1, 128), "head": (1, 256),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "shapes"), [("unet", UNET_SHAPES), ("nnwnet", NNWNET_SHAPES)])
def test_published_shapes(kind: str, shapes: dict[str, tuple[int, int]]) -> None:
    experiment = Experiment.from_dict({"data": {"kind": "demo"}, "guide": NONE, "segmenter": {"kind": kind}})
    model = SEGMENTERS[kind](experiment.segmenter)
    found = {}
    for name, module in model.named_modules():
        if name in shapes:
            module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: tuple(out.shape)}))
    with torch.no_grad():
        model(torch.randn(1, 3, 256, 256), Gate())
    assert found == {name: (1, channels, side, side) for name, (channels, side) in shapes.items()}
