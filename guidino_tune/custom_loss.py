"""A loss term of the user's own, by its target ``module:name``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from guidino_tune import targets
from guidino_tune.config import CustomTerm, Experiment
from guidino_tune.config.data import IGNORED
from guidino_tune.errors import UserError

WHERE = "loss.custom.target"


def load_term(custom: CustomTerm) -> Callable[[Tensor, Tensor], Tensor]:
    """The term as a function of the finest logits and of the masks, which gives a scalar that is minimised.

    A function is called as ``name(logits, masks, **options)``; of a class, ``name(**options)`` is made once and called as
    ``(logits, masks)``. Logits are (B, num_outputs, H, W), float32, without sigmoid or softmax; masks (B, 1, H, W), float32: 0 and 1, or
    labels from 0; where pixels are ignored (``data.ignore_label``, ``data.resize: pad``) they hold 255 and the logits are 0.

    Raises:
        NotImportable: See ``targets.load``.
    """
    found = targets.load(custom.target, WHERE)
    term: Callable[[Tensor, Tensor], Tensor] = found(**custom.options) if isinstance(found, type) else partial(found, **custom.options)
    return term


def check_term(experiment: Experiment) -> None:
    """Computes the user's loss term, if there is one, for noise and a mask of all classes, and its gradient.

    Raises:
        UserError: It fails, or gives no scalar with a gradient.
    """
    custom, data = experiment.loss.custom, experiment.data
    if custom is None or not custom.weight:
        return
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, experiment.num_outputs, 64, 64, generator=generator, requires_grad=True)
    masks = torch.randint(0, data.num_classes + 1, (2, 1, 64, 64), generator=generator).float()
    if data.has_ignored:
        masks[:, :, :8] = IGNORED
    with targets.blaming(custom.target, WHERE):
        term = load_term(custom)
        if isinstance(term, nn.Module) and any(p.requires_grad for p in term.parameters()):
            raise UserError(
                "has weights of its own, which nothing trains", where=f"{WHERE}={custom.target}", todo="make them buffers of the module"
            )
        value = term(logits, masks)
        if not isinstance(value, Tensor) or value.dim():
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UserError(f"gives {what}", where=f"{WHERE}={custom.target}", todo="return a tensor without dimensions, such as a mean")
        if not value.requires_grad:
            raise UserError(
                "has no gradient", where=f"{WHERE}={custom.target}", todo="compute it from the logits, without detach or argmax"
            )
        value.backward()
