"""The sections of an experiment besides its data: guide, segmenter, loss and training.

All are frozen, slotted, keyword-only dataclasses whose values pydantic checks on construction, so that an experiment that exists is
a valid one. Lengths are in pixels, weights and fractions are dimensionless, learning rates are per optimiser step.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from guidino_tune.config.fields import (
    STRICT,
    About,
    Count,
    Digest,
    Fraction,
    FrozenOptions,
    Index,
    NonNegative,
    Number,
    Options,
    Positive,
    Target,
    whole,
)
from guidino_tune.config.segmenters import Segmenter
from guidino_tune.errors import nearest

if TYPE_CHECKING:
    from guidino_tune.config.experiment import Experiment

BACKBONES: dict[str, str | None] = {
    "tiny": None,  # a two-layer ViT for the demo and for tests; random weights only
    "vits16": "facebook/dinov3-vits16-pretrain-lvd1689m",
    "vits16plus": "facebook/dinov3-vits16plus-pretrain-lvd1689m",
    "vitb16": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "vitl16": "facebook/dinov3-vitl16-pretrain-lvd1689m",
    "vith16plus": "facebook/dinov3-vith16plus-pretrain-lvd1689m",
    "vit7b16": "facebook/dinov3-vit7b16-pretrain-lvd1689m",
    "convnext_tiny": "facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
    "convnext_small": "facebook/dinov3-convnext-small-pretrain-lvd1689m",
    "convnext_base": "facebook/dinov3-convnext-base-pretrain-lvd1689m",
    "convnext_large": "facebook/dinov3-convnext-large-pretrain-lvd1689m",
    "dinov2_vits14": "facebook/dinov2-with-registers-small",
    "dinov2_vitb14": "facebook/dinov2-with-registers-base",
    "dinov2_vitl14": "facebook/dinov2-with-registers-large",
    "dinov2_vitg14": "facebook/dinov2-with-registers-giant",
}
"""Guide backbones by name, with the Hugging Face repository that holds their weights."""


def is_local_backbone(name: str) -> bool:
    """True when ``name`` is a path to a Hugging Face model folder rather than a name in ``BACKBONES``."""
    return name not in BACKBONES and ("/" in name or name.startswith((".", "~")) or os.path.exists(name))


def _without_mask(experiment: Experiment) -> bool:
    return experiment.gate is None


def _guide_not_taught(experiment: Experiment) -> bool:
    return experiment.gate is None or experiment.loss.lambda_guide == 0


def _without_lora(experiment: Experiment) -> bool:
    return not isinstance(experiment.guide, DINOGuide) or experiment.guide.trained != "lora"


def _not_all_trained(experiment: Experiment) -> bool:
    return not isinstance(experiment.guide, DINOGuide) or experiment.guide.trained != "full"


def _same_in_a_batch(experiment: Experiment) -> bool:
    """A batch is one case, or no term is one of regions."""
    return experiment.training.batch_size == 1 or not (experiment.loss.dice_weight or experiment.loss.tversky_weight)


def _on_convnext(experiment: Experiment) -> bool:
    """Both targets mean the same there."""
    return isinstance(experiment.guide, DINOGuide) and experiment.guide.backbone.startswith("convnext")


def _without_hinge(experiment: Experiment) -> bool:
    return experiment.loss.hinge_weight == 0


def _without_custom(experiment: Experiment) -> bool:
    return experiment.loss.custom is not None and experiment.loss.custom.weight == 0


def _one_head(experiment: Experiment) -> bool:
    """The only output is as fine as the mask."""
    return not getattr(experiment.segmenter, "deep_supervision", False)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class TokenBook:
    """How tokens become a guide mask: our reading of GuiDINO's equation 1.

    The equation is ``G(x) = sum_i alpha_i * sim(T_i, P)``: its weights belong to tokens ``T_i``, and ``P`` has no index. A mask needs one
    value at each token, so we take the sum over the prototypes, and give the learned weights to these.

    Attributes:
        num_prototypes: Number of learned vectors; ``None`` takes the number of patches of one image, as the reference does. It matters
            with ``softmax``: the other two are linear in the similarities, so that all prototypes together act as one vector.
        similarity: Between a projected token and a prototype.
        aggregation: ``weighted``: a learned weight per prototype. ``mean``: the reference code's plain mean. ``softmax``: a smooth maximum
            with learned temperature, the only one in which different prototypes can stand for different tissues.
    """

    num_prototypes: Annotated[Count | None, About(memory=whole, heading="prototypes")] = None
    similarity: Annotated[Literal["cosine", "dot"], About(memory=whole)] = "cosine"
    aggregation: Annotated[Literal["weighted", "mean", "softmax"], About(memory=whole)] = "weighted"


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class LoRA:
    """Low-rank adapters in the guide backbone; rank 0 has none.

    Attributes:
        rank: Rank of the update; 0 means no adapters.
        alpha: Scale: the update is multiplied by ``alpha / rank``.
        dropout: On the adapter's input, in training only.
        targets: The attention projections (q, k, v, o), or those and the MLP's. A ConvNeXt has no attention: there both mean its
            pointwise convolutions.
    """

    rank: Annotated[int, Field(ge=0, le=512), Number, About(memory=whole, heading="LoRA rank")] = 0
    alpha: Positive = 16.0
    dropout: Annotated[Fraction, About(memory=bool)] = 0.05
    targets: Annotated[Literal["attention", "attention+mlp"], About(idle=_on_convnext, memory=whole)] = "attention"


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class NoGuide:
    """The plain segmenter, without DINOv3."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DINOGuide:
    """A DINO backbone and a TokenBook whose mask gates the segmenter.

    Attributes:
        backbone: A name in ``BACKBONES`` or the path of a Hugging Face model folder.
        weights: ``pretrained``, or ``random`` (the same random weights everywhere; for the demo and for tests).
        sha256: Of the ``model.safetensors`` in that model folder, in 64 hexadecimal digits; checked before the weights are used.
        gate: Where the mask multiplies (see ``segmenters.GATES``); ``default`` is the paper's place for the segmenter, ``none`` gives
            features without a mask.
        channels: The three channels of the image, from 0, that the backbone sees as red, green and blue; ``None``: the first three, the
            first of two also as blue, and a single one as all three. A frozen backbone sees the same numbers in every trial, so that its
            tokens can be shared; a learned projection would change them with every step.
        train: What of the backbone is trained: ``frozen`` nothing, ``lora`` its adapters, ``full`` all of its weights, from those it comes
            with, at ``training.backbone_lr``. ``None``: ``lora`` where ``lora.rank`` is above 0, else ``frozen``.
        tokenbook: How its tokens become the mask.
        lora: Its adapters.
    """

    kind: Literal["dino"] = "dino"
    backbone: Annotated[str, About(memory=whole, heading="backbone")] = "vits16"
    weights: Literal["pretrained", "random"] = "pretrained"
    sha256: Annotated[Digest | None, About(before=None, only_how="a check of the file")] = None
    gate: Annotated[
        Literal["default", "none", "input", "bottleneck", "skips", "decoder", "features"], About(memory=whole, heading="gate")
    ] = "default"
    channels: Annotated[tuple[Index, Index, Index] | None, About(before=None)] = None
    train: Annotated[
        Literal["frozen", "lora", "full"] | None,
        About(idle=_not_all_trained, memory=whole),  # the adapters' rank says the rest
    ] = None
    tokenbook: Annotated[TokenBook, About(idle=_without_mask)] = TokenBook()
    lora: Annotated[LoRA, About(idle=_without_lora)] = LoRA()

    @field_validator("backbone")
    @classmethod
    def _known(cls, name: str) -> str:
        if name in BACKBONES or is_local_backbone(name):
            return name
        raise ValueError(f"unknown backbone; {nearest(name, BACKBONES)} (or the path of a model folder)")

    @property
    def trained(self) -> Literal["frozen", "lora", "full"]:
        """What of the backbone is trained, see ``train``."""
        return self.train or ("lora" if self.lora.rank else "frozen")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class CustomTerm:
    """A loss term of the user's own, see ``custom_loss.py`` for what is called with what.

    Attributes:
        target: ``module:name`` of a function, or of a class whose instances are called.
        weight: Of the term; 0 switches it off.
        options: Keyword arguments of the function or class.
    """

    target: Target
    weight: NonNegative = 1.0
    options: Options = Field(default_factory=FrozenOptions)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Loss:
    """The sum of the terms, each times its weight; 0 switches a term off. The first two and the guide's are GuiDINO's (section "Loss").

    Attributes:
        dice_weight: Of soft Dice; with several classes the mean over the foreground classes.
        bce_weight: Of cross-entropy: binary, or with several classes softmax cross-entropy.
        lambda_guide: The paper's lambda.
        guide_loss: Between guide mask and target: ``bce`` (paper) or ``mse`` (reference code).
        guide_target: Ground truth, the union of all classes, on the token grid: ``area`` (share of foreground) or ``nearest`` (reference
            code).
        head_target: Masks on the grid of a coarser output: ``nearest-exact`` takes the pixel in the middle of each cell, ``nearest`` the
            one in its corner, which shifts the target by half a cell (reference code).
        hinge_weight: Of the boundary hinge loss.
        hinge_margin: Margin in logits.
        hinge_band: Width of the boundary band, in pixels (odd).
        batch_dice: Dice and Tversky over the whole batch (as nnU-Net in 2D) rather than per case.
        focal_weight: Of focal loss (Lin et al., 2017): cross-entropy in which pixels that are already right count less.
        focal_gamma: How much less; 0 is cross-entropy.
        tversky_weight: Of the Tversky loss (Salehi et al., 2017): Dice with separate prices for what is too much and what is missing.
        tversky_alpha: Price of false positives; 0.5 for both prices is Dice.
        tversky_beta: Price of false negatives.
        top_k_weight: Of cross-entropy of the hardest pixels only (as nnU-Net's TopK loss).
        top_k_fraction: Which share of a batch's pixels these are.
        boundary_weight: Of the boundary loss (Kervadec et al., 2019): the mean of foreground probability times signed distance to the
            border, in pixels. It is large and may be negative: start near 0.01, beside a term on regions such as Dice.
        class_weights: The background's and each class's, or one number: that of every class, the background's being 1. They multiply the
            cross-entropy of each pixel (also in the focal and top-k terms) by the weight of its true class over the mean weight of the
            batch's pixels; and Dice and Tversky are the weighted mean over the foreground classes. A common factor means nothing.
        custom: A term of the user's own, added to the sum.
    """

    dice_weight: NonNegative = 1.0
    bce_weight: NonNegative = 1.0
    lambda_guide: Annotated[NonNegative, About(idle=_without_mask, heading="lambda")] = 0.1
    guide_loss: Annotated[Literal["bce", "mse"], About(idle=_guide_not_taught)] = "bce"
    guide_target: Annotated[Literal["area", "nearest"], About(idle=_guide_not_taught)] = "area"
    head_target: Annotated[Literal["nearest-exact", "nearest"], About(before="nearest", idle=_one_head)] = "nearest-exact"
    hinge_weight: Annotated[NonNegative, About(memory=bool, heading="hinge")] = 0.0
    hinge_margin: Annotated[Positive, About(idle=_without_hinge)] = 1.0
    hinge_band: Annotated[int, Field(ge=3, le=31), Number, About(idle=_without_hinge)] = 3
    batch_dice: Annotated[bool, About(idle=_same_in_a_batch)] = True
    focal_weight: Annotated[NonNegative, About(before=0, memory=bool)] = 0.0
    focal_gamma: Annotated[NonNegative, About(idle=lambda e: e.loss.focal_weight == 0)] = 2.0
    tversky_weight: Annotated[NonNegative, About(before=0, memory=bool)] = 0.0
    tversky_alpha: Annotated[Positive, About(idle=lambda e: e.loss.tversky_weight == 0)] = 0.3
    tversky_beta: Annotated[Positive, About(idle=lambda e: e.loss.tversky_weight == 0)] = 0.7
    top_k_weight: Annotated[NonNegative, About(before=0, memory=bool)] = 0.0
    top_k_fraction: Annotated[float, Field(gt=0, le=1), Number, About(idle=lambda e: e.loss.top_k_weight == 0)] = 0.1
    boundary_weight: Annotated[NonNegative, About(before=0, memory=bool)] = 0.0
    class_weights: Annotated[Positive | Annotated[tuple[NonNegative, ...], Field(min_length=2)] | None, About(before=None)] = None
    custom: Annotated[CustomTerm | None, About(before=None, idle=_without_custom, memory=whole)] = None

    @property
    def on_every_head(self) -> bool:
        """Whether any term trains the coarse outputs of a network too."""
        return any((self.dice_weight, self.bce_weight, self.focal_weight, self.tversky_weight, self.top_k_weight))

    def weights_of(self, num_classes: int) -> tuple[float, ...] | None:
        """The class weights of background and classes, the largest 1; ``None`` where all are equal, or change nothing in the terms in use.

        Raises:
            ValueError: They are not those of so many classes, or no class has any.
        """
        given = self.class_weights
        if given is None:
            return None
        weights = given if isinstance(given, tuple) else (1.0, *(given,) * num_classes)
        if len(weights) != num_classes + 1 or not any(weights[1:]):
            raise ValueError(
                f"loss.class_weights: {len(weights)} weights for background and {num_classes} class(es); give {num_classes + 1}, "
                "the background's first, and not 0 for every class"
            )
        if not (self.bce_weight or self.focal_weight or self.top_k_weight):
            weights = (max(weights[1:]), *weights[1:])  # only those of regions are left, which know no background
        used = self.on_every_head and len(set(weights)) > 1
        return tuple(weight / max(weights) for weight in weights) if used else None

    @field_validator("hinge_band")
    @classmethod
    def _odd(cls, width: int) -> int:
        if width % 2 == 0:
            raise ValueError("must be odd")
        return width


Compiling = Literal["auto", "none", "default", "cuda-graphs"]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Training:
    """How weights are learned.

    Attributes:
        epochs: Full budget of a trial; schedules run over all of it, also when the trial is stopped early.
        steps_per_epoch: Optimiser steps of an epoch. ``cases``: every case once. ``None``: every case once, but at least 50 steps, for
            trials are compared after epochs, and a few steps tell nothing.
        batch_size: Images per optimiser step, over all workers.
        optimizer: Of all weights.
        lr: Learning rate of everything but the backbone and its adapters.
        lora_lr: Learning rate of the adapters.
        backbone_lr: Learning rate of a backbone that is trained in full (``guide.train``), the same in all of its layers; the default is
            MedDINOv3's.
        weight_decay: Of AdamW decoupled from the gradient, of SGD added to it.
        momentum: Of SGD (Nesterov).
        schedule: ``poly``: ``(1 - e/E) ** 0.9``; ``cosine`` and ``linear``: to zero; per epoch ``e`` of ``E``.
        warmup_epochs: Epochs in which the rates rise to the schedule's by equal steps; transformers may need it at high rates.
        precision: ``auto`` takes bf16 autocast where the hardware computes in it, else fp32. A study settles that when it begins, from what
            all of its nodes have, and keeps it: in its definition, its trials and their exports; on GPUs that have tensor cores and no
            bf16 (V100, T4) it settles for fp16 autocast with a scaled loss. A node that joins later and does not compute in what a study
            settled for takes no part in it; a study that names ``bf16`` or ``fp16`` has it emulated there, slowly. In fp16 a frozen
            guide's tokens, which trials share, are computed in fp32, as are the predictions of an exported model. Trainings in fp32 on a
            GPU multiply in TF32.
        channels_last: Memory format of the segmenter: channels_last where it pays, which is everywhere but for some segmenters in fp32 on a
            CPU without AVX-512; ``false``: never.
        compile: ``torch.compile`` of the segmenter: ``default``, ``cuda-graphs`` (mode ``reduce-overhead``, on a GPU), ``none``, or
            ``auto``. ``auto`` is ``none`` on CPUs. On a GPU a trial times some of its first steps, compiles where the steps to come are
            enough to repay it, times the compiled ones, and goes back where they are no quicker; what it finds, failures of the compiler
            too, is kept in ``cache/compiling`` of the home for the next trial of that kind. A trial whose batch goes in parts gets no CUDA
            graphs, one of several workers with synchronised batch norms is not compiled, one whose memory or latency is bounded is not
            before it has told them, and a study that was begun with another value keeps that. On a CPU compiling does not pay: in bf16 at
            128 pixels a step takes 0.96 (U-Net), 1.0 to 1.1 (Seg-GuiDINO) and 1.3 to 1.4 (nnWNet) of its time without, after 32, 11 and 221
            seconds of compilation.
        grad_clip: Largest gradient norm; ``None`` does not clip.
        seed: Of initial weights, order of cases and augmentation.
    """

    epochs: Count = 400
    steps_per_epoch: Annotated[Count | Literal["cases"] | None, About(before="cases")] = None
    batch_size: Annotated[Count, About(memory=whole)] = 4
    optimizer: Annotated[Literal["adamw", "sgd"], About(memory=whole)] = "adamw"
    lr: Annotated[Positive, About(heading="lr")] = 1e-4
    lora_lr: Annotated[Positive, About(idle=_without_lora)] = 5e-4
    backbone_lr: Annotated[Positive, About(idle=_not_all_trained)] = 3e-5
    weight_decay: NonNegative = 3e-5
    momentum: Annotated[Fraction, About(idle=lambda e: e.training.optimizer != "sgd", memory=bool)] = 0.99
    schedule: Annotated[Literal["poly", "cosine", "linear", "constant"], About(idle=lambda e: e.training.epochs == 1)] = "poly"
    warmup_epochs: Annotated[Index, About(before=0)] = 0
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], About(memory=whole)] = "auto"
    channels_last: Annotated[bool, About(only_how="the memory format", memory=whole)] = True
    compile: Annotated[Compiling, About(before="none", only_how="how fast it is", memory=whole)] = "auto"
    grad_clip: Positive | None = 12.0
    seed: Annotated[Index, About(heading="seed")] = 0


Guide = Annotated[NoGuide | DINOGuide, Field(discriminator="kind")]


@cache
def _members(section: str) -> dict[str, Any]:
    union = {"guide": Guide, "segmenter": Segmenter}.get(section)
    return {cls().kind: cls for cls in get_args(get_args(union)[0])} if union else {}


@cache
def section_defaults(section: str, kind: str) -> Mapping[str, Any] | None:
    """All fields of the ``guide`` or ``segmenter`` of that kind at their defaults; ``None`` for another section or an unknown kind."""
    cls = _members(section).get(kind)
    return dataclasses.asdict(cls()) if cls else None
