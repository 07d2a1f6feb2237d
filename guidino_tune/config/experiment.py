"""An experiment: one complete, immutable training configuration, with YAML in and out and a stable hash."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from guidino_tune.config.data import Data
from guidino_tune.config.fields import PATCH, STRICT
from guidino_tune.config.parsing import parse, read_yaml
from guidino_tune.config.sections import DINOGuide, Guide, Loss, Training
from guidino_tune.config.segmenters import H2Former, NNUNet, NNWNet, Segmenter, SwinUNet

LATER_FIELDS = (
    ("data", "images", None),
    ("data", "masks", None),
    ("data", "group", None),
    ("data", "labels", None),
    ("data", "ignore_label", None),
    ("data", "channels", 3),
    ("data", "window", None),
    ("data", "resize", "squash"),
    ("data", "mask_resize", "nearest"),
    ("data", "view", "image"),
    ("data", "folds", None),
    ("data", "fold", 0),
    ("data", "stratify", False),
    ("data", "group_duplicates", False),
    ("data", "num_classes", 1),
    ("data", "normalisation", "imagenet"),
    ("data", "view_cycle", None),
    ("guide", "sha256", None),
    ("guide", "channels", None),
    ("loss", "head_target", "nearest"),
    ("training", "compile", "none"),
    ("training", "steps_per_epoch", "cases"),
)
"""Section, field, and the value with which everything is as it was before the field came."""

ONLY_HOW = {
    "data.root": "where the images lie",
    "data.bad_cases": "what a damaged image does",
    "guide.sha256": "a check of the file",
    "training.channels_last": "the memory format",
    "training.compile": "how fast it is",
}
"""Fields by their path that say how something is computed or checked, and never what comes of it but for rounding."""


def _plain(value: Any) -> Any:
    """As ``dataclasses.asdict`` and JSON would have it, several times as fast: a check of a space asks for it thousands of times."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return {name: _plain(getattr(value, name)) for name in value.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Experiment:
    """Data, guide, segmenter, loss and training. The defaults are GuiDINO-W on the paper's settings."""

    data: Data
    guide: Guide = DINOGuide()
    segmenter: Segmenter = NNWNet()
    loss: Loss = Loss()
    training: Training = Training()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.loss.dice_weight == 0 and self.loss.bce_weight == 0:
            raise ValueError("loss: dice_weight and bce_weight are both 0; the coarse outputs would learn nothing")
        size = self.data.image_size
        multiple = self.segmenter.size_multiple(size)
        if size % multiple:
            # The multiple may follow the size, as attention windows do.
            fitting = [s for s in range(PATCH, 4096 + PATCH, PATCH) if s % self.segmenter.size_multiple(s) == 0]
            near = [max((s for s in fitting if s < size), default=None), min((s for s in fitting if s > size), default=None)]
            raise ValueError(
                f"data.image_size: {size} is no multiple of {multiple}, which segmenter {self.segmenter.kind!r} needs; "
                f"nearest: {' and '.join(str(s) for s in near if s)}"
            )
        if isinstance(self.guide, DINOGuide):
            if self.guide.sha256 and self.guide.weights == "random":
                raise ValueError("guide.sha256: random weights have no file to check; set guide.weights=pretrained, or leave it out")
            if max(self.guide.channels or (0,)) >= self.data.channels:
                raise ValueError(f"guide.channels: images have {self.data.channels} channels, which count from 0 (data.channels)")
            gate = self.guide.gate
            if gate not in ("default", "none", *self.segmenter.gates):
                raise ValueError(
                    f"guide.gate: {gate!r} is no place in segmenter {self.segmenter.kind!r}; "
                    f"possible: {', '.join(('default', 'none', *self.segmenter.gates))}"
                )
            if gate == "none" and not self.segmenter.needs_features:
                raise ValueError(
                    f"guide.gate: 'none' leaves the guide without effect on {self.segmenter.kind!r}; "
                    "for the plain network set guide.kind=none"
                )
        elif self.segmenter.needs_features:
            raise ValueError(
                f"segmenter {self.segmenter.kind!r} is a head on the guide backbone's features: it needs guide.kind=dino "
                "(guide.gate=none for the plain head)"
            )
        return self

    @property
    def guide_channels(self) -> tuple[int, int, int]:
        """The channels of the image, from 0, that the guide backbone sees as red, green and blue.

        By default the first three; of two the first is seen twice, of a single one it is all three, as grey is.
        """
        chosen = self.guide.channels if isinstance(self.guide, DINOGuide) else None
        return chosen or {1: (0, 0, 0), 2: (0, 1, 0)}.get(self.data.channels, (0, 1, 2))

    @property
    def gate(self) -> str | None:
        """The place where the guide mask multiplies, or ``None`` when there is no guide mask."""
        if not isinstance(self.guide, DINOGuide) or self.guide.gate == "none":
            return None
        return self.segmenter.gates[0] if self.guide.gate == "default" else self.guide.gate

    @property
    def num_prototypes(self) -> int:
        """Prototypes of the TokenBook; by default one per patch of an image (the reference code's choice)."""
        fixed = self.guide.tokenbook.num_prototypes if isinstance(self.guide, DINOGuide) else None
        return fixed or (self.data.image_size // PATCH) ** 2

    @property
    def num_outputs(self) -> int:
        """Channels of the logits: one for binary masks (sigmoid), else background and every class (softmax)."""
        return 1 if self.data.num_classes == 1 else self.data.num_classes + 1

    @property
    def name(self) -> str:
        """The name the field uses for this combination, such as ``GuiDINO-W-LoRA``."""
        lora = isinstance(self.guide, DINOGuide) and self.guide.lora.rank > 0
        return (self.segmenter.guided_name if self.gate else self.segmenter.plain_name) + ("-LoRA" if lora else "")

    def to_dict(self) -> dict[str, Any]:
        """Every field, nested, in plain YAML types."""
        plain: dict[str, Any] = _plain(self)
        for name, values in (plain["data"]["labels"] or {}).items():
            if len(values) == 3 and all(isinstance(value, int) for value in values):  # three numbers would be read as a colour
                plain["data"]["labels"][name] = [[value] * 3 for value in values]
        return plain

    def to_yaml(self) -> str:
        """YAML text that ``Experiment.from_yaml`` reads back as an equal experiment."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "experiment") -> Experiment:
        """Checks and builds.

        Raises:
            UserError: An unknown key, a wrong type, a value out of range, or sections that do not fit each other; names the path.
        """
        return parse(cls, values, source)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Experiment:
        """Reads a YAML file: an experiment, or an export that holds one under ``experiment``.

        Raises:
            UserError: The file is missing, is no YAML, or holds no valid experiment.
        """
        values = read_yaml(path)
        return cls.from_dict(values.get("experiment", values), source=str(path))

    def effective(self) -> dict[str, Any]:
        """``to_dict`` without the fields that change nothing here (such as LoRA's alpha at rank 0)."""
        values = self.to_dict()
        guide, loss, training = values["guide"], values["loss"], values["training"]
        if self.data.labels is not None:
            values["data"]["labels"] = list(values["data"]["labels"].items())  # their order, which a hash of a mapping leaves out, is meant
        del values["data"]["root"]  # where the images lie is no part of what is trained
        # Fields that came later are left out where they change nothing, so that older exports keep their hash.
        for section, key, unchanged in LATER_FIELDS:
            if values[section].get(key, unchanged) == unchanged:
                values[section].pop(key, None)
        lora = isinstance(self.guide, DINOGuide) and self.guide.lora.rank > 0
        if isinstance(self.guide, DINOGuide):
            guide["gate"] = self.gate
            guide["tokenbook"]["num_prototypes"] = self.num_prototypes
        if isinstance(self.segmenter, SwinUNet | H2Former):
            values["segmenter"]["window"] = self.segmenter.window_at(self.data.image_size)
        if isinstance(self.segmenter, NNUNet):
            deepest = self.segmenter.base_width << (self.segmenter.num_stages - 1)
            values["segmenter"]["max_width"] = min(self.segmenter.max_width, deepest)
        if self.data.view == "image":
            del values["data"]["patch_foreground"]
        passes = self.training.epochs if self.training.steps_per_epoch == "cases" else math.inf  # else it depends on the cases
        if self.data.augmentation == "none" or (self.data.view_cycle or 0) >= passes:
            values["data"].pop("view_cycle", None)  # no view is shown twice, or all of a case are the same
        if self.training.batch_size == 1 or self.loss.dice_weight == 0:
            del loss["batch_dice"]
        if not getattr(self.segmenter, "deep_supervision", False):
            loss.pop("head_target", None)  # its only output is as fine as the mask
        if self.training.epochs == 1:
            del training["schedule"]  # every schedule starts at the full rate
        if lora and str(guide["backbone"]).startswith("convnext"):
            del guide["lora"]["targets"]  # both mean the same there
        if not self.gate:
            guide.pop("tokenbook", None)
            for key in ("lambda_guide", "guide_loss", "guide_target"):
                del loss[key]
        elif loss["lambda_guide"] == 0:
            del loss["guide_loss"], loss["guide_target"]
        if not lora:
            guide.pop("lora", None)
            del training["lora_lr"]
        if loss["hinge_weight"] == 0:
            del loss["hinge_margin"], loss["hinge_band"]
        if training["optimizer"] != "sgd":
            del training["momentum"]
        return values

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits, the same on every machine for the same effective experiment."""
        text = json.dumps(self.effective(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]
