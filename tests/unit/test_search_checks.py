"""What a search checks before it spends anything: that every backbone loads and every segmenter can be built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guidino_tune.errors import UserError
from guidino_tune.space.check import check_space
from guidino_tune.space.space import Space, read_space
from guidino_tune.workflows.checks import check_models

TINY = {"kind": "dino", "backbone": "tiny", "weights": "random"}


def space_of(space: dict[str, Any], **sections: Any) -> Space:
    experiment = {"data": {"kind": "demo", "image_size": 64}, "guide": TINY, "segmenter": {"kind": "unet"}} | sections
    made = read_space({"experiment": experiment, "space": space}, source="x.yaml")
    check_space(made)  # each of these is a valid configuration
    return made


@pytest.mark.parametrize(
    ("space", "sections", "message"),
    [
        (
            {"segmenter.embed_width": {"choices": [96, 100]}},
            {"segmenter": {"kind": "swinunet"}, "guide": {"kind": "none"}},
            "3 attention heads do not divide a stage of width 100",
        ),
        (
            {"segmenter.attention_heads": {"choices": [16, 12]}},
            {"segmenter": {"kind": "dinounet"}},
            "12 heads do not divide 32",
        ),
        ({"guide.backbone": {"choices": ["tiny", "/nonexistent/model"]}}, {}, "no such folder"),
        ({"guide.weights": {"choices": ["random", "pretrained"]}}, {}, "has no published weights"),
        (
            {
                "guide.kind": {"choices": ["none", "dino"]},
                "guide.backbone": {"choices": ["vits16", "/nonexistent/x"], "when": {"guide.kind": "dino"}},
            },
            {"guide": {"kind": "none"}},
            "guide.backbone=",
        ),
    ],
)
def test_what_cannot_be_built_is_found(space: dict[str, Any], sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_models(space_of(space, **sections))
    assert message in str(caught.value)


def test_what_can_be_built_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()  # a folder of that name is not the backbone of that name
    kinds = ["unet", "nnunet", "nnwnet", "swinunet", "h2former", "ukan", "segdino", "segguidino", "dinounet", "meddino"]
    sizes = {"type": "int", "low": 64, "high": 128, "step": 64}
    check_models(space_of({"segmenter.kind": {"choices": kinds}, "data.image_size": sizes}))
