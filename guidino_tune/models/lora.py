"""Low-rank adapters in the guide backbone (Hu et al., LoRA, 2021), by peft."""

from __future__ import annotations

import warnings

from guidino_tune.config import LoRA
from guidino_tune.models.backbone import Backbone

TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "attention+mlp": ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"),
}
"""Linear layers that get an adapter; ``gate_proj`` exists only in backbones with a gated MLP."""

ADAPTER_KEY = "lora_"
"""Occurs in the name of every adapter parameter and in no other."""


def add_lora(backbone: Backbone, lora: LoRA) -> Backbone:
    """Wraps ``backbone.vit`` in a ``peft.PeftModel`` whose adapters are trainable and start without effect. Changes ``backbone`` in place.

    ``backbone.vit.merge_adapter()`` and ``unmerge_adapter()`` add the update to the weights and take it away again.

    Args:
        backbone: Frozen, without adapters.
        lora: ``rank`` 0 adds nothing. ViT-S has 294,912 adapter parameters at rank 8 on attention.
    """
    if lora.rank == 0:
        return backbone
    from peft import LoraConfig, get_peft_model  # imports much; most trials need none of it

    present = {name.rpartition(".")[2] for name, _ in backbone.vit.named_modules()}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated int, but only ever divided by the rank
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=[name for name in TARGETS[lora.targets] if name in present],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a property under its old name
        backbone.vit = get_peft_model(backbone.vit, config)
    backbone.eval()
    return backbone
