"""A network of the user's own, by its target ``module:name``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune import targets
from guidino_tune.errors import UserError
from guidino_tune.models.backbone import BackboneShape, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.seeding import seeded
from guidino_tune.models.segmenters.base import Segmenter

WHERE = "segmenter.target"


class Custom(Segmenter):
    """Whatever ``target(in_channels=..., num_outputs=..., image_size=..., **options)`` gives: a ``torch.nn.Module``.

    It is called with images (B, in_channels, H, W), normalised, H = W = ``data.image_size``, and gives logits (B, num_outputs, h, w): no
    sigmoid or softmax. ``num_outputs`` is 1 for binary masks, else background and classes. A list or tuple of such tensors, finest first,
    is deep supervision: the i-th counts ``1 / 2^i``. Each may have a size of its own; the first is resized to H x W where it is smaller.

    With ``segmenter.gates`` other than ``input`` it is called with a second argument: ``gate("bottleneck", x)`` gives a map x (B, C, h, w)
    back, multiplied by the guide mask if that is the place, and is called for every map of each place named there. Its initial weights
    follow from ``training.seed`` where it takes them from torch's random numbers.

    Raises:
        UserError: The target gives no module, or that something else than logits, finest first.
        NotImportable: See ``targets.load``.
    """

    def __init__(
        self,
        config: sections.Custom,
        *,
        image_size: int = 256,
        num_outputs: int = 1,
        in_channels: int = 3,
        backbone: BackboneShape | None = None,
    ) -> None:
        super().__init__(config, image_size=image_size)
        self.target, self.num_outputs = config.target, num_outputs
        self.takes_gate = set(config.gates) != {"input"}
        make = targets.load(config.target, WHERE)
        self.network = make(in_channels=in_channels, num_outputs=num_outputs, image_size=image_size, **config.options)
        if not isinstance(self.network, nn.Module):
            raise self._wrong(f"gives a {type(self.network).__name__}, no torch.nn.Module", "return the network")

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; coarser heads may have any size."""

        def inner(place: str, x: Tensor) -> Tensor:
            return x if place == "input" else gate(place, x)  # the image is gated here already

        gated = gate("input", images)
        # Here, and below, the length of a batch is not its len(): a number would be written into exported graphs.
        output = self.network(gated, inner) if self.takes_gate else self.network(gated)
        heads = output if isinstance(output, list | tuple) else (output,)
        for head in heads:
            if not isinstance(head, Tensor):
                raise self._wrong(f"the network gives a {_named(output)}", "return the logits, a tensor, or a list of them, finest first")
            if head.dim() != 4 or head.shape[:2] != (images.shape[0], self.num_outputs) or not head.is_floating_point():
                expected = f"({images.shape[0]}, {self.num_outputs}, height, width)"
                what = f"the network gives {head.dtype} of shape {tuple(head.shape)} for images of shape {tuple(images.shape)}"
                raise self._wrong(what, f"logits have shape {expected}: one channel for binary masks, else background and classes")
        if not heads:
            raise self._wrong("the network gives an empty list", "return the logits")
        sizes = [tuple(head.shape[-2:]) for head in heads]
        if sizes != sorted(sizes, reverse=True):
            raise self._wrong(f"the network gives heads of sizes {sizes}", "return them finest first")
        first, *coarser = heads
        if first.shape[-2:] != images.shape[-2:]:
            first = F.interpolate(first, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return (first, *coarser)

    def _wrong(self, what: str, todo: str) -> UserError:
        return UserError(what, where=f"{WHERE}={self.target}", todo=todo)


def check(experiment: sections.Experiment, *, counted: bool = False) -> None:
    """Builds the user's network and calls it once with two images of noise, as in training.

    Args:
        experiment: With a ``custom`` segmenter.
        counted: It must also run without values, on torch's ``meta`` device, where operations and memory are counted.

    Raises:
        UserError: It fails, or gives something else than ``Custom`` says; it never asks for a gate that ``segmenter.gates`` names.
    """
    config, size, channels, asked = experiment.segmenter, experiment.data.image_size, experiment.data.channels, set[str]()
    assert isinstance(config, sections.Custom)

    class Asked(Gate):
        def __call__(self, name: str, x: Tensor) -> Tensor:
            asked.add(name)
            return x

    def run(device: str) -> None:
        with torch.device(device), torch.no_grad():
            made = Custom(config, image_size=size, num_outputs=experiment.num_outputs, in_channels=channels).train()
            made(images.to(device), Asked())

    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    with seeded(experiment.training.seed), targets.blaming(config.target, WHERE):
        run("cpu")
    where = f"{WHERE}={config.target}"
    if missing := sorted(set(config.gates) - asked):
        raise UserError(f"it never calls gate({missing[0]!r}, x)", where=where, todo="call it there, or take it out of segmenter.gates")
    if counted:
        try:
            run("meta")
        except Exception as error:
            raise UserError(
                f"its operations and memory cannot be counted: without values it raises {type(error).__name__}: {error}",
                where=where,
                todo="keep to study.objectives, constraints and trials_per_gpu that count nothing, or compute with tensors only",
            ) from None


def _named(output: Any) -> str:
    inside = {type(x).__name__ for x in output} if isinstance(output, list | tuple) else set()
    return type(output).__name__ + (f" of {', '.join(sorted(inside))}" if inside else "")
