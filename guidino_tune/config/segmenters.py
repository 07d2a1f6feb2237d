"""The segmenters: one dataclass of options each. All are frozen, slotted, keyword-only and checked on construction."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from guidino_tune.config.fields import PATCH, STRICT, About, Count, Digest, Fraction, FrozenOptions, Number, Options, PathText, Target

GATES: dict[str, str] = {
    "input": "the image",
    "bottleneck": "the deepest map",
    "skips": "every skip connection",
    "decoder": "every map of the decoder, or the last one before the head of a decoder without levels",
    "features": "the backbone's features as the segmenter projects them",
}
"""Places where a guide mask can multiply."""


def _largest_divisor(number: int, most: int) -> int:
    """Of ``number``, at least 2 and at most ``most``; 2 where there is none."""
    return max((d for d in range(2, most + 1) if number % d == 0), default=2)


class Common:
    """What every segmenter's options tell, besides the options.

    Attributes:
        gates: Places of ``GATES`` that this segmenter has, the paper's (else the most natural) first.
        needs_features: True for a head on the backbone's features, which cannot do without a backbone.
        plain_name: What the field calls the network without a guide mask.
        guided_name: And with one.
    """

    __slots__ = ()
    gates: ClassVar[tuple[str, ...]]
    needs_features: ClassVar[bool] = False
    plain_name: ClassVar[str]
    guided_name: ClassVar[str]

    def size_multiple(self, image_size: int) -> int:
        """What both sides of an image must be a multiple of, in pixels, in a network built for ``image_size``."""
        return PATCH

    def as_built(self, image_size: int) -> dict[str, Any]:
        """Options by name as a network for ``image_size`` is built with them, where they differ from what was set."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class UNet(Common):
    """U-Net with batch norm. GuiDINO-U gates its bottleneck.

    Attributes:
        base_width: Width of the first stage; the five have ``base_width * (1, 2, 4, 8, 16)``.
    """

    gates: ClassVar[tuple[str, ...]] = ("bottleneck", "input", "skips", "decoder")
    plain_name: ClassVar[str] = "U-Net"
    guided_name: ClassVar[str] = "GuiDINO-U"
    kind: Literal["unet"] = "unet"
    base_width: Count = 32


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class NNUNet(Common):
    """nnU-Net 2D (Isensee et al., 2021): instance norm, LeakyReLU, strided convolutions, deep supervision.

    Attributes:
        encoder: ``plain`` (two convolutions a stage) or ``residual`` (1, 3, 4, 6, 6, 6, ... residual blocks, one decoder convolution).
        num_stages: Resolutions; the image is a multiple of ``2 ** (num_stages - 1)``.
        base_width: Width of the first stage; doubled at each, up to ``max_width``.
        max_width: Upper limit of the widths.
        deep_supervision: A head at every decoder stage; else the coarse ones exist but are neither run nor trained.
    """

    gates: ClassVar[tuple[str, ...]] = ("skips", "input", "bottleneck", "decoder")
    plain_name: ClassVar[str] = "nnU-Net"
    guided_name: ClassVar[str] = "GuiDINO-nnU"
    kind: Literal["nnunet"] = "nnunet"
    encoder: Literal["plain", "residual"] = "plain"
    num_stages: Annotated[int, Field(ge=3, le=9), Number] = 6
    base_width: Count = 32
    max_width: Count = 512
    deep_supervision: bool = True

    def size_multiple(self, image_size: int) -> int:
        """See ``Common.size_multiple``."""
        deepest = 1 << (self.num_stages - 1)
        # A deepest map of a single pixel is nothing that instance norm could normalise.
        return max(PATCH, deepest if image_size > deepest else 2 * deepest)

    def as_built(self, image_size: int) -> dict[str, Any]:
        """See ``Common.as_built``: a limit that no stage reaches changes nothing."""
        return {"max_width": min(self.max_width, self.base_width << (self.num_stages - 1))}


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class NNWNet(Common):
    """nnWNet 2D. GuiDINO-W gates its input image.

    Attributes:
        base_width: Local width of the first stage; the five have ``base_width * (1, 2, 4, 8, 16)``, and half of these as global widths.
        deep_supervision: See ``NNUNet``.
    """

    gates: ClassVar[tuple[str, ...]] = ("input", "bottleneck", "skips", "decoder")
    plain_name: ClassVar[str] = "nnWNet"
    guided_name: ClassVar[str] = "GuiDINO-W"
    kind: Literal["nnwnet"] = "nnwnet"
    base_width: Annotated[int, Field(ge=2, multiple_of=2), Number] = 16
    deep_supervision: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SwinUNet(Common):
    """Swin-Unet (Cao et al., 2021): a U-Net of shifted-window transformer blocks.

    Attributes:
        window: Side of the attention windows, in tokens of 4 pixels; the image is a multiple of ``32 * window``. ``None``: 7, the
            original's, for multiples of 224 pixels, else the largest that fits and is at most 16 (8 at 256 pixels).
        embed_width: Width at 1/4; doubled at each of the three stages below. A multiple of the first number of heads.
        depths: Blocks of each encoder stage, and of its counterpart in the decoder.
        heads: Attention heads of each stage.
        drop_path: Largest rate of stochastic depth; it grows linearly over the encoder's blocks.
        pretrained: A file of ImageNet weights that trainings start from, as the original does: microsoft's
            ``swin_tiny_patch4_window7_224.pth``. Bias tables of other windows are interpolated. ``None``: random weights.
        sha256: Of that file; noted by itself where the experiment names the file, so that another one is noticed.
    """

    gates: ClassVar[tuple[str, ...]] = ("skips", "input", "bottleneck", "decoder")
    plain_name: ClassVar[str] = "SwinUNet"
    guided_name: ClassVar[str] = "GuiDINO-Swin"
    kind: Literal["swinunet"] = "swinunet"
    window: Annotated[int, Field(ge=2, le=64), Number] | None = None
    embed_width: Count = 96
    depths: tuple[Count, Count, Count, Count] = (2, 2, 2, 2)
    heads: tuple[Count, Count, Count, Count] = (3, 6, 12, 24)
    drop_path: Fraction = 0.1
    pretrained: Annotated[PathText | None, About(before=None)] = None
    sha256: Annotated[Digest | None, About(idle=lambda e: True)] = None

    def window_at(self, image_size: int) -> int:
        """The window of a network for this image size."""
        if self.window is not None:
            return self.window
        return 7 if image_size % 224 == 0 else _largest_divisor(image_size // 32, 16)

    def size_multiple(self, image_size: int) -> int:
        """See ``Common.size_multiple``."""
        return 32 * self.window_at(image_size)

    def as_built(self, image_size: int) -> dict[str, Any]:
        """See ``Common.as_built``; where pretrained weights lie says nothing of what they are."""
        return {"window": self.window_at(image_size), "pretrained": self.pretrained and (self.sha256 or self.pretrained)}


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class H2Former(Common):
    """H2Former (He et al., 2023): ResNet-34 stages, each followed by window attention with channel attention in its MLPs.

    Attributes:
        window: Side of the attention windows at every stage, in pixels of that stage's map; the image is a multiple of ``16 * window``.
            ``None``: the sixteenth of the image, as the original, or the largest part of it that is at most 32: attention over larger
            windows takes gigabytes.
        base_width: Width of the first stage (64 in ResNet-34); doubled at each of the next three.
        blocks: Residual blocks of each stage.
        depths: Attention blocks of each stage.
        heads: Attention heads of each stage.
        drop_path: Largest rate of stochastic depth.
        scrambled_mlp: Reproduce a mistake of the original code: its MLPs read (B, N, C) as (B, C, H, W) without transposing, so that
            channel attention averages over mixtures of tokens and channels. Weights trained with it need it.
        pretrained: A file of ImageNet weights that the residual blocks start from, as the original does: torchvision's ``resnet34-*.pth``.
        sha256: See ``SwinUNet``.
    """

    gates: ClassVar[tuple[str, ...]] = ("skips", "input", "bottleneck", "decoder")
    plain_name: ClassVar[str] = "H2Former"
    guided_name: ClassVar[str] = "GuiDINO-H2"
    kind: Literal["h2former"] = "h2former"
    window: Annotated[int, Field(ge=2, le=128), Number] | None = None
    base_width: Annotated[int, Field(ge=8, multiple_of=8), Number] = 64
    blocks: tuple[Count, Count, Count, Count] = (3, 4, 6, 3)
    depths: tuple[Count, Count, Count, Count] = (2, 2, 2, 2)
    heads: tuple[Count, Count, Count, Count] = (2, 4, 8, 16)
    drop_path: Fraction = 0.1
    scrambled_mlp: bool = False
    pretrained: Annotated[PathText | None, About(before=None)] = None
    sha256: Annotated[Digest | None, About(idle=lambda e: True)] = None

    def window_at(self, image_size: int) -> int:
        """The window of a network for this image size."""
        return self.window or _largest_divisor(image_size // 16, 32)

    def size_multiple(self, image_size: int) -> int:
        """See ``Common.size_multiple``."""
        return 16 * self.window_at(image_size)

    def as_built(self, image_size: int) -> dict[str, Any]:
        """See ``Common.as_built``; where pretrained weights lie says nothing of what they are."""
        return {"window": self.window_at(image_size), "pretrained": self.pretrained and (self.sha256 or self.pretrained)}


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class UKAN(Common):
    """U-KAN (Li et al., 2024): convolutions at fine resolutions, Kolmogorov-Arnold layers of B-splines on tokens at 1/16 and 1/32.

    Attributes:
        widths: At 1/8, 1/16 and 1/32; the two finer levels have an eighth and a quarter of the first. The original trains with the
            default; its larger variant is (256, 320, 512).
        grid: Intervals of the splines on [-1, 1].
        order: Of the splines; 3 is cubic.
        drop_path: Stochastic depth of the KAN blocks: half of this rate at the second block of encoder and decoder, as the original.
    """

    gates: ClassVar[tuple[str, ...]] = ("skips", "input", "bottleneck", "decoder")
    plain_name: ClassVar[str] = "U-KAN"
    guided_name: ClassVar[str] = "GuiDINO-KAN"
    kind: Literal["ukan"] = "ukan"
    widths: tuple[Annotated[int, Field(ge=8, multiple_of=8)], Count, Count] = (128, 160, 256)
    grid: Count = 5
    order: Annotated[int, Field(ge=1, le=5), Number] = 3
    drop_path: Fraction = 0.0

    def size_multiple(self, image_size: int) -> int:
        """See ``Common.size_multiple``."""
        return 32


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SegDINO(Common):
    """SegDINO's linear head on four layers of the guide backbone; plain SegDINO has ``guide.gate: none``.

    Attributes:
        features: Width of each branch before the last 1x1 convolution.
        branch_widths: Widths of the four 1x1 projections, shallowest layer first.
        final_norm: Apply the backbone's last LayerNorm to every layer (the official code does, GuiDINO's port does not).
    """

    gates: ClassVar[tuple[str, ...]] = ("features", "decoder")
    needs_features: ClassVar[bool] = True
    plain_name: ClassVar[str] = "SegDINO"
    guided_name: ClassVar[str] = "SegDINO-guided"
    kind: Literal["segdino"] = "segdino"
    features: Count = 128
    branch_widths: tuple[Count, Count, Count, Count] = (96, 192, 384, 768)
    final_norm: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SegGuiDINO(Common):
    """Seg-GuiDINO's head: projected backbone features, multiplied by the guide mask, one more convolution, upsampling.

    Attributes:
        hidden: Width of the projected features.
        dropout: Before the last convolution, of whole channels, in training only.
    """

    gates: ClassVar[tuple[str, ...]] = ("features", "decoder")
    needs_features: ClassVar[bool] = True
    plain_name: ClassVar[str] = "Seg-DINO"
    guided_name: ClassVar[str] = "Seg-GuiDINO"
    kind: Literal["segguidino"] = "segguidino"
    hidden: Count = 256
    dropout: Fraction = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DinoUNet(Common):
    """Dino U-Net (2025): an adapter mixes four backbone layers with a convolutional pyramid, FAPM narrows them for a U-Net decoder.

    Its sizes S, B, L and 7B are those of ``guide.backbone``; the plain network has ``guide.gate: none``.

    Attributes:
        widths: Of the four stages at 1, 1/2, 1/4 and 1/8, as the decoder sees them.
        rank: Of FAPM's shared and specific projections.
        attention_heads: Of the deformable attention; divides half of the backbone's width.
        attention_points: Sampling points of each head.
        drop_path: Rate of stochastic depth in the adapter.
        final_norm: Apply the backbone's last LayerNorm to every layer, as the original.
        deep_supervision: A head at every decoder stage; the original trains without.
    """

    gates: ClassVar[tuple[str, ...]] = ("skips", "input", "bottleneck", "decoder", "features")
    needs_features: ClassVar[bool] = True
    plain_name: ClassVar[str] = "Dino U-Net"
    guided_name: ClassVar[str] = "Dino U-Net-guided"
    kind: Literal["dinounet"] = "dinounet"
    widths: tuple[Count, Count, Count, Count] = (32, 64, 128, 256)
    rank: Count = 256
    attention_heads: Count = 16
    attention_points: Count = 4
    drop_path: Fraction = 0.3
    final_norm: bool = True
    deep_supervision: bool = False

    def size_multiple(self, image_size: int) -> int:
        """See ``Common.size_multiple``."""
        return 32 if image_size >= 64 else 64  # a map of a single pixel is nothing that instance norm could normalise


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class MedDINO(Common):
    """MedDINOv3's decoder (2025): transposed convolutions on concatenated backbone layers; the backbone stays frozen or has LoRA here.

    Attributes:
        layers: ``four`` concatenates four layers (its final recipe), ``last`` takes the last one alone.
        final_norm: Apply the backbone's last LayerNorm to every layer, as the original.
    """

    gates: ClassVar[tuple[str, ...]] = ("decoder", "features")
    needs_features: ClassVar[bool] = True
    plain_name: ClassVar[str] = "MedDINOv3"
    guided_name: ClassVar[str] = "MedDINOv3-guided"
    kind: Literal["meddino"] = "meddino"
    layers: Literal["four", "last"] = "four"
    final_norm: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Custom(Common):
    """A network of the user's own, see ``models/segmenters/custom.py`` for what is called with what.

    Attributes:
        target: ``module:name`` of a class or function that gives the network.
        options: Its keyword arguments, besides ``in_channels``, ``num_outputs`` and ``image_size``: one number, text or switch each.
        gates: Places at which it can be gated, the default first. ``input`` needs nothing of the network; for any other it is called as
            ``network(images, gate)`` and calls ``gate(place, x)`` itself.
    """

    deep_supervision: ClassVar[bool] = True  # it may have coarse outputs; only the built network tells
    kind: Literal["custom"] = "custom"
    target: Target = ""
    options: Options = Field(default_factory=FrozenOptions)
    # Of the places that there are one is used, which `guide.gate` names.
    gates: Annotated[tuple[Literal["input", "bottleneck", "skips", "decoder"], ...], Field(min_length=1), About(idle=lambda e: True)] = (  # type: ignore[misc]
        "input",
    )

    @property
    def plain_name(self) -> str:  # type: ignore[override]
        """The name of the class or function."""
        return self.target.rpartition(":")[2]

    @property
    def guided_name(self) -> str:  # type: ignore[override]
        """That name, as the field builds such names."""
        return f"GuiDINO-{self.plain_name}"


Segmenter = Annotated[
    UNet | NNUNet | NNWNet | SwinUNet | H2Former | UKAN | SegDINO | SegGuiDINO | DinoUNet | MedDINO | Custom, Field(discriminator="kind")
]
