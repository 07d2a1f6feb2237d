"""The attention that is exported: two products and a softmax, with what torch's own gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from guidino_tune.exporting.graph import PlainAttention


@pytest.mark.parametrize(
    ("heads", "options"),
    [
        (4, {}),
        (4, {"scale": 0.3}),
        (4, {"is_causal": True}),
        (2, {"enable_gqa": True}),
        (4, {"attn_mask": torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) > 0.3}),
        (4, {"attn_mask": torch.randn(5, 7, generator=torch.Generator().manual_seed(1))}),
    ],
    ids=["plain", "scale", "causal", "grouped", "mask", "bias"],
)
def test_plain_attention_is_torchs_own(heads: int, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator)
    key, value = (torch.randn(2, heads, 7, 8, generator=generator) for _ in range(2))
    with PlainAttention():
        found = F.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value, **options), atol=1e-6, rtol=1e-5)
