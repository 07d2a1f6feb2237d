"""No field of an experiment is dead: each one changes what is trained where it should, and nothing where we say that it does not.

Both are really computed. An epoch or two of a tiny network are trained with one value and with another; the cases, every metric of every
epoch and every learned weight are compared bit by bit.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from training_helpers import Listener, make_label_data

from guidino_tune.config import Data, Experiment
from guidino_tune.config.experiment import KNOWN
from guidino_tune.config.sections import DINOGuide, Loss, Training
from guidino_tune.config.segmenters import Segmenter
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.sources.demo import generate
from guidino_tune.space.check import _computed
from guidino_tune.space.parameters import leaf_paths, set_path
from guidino_tune.targets import trust
from guidino_tune.training.loop import TrainingRun

Values = dict[str, Any]
trust("own_parts:OtherNet", "own_parts:absolute_error")
GUIDE: Values = {"guide.kind": "dino", "guide.backbone": "tiny", "guide.weights": "random", "guide.tokenbook.num_prototypes": 3}
LORA: Values = {**GUIDE, "guide.lora.rank": 2, "guide.lora.dropout": 0.0}
HINGE: Values = {"loss.hinge_weight": 0.5}
LABELS: Values = {"data.root": "labels", "data.num_classes": 2}
COPIES: Values = {"data.root": "copies"}
LARGE: Values = {"data.image_size": 64}
TWO: Values = {"training.epochs": 2}
VIEWS: Values = {**TWO, "data.augmentation": "nnunet"}

SMALL: dict[str, Values] = {
    "unet": {"base_width": 2},
    "nnunet": {"base_width": 2, "num_stages": 3},
    "nnwnet": {"base_width": 2},
    "swinunet": {"embed_width": 8, "depths": [1, 1, 1, 1], "heads": [1, 1, 1, 1]},
    "h2former": {"base_width": 8, "blocks": [1, 1, 1, 1], "depths": [1, 1, 1, 1], "heads": [1, 1, 1, 1]},
    "ukan": {"widths": [8, 8, 8]},
    "segdino": {"features": 4, "branch_widths": [2, 2, 2, 2]},
    "segguidino": {"hidden": 4},
    "dinounet": {"widths": [2, 2, 2, 2], "rank": 2, "attention_heads": 2, "attention_points": 2},
    "meddino": {},
    "custom": {"target": "own_parts:TinyNet", "gates": ["bottleneck", "input"], "options": {"width": 2}},
}
"""A tiny network of each kind."""


def segmenter(kind: str, **values: Any) -> Values:
    needs = {"swinunet": LARGE, "dinounet": {**LARGE, **GUIDE}, "segdino": GUIDE, "segguidino": GUIDE, "meddino": GUIDE}
    return {
        **needs.get(kind, {}),
        "segmenter.kind": kind,
        **{f"segmenter.{name}": value for name, value in {**SMALL[kind], **values}.items()},
    }


EFFECTS: dict[str, tuple[Values, Any]] = {
    "data.image_size": ({}, 64),
    "data.num_classes": (LABELS, 3),
    "data.normalisation": ({}, "zscore"),
    "data.augmentation": ({}, "nnunet"),
    "data.validation_fraction": ({}, 0.4),
    "data.test_fraction": ({}, 0.4),
    "data.split_seed": ({}, 1),
    "data.group_duplicates": (COPIES, True),
    "data.max_train_cases": ({}, 3),
    "data.max_validation_cases": ({}, 1),
    "data.view_cycle": (VIEWS, 1),
    "data.images": ({"data.root": "wild", "data.masks": "masks", "data.images": "images"}, "others"),
    "data.masks": ({"data.root": "wild", "data.images": "images", "data.masks": "masks"}, "second"),
    "data.group": ({}, "c00|c01|c0"),
    "data.labels": (LABELS, {"block": 2, "disc": 1}),
    "data.ignore_label": (LABELS, 2),
    "data.channels": ({}, 1),
    "data.window": ({"data.root": "deep"}, [0, 30000]),
    "data.resize": ({"data.root": "wide"}, "pad"),
    "data.mask_resize": ({}, "nearest"),
    "data.view": ({}, "patch"),
    "data.patch_foreground": ({"data.view": "patch"}, 0.9),
    "data.folds": ({}, 3),
    "data.fold": ({"data.folds": 3}, 1),
    "data.stratify": ({"data.root": "many"}, False),
    "guide.channels": (GUIDE, [2, 1, 0]),
    "guide.backbone": (GUIDE, "convnext_tiny"),
    "guide.weights": ({**GUIDE, "guide.backbone": "folder"}, "pretrained"),
    "guide.gate": (GUIDE, "input"),
    "guide.tokenbook.num_prototypes": (GUIDE, 5),
    "guide.tokenbook.similarity": (GUIDE, "dot"),
    "guide.tokenbook.aggregation": (GUIDE, "softmax"),
    "guide.train": (GUIDE, "full"),
    "guide.lora.rank": (GUIDE, 2),
    "guide.lora.alpha": (LORA, 4.0),
    "guide.lora.dropout": (LORA, 0.5),
    "guide.lora.targets": (LORA, "attention+mlp"),
    "loss.dice_weight": ({}, 0.5),
    "loss.bce_weight": ({}, 0.5),
    "loss.lambda_guide": (GUIDE, 0.5),
    "loss.guide_loss": (GUIDE, "mse"),
    "loss.guide_target": (GUIDE, "nearest"),
    "loss.head_target": (segmenter("nnwnet"), "nearest"),
    "loss.hinge_weight": ({}, 0.5),
    "loss.hinge_margin": (HINGE, 2.0),
    "loss.hinge_band": (HINGE, 7),
    "loss.batch_dice": ({}, False),
    "loss.focal_weight": ({}, 0.5),
    "loss.focal_gamma": ({"loss.focal_weight": 0.5}, 1.0),
    "loss.tversky_weight": ({}, 0.5),
    "loss.tversky_alpha": ({"loss.tversky_weight": 0.5}, 0.6),
    "loss.tversky_beta": ({"loss.tversky_weight": 0.5}, 0.4),
    "loss.top_k_weight": ({}, 0.5),
    "loss.top_k_fraction": ({"loss.top_k_weight": 0.5}, 0.5),
    "loss.boundary_weight": ({}, 0.1),
    "loss.class_weights": ({}, 4.0),
    "loss.custom": ({}, {"target": "own_parts:absolute_error"}),
    "training.epochs": ({}, 2),
    "training.steps_per_epoch": ({}, 4),
    "training.batch_size": ({}, 3),
    "training.optimizer": ({}, "sgd"),
    "training.lr": ({}, 2e-3),
    "training.lora_lr": (LORA, 1e-2),
    "training.backbone_lr": ({**GUIDE, "guide.train": "full"}, 1e-2),
    "training.weight_decay": ({}, 0.3),
    "training.momentum": ({"training.optimizer": "sgd"}, 0.5),
    "training.schedule": (TWO, "cosine"),
    "training.warmup_epochs": ({}, 1),
    "training.precision": ({}, "bf16"),
    "training.grad_clip": ({}, 1e-3),
    "training.seed": ({}, 1),
    "nnunet.encoder": ({}, "residual"),
    "nnunet.num_stages": ({}, 4),
    "nnunet.base_width": ({}, 4),
    "nnunet.max_width": ({}, 4),
    "nnunet.deep_supervision": ({}, False),
    "nnwnet.base_width": ({}, 4),
    "nnwnet.deep_supervision": ({}, False),
    "swinunet.window": ({"data.image_size": 128, "segmenter.window": 4}, 2),
    "swinunet.embed_width": ({}, 12),
    "swinunet.depths": ({}, [1, 1, 2, 1]),
    "swinunet.heads": ({}, [1, 1, 2, 2]),
    "swinunet.drop_path": ({}, 0.9),
    "h2former.window": ({**LARGE, "segmenter.window": 4}, 2),
    "h2former.base_width": ({}, 16),
    "h2former.blocks": ({}, [1, 2, 1, 1]),
    "h2former.depths": ({}, [1, 2, 1, 1]),
    "h2former.heads": ({}, [1, 1, 2, 2]),
    "h2former.drop_path": ({}, 0.9),
    "h2former.scrambled_mlp": ({}, True),
    "ukan.widths": ({}, [8, 8, 16]),
    "ukan.grid": ({}, 3),
    "ukan.order": ({}, 2),
    "ukan.drop_path": ({}, 0.9),
    "unet.base_width": ({}, 4),
    "segdino.features": ({}, 6),
    "segdino.branch_widths": ({}, [2, 2, 2, 4]),
    "segdino.final_norm": ({}, False),
    "segguidino.hidden": ({}, 6),
    "segguidino.dropout": ({}, 0.5),
    "dinounet.widths": ({}, [2, 2, 2, 4]),
    "dinounet.rank": ({}, 3),
    "dinounet.attention_heads": ({}, 4),
    "dinounet.attention_points": ({}, 3),
    "dinounet.drop_path": ({}, 0.9),
    "dinounet.final_norm": ({}, False),
    "dinounet.deep_supervision": ({}, True),
    "meddino.layers": ({}, "last"),
    "meddino.final_norm": ({}, False),
    "custom.target": ({}, "own_parts:OtherNet"),
    "custom.options": ({}, {"width": 3}),
    "custom.gates": (GUIDE, ["input", "bottleneck"]),
}
"""By the field (``KIND.FIELD`` of a segmenter): what else must be set, and a second value that gives other results."""

KINDS = {"data.kind": "another data set", "guide.kind": "see test_every_kind_differs", "segmenter.kind": "see test_every_kind_differs"}
KINDS |= {f"{kind}.{name}": "see test_models_pretrained" for kind in ("swinunet", "h2former") for name in ("pretrained", "sha256")}
"""Fields that choose the other fields, or name files."""

WITHOUT: list[tuple[Values, str, Any]] = [
    ({}, "training.momentum", 0.5),
    ({}, "training.lora_lr", 1e-2),
    ({}, "training.backbone_lr", 1e-2),
    ({}, "loss.focal_gamma", 1.0),
    ({}, "loss.tversky_beta", 0.4),
    ({}, "loss.top_k_fraction", 0.5),
    ({"loss.bce_weight": 0.0}, "loss.class_weights", 4.0),
    (GUIDE, "guide.train", "frozen"),
    (LORA, "guide.train", "lora"),
    ({}, "loss.lambda_guide", 0.7),
    ({}, "loss.guide_loss", "mse"),
    ({}, "loss.guide_target", "nearest"),
    (segmenter("unet"), "loss.head_target", "nearest"),
    ({}, "loss.hinge_margin", 2.0),
    ({}, "loss.hinge_band", 7),
    ({}, "data.patch_foreground", 0.9),
    (VIEWS, "data.view_cycle", 2),  # not above the two epochs
    (TWO, "data.view_cycle", 1),
    ({"loss.dice_weight": 0.0}, "loss.batch_dice", False),
    ({"training.batch_size": 1}, "loss.batch_dice", False),
    ({}, "training.schedule", "cosine"),
    ({}, "training.schedule", "constant"),
    (GUIDE, "guide.lora.alpha", 4.0),
    (GUIDE, "guide.lora.dropout", 0.5),
    (GUIDE, "guide.lora.targets", "attention+mlp"),
    (GUIDE, "training.lora_lr", 1e-2),
    (GUIDE, "guide.gate", "bottleneck"),  # the default of this network
    ({**GUIDE, "loss.lambda_guide": 0.0}, "loss.guide_loss", "mse"),
    ({**GUIDE, "loss.lambda_guide": 0.0}, "loss.guide_target", "nearest"),
    ({**GUIDE, "guide.tokenbook.num_prototypes": 4}, "guide.tokenbook.num_prototypes", None),  # one per patch: 2 x 2
    ({**segmenter("segdino"), "guide.gate": "none"}, "guide.tokenbook.aggregation", "softmax"),
    ({**segmenter("segdino"), "guide.gate": "none"}, "guide.tokenbook.num_prototypes", 7),
    ({**segmenter("segdino"), "guide.gate": "none"}, "loss.lambda_guide", 0.7),
    ({**segmenter("segdino"), "guide.gate": "none"}, "loss.guide_loss", "mse"),
    (segmenter("nnunet"), "segmenter.max_width", 8),
    (segmenter("custom"), "segmenter.gates", ["input", "bottleneck"]),  # nothing is gated
    ({"loss.custom": {"target": "own_parts:absolute_error", "weight": 0}}, "loss.custom", None),
    (segmenter("swinunet"), "segmenter.window", 2),
    (segmenter("h2former"), "segmenter.window", 2),
]
"""What else is set, a field, and a second value of it that gives the same results."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven binary images, a data set with labels, and a folder with pretrained weights."""
    from backbone_helpers import small_model

    root = tmp_path_factory.mktemp("fields")
    for name in ("images", "masks"):
        (root / "binary" / name).mkdir(parents=True)
    for number in range(7):
        for name, picture in zip(("images", "masks"), generate(number, 64), strict=True):
            Image.fromarray(picture).save(root / "binary" / name / f"c{number:02d}.png")
    for name in ("images", "masks"):  # every image twice
        (root / "copies" / name).mkdir(parents=True)
        for number in range(12):
            shutil.copy(root / "binary" / name / f"c{number // 2:02d}.png", root / "copies" / name / f"c{number:02d}.png")
    for name in ("wild", "deep", "wide", "many"):
        for kind in ("images", "masks"):
            (root / name / kind).mkdir(parents=True)
    for number in range(44):
        for kind, array in zip(("images", "masks"), generate(number, 32), strict=True):
            Image.fromarray(array).save(root / "many" / kind / f"c{number:02d}.png")
    for file in (root / "binary" / "images").iterdir():
        picture, mask = Image.open(file), Image.open(root / "binary" / "masks" / file.name)
        for place, image, truth in (
            ("deep", Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * 200), mask),
            ("wide", picture.crop((0, 8, 64, 56)), mask.crop((0, 8, 64, 56))),
            ("wild", picture, mask),
        ):
            image.save(root / place / "images" / file.name)
            truth.save(root / place / "masks" / file.name)
        for folder, changed in (
            ("others", picture.transpose(Image.Transpose.ROTATE_180)),
            ("second", mask.transpose(Image.Transpose.ROTATE_180)),
        ):
            (root / "wild" / folder).mkdir(exist_ok=True)
            changed.save(root / "wild" / folder / file.name)
    make_label_data(root / "labels", size=32, cases=7)
    small_model("dinov3_vit").save_pretrained(root / "folder")
    return root


class Unsaved(Listener):
    """A reporter that saves nothing: it takes as long as the training."""

    def save(self, epoch: int, write: Any, *, best: bool) -> None:
        """Nothing."""


@functools.cache
def opened(root: Path, data: Data) -> SearchData:
    return open_for_search(data, cache=root / "cache")


@functools.cache
def trained(root: Path, text: str) -> str:
    """What comes of the training: a fingerprint of cases, metrics and weights."""
    experiment = Experiment.from_dict(json.loads(text))
    data = opened(root, experiment.data)
    folder = root / "runs" / hashlib.sha256(text.encode()).hexdigest()
    run = TrainingRun(experiment, data, Unsaved(folder))
    run.run()
    run.close()
    digest = hashlib.sha256(repr((data.split.train, data.split.validation, len(data.train), len(data.validation))).encode())
    for record in run.history:
        metrics = {k: v for k, v in record.metrics.items() if k not in ("epoch_seconds", "images_per_second")}
        digest.update(repr(sorted(metrics.items())).encode())
    for name, tensor in sorted(run.model.trained_state().items()):
        digest.update(name.encode() + repr(tensor.shape).encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def experiment_of(root: Path, values: Values) -> Experiment:
    made: Values = {
        "data": dataclasses.asdict(
            Data(
                kind="folder",
                root=str(root / "binary"),
                image_size=32,
                augmentation="none",
                validation_fraction=0.3,
                test_fraction=0.1,
            )
        ),
        "guide": {"kind": "none"},
        "segmenter": dataclasses.asdict(_segmenters()["custom"]()) | SMALL["custom"],
        "loss": dataclasses.asdict(Loss()),
        "training": dataclasses.asdict(Training(epochs=1, batch_size=2, lr=1e-3, precision="fp32", steps_per_epoch="cases")),
    }
    for path, value in values.items():
        local = path in ("data.root", "guide.backbone") and value in ("labels", "copies", "folder", "wild", "deep", "wide", "many")
        made = set_path(made, path, str(root / value) if local else value)
    return Experiment.from_dict(made)


def _segmenters() -> dict[str, Any]:
    return {cls().kind: cls for cls in get_args(get_args(Segmenter)[0])}


def fields() -> Iterator[str]:
    """Every field that a user can set."""
    sections = {"data": Data(kind="demo"), "guide": DINOGuide(), "loss": Loss(), "training": Training()}
    yield from leaf_paths({name: dataclasses.asdict(section) for name, section in sections.items()})
    yield "segmenter.kind"
    for kind, cls in _segmenters().items():
        yield from (f"{kind}.{field.name}" for field in dataclasses.fields(cls) if field.name != "kind")


def pair(root: Path, name: str) -> tuple[Experiment, Experiment]:
    """The experiment with the first and the second value of a field."""
    context, value = EFFECTS[name]
    head, _, rest = name.partition(".")
    path = name
    if head in SMALL:
        context, path = {**segmenter(head), **context}, f"segmenter.{rest}"
    return experiment_of(root, context), experiment_of(root, {**context, path: value})


def test_every_field_is_here() -> None:
    known = [*EFFECTS, *KINDS, *(path for path, about in KNOWN.items() if about.only_how)]
    assert sorted(known) == sorted(fields())


@pytest.mark.parametrize("name", EFFECTS)
def test_a_field_changes_what_is_trained(name: str, folders: Path) -> None:
    first, second = pair(folders, name)
    assert first != second
    assert _computed(first) != _computed(second)
    assert trained(folders, json.dumps(first.to_dict())) != trained(folders, json.dumps(second.to_dict()))


@pytest.mark.parametrize(("context", "path", "value"), WITHOUT, ids=lambda x: x if isinstance(x, str) else None)
def test_and_changes_nothing_where_it_says_so(context: Values, path: str, value: Any, folders: Path) -> None:
    first, second = experiment_of(folders, context), experiment_of(folders, {**context, path: value})
    assert first != second
    assert first.hash == second.hash
    assert trained(folders, json.dumps(first.to_dict())) == trained(folders, json.dumps(second.to_dict()))


@pytest.mark.parametrize(("path", "value"), [("data.bad_cases", "skip"), ("training.channels_last", False), ("training.compile", "none")])
def test_how_it_is_computed_changes_no_result_but_for_rounding(path: str, value: Any, folders: Path) -> None:
    first, second = experiment_of(folders, {}), experiment_of(folders, {path: value})
    losses = []
    for number, experiment in enumerate((first, second)):
        run = TrainingRun(experiment, open_for_search(experiment.data, cache=folders / "cache"), Listener(folders / f"{path}{number}"))
        run.run()
        losses.append(run.history[-1].metrics["train_loss_total"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert _computed(first) == _computed(second)


def test_every_kind_differs(folders: Path) -> None:
    """Plain and guided, and every segmenter: no two of them train the same."""
    contexts = [{**GUIDE, **LARGE, **segmenter(kind)} for kind in SMALL] + [segmenter("unet"), {}, GUIDE]
    found = [trained(folders, json.dumps(experiment_of(folders, context).to_dict())) for context in contexts]
    assert len(set(found)) == len(contexts)
