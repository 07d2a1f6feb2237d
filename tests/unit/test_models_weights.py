"""Backbone weights from folders, from the Hugging Face cache and from the hub; every failure is a message."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from backbone_helpers import SMALL, small_model

from guidino_tune.config import BACKBONES, DINOGuide
from guidino_tune.errors import UserError
from guidino_tune.models import weights
from guidino_tune.models.backbone import check_backbone, load_backbone


def save(folder: Path, name: str = "dinov3_vit", shard: str = "5GB", **changes: Any) -> Any:
    model = small_model(name, **changes)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "model")
    return tmp_path / "model"


def same_weights(loaded: Any, saved: Any) -> None:
    a, b = dict(loaded.named_parameters()), dict(saved.named_parameters())
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
        assert value.dtype == torch.float32
        assert not value.requires_grad


@pytest.mark.parametrize("name", SMALL)
def test_local_folder_loads_its_weights(tmp_path: Path, name: str) -> None:
    saved = save(tmp_path, name)
    guide = DINOGuide(backbone=str(tmp_path))
    check_backbone(guide)
    same_weights(load_backbone(guide).vit, saved)


@pytest.mark.parametrize("name", ["dinov3_vit", "dinov3_convnext"])
def test_weights_in_several_files(tmp_path: Path, name: str) -> None:
    saved = save(tmp_path, name, shard="20KB")
    index = tmp_path / "model.safetensors.index.json"
    assert len(list(tmp_path.glob("model-0*.safetensors"))) > 2
    digest = hashlib.sha256(index.read_bytes()).hexdigest()
    same_weights(load_backbone(DINOGuide(backbone=str(tmp_path), sha256=digest)).vit, saved)
    index.write_text(index.read_text() + "\n")
    with pytest.raises(UserError, match=digest[:12]):
        load_backbone(DINOGuide(backbone=str(tmp_path), sha256=digest))
    sorted(tmp_path.glob("model-0*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(DINOGuide(backbone=str(tmp_path)))


@pytest.mark.parametrize("other", ["pytorch_model.bin", "../model/model-00001-of-00002.safetensors"])
def test_an_index_leads_to_safetensors_of_its_folder_only(tmp_path: Path, other: str) -> None:
    save(tmp_path, shard="20KB")
    index = tmp_path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["norm.weight"] = other
    index.write_text(json.dumps(values))
    with pytest.raises(UserError, match="no safetensors file of this folder"):
        load_backbone(DINOGuide(backbone=str(tmp_path)))


def test_digest_of_the_weights_is_checked_before_they_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    guide = DINOGuide(backbone=str(folder), sha256=digest)
    check_backbone(guide)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # one bit of the last weight: safetensors itself cannot notice
    file.write_bytes(content)
    check_backbone(DINOGuide(backbone=str(folder)))
    import transformers

    monkeypatch.setattr(transformers.DINOv3ViTModel, "from_pretrained", lambda *_, **__: pytest.fail("used before it was checked"))
    with pytest.raises(UserError) as error:
        check_backbone(guide)
    text = str(error.value)
    assert digest[:12] in text
    assert hashlib.sha256(content).hexdigest()[:12] in text
    assert digest[:13] not in text
    assert str(file) in text


def _damage(folder: Path, what: str) -> None:
    file, config = folder / "model.safetensors", folder / "config.json"
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif what == "garbage":
        file.write_bytes(b"not safetensors" * 100)
    elif what == "no weights":
        file.unlink()
    elif what == "no config":
        config.unlink()
    elif what == "no json":
        config.write_text("{")
    elif what == "lacks":
        from safetensors.torch import load_file, save_file

        save_file(dict(list(load_file(file).items())[:-3]), file, metadata={"format": "pt"})
    else:
        values = json.loads(config.read_text())
        values.update(
            {
                "architecture": {"model_type": "vit"},
                "list": {"model_type": ["dinov3_vit"]},
                "patch": {"patch_size": 14},
                "width": {"hidden_size": 128},
                "type": {"hidden_size": "wide"},
                "channels": {"num_channels": 1},
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
        ("architecture", "'vit'.*dinov3_vit, dinov3_convnext, dinov2, dinov2_with_registers"),
        ("list", "dinov3_convnext"),
        ("patch", "patches of 14 pixels; a dinov3_vit must have patches of 16"),
        ("channels", "1 channels, not 3"),
    ],
)
def test_damaged_folder_is_a_clear_error(folder: Path, what: str, message: str) -> None:
    _damage(folder, what)
    with pytest.raises(UserError, match=message) as error:
        check_backbone(DINOGuide(backbone=str(folder)))
    assert str(folder) in str(error.value)
    assert error.value.todo


def test_shapes_without_a_token_grid_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a", "dinov2", patch_size=16, image_size=64)
    with pytest.raises(UserError, match="patches of 16 pixels; a dinov2 must have patches of 14"):
        check_backbone(DINOGuide(backbone=str(tmp_path / "a")))
    save(tmp_path / "b", "dinov3_convnext", hidden_sizes=[8, 16, 24], depths=[1, 1, 1])
    with pytest.raises(UserError, match="3 widths and 3 depths, not 4 stages"):
        check_backbone(DINOGuide(backbone=str(tmp_path / "b"), weights="random"))


def test_missing_folder_and_tiny_pretrained() -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_backbone(DINOGuide(backbone="/no/such/folder"))
    with pytest.raises(UserError, match="weights=random"):
        load_backbone(DINOGuide(backbone="tiny"))


@pytest.mark.parametrize("name", ["dinov3_vit", "dinov3_convnext", "dinov2"])
def test_random_weights_in_the_shape_of_a_folder(tmp_path: Path, name: str) -> None:
    save(tmp_path, name)
    (tmp_path / "model.safetensors").unlink()
    guide = DINOGuide(backbone=str(tmp_path), weights="random")
    check_backbone(guide)
    assert load_backbone(guide).shape.width == 32


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def _refuse(error: Exception) -> Callable[..., Any]:
    def ask(*_args: Any, **_kwargs: Any) -> Any:
        raise error

    return ask


def refused(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", _refuse(ConnectionError("Name or service not known")))
    with pytest.raises(UserError, match="Name or service not known") as error:
        check_backbone(DINOGuide(backbone=name))
    return str(error.value)


@pytest.mark.parametrize("name", ["vits16", "convnext_base"])
def test_unreachable_gated_weights_name_every_way_out(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text = refused(name, monkeypatch)
    for part in (
        f"guide.backbone={name}",
        f"accept the licence at https://huggingface.co/{BACKBONES[name]}",
        "`hf auth login`",
        "HF_TOKEN",
        "guide.backbone=/path",
        "guide.sha256",
        "not gated",
        "guide.backbone=dinov2_vits14",
        "guide.weights=random",
    ):
        assert part in text


def test_unreachable_open_weights_talk_of_no_licence(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = refused("dinov2_vitb14", monkeypatch)
    for part in ("licence", "gated", "login", "HF_TOKEN"):
        assert part not in text
    for part in ("network", "guide.backbone=/path", "guide.sha256", "guide.weights=random"):
        assert part in text


def put_in_cache(cache: Path, name: str, model: Path) -> Path:
    entry = cache / ("models--" + str(BACKBONES[name]).replace("/", "--"))
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("abc")
    (entry / "snapshots").mkdir()
    return model.rename(entry / "snapshots" / "abc")


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_cached_weights_need_no_network(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, shard: str) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", _refuse(ConnectionError("asked the hub")))
    saved = save(tmp_path / "model", shard=shard)
    folder = put_in_cache(empty_cache, "vits16", tmp_path / "model")
    assert weights.cached_folder("vits16") == folder
    same_weights(load_backbone(DINOGuide(backbone="vits16")).vit, saved)
    with pytest.raises(UserError, match=r"guide\.sha256 with 000000000000"):
        load_backbone(DINOGuide(backbone="vits16", sha256="0" * 64))
    sorted(folder.glob("*.safetensors"))[-1].unlink()
    assert weights.cached_folder("vits16") is None
    with pytest.raises(UserError, match="asked the hub"):
        load_backbone(DINOGuide(backbone="vits16"))


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_downloads_all_files_that_are_published(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, shard: str) -> None:
    saved = save(tmp_path / "hub", "dinov2_with_registers", shard=shard)
    files = [SimpleNamespace(rfilename=path.name) for path in (tmp_path / "hub").iterdir()]
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=files))
    (tmp_path / "here").mkdir()

    def download(name: str, file: str, local_files_only: bool = False) -> str:
        assert name == BACKBONES["dinov2_vits14"]
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        return str(shutil.copy(tmp_path / "hub" / file, tmp_path / "here" / file))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    same_weights(load_backbone(DINOGuide(backbone="dinov2_vits14")).vit, saved)


def test_weights_beyond_the_network_are_as_wrong_as_missing_ones(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    fewer = {k: v for k, v in config.items() if k not in ("out_features", "out_indices", "stage_names")} | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(fewer))
    with pytest.raises(UserError, match=r"no place for: model\.layer\.1\..* and \d+ more; is config\.json the one"):
        check_backbone(DINOGuide(backbone=str(folder)))


@pytest.mark.parametrize("name", ["dinov3_convnext", "dinov2", "dinov2_with_registers"])
def test_a_smaller_network_than_its_file(tmp_path: Path, name: str) -> None:
    save(tmp_path, name)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("out_features", "out_indices", "stage_names"):
        config.pop(key)
    config |= {"depths": [1, 1, 1, 1]} if "depths" in config else {"num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no place for"):
        check_backbone(DINOGuide(backbone=str(tmp_path)))


def test_a_head_or_a_mask_token_beside_the_network_is_harmless(tmp_path: Path) -> None:
    import transformers

    config = small_model("dinov2").config
    transformers.Dinov2ForImageClassification(config).save_pretrained(tmp_path)
    check_backbone(DINOGuide(backbone=str(tmp_path)))
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"use_mask_token": False}))
    check_backbone(DINOGuide(backbone=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(values | {"architectures": ["Dinov2Model"]}))
    with pytest.raises(UserError, match=r"no place for: classifier\.bias"):
        check_backbone(DINOGuide(backbone=str(tmp_path)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    model = small_model("dinov3_vit")
    with torch.no_grad():
        model.norm.bias[3] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"NaN or infinity in norm\.bias"):
        check_backbone(DINOGuide(backbone=str(tmp_path)))
