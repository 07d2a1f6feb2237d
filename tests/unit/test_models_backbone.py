import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import DINOv3ViTModel

from guidino_tune.config import BACKBONES, DINOGuide
from guidino_tune.errors import UserError
from guidino_tune.models.backbone import check_backbone, load_backbone, segmentation_layers
from guidino_tune.models.weights import random_config

TINY = DINOGuide(backbone="tiny", weights="random")


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_backbone(TINY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    DINOv3ViTModel(random_config("tiny")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_patches_are_the_last_tokens(tiny: Any) -> None:
    images = torch.randn(2, 3, 64, 96)
    tokens = tiny.vit(pixel_values=images).last_hidden_state
    last = tiny(images).last
    assert last.shape == (2, 64, 4, 6)
    for row, column in ((0, 0), (0, 5), (3, 0), (3, 5)):
        assert torch.equal(last[:, :, row, column], tokens[:, 1 + 4 + row * 6 + column])


@pytest.mark.parametrize("cell", [(0, 0), (1, 4), (3, 5)])
def test_a_changed_patch_moves_its_own_cell_most(tiny: Any, cell: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.zeros(1, 3, 64, 96)
    changed = images.clone()
    changed[..., cell[0] * 16 : cell[0] * 16 + 16, cell[1] * 16 : cell[1] * 16 + 16] = torch.randn(3, 16, 16) * 3
    moved = (tiny(changed).last - tiny(images).last).norm(dim=1)[0]
    assert divmod(int(moved.argmax()), 6) == cell
    assert moved[cell] > 2 * moved.flatten().sort().values[-2]


def test_layers_are_those_of_the_transformer(tiny: Any) -> None:
    images = torch.randn(1, 3, 64, 64)
    caught = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: caught.append(out)) for layer in tiny.vit.model.layer]
    raw = tiny(images, layers=(0, 1, 1), final_norm=False)
    for hook in hooks:
        hook.remove()
    for got, layer in zip(raw.layers, (0, 1, 1), strict=True):
        assert torch.equal(got.flatten(2), caught[layer][:, -16:].transpose(1, 2))
    normed = tiny(images, layers=(0, 1))
    expected = torch.nn.functional.layer_norm(caught[0][:, -16:], (64,), tiny.vit.norm.weight, tiny.vit.norm.bias, 1e-5)
    torch.testing.assert_close(normed.layers[0].flatten(2).transpose(1, 2), expected)
    assert torch.equal(normed.layers[1], normed.last)


def test_frozen_and_exact_in_train_mode(tiny: Any) -> None:
    images = torch.randn(1, 3, 64, 64)
    before = tiny(images).last
    tiny.train()
    assert tiny.frozen
    assert not any(m.training for m in tiny.modules())
    assert torch.equal(tiny(images).last, before)
    # The reason: the transformer itself is random in train mode.
    tiny.vit.train()
    assert not torch.equal(tiny(images).last, before)
    tiny.eval()


def test_random_weights_are_the_same_everywhere_and_leave_the_global_state(tiny: Any) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    again = load_backbone(TINY)
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(tiny.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "count", "width", "depth"),
    [("vits16", 21_596_544, 384, 12), ("vitb16", 85_660_416, 768, 12), ("vitl16", 303_129_600, 1024, 24)],
)
def test_published_sizes(name: str, count: int, width: int, depth: int) -> None:
    with torch.device("meta"):
        backbone = load_backbone(DINOGuide(backbone=name, weights="random"))
    assert sum(p.numel() for p in backbone.parameters()) == count
    assert (backbone.width, backbone.num_layers) == (width, depth)


def test_segmentation_layers() -> None:
    assert segmentation_layers(12) == (2, 5, 8, 11)
    assert segmentation_layers(24) == (4, 11, 17, 23)
    assert segmentation_layers(2) == (0, 0, 1, 1)
    assert segmentation_layers(1) == (0, 0, 0, 0)
    assert segmentation_layers(40) == (9, 19, 29, 39)


@pytest.mark.parametrize("size", [(60, 64), (64, 8), (0, 16)])
def test_image_size_must_fit_the_patches(tiny: Any, size: Any) -> None:
    with pytest.raises(UserError, match="16"):
        tiny(torch.zeros(1, 3, *size))


def test_local_folder_loads_its_weights(folder: Path) -> None:
    guide = DINOGuide(backbone=str(folder))
    check_backbone(guide)
    loaded, saved = load_backbone(guide), DINOv3ViTModel.from_pretrained(folder)
    for a, b in zip(loaded.vit.parameters(), saved.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == torch.float32
        assert not a.requires_grad


def _damage(folder: Path, what: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif what == "garbage":
        weights.write_bytes(b"not safetensors" * 100)
    elif what == "no weights":
        weights.unlink()
    elif what == "no config":
        config.unlink()
    elif what == "no json":
        config.write_text("{")
    elif what == "lacks":
        from safetensors.torch import load_file, save_file

        save_file(dict(list(load_file(weights).items())[:-3]), weights, metadata={"format": "pt"})
    else:
        values = json.loads(config.read_text())
        values.update(
            {
                "architecture": {"model_type": "vit"},
                "patch": {"patch_size": 14},
                "width": {"hidden_size": 128},
                "type": {"hidden_size": "wide"},
            }[what]
        )
        config.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "cannot be read"),
        ("garbage", "cannot be read"),
        ("no weights", "no model.safetensors"),
        ("lacks", "lack or do not fit"),
        ("width", "lack or do not fit"),
        ("no config", "config.json"),
        ("no json", "config.json"),
        ("type", "config"),
        ("architecture", "'vit'"),
        ("patch", "14"),
    ],
)
def test_damaged_folder_is_a_clear_error(folder: Path, what: str, message: str) -> None:
    _damage(folder, what)
    with pytest.raises(UserError, match=message) as error:
        check_backbone(DINOGuide(backbone=str(folder)))
    assert str(folder) in str(error.value)
    assert error.value.todo


def test_missing_folder_and_tiny_pretrained() -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_backbone(DINOGuide(backbone="/no/such/folder"))
    with pytest.raises(UserError, match="weights=random"):
        load_backbone(DINOGuide(backbone="tiny"))


def test_random_weights_in_the_shape_of_a_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    guide = DINOGuide(backbone=str(folder), weights="random")
    check_backbone(guide)
    assert load_backbone(guide).width == 64


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def _refuse(error: Exception) -> Callable[..., Any]:
    def ask(*_args: Any, **_kwargs: Any) -> Any:
        raise error

    return ask


def test_unreachable_hub_is_told_at_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", _refuse(ConnectionError("Name or service not known")))
    with pytest.raises(UserError) as error:
        check_backbone(DINOGuide(backbone="vits16"))
    text = str(error.value)
    for part in (
        "vits16",
        "Name or service not known",
        "gated",
        "accept the licence",
        "HF_TOKEN",
        "guide.backbone=/",
        "guide.weights=random",
    ):
        assert part in text


def test_cached_weights_need_no_network(folder: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", _refuse(AssertionError("asked the hub")))
    entry = empty_cache / ("models--" + str(BACKBONES["vits16"]).replace("/", "--"))
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("abc")
    (entry / "snapshots").mkdir()
    folder.rename(entry / "snapshots" / "abc")
    assert load_backbone(DINOGuide(backbone="vits16")).width == 64
