"""Low-rank adapters in the guide backbone (Hu et al., LoRA, 2021), by peft."""

from __future__ import annotations

import warnings

from guidino_tune.config import LoRA
from guidino_tune.models.backbone import Backbone

ADAPTER_KEY = "lora_"
"""Occurs in the name of every adapter parameter and in no other."""


def add_lora(backbone: Backbone, lora: LoRA) -> Backbone:
    """Wraps ``backbone.vit`` in a ``peft.PeftModel`` whose adapters are trainable and start without effect. Changes ``backbone`` in place.

    ``backbone.vit.merge_adapter()`` and ``unmerge_adapter()`` add the update to the weights and take it away again.

    Only linear layers inside the blocks are adapted: ``Architecture.attention``, and with ``attention+mlp`` those of the MLP too. A
    ConvNeXt has no attention; both settings adapt the two pointwise convolutions of its blocks.

    Args:
        backbone: Frozen, without adapters.
        lora: ``rank`` 0 adds nothing. ViT-S has 294,912 adapter parameters at rank 8 on attention.
    """
    if lora.rank == 0:
        return backbone
    from peft import LoraConfig, get_peft_model  # imports much; most trials need none of it

    architecture = backbone.architecture
    names = architecture.attention + (architecture.mlp if lora.targets == "attention+mlp" else ())
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated int, but only ever divided by the rank
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=rf"{architecture.blocks}(.+\.)?({'|'.join(names)})",  # as a string it must match a module's whole name
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a property under its old name
        backbone.vit = get_peft_model(backbone.vit, config)
    backbone.eval()
    return backbone
