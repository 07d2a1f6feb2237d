"""Reading experiments: every message names the file, the path in it and the nearest valid name."""

from __future__ import annotations

from pathlib import Path

import pytest

from guidino_tune.config import Data, Experiment, Training
from guidino_tune.config.parsing import read_yaml
from guidino_tune.errors import UserError

# --------------------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("gide: {kind: dino}", ["'gide'", "'guide'"]),
        ("training: {learning_rates: 1}", ["'training.learning_rates'"]),
        ("training: {epoch: 5}", ["'training.epoch'", "'epochs'"]),
        ("guide: {kind: dino, lora: {rnk: 8}}", ["'guide.lora.rnk'", "'rank'"]),
        ("guide: {kind: dino, tokenbook: {prototypes: 8}}", ["'guide.tokenbook.prototypes'", "'num_prototypes'"]),
        ("guide: {kind: none, lora: {rank: 8}}", ["'guide.lora'", "known: kind"]),
        ("segmenter: {kind: unett}", ["'segmenter.kind'", "'unett'", "'unet'"]),
        ("guide: {kind: dinno}", ["'guide.kind'", "'dinno'", "'dino'"]),
        ("segmenter: {base_width: 8}", ["'segmenter.kind' is missing", "nnwnet, segdino, segguidino, swinunet, ukan, unet"]),
        ("guide: {kind: dino, gate: botleneck}", ["'guide.gate'", "'botleneck'", "'bottleneck'"]),
        ("guide: {kind: dino, backbone: vits17}", ["'guide.backbone'", "'vits17'", "'vits16'"]),
        ("guide: {kind: dino, gate: features}", ["guide.gate", "'features'", "'nnwnet'", "possible: default, none, input, bottleneck"]),
        ("guide: {kind: dino, gate: none}", ["guide.gate", "guide.kind=none"]),
        ("guide: {kind: none}, segmenter: {kind: segdino}", ["'segdino'", "guide.kind=dino", "guide.gate=none"]),
        ("guide: {kind: none}, segmenter: {kind: segguidino}", ["'segguidino'", "guide.kind=dino"]),
        ("training: {epochs: many}", ["'training.epochs'", "'many'", "integer"]),
        ("training: {epochs: 2.5}", ["'training.epochs'", "2.5"]),
        ("training: {epochs: 0}", ["'training.epochs'", "= 0", "greater than or equal to 1"]),
        ("training: {lr: 0}", ["'training.lr'", "greater than 0"]),
        ("training: {lr: .nan}", ["'training.lr'", "finite"]),
        ("training: {lr: on}", ["'training.lr' = True", "a number is needed"]),
        ("training: {seed: yes}", ["'training.seed' = True", "a number is needed"]),
        ("loss: {lambda_guide: -0.1}", ["'loss.lambda_guide'", "-0.1", "greater than or equal to 0"]),
        ("loss: {hinge_band: 4}", ["'loss.hinge_band'", "odd"]),
        ("guide: {kind: dino, lora: {dropout: 1.0}}", ["'guide.lora.dropout'", "less than 1"]),
        ("segmenter: {kind: nnwnet, base_width: 15}", ["'segmenter.base_width'", "multiple of 2"]),
        ("segmenter: {kind: segdino, branch_widths: [1, 2, 3, -4]}", ["'segmenter.branch_widths.3'", "-4"]),
        ("segmenter: {kind: segdino, branch_widths: [1, 2, 3]}", ["'segmenter.branch_widths.3' is missing"]),
        ("training: 5", ["'training' = 5", "no mapping"]),
        ("guide: null", ["'guide' = None", "no mapping"]),
        ("3: 4", ["'3'"]),
    ],
)
def test_messages_name_file_path_and_nearest_name(tmp_path: Path, section: str, expected: list[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{{data: {{kind: kvasir}}, {section}}}")
    with pytest.raises(UserError) as caught:
        Experiment.from_yaml(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    for part in expected:
        assert part in message
    assert "\n  -> " in message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("{kind: kvasr}", ["'data.kind'", "'kvasr'", "did you mean 'kvasir'"]),
        ("{kind: kvasir, image_size: 100}", ["'data.image_size'", "multiple of 16"]),
        ("{kind: kvasir, imagesize: 96}", ["'data.imagesize'", "'image_size'"]),
        ("{image_size: 96}", ["'data.kind' is missing"]),
        ("kvasir", ["'data' = 'kvasir'", "no mapping"]),
    ],
)
def test_messages_about_data(tmp_path: Path, data: str, expected: list[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"data: {data}")
    with pytest.raises(UserError) as caught:
        Experiment.from_yaml(file)
    assert all(part in str(caught.value) for part in expected), str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Experiment.from_dict({"data": {"kind": "kvasir"}, "training": {"lr": -1, "epoch": 3}, "los": {}}, source="f.yaml")
    assert all(part in str(caught.value) for part in ("'training.lr'", "'training.epoch'", "'los'"))


def test_python_callers_are_checked_too() -> None:
    with pytest.raises(ValueError, match="greater than"):
        Training(lr=-1.0)
    with pytest.raises(ValueError, match="positional"):
        Data("kvasir")  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------------------------------ files


def test_exponents_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("data: {kind: kvasir}\ntraining: {lr: 1e-4, lora_lr: 5.0e-4, weight_decay: 3E-05}")
    assert read_yaml(file)["training"]["lr"] == "1e-4"  # YAML 1.1 wants a dot: the section's type makes it a number
    training = Experiment.from_yaml(file).training
    assert (training.lr, training.lora_lr, training.weight_decay) == (0.0001, 0.0005, 0.00003)


def test_an_export_is_read_by_its_experiment(tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    file.write_text("provenance: {study: kvasir, trial: 3}\nexperiment:\n  data: {kind: tn3k}\n")
    assert Experiment.from_yaml(file).data.kind == "tn3k"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no mapping"),
        (b"# only a comment\n", "holds no mapping"),
        (b"- data\n- guide\n", "holds no mapping"),
        (b"just text", "holds no mapping"),
        (b"experiment: 5", "no mapping"),
        (b"data: {kind: kvasir\n", "no valid YAML, line"),
        (b"data:\n  kind: kvasir\n   root: x\n", "line 3"),
        (b"data: {kind: kvasir}\ndata: {kind: tn3k}\n", "line 2: the name 'data' stands twice"),
        (b"data:\n  kind: kvasir\n  image_size: 64\n  image_size: 96\n", "line 4: the name 'image_size' stands twice"),
        (b"data: !!python/object/apply:os.getcwd []\n", "no valid YAML, line 1"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "cannot be read"),
        (b"data: a\x00b", "no valid YAML"),
    ],
)
def test_messages_about_files(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        Experiment.from_yaml(file)
    assert str(caught.value).startswith(str(file))
    assert expected in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Experiment.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        Experiment.from_yaml(tmp_path)


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, x: 4}\n")
    assert read_yaml(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 4, "y": 2}}
