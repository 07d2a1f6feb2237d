"""Published checkpoints become model folders with the same features, or are refused by name."""

from __future__ import annotations

import argparse
import json
import math
import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from published_layouts import HEADS, NETWORKS, WIDTH, as_meta, as_timm, dinov3_features, network
from safetensors.torch import save_file
from torch import Tensor

from guidino_tune.config import DINOGuide
from guidino_tune.doctor import main as doctor
from guidino_tune.errors import UserError
from guidino_tune.models import layouts
from guidino_tune.models.backbone import Backbone, load_backbone
from guidino_tune.models.conversion import convert
from guidino_tune.models.fingerprints import fingerprint
from guidino_tune.prepare import main as prepare

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "home"))
    for heads in layouts._HEADS.values():  # as if networks as small as these were published
        monkeypatch.setitem(heads, WIDTH, HEADS)


def same_features(folder: Path, model: Any) -> None:
    ours, theirs = load_backbone(DINOGuide(backbone=str(folder))), Backbone(model)
    with torch.no_grad():
        a, b = ours(IMAGES, (0, 1)), theirs(IMAGES, (0, 1))
    for x, y in zip((a.last, *a.layers), (b.last, *b.layers), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layout", ["meta", "timm"])
def test_converted_weights_give_the_same_features(tmp_path: Path, name: str, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = network(name)
    file = tmp_path / ("weights.pth" if layout == "meta" else "weights.safetensors")
    if layout == "meta":
        torch.save(as_meta(name, model), file)
    else:
        save_file({k: v.contiguous() for k, v in as_timm(name, model).items()}, file)
    assert prepare(["backbone", str(file), "--output", str(tmp_path / "model")]) == 0
    same_features(tmp_path / "model", model)
    made = load_backbone(DINOGuide(backbone=str(tmp_path / "model"))).fingerprint
    assert made in capsys.readouterr().out
    if layout == "meta" or not name.startswith("dinov2 "):  # timm adds the position of the class token to it
        assert made == fingerprint(Backbone(model))  # the same weights: whoever published them


@pytest.mark.parametrize("name", ["dinov3", "dinov3 gated"])
def test_features_follow_from_the_published_weights_alone(tmp_path: Path, name: str) -> None:
    weights = as_meta(name, network(name))
    torch.save(weights, tmp_path / "weights.pth")
    convert(tmp_path / "weights.pth", tmp_path / "model")
    with torch.no_grad():
        found = load_backbone(DINOGuide(backbone=str(tmp_path / "model")))(IMAGES).last.flatten(2).transpose(1, 2)
    expected = dinov3_features(weights, IMAGES)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_bias_of_keys_that_is_not_masked_counts(tmp_path: Path) -> None:
    weights = as_meta("dinov3", network("dinov3"))
    for name in [n for n in weights if n.endswith("bias_mask")]:
        weights[name] = torch.ones_like(weights[name])
    torch.save(weights, tmp_path / "weights.pth")
    convert(tmp_path / "weights.pth", tmp_path / "model")
    with torch.no_grad():
        found = load_backbone(DINOGuide(backbone=str(tmp_path / "model")))(IMAGES).last.flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, dinov3_features(weights, IMAGES), rtol=1e-4, atol=1e-4)


def chunked(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): value for name, value in weights.items()}


OTHERS = {"dino_head.mlp.0.weight": torch.zeros(3, 3), "ibot_head.last_layer.weight": torch.zeros(2)}


@pytest.mark.parametrize(
    ("wrap", "part"),
    [
        (lambda w, o: {"teacher": {f"backbone.{k}": v for k, v in w.items()} | OTHERS, "iteration": 7}, "teacher.backbone"),
        (lambda w, o: {"student": {f"backbone.{k}": v for k, v in o.items()}, "teacher": {f"backbone.{k}": v for k, v in w.items()}},
         "teacher.backbone"),
        (lambda w, o: {"model": {f"module.{k}": v for k, v in w.items()}}, "model.module"),
        (lambda w, o: {"model": {f"student.backbone.{k}": v for k, v in o.items()} | {f"teacher.backbone.{k}": v for k, v in w.items()}},
         "model.teacher.backbone"),
        (lambda w, o: {f"_orig_mod.backbone._fsdp_wrapped_module.{k}": v for k, v in w.items()}, "backbone"),
        (lambda w, o: chunked(w), ""),
    ],
    ids=["teacher", "teacher and student", "module", "in one dict", "compiled and sharded", "chunks of blocks"],
)  # fmt: skip
def test_the_teacher_of_a_pretraining(tmp_path: Path, wrap: Any, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = network("dinov3")
    weights = as_meta("dinov3", model)
    weights |= {"local_cls_norm.weight": torch.ones(128), "rope_embed.periods": weights["rope_embed.periods"].bfloat16()}
    torch.save(wrap(weights, {k: v + 1 for k, v in weights.items()}), tmp_path / "teacher.pth")
    assert prepare(["backbone", str(tmp_path / "teacher.pth"), "--output", str(tmp_path / "model")]) == 0
    same_features(tmp_path / "model", model)
    shown = capsys.readouterr().out
    assert (f"taken from '{part}'" in shown) == bool(part)
    assert ("dino_head" in shown) == (part == "teacher.backbone" and "iteration" in str(wrap.__code__.co_consts))


def test_an_old_file_format_and_a_timm_folder(tmp_path: Path) -> None:
    model = network("convnext")
    torch.save(as_meta("convnext", model), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    convert(tmp_path / "old.pth", tmp_path / "a")
    (tmp_path / "timm").mkdir()
    save_file(as_timm("convnext", model), tmp_path / "timm" / "model.safetensors")
    (tmp_path / "timm" / "config.json").write_text(json.dumps({"architecture": "convnext_tiny", "num_features": 768}))
    convert(tmp_path / "timm", tmp_path / "b")
    same_features(tmp_path / "a", model)
    same_features(tmp_path / "b", model)


def test_nothing_is_replaced_and_nothing_half_made(tmp_path: Path) -> None:
    torch.save(as_meta("convnext", network("convnext")), tmp_path / "weights.pth")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(UserError, match="nothing is replaced"):
        convert(tmp_path / "weights.pth", tmp_path / "full")
    (tmp_path / "empty").mkdir()
    convert(tmp_path / "weights.pth", tmp_path / "empty")
    odd = as_meta("convnext", network("convnext"))
    odd["norm.bias"] = odd["norms.3.bias"] = torch.full((32,), float("nan"))
    torch.save(odd, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"norms\.3|NaN"):
        convert(tmp_path / "odd.pth", tmp_path / "odd")
    assert not list(tmp_path.glob("*odd*/")) and not list(tmp_path.glob(".*draft"))  # noqa: PT018


@pytest.mark.parametrize("layout", ["dinov3 meta", "dinov3 timm", "dinov2 meta", "dinov2 registers timm"])
def test_a_number_of_heads_is_never_guessed(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any number that divides the width gives features; nothing in the weights' shapes tells which was trained."""
    for heads in layouts._HEADS.values():
        monkeypatch.delitem(heads, WIDTH)
    name = layout.rpartition(" ")[0]
    model = network(name)
    weights = as_timm(name, model) if layout.endswith("timm") else as_meta(name, model)
    weights.pop("rope_embed.periods", None)
    torch.save(weights, tmp_path / "weights.pth")
    command = ["backbone", str(tmp_path / "weights.pth"), "--output", str(tmp_path / "model")]
    assert prepare(command) == 2
    told = capsys.readouterr().err
    assert "does not tell how many attention heads it has, and no published network is 128 wide (known: [384, 768, 1024" in told
    assert "--heads N" in told
    with pytest.raises(UserError, match="does not tell how many") as refused:
        load_backbone(DINOGuide(backbone=str(tmp_path / "weights.pth")))
    assert "--heads N" in refused.value.todo
    assert prepare([*command, "--heads", "3"]) == 2  # 128 / 3
    assert prepare([*command, "--heads", str(HEADS)]) == 0
    assert "2 heads" in capsys.readouterr().out
    same_features(tmp_path / "model", model)


def test_what_is_said_of_heads_is_what_the_file_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(as_meta("dinov3", network("dinov3")), tmp_path / "weights.pth")
    torch.save(as_meta("convnext", network("convnext")), tmp_path / "convnext.pth")
    command = ["backbone", str(tmp_path / "weights.pth"), "--output", str(tmp_path / "model")]
    assert prepare([*command, "--heads", "4"]) == 2
    assert "has 2 attention heads by its buffer of periods, not 4" in capsys.readouterr().err
    assert prepare([command[0], str(tmp_path / "convnext.pth"), *command[2:], "--heads", "4"]) == 2
    assert "leave out --heads" in capsys.readouterr().err
    assert prepare(["demo", "--heads", "4"]) == 2
    assert prepare([*command, "--heads", "2"]) == 0


def test_heads_of_a_published_width_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(as_timm("dinov3", network("dinov3")), tmp_path / "weights.safetensors")
    assert prepare(["backbone", str(tmp_path / "weights.safetensors"), "--output", str(tmp_path / "model")]) == 0
    assert (
        "note: the file does not tell how many attention heads it has: 2, as the published network of this width" in capsys.readouterr().out
    )


def _changed(name: str, **values: Any) -> dict[str, Tensor]:
    weights = as_meta(name, network(name))
    for key, value in values.items():
        if value is None:
            del weights[key.replace("__", ".")]
        else:
            weights[key.replace("__", ".")] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: _changed("dinov3", rope_embed__periods=100.0 ** (torch.arange(10.0) / 10)), "heads 40 wide; its width 128 is no multiple"),
        (lambda: {"layer.weight": torch.zeros(2)}, "none of its weights is called patch_embed.proj.weight.*it has layer.weight"),
        (dict, "no weights at all"),
        (lambda: _changed("dinov3", blocks__1__ls1__gamma=None), "lacks model.layer.1.layer_scale1.lambda1"),
        (lambda: _changed("dinov3", blocks__1__attn__qkv__weight=None), "lacks blocks.1.attn.qkv.weight"),
        (lambda: _changed("dinov3", blocks__0__attn__relative=torch.zeros(2)), "blocks.0.attn.relative, which a DINOv3"),
        (lambda: _changed("dinov3", norm__weight=torch.zeros(3)), r"norm.weight: \(3,\), not \(128,\)"),
        (lambda: _changed("dinov3", pos_embed=torch.zeros(1, 17, 128)), "patches of 16 pixels and learned positions"),
        (lambda: _changed("dinov3", rope_embed__periods=torch.arange(16.0)), "not the powers of one base"),
        (lambda: _changed("dinov3", blocks__0__attn__qkv__bias_mask=torch.full((384,), float("nan"))), "never set"),
        (lambda: {k.replace("blocks.1", "blocks.2"): v for k, v in _changed("dinov3").items()}, r"numbered \[0, 2\]"),
        (lambda: _changed("dinov2", pos_embed=torch.zeros(1, 12, 128)), "12 positions"),
        (lambda: _changed("convnext", head__fc__weight=torch.zeros(10, 32)), "head.fc.weight, which a DINOv3 ConvNeXt has not"),
        (lambda: {"embeddings.cls_token": torch.zeros(1)}, "Hugging Face's own layout"),
        (lambda: _changed("dinov3", norm__weight=torch.ones(128, dtype=torch.complex64)), "no plain numbers: norm.weight: complex64"),
        (lambda: _changed("dinov3", norm__weight=torch.ones(128, dtype=torch.int8)), "no plain numbers: norm.weight: int8"),
        (lambda: _changed("dinov3", norm__weight=torch.ones(128).to_sparse()), "no plain numbers: norm.weight: float32, sparse"),
        (lambda: _changed("dinov3", norm__weight=torch.full((128,), math.inf)), "is damaged: NaN or infinity in norm.weight"),
        (lambda: _changed("dinov3", norm__weight=torch.full((128,), 1e300, dtype=torch.float64)), "NaN or infinity in norm.weight"),
        (lambda: {"encoder": _changed("dinov3"), "decoder": _changed("dinov3")}, "several networks.*: decoder, encoder"),
        (lambda: {"a": _changed("dinov3")} | _changed("dinov3"), "several networks.*: one without a name, a"),
    ],
)
def test_what_is_not_recognised_is_named(tmp_path: Path, weights: Any, message: str) -> None:
    torch.save(weights(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message) as error:
        convert(tmp_path / "weights.pth", tmp_path / "model")
    assert error.value.todo
    assert str(tmp_path / "weights.pth") in str(error.value)
    assert not (tmp_path / "model").exists()


def test_a_pickle_that_needs_more_is_refused_and_the_way_out_works(tmp_path: Path) -> None:
    import subprocess
    import sys

    model = network("convnext")
    file = tmp_path / "teacher.pth"
    torch.save({"teacher": as_meta("convnext", model), "arguments": argparse.Namespace(lr=1.0)}, file)
    with pytest.raises(UserError, match="may run any code") as error:
        convert(file, tmp_path / "model")
    command = shlex.split(error.value.todo.partition("instead: ")[2])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    convert(tmp_path / "tensors.pth", tmp_path / "model")
    same_features(tmp_path / "model", model)


def test_a_plain_pickle_is_refused_without_running_it(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "run",)

    file = tmp_path / "teacher.pkl"
    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"a pickle that torch\.save did not write, and may run any code") as refused:
        convert(file, tmp_path / "model")
    assert not (tmp_path / "run").exists()
    assert "weights_only" not in str(refused.value)


def test_a_link_that_leads_nowhere_is_not_replaced(tmp_path: Path) -> None:
    torch.save(as_meta("convnext", network("convnext")), tmp_path / "weights.pth")
    (tmp_path / "model").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is there already"):
        convert(tmp_path / "weights.pth", tmp_path / "model")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 no zip"])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_damaged_file_is_a_message(tmp_path: Path, content: bytes, ending: str) -> None:
    file = tmp_path / f"weights{ending}"
    file.write_bytes(content)
    with pytest.raises(UserError, match="no checkpoint, or damaged"):
        convert(file, tmp_path / "model")


@pytest.mark.parametrize("kind", ["meta", "teacher", "timm"])
def test_a_checkpoint_as_backbone_is_told_how_to_convert(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = network("dinov3"), tmp_path / "my weights.pth"
    if kind == "timm":
        path = tmp_path / "timm"
        path.mkdir()
        save_file(as_timm("dinov3", model), path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({"architecture": "vit_small_patch16_dinov3"}))
    else:
        weights = as_meta("dinov3", model)
        torch.save({"teacher": {f"backbone.{k}": v for k, v in weights.items()}} if kind == "teacher" else weights, path)
    with pytest.raises(UserError, match=r"is a checkpoint.*DINOv3 vision transformer, 2 layers of width 128") as error:
        load_backbone(DINOGuide(backbone=str(path)))
    assert ("timm's layout" in error.value.what) == (kind == "timm")
    assert ("'teacher.backbone'" in error.value.what) == (kind == "teacher")
    command, _, setting = error.value.todo.removeprefix("convert it once: ").partition("; then set guide.backbone=")
    words = shlex.split(command)
    assert prepare(words[words.index("prepare") + 1 :]) == 0
    same_features(Path(setting), model)
    capsys.readouterr()
    doctor(["--backbone", setting])
    assert load_backbone(DINOGuide(backbone=setting)).fingerprint in capsys.readouterr().out


def test_a_file_that_is_no_checkpoint_as_backbone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="is no model folder; as a checkpoint it is no checkpoint"):
        load_backbone(DINOGuide(backbone=str(tmp_path / "notes.txt")))
    assert prepare(["backbone"]) == prepare(["backbone", "x"]) == prepare(["demo", "x"]) == 2
