"""A backbone that is trained in full: which weights learn, what is saved, and that its own folder stays as it was."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_helpers import SMALL, save_model, small_backbone
from safetensors.torch import load_file
from training_helpers import Listener, make_data, make_experiment

from guidino_tune.config import Experiment
from guidino_tune.errors import UserError
from guidino_tune.models import build_model
from guidino_tune.running.probing import estimate, shape_of, shapes
from guidino_tune.space.check import check_space, without_idle
from guidino_tune.space.space import load_space, override, read_space, shipped
from guidino_tune.training.checkpoints import WEIGHTS
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.model_folder import export_model, load_model
from guidino_tune.training.optimisers import make_optimizer
from guidino_tune.training.tokens import make_encoder, shared_backbone

FULL = {"kind": "dino", "backbone": "tiny", "weights": "random", "tokenbook": {"num_prototypes": 4}, "train": "full"}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("kind", "options"), [("unet", {}), ("segdino", {"features": 4, "branch_widths": [2, 2, 2, 2], "final_norm": False})]
)
def test_every_trainable_weight_gets_a_gradient(name: str, kind: str, options: dict[str, Any]) -> None:
    """Distributed training waits for the gradient of each, and would wait for ever."""
    guide = {**FULL, "gate": "default" if kind == "unet" else "none"}
    values = make_experiment("unet", guide=FULL).to_dict() | {"guide": guide, "segmenter": {"kind": kind, **options}}
    given = small_backbone(name)
    model = build_model(Experiment.from_dict(values), given).train()
    outputs = model(torch.randn(2, 3, 32, 32))
    sum(x.square().mean() for x in (*outputs.logits, *([] if outputs.guide is None else [outputs.guide]))).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    frozen = {name.rpartition("vit.")[2] for name, p in model.named_parameters() if not p.requires_grad}
    assert {n for n in frozen if not n.startswith(("norm.", "layernorm.", "layer_norm."))} <= {"embeddings.mask_token"}
    assert given.frozen  # the one that other trials share


def test_its_rate_is_its_own_and_its_tokens_are_nobodys() -> None:
    experiment = make_experiment("unet", guide=FULL, backbone_lr=7e-6)
    model = build_model(experiment)
    optimizer = make_optimizer(model.named_parameters(), experiment.training)
    backbone = {id(p) for p in model.backbone.parameters() if p.requires_grad}  # type: ignore[union-attr]
    assert [(group["lr"], {id(p) for p in group["params"]} == backbone) for group in optimizer.param_groups] == [
        (3e-3, False),
        (7e-6, True),
    ]
    assert shared_backbone(experiment) is None
    assert make_encoder(experiment, model, bf16=False) is None
    assert experiment.name == "GuiDINO-U-full"
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.train().backbone(images).last, model.eval().backbone(images).last)  # type: ignore[misc]


def test_memory_is_that_of_gradients_and_optimiser_too() -> None:
    frozen, full = (make_experiment("unet", guide=FULL | {"train": train}) for train in ("frozen", "full"))
    size = sum(4 * p.numel() for n, p in build_model(full).named_parameters() if n.startswith("backbone.") and p.requires_grad)
    assert estimate(full) > estimate(frozen) + 3 * size
    assert len(shapes([frozen, full], 1)) == 2
    assert shape_of(frozen, 1) == shape_of(make_experiment("unet", guide={**FULL, "train": None}), 1)


def test_contradictions_are_one_message() -> None:
    for train, rank in (("frozen", 2), ("full", 2), ("lora", 0)):
        with pytest.raises(
            UserError, match=rf"guide\.train: '{train}' and guide\.lora\.rank: {rank} contradict each other; set guide\.lora"
        ):
            make_experiment("unet", guide={**FULL, "train": train, "lora": {"rank": rank}})


def test_a_model_holds_its_backbone_and_leaves_the_folder_alone(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "dino")
    before = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    guide = {**FULL, "backbone": str(folder), "weights": "pretrained"}
    experiment = make_experiment("unet", guide=guide, epochs=2, backbone_lr=1e-2)
    data = make_data(tmp_path)
    whole = TrainingRun(experiment, data, Listener(tmp_path / "whole"))
    whole.run()
    half = Listener(tmp_path / "half")
    TrainingRun(experiment, data, half).run_epoch()
    again = TrainingRun(experiment, data, half)
    assert again.epoch == 1
    again.run()
    states = [run.model.trained_state() for run in (whole, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == before

    best = tmp_path / "whole" / "best"
    saved = load_file(best / WEIGHTS)
    initial = {name: p for name, p in build_model(experiment).state_dict().items() if name.startswith("backbone.") and "mask" not in name}
    assert initial.keys() <= saved.keys()
    assert all(not torch.equal(saved[name], value) for name, value in initial.items() if value.ndim > 1)
    model, _ = load_model(export_model(best, experiment, tmp_path / "model", {}))
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items() if "mask_token" not in name)


def test_the_way_of_training_can_be_searched() -> None:
    """Adapters have a rank, and each way its rate, only where they are there."""
    space: dict[str, Any] = {"guide.train": {"choices": ["frozen", "lora", "full"]}}
    space["guide.lora.rank"] = {"choices": [4, 8], "when": {"guide.train": "lora"}}
    for path, way in (("training.lora_lr", "lora"), ("training.backbone_lr", "full")):
        space[path] = {"type": "float", "low": 1e-6, "high": 1e-3, "log": True, "when": {"guide.train": way}}
    base = {"data": {"kind": "demo", "image_size": 32}, "guide": FULL | {"train": None}, "segmenter": {"kind": "unet"}}
    assert check_space(read_space({"experiment": base, "space": space}, source="mine")) == []


@pytest.mark.parametrize(("name", "rates"), [("meddino", (3e-4, 1e-4, 0.05)), ("segdino", (1e-4, 1e-4, 1e-4))])
def test_what_a_recipe_says_of_its_authors_can_be_given(name: str, rates: tuple[float, float, float]) -> None:
    """The commands in the notes of the file, as they stand there."""
    space = load_space(f"recipes/kvasir/{name}")
    note = (shipped() / f"recipes/kvasir/{name}.yaml").read_text().partition("experiment:")[0]
    space = without_idle(override(space, re.findall(r"--set (\S+)", note)))
    check_space(space)
    training = space.base.training
    assert (training.lr, training.backbone_lr, training.weight_decay) == rates
    assert space.base.guide.trained == "full"  # type: ignore[union-attr]
