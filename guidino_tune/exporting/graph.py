"""A trained network as one function from pixels to probabilities, and that function as a graph which needs no Python code of ours."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from guidino_tune.config import Data, Experiment
from guidino_tune.errors import UserError
from guidino_tune.models import GuidedSegmenter
from guidino_tune.models.ensemble import Ensemble
from guidino_tune.normalisation import imagenet_constants

INPUT, PROBABILITIES, GUIDE = "images", "probabilities", "guide"

MOST = 4096
"""Pixels a side, and images of a batch, that a graph says it takes."""


class PixelsToProbabilities(nn.Module):
    """Normalises, segments and squashes, in float32.

    Args:
        model: In eval mode, on the CPU; it is changed: its adapters are merged into the backbone.
        data: What it was trained with.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: GuidedSegmenter | Ensemble, data: Data) -> None:
        super().__init__()
        for part in model.members if isinstance(model, Ensemble) else [model]:
            if isinstance(part, GuidedSegmenter):
                merge_adapters(part)
        self.model = model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        self.kind = data.normalisation if normalised_in_graph(data) else "none"
        for name, values in zip(("mean", "deviation"), imagenet_constants(data.channels), strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=True)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Probabilities, and the guide mask where there is one.

        Args:
            images: (N, C, H, W), float32, 0 to 255 (of 16 bits: values divided by 257); already resized.

        Returns:
            (N, K, H, W) in [0, 1], background first; and (N, 1, H / 16, W / 16) in [0, 1].
        """
        prediction = self.model(self.normalised(images))
        logits = prediction.logits[0]
        # Not 1 - p: of a sure pixel only the smaller of the two still has digits.
        squashed = torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], 1) if logits.shape[1] == 1 else logits.softmax(1)
        return (squashed,) if prediction.guide is None else (squashed, prediction.guide)

    def normalised(self, images: Tensor) -> Tensor:
        """As ``normalisation.normalise``, of a batch."""
        if self.kind == "imagenet":
            return (images / 255 - self.mean) / self.deviation
        if self.kind == "zscore":
            deviation, mean = torch.std_mean(images, dim=(2, 3), correction=0, keepdim=True)
            return (images - mean) / deviation.clamp(min=1)
        return images


def normalised_in_graph(data: Data) -> bool:
    """False where it belongs to the whole image, of which the graph sees windows."""
    return not (data.view == "patch" and data.normalisation == "zscore")


def merge_adapters(model: GuidedSegmenter) -> None:
    """Adds LoRA's updates to the weights that they belong to: the same function, with fewer steps."""
    vit: Any = model.backbone.vit if model.backbone is not None else None
    if hasattr(vit, "merge_and_unload"):
        assert model.backbone is not None
        model.backbone.vit = vit.merge_and_unload()


@dataclass(frozen=True, slots=True)
class Graph:
    """A traced network.

    Attributes:
        module: What was traced.
        program: Of ``torch.export``; ``None`` for a format that needs none.
        example: Pixels that it was traced with.
        outputs: Names of what it gives.
        dynamic: Sides that may be others than those of the training: ``batch``, ``height``, ``width``.
        multiple: Of both sides.
    """

    module: PixelsToProbabilities
    program: torch.export.ExportedProgram | None
    example: Tensor
    outputs: tuple[str, ...]
    dynamic: tuple[str, ...]
    multiple: int


class PlainAttention(TorchFunctionMode):
    """Inside, attention is two products and a softmax.

    torch's fused kernel gives its result in a memory layout of its own, for which views are traced that ONNX's exporter, which takes the
    kernel apart, cannot make.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As torch's, without dropout, for no network is exported in training."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value


@torch.no_grad()
def trace(
    module: PixelsToProbabilities, experiment: Experiment, *, program: bool = True, plain_attention: bool = False, sides: bool = True
) -> Graph:
    """Traces a network with every side free that can be: batch, height and width, or the batch only, or none.

    Args:
        module: What to trace.
        experiment: What was trained.
        program: Whether a program of ``torch.export`` is needed.
        plain_attention: See ``PlainAttention``.
        sides: Whether to try to leave height and width free.

    Raises:
        UserError: torch cannot trace it at all.
    """
    data = experiment.data
    multiple = experiment.segmenter.size_multiple(data.image_size)
    generator = torch.Generator().manual_seed(0)
    example = 255 * torch.rand(2, data.channels, data.image_size, data.image_size, generator=generator)
    outputs = (PROBABILITIES, GUIDE)[: len(module(example))]
    if not program:
        return Graph(module, None, example, outputs, ("batch", "height", "width"), multiple)
    batch = torch.export.Dim("batch", min=1, max=MOST)
    free: dict[int, Any] = {0: batch}
    most = max(MOST // multiple, data.image_size // multiple + 1)
    both = {axis: multiple * torch.export.Dim(name, min=1, max=most) for axis, name in ((2, "rows"), (3, "columns"))}
    problem = ""
    for axes in ([{**free, **both}] if sides else []) + [free, {}]:
        example = example if axes else example[:1]
        try:
            with warnings.catch_warnings(), PlainAttention() if plain_attention else nullcontext():
                warnings.simplefilter("ignore")
                made = torch.export.export(module, (example,), dynamic_shapes=(axes or None,), strict=False)
        except Exception as error:  # whatever the network's own code does with sides that are not numbers
            problem = str(error).strip().partition("\n")[0]
            continue
        names = {0: "batch", 2: "height", 3: "width"}
        return Graph(module, made, example, outputs, tuple(names[axis] for axis in axes), multiple)
    raise UserError(
        f"torch.export cannot trace this network: {problem}", where=experiment.name, todo="try torchscript, which follows one run"
    )
