"""Networks: the guide (backbone and TokenBook), the gate, the segmenters, and how an experiment puts them together."""

from __future__ import annotations

import copy

import torch

from guidino_tune.config import Custom, DINOGuide, Experiment
from guidino_tune.models.backbone import Backbone, BackboneShape, Features, check_backbone, fingerprint_of, load_backbone, shape_of
from guidino_tune.models.guide_view import GuideView
from guidino_tune.models.guided import GuidedSegmenter, Prediction
from guidino_tune.models.lora import add_lora
from guidino_tune.models.pretrained import start_from
from guidino_tune.models.seeding import seeded
from guidino_tune.models.segmenters import SEGMENTERS, Segmenter, check_custom
from guidino_tune.models.tokenbook import TokenBook
from guidino_tune.models.weights import random_config

__all__ = [
    "Backbone",
    "Features",
    "GuideView",
    "GuidedSegmenter",
    "Prediction",
    "build_model",
    "check_backbone",
    "check_segmenter",
    "fingerprint_of",
    "load_backbone",
    "start_pretrained",
]


def check_segmenter(experiment: Experiment, *, counted: bool = False) -> str:
    """Checks that the segmenter of an experiment can be built on its backbone. It is built without memory for its weights.

    A network of the user's own is built with them, and tried; ``counted`` is for ``segmenters.custom.check``.

    Returns:
        A note on its pretrained weights; empty where there is nothing to say.

    Raises:
        UserError: The segmenter's options do not fit each other, its backbone or its pretrained weights; the backbone's folder holds no
            configuration.
    """
    if isinstance(experiment.segmenter, Custom):
        check_custom(experiment, counted=counted)
        return ""
    guide = experiment.guide
    shape = shape_of(random_config(guide.backbone)) if isinstance(guide, DINOGuide) else None
    with torch.device("meta"):
        segmenter = _segmenter(experiment, shape)
    left = start_pretrained(segmenter, experiment)
    return f"segmenter.pretrained: of the file these weights are left out: {left}" if left else ""


def start_pretrained(segmenter: Segmenter, experiment: Experiment) -> str:
    """Gives a new segmenter the weights that its configuration names the file of, if any; see ``pretrained.start_from``."""
    file = getattr(experiment.segmenter, "pretrained", None)
    if file is None or segmenter.layout is None:
        return ""
    return start_from(segmenter, segmenter.layout, file, getattr(experiment.segmenter, "sha256", None))


def _segmenter(experiment: Experiment, backbone: BackboneShape | None) -> Segmenter:
    return SEGMENTERS[experiment.segmenter.kind](
        experiment.segmenter,
        image_size=experiment.data.image_size,
        num_outputs=experiment.num_outputs,
        in_channels=experiment.data.channels,
        backbone=backbone,
    )


def build_model(experiment: Experiment, backbone: Backbone | None = None) -> GuidedSegmenter:
    """The network of an experiment, on the CPU, with initial weights that follow from ``experiment.training.seed``.

    A training starts from the segmenter's pretrained weights, see ``start_pretrained``; who loads trained ones does not need their file.

    Segmenter, adapters and TokenBook each start from the seed anew, so that experiments which differ only in the guide start from the
    same segmenter. The global random state is left as it was.

    Args:
        experiment: What to build.
        backbone: An already loaded frozen backbone of this experiment's guide, to be shared; ``None`` loads it. Where it is trained, or
            has adapters, it is copied.

    Raises:
        UserError: The backbone's weights cannot be loaded.
    """
    guide, seed = experiment.guide, experiment.training.seed
    tokenbook = None
    if not isinstance(guide, DINOGuide):
        backbone = None
    else:
        if backbone is None:
            backbone = load_backbone(guide)
        elif guide.trained != "frozen":
            backbone = copy.deepcopy(backbone)
        with seeded(seed):
            add_lora(backbone, guide.lora)
        if experiment.gate is not None:
            with seeded(seed):
                tokenbook = TokenBook.from_config(guide.tokenbook, backbone.shape.width, experiment.num_prototypes)
    with seeded(seed):
        segmenter = _segmenter(experiment, backbone.shape if backbone else None)
    if isinstance(guide, DINOGuide) and guide.trained == "full" and backbone is not None:
        backbone.unfreeze(final_norm=tokenbook is not None or segmenter.feature_request.final_norm)
    view = GuideView(experiment.guide_channels, experiment.data.channels) if backbone else None
    return GuidedSegmenter(segmenter, backbone=backbone, tokenbook=tokenbook, place=experiment.gate, view=view)
