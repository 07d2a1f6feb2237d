"""Tokens of a frozen guide as arrays that trials can share: what the backbone would give, in half precision."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from guidino_tune.config import DINOGuide, Experiment, is_local_backbone
from guidino_tune.data.store import Arrays
from guidino_tune.known_backbones import place_of
from guidino_tune.models import GuidedSegmenter, GuideView
from guidino_tune.models.backbone import Backbone, FeatureRequest, Features, load_backbone
from guidino_tune.models.fingerprints import Stamp, fingerprint, stamp

_ENCODING = threading.Lock()
_LARGEST = float(torch.finfo(torch.float16).max)


class TokenEncoder:
    """The backbone's maps of images, in float16.

    Float16 rather than bfloat16: both take two bytes, and float16 has three more bits. Against tokens in float32 the training loss of an
    epoch changed by 0.5 to 3 millionths of its value with float16 and by 4 to 8 with bfloat16 (means over six epochs of Seg-GuiDINO,
    SegDINO and GuiDINO-U in float32 on 48 images of Kvasir-SEG at 128 pixels, with random backbone weights). Its range, 65,504, is far
    above any activation; whatever is beyond is cut to it.

    Args:
        backbone: Frozen, on its device.
        guide: Where its weights come from.
        request: Layers that the segmenter reads.
        bf16: Autocast, as in the training: tokens are what the backbone would have given there.
        batch_size: Images that go through the backbone together.
        view: The channels that the backbone sees; ``None``: images have three, and it sees them.

    Attributes:
        names: See ``Encoder``.

    Raises:
        ValueError: The backbone is not frozen: its tokens change in training.
    """

    def __init__(
        self,
        backbone: Backbone,
        guide: DINOGuide,
        request: FeatureRequest,
        *,
        bf16: bool,
        batch_size: int,
        view: GuideView | None = None,
    ) -> None:
        if not backbone.frozen:
            raise ValueError("tokens of a backbone that learns cannot be kept")
        self.backbone, self.guide, self.request, self.bf16, self.batch_size = backbone, guide, request, bf16, batch_size
        self.view = view or GuideView()
        self._layers = kept_layers(request, backbone.shape.num_layers)
        self.names = ("last", *(f"layer_{layer}" if layer in self._layers else "last" for layer in request.layers))

    @property
    def key(self) -> str:
        """See ``Encoder``; computed for its first use in a process, which takes some tenths of a second.

        Requests of the same maps have the same key: the last layer, normalised, is the last map, and without layers there is nothing else
        to normalise.
        """
        device = next(self.backbone.parameters()).device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        how = f"{'bfloat16' if self.bf16 else 'float32'} {where} {torch.__version__} {version('transformers')}"
        seen = "" if self.view.whole else f" channels {self.view.channels} of {self.view.of}"
        normed = self.request.final_norm or not self._layers
        return f"{_fingerprint(self.guide, *_where(self.guide), self.bf16)} last and {self._layers} {normed} {how}{seen}"

    def __call__(self, images: Tensor) -> Arrays:
        """See ``Encoder``: ``last``, and ``layer_`` with the number of each other layer, (N, C, h, w)."""
        parts = [{name: x.cpu() for name, x in self._maps(part).items()} for part in images.split(self.batch_size)]
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def maps(self, images: Tensor) -> list[Tensor]:
        """The last map of (B, C, S, S) images and those of the layers, in float16, on the backbone's device."""
        found = self._maps(images)
        return [found[name] for name in self.names]

    @torch.no_grad()
    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        device = next(self.backbone.parameters()).device
        # One at a time: two threads that encode beside a step in training would take their memory twice.
        with _ENCODING, torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            features = self.backbone(self.view(images.to(device).float()), self._layers, self.request.final_norm)
            layers = {f"layer_{layer}": _half(x) for layer, x in zip(self._layers, features.layers, strict=True)}
            return {"last": _half(features.last), **layers}


def kept_layers(request: FeatureRequest, num_layers: int) -> tuple[int, ...]:
    """Whose maps are kept besides the last one: each once; the last layer with the final norm has it, bit for bit."""
    return tuple(dict.fromkeys(layer for layer in request.layers if layer != num_layers - 1 or not request.final_norm))


def make_encoder(experiment: Experiment, model: GuidedSegmenter, *, bf16: bool, parts: int = 1) -> TokenEncoder | None:
    """The encoder of a model in training; ``None`` where there is no guide, or where training changes its tokens with every step.

    Args:
        experiment: What is trained.
        model: Its network.
        bf16: See ``TokenEncoder``.
        parts: Micro-batches of the training: images go through the backbone in parts of that size too.
    """
    backbone = model.backbone
    if backbone is None or not backbone.frozen:
        return None
    batch_size = -(-experiment.training.batch_size // parts)
    return TokenEncoder(backbone, _frozen(experiment), model.feature_request, bf16=bf16, batch_size=batch_size, view=model.view)


def shared_backbone(experiment: Experiment, *, bf16: bool = False) -> Backbone | None:
    """The frozen guide backbone of this process, read once for all trials; trials that train theirs, or adapters in it, read their own.

    With ``bf16`` it is one that runs under bf16 autocast only, see ``Backbone.hold_bf16``.
    """
    guide = experiment.guide
    if not isinstance(guide, DINOGuide) or guide.trained != "frozen":
        return None
    frozen = _frozen(experiment)
    return _backbone(frozen, *_where(frozen), bf16)


def to_features(tokens: Sequence[Tensor]) -> Features | None:
    """What ``GuidedSegmenter`` takes instead of running its backbone; ``None`` where there are no tokens."""
    return Features(tokens[0], tuple(tokens[1:])) if tokens else None


def _frozen(experiment: Experiment) -> DINOGuide:
    """The settings of a guide on which its frozen backbone depends."""
    guide = experiment.guide
    assert isinstance(guide, DINOGuide)
    return DINOGuide(backbone=guide.backbone, weights=guide.weights, sha256=guide.sha256)


def _where(guide: DINOGuide) -> tuple[str, str]:
    """Where the weights lie now, and the state of their files, so that exchanged weights are loaded again."""
    place = place_of(guide.backbone)
    folder = Path(place).expanduser()
    files: Stamp = stamp(folder) if is_local_backbone(place) and folder.is_dir() else []
    return place, repr(files)


@lru_cache(maxsize=2)
def _backbone(guide: DINOGuide, place: str, files: str, bf16: bool) -> Backbone:
    backbone = load_backbone(guide)
    return backbone.hold_bf16() if bf16 else backbone


@lru_cache(maxsize=16)
def _fingerprint(guide: DINOGuide, place: str, files: str, bf16: bool) -> str:
    backbone = _backbone(guide, place, files, bf16)
    # That of random weights is of the architecture alone; tokens are of the numbers.
    return backbone.fingerprint if guide.weights == "pretrained" else fingerprint(backbone)


def _half(x: Tensor) -> Tensor:
    return x.float().clamp(-_LARGEST, _LARGEST).half()
