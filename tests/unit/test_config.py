"""Experiments: YAML in and out, a stable hash of what is effective, names, and immutability."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from guidino_tune.config import BACKBONES, Experiment, section_defaults
from guidino_tune.config.data import Data
from guidino_tune.config.sections import DINOGuide, LoRA, Loss, NoGuide, TokenBook, Training
from guidino_tune.config.segmenters import NNWNet, SegDINO, SegGuiDINO, UNet
from guidino_tune.space.parameters import get_path, leaf_paths, set_path

# ---------------------------------------------------------------------------------------------------- random valid experiments


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


positive, fraction, count = floats(1e-12, 1e6), floats(0, 0.999), st.integers(1, 2000)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
segmenters = st.one_of(
    st.builds(UNet, base_width=count),
    st.builds(NNWNet, base_width=count.map(lambda n: 2 * n), deep_supervision=st.booleans()),
    st.builds(SegDINO, features=count, branch_widths=st.tuples(count, count, count, count), final_norm=st.booleans()),
    st.builds(SegGuiDINO, hidden=count, dropout=fraction),
)
datas = st.builds(
    Data,
    kind=st.sampled_from(["kvasir", "isic2017", "tn3k", "folder", "demo"]),
    root=st.none() | text,
    image_size=st.integers(2, 256).map(lambda n: 16 * n),
    augmentation=st.sampled_from(["nnunet", "none"]),
    bad_cases=st.sampled_from(["error", "skip"]),
    validation_fraction=fraction,
    split_seed=st.integers(0, 2**40),
    max_train_cases=st.none() | count,
)
losses = st.builds(
    Loss,
    lambda_guide=st.just(0.0) | positive,
    guide_loss=st.sampled_from(["bce", "mse"]),
    hinge_weight=st.just(0.0) | positive,
    hinge_band=st.integers(1, 15).map(lambda n: 2 * n + 1),
)
trainings = st.builds(
    Training,
    epochs=count,
    steps_per_epoch=st.none() | st.just("cases") | count,
    optimizer=st.sampled_from(["adamw", "sgd"]),
    lr=positive,
    momentum=fraction,
    grad_clip=st.none() | positive,
)


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    segmenter = draw(segmenters)
    gates = ("default", "features", "none") if segmenter.needs_features else ("default", "input", "bottleneck")
    guides: st.SearchStrategy[Any] = st.builds(
        DINOGuide,
        backbone=st.sampled_from([*BACKBONES, "./model", "~/a: b #c"]),
        weights=st.sampled_from(["pretrained", "random"]),
        gate=st.sampled_from(gates),
        tokenbook=st.builds(TokenBook, num_prototypes=st.none() | count, aggregation=st.sampled_from(["weighted", "mean", "softmax"])),
        lora=st.builds(LoRA, rank=st.integers(0, 512), alpha=positive, dropout=fraction),
    )
    if not segmenter.needs_features:
        guides = guides | st.just(NoGuide())
    return Experiment(data=draw(datas), guide=draw(guides), segmenter=segmenter, loss=draw(losses), training=draw(trainings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml")


@given(experiment=experiments())
@examples(40)
def test_yaml_gives_back_an_equal_experiment_with_the_same_hash(folder: Path, experiment: Experiment) -> None:
    path = folder / "experiment.yaml"
    path.write_text(experiment.to_yaml(), encoding="utf-8")
    again = Experiment.from_yaml(path)
    assert again == experiment
    assert again.hash == experiment.hash
    assert again.to_yaml() == experiment.to_yaml()


@given(first=experiments(), second=experiments())
@examples(40)
def test_hashes_agree_exactly_when_effective_values_do(first: Experiment, second: Experiment) -> None:
    assert (first.hash == second.hash) == (first.effective() == second.effective())
    assert len(first.hash) == 12
    assert set(first.hash) <= set("0123456789abcdef")


@given(experiment=experiments())
@examples(25)
def test_effective_values_are_a_part_of_all_values(experiment: Experiment) -> None:
    whole, effective = experiment.to_dict(), experiment.effective()
    resolved = {"guide.gate", "guide.tokenbook.num_prototypes", "segmenter.window"}  # `default` and null are written out
    assert all(get_path(whole, path) == get_path(effective, path) for path in leaf_paths(effective) if path not in resolved)
    assert experiment.num_prototypes >= 1


# ------------------------------------------------------------------------------------------------------------------- the hash

EVERYTHING = Experiment(
    data=Data(kind="kvasir"),
    guide=DINOGuide(lora=LoRA(rank=8)),
    segmenter=UNet(),
    loss=Loss(hinge_weight=0.1, focal_weight=0.1, tversky_weight=0.1, top_k_weight=0.1),
    training=Training(optimizer="sgd"),
)
"""Every field of every section has an effect here."""

OTHER_VALUES: dict[str, Any] = {
    "data.kind": "tn3k", "data.image_size": 128, "data.num_classes": 2, "data.augmentation": "none",
    "data.normalisation": "zscore", "data.group": "case", "data.labels": {"polyp": 255}, "data.ignore_label": 9, "data.channels": 4,
    "data.window": "percentiles", "data.resize": "pad", "data.mask_resize": "nearest", "data.view": "patch", "data.folds": 3,
    "data.stratify": False, "guide.channels": [2, 1, 0],
    "data.bad_cases": "skip", "data.validation_fraction": 0.2,
    "data.test_fraction": 0.2, "data.split_seed": 1, "data.group_duplicates": True,
    "data.max_train_cases": 9, "data.max_validation_cases": 9, "data.view_cycle": 5,
    "guide.kind": "none", "guide.backbone": "vitb16", "guide.weights": "random", "guide.sha256": "0" * 64,
    "guide.gate": "input",
    "guide.tokenbook.num_prototypes": 64, "guide.tokenbook.similarity": "dot", "guide.tokenbook.aggregation": "mean",
    "guide.lora.rank": 4, "guide.lora.alpha": 8.0, "guide.lora.dropout": 0.1, "guide.lora.targets": "attention+mlp",
    "segmenter.kind": "nnwnet", "segmenter.base_width": 16,
    "loss.dice_weight": 0.5, "loss.bce_weight": 0.5, "loss.lambda_guide": 0.2, "loss.guide_loss": "mse", "loss.guide_target": "nearest",
    "loss.hinge_weight": 0.2, "loss.hinge_margin": 2.0, "loss.hinge_band": 5, "loss.batch_dice": False,
    "loss.focal_weight": 0.2, "loss.focal_gamma": 1.0, "loss.tversky_weight": 0.2, "loss.tversky_alpha": 0.5, "loss.tversky_beta": 0.5,
    "loss.top_k_weight": 0.2, "loss.top_k_fraction": 0.5, "loss.boundary_weight": 0.01, "loss.class_weights": 2.0,
    "loss.custom": {"target": "own:term"},
    "training.epochs": 100, "training.steps_per_epoch": 7, "training.batch_size": 8, "training.optimizer": "adamw",
    "training.lr": 1e-3, "training.lora_lr": 1e-3,
    "training.weight_decay": 0.0, "training.momentum": 0.9, "training.schedule": "cosine", "training.precision": "fp32",
    "training.warmup_epochs": 2,
    "training.channels_last": False, "training.compile": "default", "training.grad_clip": None, "training.seed": 1,
}  # fmt: skip

OTHER_VALUES_THERE: dict[str, tuple[dict[str, Any], Any]] = {
    "data.images": ({"data.kind": "folder"}, "photos"), "data.masks": ({"data.kind": "folder"}, "instances"),
    "data.patch_foreground": ({"data.view": "patch"}, 0.9), "data.fold": ({"data.folds": 3}, 2),
    "loss.head_target": ({"segmenter.kind": "nnwnet"}, "nearest"),  # a U-Net has no coarse output
    "guide.train": ({"guide.lora.rank": 0}, "full"), "training.backbone_lr": ({"guide.lora.rank": 0, "guide.train": "full"}, 1e-3),
}  # fmt: skip
"""Fields that have an effect beside other values only."""

SEGMENTER_VALUES: dict[str, dict[str, Any]] = {
    "unet": {"base_width": 16},
    "nnunet": {"encoder": "residual", "num_stages": 5, "base_width": 16, "max_width": 256, "deep_supervision": False},
    "nnwnet": {"base_width": 32, "deep_supervision": False},
    "swinunet": {"window": 4, "embed_width": 48, "depths": [2, 2, 2, 1], "heads": [2, 6, 12, 24], "drop_path": 0.2,
                 "pretrained": "swin.pth"},
    "h2former": {
        "window": 8, "base_width": 32, "blocks": [1, 1, 1, 1], "depths": [1, 1, 1, 1], "heads": [2, 2, 2, 2], "drop_path": 0.2,
        "scrambled_mlp": True, "pretrained": "resnet34.pth",
    },
    "ukan": {"widths": [256, 320, 512], "grid": 4, "order": 2, "drop_path": 0.1},
    "dinounet": {
        "widths": [16, 32, 64, 128], "rank": 64, "attention_heads": 8, "attention_points": 2, "drop_path": 0.1, "final_norm": False,
        "deep_supervision": True,
    },
    "meddino": {"layers": "last", "final_norm": False},
    "segdino": {"features": 64, "branch_widths": [96, 192, 384, 769], "final_norm": False},
    "segguidino": {"hidden": 64, "dropout": 0.1},
    "custom": {"target": "nets:Other", "options": {"width": 3}, "gates": ["bottleneck", "input"]},
}  # fmt: skip


def changed(experiment: Experiment, **values: Any) -> Experiment:
    mapping = experiment.to_dict()
    for path, value in values.items():
        mapping = set_path(mapping, path.replace("__", "."), value)
    return Experiment.from_dict(mapping)


def test_every_effective_field_changes_the_hash() -> None:
    # A new field must be given another value here, so that none can be left out of the hash by mistake.
    assert {*OTHER_VALUES, *OTHER_VALUES_THERE} == set(leaf_paths(EVERYTHING.to_dict())) - {"data.root"}
    for path, (context, value) in OTHER_VALUES_THERE.items():
        there = changed(EVERYTHING, **context)
        assert there.hash != changed(there, **{path: value}).hash, path
    hashes = {path: changed(EVERYTHING, **{path: value}).hash for path, value in OTHER_VALUES.items()}
    assert len({EVERYTHING.hash, *hashes.values()}) == 1 + len(OTHER_VALUES)


@pytest.mark.parametrize("kind", SEGMENTER_VALUES)
def test_every_field_of_a_segmenter_changes_the_hash(kind: str) -> None:
    defaults = section_defaults("segmenter", kind)
    assert defaults is not None
    assert set(SEGMENTER_VALUES[kind]) == set(defaults) - {"kind", "sha256"}  # of the pretrained file
    base = changed(EVERYTHING, **({"segmenter": {"kind": kind, "target": "nets:Net"}} if kind == "custom" else {"segmenter.kind": kind}))
    hashes = {changed(base, **{f"segmenter.{name}": value}).hash for name, value in SEGMENTER_VALUES[kind].items()}
    assert len({base.hash, *hashes}) == 1 + len(SEGMENTER_VALUES[kind])


@pytest.mark.parametrize(
    ("where", "inert"),
    [
        ({}, {"data.root": "/elsewhere"}),
        ({}, {"guide.gate": "bottleneck"}),
        ({}, {"guide.tokenbook.num_prototypes": 16 * 16}),
        ({"data.image_size": 64}, {"guide.tokenbook.num_prototypes": 4 * 4}),
        ({"guide.lora.rank": 0}, {"guide.lora.alpha": 8.0, "guide.lora.dropout": 0.3, "guide.lora.targets": "attention+mlp"}),
        ({"guide.lora.rank": 0}, {"training.lora_lr": 1e-3, "training.backbone_lr": 1e-3, "guide.train": "frozen"}),
        ({}, {"guide.train": "lora", "training.backbone_lr": 1e-3}),
        ({"guide.lora.rank": 0, "guide.train": "full"}, {"guide.lora.alpha": 8.0, "training.lora_lr": 1e-3}),
        ({"segmenter.kind": "swinunet"}, {"segmenter.sha256": "0" * 64}),
        ({"segmenter.kind": "swinunet", "segmenter.pretrained": "a.pth", "segmenter.sha256": "0" * 64}, {"segmenter.pretrained": "b.pth"}),
        ({"loss.hinge_weight": 0.0}, {"loss.hinge_margin": 2.0, "loss.hinge_band": 5}),
        ({"loss.focal_weight": 0.0}, {"loss.focal_gamma": 1.0}),
        ({"loss.tversky_weight": 0.0}, {"loss.tversky_alpha": 0.5, "loss.tversky_beta": 0.5}),
        ({"loss.top_k_weight": 0.0}, {"loss.top_k_fraction": 0.5}),
        ({"loss.lambda_guide": 0.0}, {"loss.guide_loss": "mse", "loss.guide_target": "nearest"}),
        ({"training.optimizer": "adamw"}, {"training.momentum": 0.5}),
        ({"guide.kind": "none"}, {"loss.lambda_guide": 0.7, "loss.guide_loss": "mse", "training.lora_lr": 1e-3}),
        (
            {"segmenter.kind": "segdino", "guide.gate": "none"},
            {"guide.tokenbook.num_prototypes": 7, "guide.tokenbook.similarity": "dot", "loss.lambda_guide": 0.7},
        ),
    ],
)
def test_what_changes_nothing_does_not_change_the_hash(where: dict[str, Any], inert: dict[str, Any]) -> None:
    base = changed(EVERYTHING, **where)
    for path, value in inert.items():
        other = changed(base, **{path: value})
        assert other != base, path
        assert other.hash == base.hash, path


def test_lora_counts_without_a_mask() -> None:
    plain_head = changed(EVERYTHING, **{"segmenter.kind": "segdino", "guide.gate": "none"})
    assert changed(plain_head, **{"guide.lora.alpha": 8.0}).hash != plain_head.hash


def test_labels_in_another_order_are_other_classes() -> None:
    one, other = ({"data": {"kind": "folder", "labels": dict(pairs)}} for pairs in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]))
    assert Experiment.from_dict(one).data.class_names == ("a", "b")
    assert Experiment.from_dict(one) != Experiment.from_dict(other)
    assert Experiment.from_dict(one).hash != Experiment.from_dict(other).hash
    assert Experiment.from_dict(Experiment.from_dict(one).to_dict()) == Experiment.from_dict(one)


def test_hash_is_the_one_of_the_first_release() -> None:
    # Written out, for it must be the same in every process, on every machine and in every version: exports and caches carry it.
    plain_unet = {
        "data": {
            "kind": "demo", "image_size": 96, "augmentation": "nnunet", "bad_cases": "error", "validation_fraction": 0.1,
            "test_fraction": 0.1, "split_seed": 0, "max_train_cases": None, "max_validation_cases": None,
        },
        "guide": {"kind": "none"},
        "segmenter": {"kind": "unet", "base_width": 8},
        "loss": {"dice_weight": 1.0, "bce_weight": 1.0, "hinge_weight": 0.0, "batch_dice": True},
        "training": {
            "epochs": 9, "batch_size": 4, "optimizer": "adamw", "lr": 1e-4, "weight_decay": 3e-5, "schedule": "poly",
            "precision": "auto", "channels_last": True, "grad_clip": 12.0, "seed": 0,
        },
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(plain_unet, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    experiment = Experiment.from_dict(
        {
            "data": {"kind": "demo", "image_size": 96, "root": "/tmp/x", "mask_resize": "nearest", "stratify": False},
            "guide": {"kind": "none"},
            "segmenter": {"kind": "unet", "base_width": 8},
            "training": {"epochs": 9, "steps_per_epoch": "cases", "compile": "none"},
        }
    )
    assert experiment.hash == digest[:12] == "4492e6f3b895"
    as_then = Data(kind="kvasir", mask_resize="nearest", stratify=False)
    assert (
        Experiment(data=as_then, loss=Loss(head_target="nearest"), training=Training(steps_per_epoch="cases", compile="none")).hash
        == "fec439653abc"
    )


# --------------------------------------------------------------------------------------------------------- derived properties


@pytest.mark.parametrize(
    ("segmenter", "guide", "name", "gate"),
    [
        ("unet", {"kind": "none"}, "U-Net", None),
        ("nnwnet", {"kind": "none"}, "nnWNet", None),
        ("unet", {"kind": "dino"}, "GuiDINO-U", "bottleneck"),
        ("nnwnet", {"kind": "dino"}, "GuiDINO-W", "input"),
        ("nnwnet", {"kind": "dino", "gate": "bottleneck"}, "GuiDINO-W", "bottleneck"),
        ("nnwnet", {"kind": "dino", "lora": {"rank": 8}}, "GuiDINO-W-LoRA", "input"),
        ("segguidino", {"kind": "dino"}, "Seg-GuiDINO", "features"),
        ("segguidino", {"kind": "dino", "lora": {"rank": 8}}, "Seg-GuiDINO-LoRA", "features"),
        ("segdino", {"kind": "dino", "gate": "none"}, "SegDINO", None),
        ("segdino", {"kind": "dino"}, "SegDINO-guided", "features"),
    ],
)
def test_name_and_gate(segmenter: str, guide: dict[str, Any], name: str, gate: str | None) -> None:
    experiment = Experiment.from_dict({"data": {"kind": "kvasir"}, "segmenter": {"kind": segmenter}, "guide": guide})
    assert (experiment.name, experiment.gate) == (name, gate)


def test_prototypes_default_to_one_per_patch() -> None:
    assert Experiment(data=Data(kind="kvasir", image_size=256)).num_prototypes == 256
    assert Experiment(data=Data(kind="kvasir", image_size=64)).num_prototypes == 16
    fixed = Experiment(data=Data(kind="kvasir"), guide=DINOGuide(tokenbook=TokenBook(num_prototypes=5)))
    assert fixed.num_prototypes == 5


# ----------------------------------------------------------------------------------------------------------------- immutability


@pytest.mark.parametrize("section", ["", "data", "guide", "guide.lora", "guide.tokenbook", "segmenter", "loss", "training"])
def test_nothing_can_be_changed(section: str) -> None:
    level: Any = EVERYTHING
    for name in filter(None, section.split(".")):
        level = getattr(level, name)
    field = dataclasses.fields(level)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(level, field, getattr(level, field))
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
        level.no_such_field = 1
    assert not hasattr(level, "__dict__")


def test_a_dictionary_of_an_experiment_is_a_copy() -> None:
    before = EVERYTHING.hash
    EVERYTHING.to_dict()["guide"]["lora"]["rank"] = 1
    EVERYTHING.effective()["guide"]["lora"]["rank"] = 1
    assert EVERYTHING.hash == before
    assert isinstance(EVERYTHING.guide, DINOGuide)
    assert EVERYTHING.guide.lora.rank == 8


def test_an_experiment_is_a_key() -> None:
    assert {EVERYTHING: 1}[Experiment.from_dict(EVERYTHING.to_dict())] == 1


@pytest.mark.parametrize(
    ("labels", "keys"),
    [
        ({"Optic disc": 1, "cup/rim": 2}, ("optic_disc", "cup_rim")),
        ({"ödem": 1, "Ödem": 2}, ("class_1", "class_2")),
        ({"percent": 1, "polyp": 2}, ("class_1", "class_2")),  # hd95_percent is a score of its own
        ({"?": 1, "polyp": 2}, ("class_1", "class_2")),
        ({"background": 0, "polyp": [255, 0, 0]}, ("polyp",)),
    ],
)
def test_classes_in_the_names_of_scores(labels: dict, keys: tuple[str, ...]) -> None:
    assert Data(kind="folder", root="x", labels=labels, num_classes=len(keys)).class_keys == keys
