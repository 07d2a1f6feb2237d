"""The TokenBook: learned prototypes that turn tokens into a guide mask (our reading of GuiDINO's equation 1)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config
from guidino_tune.models.precision import without_autocast


class TokenBook(nn.Module):
    """Guide mask G(x) from the similarity of projected tokens to N learned prototypes.

    The paper's equation 1 is G(x) = sum_i alpha_i sim(T_i, P). Its alpha_i belong to the tokens T_i, yet a mask has a value at each token
    and needs no sum over them; and P has no index, though it stands for several prototypes. We read it as a sum over prototypes, whose
    weights are the alpha.

    A token x' = W x + b (1x1 convolution, C to C) and prototype p_n have similarity s_n = <x', p_n>: of unit vectors with ``cosine``, of
    the vectors themselves with ``dot``. The N similarities of a token become one value in [0, 1] by

    - ``weighted``: sigmoid(sum_n alpha_n s_n) with learned alpha. The paper names no squashing; the sigmoid makes the sum a mask that
      binary cross-entropy accepts.
    - ``mean`` (reference code): 0.5 + 0.5 * mean_n s_n for ``cosine``; sigmoid(mean_n s_n) for ``dot``, which has no bounds.
    - ``softmax``: sigmoid(scale * sum_n softmax(s / temperature)_n s_n + bias), a smooth maximum with learned temperature, scale and
      bias.

    ``mean`` collapses: mean_n <x', p_n> = <x', mean_n p_n>, so N prototypes act as one vector, of norm about 1/sqrt(N) at the start; the
    mask begins within 0.5 +- 0.03 and can leave that band only as the prototypes align. ``weighted`` is one vector too, sum_n alpha_n p_n,
    of any norm: what N prototypes can say, one can (two with ``mean`` and ``cosine``, where a single one has norm 1). So their number
    changes how that vector is learned, not what can be learned. With ``softmax`` it does: there a token need resemble one prototype only,
    so different prototypes can stand for different tissues.

    Initial values make masks that are neither flat nor saturated. Similarities of random vectors have standard deviation u = 1/sqrt(C)
    with ``cosine`` and u = 1/sqrt(3) with ``dot`` (from the convolution's initial weights). ``weighted`` starts at
    alpha_n = 1 / (u sqrt(N)), so that the sum of N independent terms has standard deviation about 1 for every N and C, against
    1/sqrt(N C) with the obvious 1/N. ``softmax`` starts at temperature u, where the smooth maximum of many lies near u, and at scale
    3 / u, bias -3 (1 - 1/N): random tokens give masks around 0.5.

    Args:
        width: C, channels of the tokens.
        num_prototypes: N.
        similarity: ``cosine`` or ``dot``.
        aggregation: ``weighted``, ``mean`` or ``softmax``.
    """

    def __init__(self, width: int, num_prototypes: int, *, similarity: str = "cosine", aggregation: str = "weighted") -> None:
        super().__init__()
        self.cosine = {"cosine": True, "dot": False}[similarity]
        self.aggregation = aggregation
        self.project = nn.Conv2d(width, width, 1)
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, width))
        nn.init.normal_(self.prototypes, std=width**-0.5)
        unit = width**-0.5 if self.cosine else 3**-0.5
        if aggregation == "weighted":
            self.alpha = nn.Parameter(torch.full((num_prototypes,), 1 / (unit * math.sqrt(num_prototypes))))
        elif aggregation == "softmax":
            # Logarithms keep both positive, and let an optimiser with steps of fixed size move a scale of 60 as easily as a bias of 3.
            self.log_temperature = nn.Parameter(torch.tensor(math.log(unit)))
            self.log_scale = nn.Parameter(torch.tensor(math.log(3 / unit)))
            self.bias = nn.Parameter(torch.tensor(3.0 / num_prototypes - 3.0))
        elif aggregation != "mean":
            raise ValueError(f"unknown aggregation {aggregation!r}")

    @classmethod
    def from_config(cls, book: config.TokenBook, width: int, num_prototypes: int) -> TokenBook:
        """The TokenBook of an experiment; ``num_prototypes`` is ``Experiment.num_prototypes``, which knows the image size."""
        return cls(width, num_prototypes, similarity=book.similarity, aggregation=book.aggregation)

    def similarities(self, tokens: Tensor) -> Tensor:
        """(B, C, h, w) tokens to (B, N, h, w) similarities, in [-1, 1] with ``cosine``."""
        return _similarities(*self._normalised(tokens))

    def _normalised(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Projected tokens (B, C, h, w) and prototypes (N, C), of unit length with ``cosine``."""
        projected: Tensor = self.project(tokens)
        prototypes: Tensor = self.prototypes
        return (F.normalize(projected, dim=1), F.normalize(prototypes, dim=1)) if self.cosine else (projected, prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Guide mask.

        Args:
            tokens: (B, C, h, w) patch tokens as a map.

        Returns:
            (B, 1, h, w) in [0, 1], float32 also under autocast: in bf16 the mask's differences are lost in rounding.
        """
        with without_autocast(tokens.device):
            return self._mask(tokens.float())

    def _mask(self, tokens: Tensor) -> Tensor:
        projected, prototypes = self._normalised(tokens)
        if self.aggregation == "softmax":
            s = _similarities(projected, prototypes)
            best = (torch.softmax(s * torch.exp(-self.log_temperature), dim=1) * s).sum(1, keepdim=True)
            return torch.sigmoid(torch.exp(self.log_scale) * best + self.bias)
        # Both others are linear in the similarities: the sum over prototypes is taken first, and N maps are never made.
        if self.aggregation == "weighted":
            return torch.sigmoid(_similarities(projected, self.alpha[None] @ prototypes))
        mean = _similarities(projected, prototypes.mean(0, keepdim=True))
        # A cosine may exceed 1 by rounding, which cross-entropy would refuse.
        return (0.5 * mean + 0.5).clamp(0, 1) if self.cosine else torch.sigmoid(mean)


def _similarities(projected: Tensor, vectors: Tensor) -> Tensor:
    """(B, C, h, w) and (N, C) to (B, N, h, w): scalar products."""
    return F.conv2d(projected, vectors[:, :, None, None])
