"""How a trained model is measured."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from guidino_tune.config.data import Data
from guidino_tune.config.fields import STRICT, Fraction
from guidino_tune.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Protocol:
    """Inference, post-processing and metrics; every output names them.

    Attributes:
        inference: ``resized``: the whole image, squeezed to the training size (of a model that was trained on patches: as ``sliding``).
            ``sliding``: windows of the training size over the image at
            its native scale, blended with a Gaussian (nnU-Net).
        overlap: Of neighbouring windows, as a share of their side.
        mirror: Average over the four flips (nnU-Net's test-time augmentation).
        largest_component: Keep the largest connected component of each class only: ``never``, ``always``, or ``validation``: if that
            improves the mean Dice of the validation cases.
        hd95: ``monai``: larger of the two directed 95th percentiles of border-to-border distances. ``pooled``: 95th percentile of both
            directions together. ``reference``: GuiDINO's code, from borders to the other mask's region, pooled; smaller than it should be.
        resolution: Where masks are compared: at the image's ``native`` size, or at the ``training`` size. Distances are in its pixels.
    """

    inference: Literal["resized", "sliding"] = "resized"
    overlap: Fraction = 0.5
    mirror: bool = False
    largest_component: Literal["never", "always", "validation"] = "never"
    hd95: Literal["monai", "pooled", "reference"] = "monai"
    resolution: Literal["native", "training"] = "native"

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if self.inference == "sliding" and self.resolution == "training":
            raise ValueError(
                "resolution: 'training' compares images that were squeezed to the training size; 'sliding' works on native ones"
            )
        return self

    def of(self, data: Data) -> Protocol:
        """The protocol as it is for a model that was trained on this data: one that has seen patches only needs windows.

        Raises:
            UserError: Patches, compared at the training size.
        """
        if data.view == "image" or self.inference == "sliding":
            return self
        if self.resolution == "training":
            raise UserError(
                "the model was trained on patches of images at their own scale (data.view=patch): they have no training size",
                where="--resolution training",
                todo="leave it out",
            )
        return dataclasses.replace(self, inference="sliding")

    def describe(self, *, scores: bool = True) -> str:
        """One line for tables and files, such as ``native resolution, whole image resized, HD95 and ASD by MONAI's definitions``.

        Args:
            scores: Also how masks are compared, not only how they are made.
        """
        whole = self.inference == "resized"
        parts = ["whole image resized" if whole else f"Gaussian sliding window ({self.overlap:g} overlap)"]
        parts += ["mean of 4 flips"] if self.mirror else []
        parts += {"never": [], "always": ["largest component"], "validation": ["largest component if validation gains"]}[
            self.largest_component
        ]
        definition = {
            "monai": "HD95 and ASD by MONAI's definitions",
            "pooled": "HD95 of both directions pooled, ASD by MONAI's definition",
            "reference": "HD95 by GuiDINO's code (border to region), ASD by MONAI's definition",
        }
        return ", ".join([f"{self.resolution} resolution", *parts, definition[self.hd95]] if scores else parts)


DEFAULT_PROTOCOL = Protocol()
"""The whole image, resized, without mirroring or post-processing, scored at native size."""
