"""ImageNet weights for SwinUNet and H2Former, from files with the published names and shapes, against the published formulas."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from training_helpers import Listener, make_data

from guidino_tune.config import Experiment
from guidino_tune.errors import UserError
from guidino_tune.models import build_model, check_segmenter, start_pretrained
from guidino_tune.models.parts.swin import to_maps, to_tokens
from guidino_tune.space.space import absolute, read_space
from guidino_tune.training.loop import TrainingRun

Make = Callable[..., Tensor]


def nothing(*shape: int) -> Tensor:
    """Of any size, and next to none in a file."""
    return torch.zeros(1).expand(shape)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.3


def swin(
    width: int = 96, depths: tuple[int, ...] = (2, 2, 6, 2), heads: tuple[int, ...] = (3, 6, 12, 24), window: int = 7, *, make: Make
) -> dict[str, Tensor]:
    """The weights and buffers in ``swin_tiny_patch4_window7_224.pth``."""
    found = {"patch_embed.proj.weight": make(width, 3, 4, 4), "patch_embed.proj.bias": make(width)}

    def norm(name: str, size: int) -> None:
        found.update({f"{name}.weight": make(size), f"{name}.bias": make(size)})

    def linear(name: str, inputs: int, outputs: int) -> None:
        found.update({f"{name}.weight": make(outputs, inputs), f"{name}.bias": make(outputs)})

    norm("patch_embed.norm", width)
    for i, (depth, number) in enumerate(zip(depths, heads, strict=True)):
        size = width << i
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            norm(f"{block}.norm1", size)
            found[f"{block}.attn.relative_position_bias_table"] = make((2 * window - 1) ** 2, number)
            found[f"{block}.attn.relative_position_index"] = torch.zeros(window**2, window**2, dtype=torch.long)
            if j % 2 and i < 3:
                found[f"{block}.attn_mask"] = torch.zeros(64 >> 2 * i, window**2, window**2)
            linear(f"{block}.attn.qkv", size, 3 * size)
            linear(f"{block}.attn.proj", size, size)
            norm(f"{block}.norm2", size)
            linear(f"{block}.mlp.fc1", size, 4 * size)
            linear(f"{block}.mlp.fc2", 4 * size, size)
        if i < 3:
            found[f"layers.{i}.downsample.reduction.weight"] = make(2 * size, 4 * size)
            norm(f"layers.{i}.downsample.norm", 4 * size)
    norm("norm", width * 8)
    linear("head", width * 8, 1000)
    return found


def resnet(width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3), *, make: Make) -> dict[str, Tensor]:
    """The weights and buffers in torchvision's ``resnet34-333f7ec4.pth``, which counts no batches."""
    found: dict[str, Tensor] = {}

    def conv(name: str, norm: str, inputs: int, outputs: int, side: int) -> None:
        found[f"{name}.weight"] = make(outputs, inputs, side, side)
        found.update({f"{norm}.{part}": make(outputs) for part in ("weight", "bias", "running_mean")})
        found[f"{norm}.running_var"] = make(outputs).abs() + 0.5

    conv("conv1", "bn1", 3, width, 7)
    for i, number in enumerate(blocks):
        inputs, outputs = width << max(i - 1, 0), width << i
        for j in range(number):
            block = f"layer{i + 1}.{j}"
            conv(f"{block}.conv1", f"{block}.bn1", outputs if j else inputs, outputs, 3)
            conv(f"{block}.conv2", f"{block}.bn2", outputs, outputs, 3)
            if i and not j:
                conv(f"{block}.downsample.0", f"{block}.downsample.1", inputs, outputs, 1)
    found |= {"fc.weight": make(1000, width * 8), "fc.bias": make(1000)}
    return found


def experiment_with(file: Path, kind: str, *, size: int, **options: Any) -> Experiment:
    data = {"kind": "demo", "image_size": size}
    segmenter = {"kind": kind, "pretrained": str(file), **options}
    training = {"epochs": 2, "batch_size": 2, "steps_per_epoch": "cases", "precision": "fp32"}
    return Experiment.from_dict({"data": data, "guide": {"kind": "none"}, "segmenter": segmenter, "training": training})


SWIN = {"embed_width": 8, "heads": [2, 2, 4, 4]}
RES = {"base_width": 8, "blocks": [1, 1, 1, 1], "depths": [1, 1, 1, 1], "heads": [1, 1, 1, 1]}


def small_swin(folder: Path, **options: Any) -> tuple[dict[str, Tensor], Any]:
    """A file with random weights, and the segmenter that starts from it."""
    torch.manual_seed(0)
    weights = swin(8, heads=(2, 2, 4, 4), make=noise)
    torch.save({"model": weights}, folder / "swin.pth")
    experiment = experiment_with(folder / "swin.pth", "swinunet", **{"size": 224, **SWIN, **options})
    segmenter = build_model(experiment).eval().segmenter
    start_pretrained(segmenter, experiment)
    return weights, segmenter


BLOCKS = ", ".join(f"layers.2.blocks.{number}" for number in range(2, 6))
"""Of six, where Swin-Unet has two."""


@pytest.mark.parametrize(
    ("kind", "weights", "parameters", "left_out"),
    [
        ("swinunet", swin(make=nothing), 28_288_354, f"attn_mask, head, {BLOCKS}, relative_position_index"),
        ("h2former", resnet(make=nothing), 21_797_672, "fc"),
    ],
)  # fmt: skip
def test_the_published_files_fit_and_what_is_left_out_is_told(
    kind: str, weights: Any, parameters: int, left_out: str, tmp_path: Path
) -> None:
    """The numbers of parameters are those of the papers' networks: names and shapes here are theirs."""
    buffers = ("relative_position_index", "attn_mask", "running_mean", "running_var")
    assert sum(value.numel() for name, value in weights.items() if not name.endswith(buffers)) == parameters
    torch.save({"model": weights} if kind == "swinunet" else weights, tmp_path / "w.pth")
    note = check_segmenter(experiment_with(tmp_path / "w.pth", kind, size=224))
    assert note.endswith(f"left out: {left_out}")


def test_embedding_block_and_merging_are_swin_s(tmp_path: Path) -> None:
    weights, segmenter = small_swin(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    x = F.conv2d(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=4).flatten(2).transpose(1, 2)
    x = F.layer_norm(x, (8,), weights["patch_embed.norm.weight"], weights["patch_embed.norm.bias"])  # one window of 7 x 7 tokens
    part = {name.removeprefix("layers.0.blocks.0."): value for name, value in weights.items()}
    y = F.layer_norm(x, (8,), part["norm1.weight"], part["norm1.bias"])
    q, k, v = F.linear(y, part["attn.qkv.weight"], part["attn.qkv.bias"]).reshape(2, 49, 3, 2, 4).permute(2, 0, 3, 1, 4)
    coordinates = torch.stack(torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")).flatten(1)
    relative = (coordinates[:, :, None] - coordinates[:, None, :]).permute(1, 2, 0) + 6
    bias = part["attn.relative_position_bias_table"][relative[..., 0] * 13 + relative[..., 1]].permute(2, 0, 1)
    y = ((q * 4**-0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v
    x = x + F.linear(y.transpose(1, 2).reshape(2, 49, 8), part["attn.proj.weight"], part["attn.proj.bias"])
    y = F.layer_norm(x, (8,), part["norm2.weight"], part["norm2.bias"])
    y = F.gelu(F.linear(y, part["mlp.fc1.weight"], part["mlp.fc1.bias"]))
    x = (x + F.linear(y, part["mlp.fc2.weight"], part["mlp.fc2.bias"])).reshape(2, 7, 7, 8)
    with torch.no_grad():
        found = segmenter.encoder[0][0](segmenter.embed_norm(to_tokens(segmenter.embed(images))))
        assert torch.allclose(found, x, atol=1e-5)
        assert torch.allclose(segmenter.decoder[2][0](x), segmenter.encoder[0][0](x))  # the authors copy it there too
        assert not torch.allclose(segmenter.decoder[1][0].mlp[0].weight, segmenter.encoder[2][0].mlp[0].weight[:64, :16])
        z = torch.randn(2, 4, 6, 8)
        merged = torch.cat([z[:, 0::2, 0::2], z[:, 1::2, 0::2], z[:, 0::2, 1::2], z[:, 1::2, 1::2]], -1)
        merged = F.layer_norm(merged, (32,), weights["layers.0.downsample.norm.weight"], weights["layers.0.downsample.norm.bias"])
        assert torch.allclose(segmenter.merge[0](z), F.linear(merged, weights["layers.0.downsample.reduction.weight"]), atol=1e-5)
    for own, stage in zip(segmenter.decoder, (2, 1, 0), strict=True):
        assert torch.equal(own[1].attention.qkv.weight, weights[f"layers.{stage}.blocks.1.attn.qkv.weight"])


def test_tables_of_another_window_are_interpolated(tmp_path: Path) -> None:
    weights = swin(8, heads=(2, 2, 4, 4), make=noise)
    down, right = torch.meshgrid(torch.arange(-6.0, 7), torch.arange(-6.0, 7), indexing="ij")
    weights["layers.0.blocks.0.attn.relative_position_bias_table"] = torch.stack([2 * down + right, -down], -1).reshape(169, 2)
    torch.save(weights, tmp_path / "w.pth")
    experiment = experiment_with(tmp_path / "w.pth", "swinunet", size=256, **SWIN)
    segmenter = build_model(experiment).segmenter
    start_pretrained(segmenter, experiment)
    table = segmenter.encoder[0][0].attention.bias_table.detach().reshape(15, 15, 2)  # type: ignore[index, union-attr]
    place = (
        (torch.arange(15) + 0.5) * 13 / 15 - 0.5 - 6
    )  # where a distance lies in the old table; torch's cubic curves nearly keep straight lines
    inner = slice(3, -3)
    assert torch.allclose(table[inner, inner, 0], (2 * place[:, None] + place)[inner, inner], atol=0.2)
    assert torch.allclose(table[inner, inner, 1], -place[inner, None].expand(9, 9), atol=0.2)


def test_stem_and_a_strided_block_are_resnet_s(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = resnet(8, (1, 1, 1, 1), make=noise)
    save_file(weights, tmp_path / "w.safetensors")
    experiment = experiment_with(tmp_path / "w.safetensors", "h2former", size=32, **RES)
    segmenter: Any = build_model(experiment).eval().segmenter
    start_pretrained(segmenter, experiment)

    def step(x: Tensor, conv: str, norm: str, stride: int, padding: int) -> Tensor:
        x = F.conv2d(x, weights[f"{conv}.weight"], stride=stride, padding=padding)
        means, variances = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        return F.batch_norm(x, means, variances, weights[f"{norm}.weight"], weights[f"{norm}.bias"])

    with torch.no_grad():
        x = F.max_pool2d(F.relu(step(torch.ones(1, 3, 32, 32), "conv1", "bn1", 1, 3)), 3, 2, 1)
        assert torch.allclose(segmenter.stem(torch.ones(1, 3, 32, 32)), x, atol=1e-4)
        y = step(F.relu(step(x, "layer2.0.conv1", "layer2.0.bn1", 2, 1)), "layer2.0.conv2", "layer2.0.bn2", 1, 1)
        y = F.relu(y + step(x, "layer2.0.downsample.0", "layer2.0.downsample.1", 2, 0))
        assert torch.allclose(segmenter.residual[1](x), y, atol=1e-4)
        assert to_maps(to_tokens(y)).shape == y.shape


DEFECTS: list[tuple[str, Callable[[dict[str, Tensor]], Any], str]] = [
    ("swinunet", lambda w: w.pop("layers.1.blocks.0.norm1.weight"), "lacks: layers.1.blocks.0.norm1.weight"),
    ("swinunet", lambda w: w.update({"layers.0.blocks.0.attn.scale": torch.ones(1)}), "unknown weights: layers.0.blocks.0.attn.scale"),
    ("swinunet", lambda w: w.update(extra=torch.ones(1)), "has unknown weights: extra"),
    ("swinunet", lambda w: w.update({"norm.bias": torch.ones(63)}), r"has other shapes: norm.bias \(63,\), not \(64,\)"),
    ("swinunet", lambda w: w.update({"norm.bias": torch.full((64,), torch.nan)}), "holds NaN or infinity: norm.bias"),
    ("h2former", lambda w: None, "none of its weights is called layer1.0.conv1.weight.*give ResNet-34 of ImageNet"),
]


@pytest.mark.parametrize(("kind", "spoil", "message"), DEFECTS)
def test_a_file_that_does_not_fit_is_one_message(kind: str, spoil: Callable[..., Any], message: str, tmp_path: Path) -> None:
    weights = swin(8, heads=(2, 2, 4, 4), make=lambda *shape: torch.zeros(shape))
    spoil(weights)
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        check_segmenter(experiment_with(tmp_path / "w.pth", kind, size=224, **(SWIN if kind == "swinunet" else {})))
    assert re.search(message, str(error.value), re.DOTALL)
    with pytest.raises(UserError, match="no such file"):
        check_segmenter(experiment_with(tmp_path / "gone.pth", kind, size=224))


def test_a_training_starts_from_it_and_another_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    torch.manual_seed(0)
    save_file(resnet(8, (1, 1, 1, 1), make=noise), file)
    space = read_space({"experiment": experiment_with(file, "h2former", size=32, **RES).to_dict()}, source="mine")
    experiment = absolute(space).base
    assert experiment.segmenter.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()  # type: ignore[union-attr]
    data = make_data(tmp_path)
    plain = Experiment.from_dict(experiment.to_dict() | {"segmenter": {"kind": "h2former", **RES}})
    first = [TrainingRun(one, data, Listener(tmp_path / one.hash)) for one in (experiment, plain)]
    own, random = (run.model.segmenter.state_dict() for run in first)
    for name, value in own.items():  # only the residual network; all else starts as without it
        weight = value.ndim > 1 and name.startswith(("stem", "residual"))
        assert torch.equal(value, random[name]) or name.startswith(("stem", "residual")), name
        assert not (weight and torch.equal(value, random[name])), name
    first[0].run_epoch()
    first[0].close()  # its checkpoint is written
    save_file(resnet(8, (1, 1, 1, 1), make=noise), file)
    with pytest.raises(UserError, match=r"but segmenter\.sha256 with .* other weights"):
        TrainingRun(experiment, data, Listener(tmp_path / "new"))
    assert absolute(space).base.hash != experiment.hash
    file.unlink()
    assert TrainingRun(experiment, data, Listener(tmp_path / experiment.hash)).epoch == 1  # its checkpoint has all
