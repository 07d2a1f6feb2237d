"""Overrides and checks of spaces: what they accept, and messages that name the parameter, its value and the nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from guidino_tune.errors import UserError
from guidino_tune.space.check import check_space, without_idle
from guidino_tune.space.space import Space, absolute, load_space, override, read_space

RANK, ALPHA, LORA_LR = "guide.lora.rank", "guide.lora.alpha", "training.lora_lr"


def space_of(text: str, **sections: Any) -> Space:
    """A space over a small guided U-Net with these parameters (YAML), or with other sections."""
    experiment = {"data": {"kind": "demo", "image_size": 64}, "guide": {"kind": "dino", "backbone": "tiny"}, "segmenter": {"kind": "unet"}}
    values = {"experiment": experiment, "space": yaml.safe_load(text), **sections}
    return read_space(values, source="mine.yaml")


def message(space: Space) -> str:
    with pytest.raises(UserError) as caught:
        check_space(space)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("spce: {}", ["mine.yaml", "'spce'", "'space'"]),
        ("space: [1]", ["mine.yaml, space", "no mapping"]),
        ("space: {training.lr: 3}", ["space.training.lr", "no mapping such as"]),
        ("space: {training.lr: {type: flaot, low: 1, high: 2}}", ["space.training.lr", "'flaot'", "'float'"]),
        ("space: {training.lr: {type: float, low: 1, hgih: 2}}", ["space.training.lr", "'hgih'", "'high'"]),
        ("space: {training.lr: {type: float, low: 2, high: 1}}", ["space.training.lr", "low 2 is above high 1"]),
        ("space: {training.lr: {type: float, low: 1}}", ["space.training.lr", "'low' and 'high'"]),
        ("space: {training.lr: {type: float, low: 0, high: 1, log: true}}", ["space.training.lr", "log needs low above 0"]),
        ("space: {training.epochs: {type: int, low: 1.5, high: 3}}", ["space.training.epochs", "whole numbers"]),
        ("space: {training.epochs: {type: int, low: 1, high: 10, step: 4}}", ["space.training.epochs", "steps of 4"]),
        ("space: {training.epochs: {type: int, low: 1, high: 10, step: 0}}", ["space.training.epochs", "steps of 0"]),
        ("space: {training.lr: {choices: []}}", ["space.training.lr", "'choices'"]),
        ("space: {training.lr: {choices: [1, 1]}}", ["space.training.lr", "twice"]),
        ("space: {training.lr: {choices: [1, 2], log: true}}", ["space.training.lr", "no low, high, log or step"]),
        ("first_trials: {training.lr: 1}", ["first_trials", "no list"]),
        ("study: {trails: 3}", ["mine.yaml, study", "'trails'", "'trials'"]),
        ("study: demo", ["mine.yaml, study", "no mapping"]),
        ("study: {name: 'a b'}", ["mine.yaml, study", "'name' = 'a b'"]),
        ("resources: {workers: 0}", ["mine.yaml, resources", "'workers'"]),
        ("resources: [1]", ["mine.yaml, resources", "no mapping"]),
        ("experiment: {data: {kind: demo}, los: {}}", ["mine.yaml, experiment", "'los'", "'loss'"]),
        ("experiment: 5", ["mine.yaml, experiment", "no mapping"]),
    ],
)
def test_messages_of_reading(text: str, expected: list[str]) -> None:
    values = {"experiment": {"data": {"kind": "demo"}}, **yaml.safe_load(text)}
    with pytest.raises(UserError) as caught:
        read_space(values, source="mine.yaml")
    assert all(part in str(caught.value) for part in expected), str(caught.value)


# -------------------------------------------------------------------------------------------------------------------- overrides


def test_override_fixes_what_was_searched() -> None:
    before = load_space("kvasir")
    after = override(before, ["training.lr=1e-4", "study.trials=3", "resources.workers=2", "training.epochs=5"])
    assert "training.lr" in before.parameters
    assert "training.lr" not in after.parameters
    assert (after.base.training.lr, after.base.training.epochs, after.study.trials, after.resources.workers) == (1e-4, 5, 3, 2)
    assert after.notes == ("set, no longer searched: training.lr = 0.0001",)
    assert len(after.first_trials) == len(before.first_trials)
    assert all("training.lr" not in trial for trial in after.first_trials)
    check_space(override(after, ["study.min_epochs=1"]))


def test_what_is_set_replaces_its_part_of_the_first_trials() -> None:
    before = load_space("kvasir")
    after = override(before, ["segmenter.kind=unet", "training.lr=3e-4"])
    kept = [{p: v for p, v in trial.items() if p not in ("segmenter.kind", "training.lr")} for trial in before.first_trials]
    assert list(after.first_trials) == kept
    assert {after.experiment(trial).training.lr for trial in after.first_trials} == {3e-4}
    after = without_idle(override(before, ["segmenter.kind=segguidino"]))
    # Three systems with a frozen guide and two with adapters: without segmenter and gate they are two.
    assert "guide.gate" not in after.parameters
    assert [trial["guide.train"] for trial in after.first_trials] == ["frozen", "lora"]
    # Without adapters, their scale and learning rate are no difference either.
    without = without_idle(override(before, ["guide.lora.rank=0"]))
    assert [without.experiment(trial).name for trial in without.first_trials] == ["Seg-GuiDINO", "GuiDINO-W", "GuiDINO-U"]


def test_override_drops_what_lost_its_effect() -> None:
    space = without_idle(override(load_space("kvasir"), ["guide.lora.rank=0"]))
    assert {RANK, ALPHA, LORA_LR} & set(space.parameters) == set()
    assert sum("without effect with what is set" in note for note in space.notes) == 2
    check_space(space)
    plain = without_idle(override(load_space("kvasir"), ["guide.kind=none", "segmenter.kind=unet"]))
    assert list(plain.parameters) == ["loss.hinge_weight", "training.lr"]
    assert plain.base.name == "U-Net"
    check_space(plain)


def test_a_mistake_in_the_file_is_not_dropped_as_a_consequence_of_an_override() -> None:
    space = space_of("training.lr: {type: float, low: 0.1, high: 1}\ntraining.weight_deacy: {type: float, low: 0.1, high: 1}")
    after = without_idle(override(space, ["study.trials=3"]))
    assert "training.weight_deacy" in after.parameters
    assert "training.weight_decay" in message(after)
    assert without_idle(space) is space


def test_a_new_kind_resets_its_section() -> None:
    space = override(load_space("demo"), ["segmenter.kind=nnwnet"])
    assert space.base.segmenter.kind == "nnwnet"
    assert space.base.to_dict()["segmenter"] == {"kind": "nnwnet", "base_width": 16, "deep_supervision": True}
    assert override(load_space("demo"), ["guide.kind=none"]).base.to_dict()["guide"] == {"kind": "none"}
    same = override(load_space("demo"), ["segmenter.kind=unet"])
    assert same.base.segmenter == load_space("demo").base.segmenter


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.epoch=5", ["training.epoch=5: ", "'training.epochs'"]),
        ("loss.lamda_guide=1", ["'loss.lambda_guide'"]),
        ("study.trails=5", ["'study.trials'"]),
        ("resources.worker=5", ["'resources.workers'"]),
        ("nonsense", ["nonsense: ", "no '='", "path=value"]),
        ("training.epochs=many", ["'training.epochs'", "'many'"]),
        ("training.epochs=-1", ["'training.epochs'", "-1"]),
        ("training.epochs=[", ["no YAML value"]),
        ("segmenter.kind=unett", ["'segmenter.kind'", "'unet'"]),
        ("guide.gate=features", ["guide.gate", "'features'"]),
        ("training=5", ["'training' = 5"]),
        ("study.name=a b", ["'name' = 'a b'"]),
    ],
)
def test_messages_of_overrides(assignment: str, expected: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        override(load_space("kvasir"), [assignment])
    assert all(part in str(caught.value) for part in expected), str(caught.value)


def test_text_stays_text() -> None:
    space = override(load_space("kvasir"), ["study.name=2024", "data.root=1e5", "guide.backbone=./007"])
    assert (space.study.name, space.base.data.root) == ("2024", "1e5")
    assert space.base.to_dict()["guide"]["backbone"] == "./007"
    assert override(space, ["data.root=null"]).base.data.root is None


def test_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = space_of("guide.backbone: {choices: [vits16, ./models/mine]}", first_trials=[{"guide.backbone": "./models/mine"}])
    space = absolute(override(space, ["data.root=images"]))
    mine = str(tmp_path / "models" / "mine")
    assert space.base.data.root == str(tmp_path / "images")
    assert space.parameters["guide.backbone"].choices == ("vits16", mine)
    assert space.first_trials == ({"guide.backbone": mine},)


# ----------------------------------------------------------------------------------------------------------------------- checks


def test_unknown_path_suggests_the_nearest_one() -> None:
    text = message(space_of("training.leraning_rate: {type: float, low: 0.1, high: 1}\ntraining.lr: {choices: [0.1, 1.0]}"))
    assert text.startswith("mine.yaml, space.training.leraning_rate: has no effect")
    text = message(space_of("guide.lora.rnk: {choices: [0, 4]}"))
    assert "mine.yaml, space.guide.lora.rnk" in text
    assert "did you mean 'guide.lora.rank'" in text


def test_paths_of_other_kinds_are_known_when_their_kind_is_searched() -> None:
    check_space(space_of("segmenter.kind: {choices: [unet, nnwnet]}\nsegmenter.deep_supervision: {choices: [false, true]}"))
    text = message(space_of("segmenter.deep_supervision: {choices: [false, true]}"))
    assert "no experiment of this space has such a field" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ALPHA}: {{type: float, low: 4, high: 64}}", [f"space.{ALPHA}", "changes nothing"]),
        ("training.momentum: {type: float, low: 0.1, high: 0.9}", ["space.training.momentum", "changes nothing"]),
        (f"{RANK}: {{choices: [0, 4]}}\n{ALPHA}: {{choices: [1, 2], when: {{{RANK}: {{gt: 4}}}}}}", [f"space.{ALPHA}", "is never met"]),
        (
            f"{RANK}: {{choices: [0, 4]}}\n{ALPHA}: {{choices: [1, 2], when: {{guide.lora.rnk: {{gt: 0}}}}}}",
            [f"space.{ALPHA}", "'guide.lora.rnk'", f"did you mean '{RANK}'"],
        ),
        ("data.augmentation: {choices: [none]}\ndata.view_cycle: {choices: [2, 3]}", ["space.data.view_cycle", "changes nothing"]),
        ("training.batch_size: {choices: [1]}\nloss.batch_dice: {choices: [true, false]}", ["space.loss.batch_dice", "changes nothing"]),
        ("segmenter.kind: {choices: [nnunet]}\nsegmenter.max_width: {choices: [2048, 4096]}", ["space.segmenter.max_width", "nothing"]),
        ("loss.dice_weight: {choices: [0.0]}\nloss.batch_dice: {choices: [true, false]}", ["space.loss.batch_dice", "changes nothing"]),
        ("training.channels_last: {choices: [true, false]}", ["space.training.channels_last", "memory format and changes no result"]),
        ("training.compile: {choices: [none, default]}", ["space.training.compile", "changes no result"]),
        ("data.bad_cases: {choices: [error, skip]}", ["space.data.bad_cases", "changes no result"]),
        ("training.optimizer: {choices: [adamw]}\ntraining.momentum: {choices: [0.5, 0.9]}", ["space.training.momentum", "nothing"]),
    ],
)
def test_parameters_without_effect(text: str, expected: list[str]) -> None:
    found = message(space_of(text))
    assert "has no effect" in found
    assert all(part in found for part in expected), found


def test_a_parameter_with_an_effect_somewhere_is_no_mistake() -> None:
    check_space(space_of("data.view_cycle: {choices: [2, 800]}"))
    check_space(
        space_of("training.optimizer: {choices: [adamw, sgd]}\ntraining.momentum: {choices: [0.5, 0.9], when: {training.optimizer: sgd}}")
    )


@pytest.mark.parametrize(
    ("text", "path", "place", "values"),
    [
        (
            "training.optimizer: {choices: [adamw, sgd]}\n@: {choices: [0.5, 0.9]}",
            "training.momentum",
            "training.optimizer is adamw",
            "0.5 ",
        ),
        ("training.optimizer: {choices: [adamw, sgd]}\n@: {type: float, low: 0.5, high: 0.9}", "training.momentum", "is adamw", "0.9 "),
        ("training.batch_size: {choices: [1, 2]}\n@: {choices: [true, false]}", "loss.batch_dice", "training.batch_size is 1", "True and"),
        ("data.augmentation: {choices: [none, nnunet]}\n@: {choices: [2, 3]}", "data.view_cycle", "data.augmentation is none", "3"),
    ],
)
def test_a_parameter_without_effect_in_part_of_the_space_is_a_mistake(text: str, path: str, place: str, values: str) -> None:
    """Two trials that differ only there would be the same training under two names."""
    space = space_of(text.replace("@", path))
    found = message(space)
    assert found.startswith(f"mine.yaml, space.{path}: has no effect where ")
    for part in (place, values, "the same experiment", "when:"):
        assert part in found, found
    (note,) = check_space(space, begun=True)  # a study that an earlier version let begin goes on
    assert note.startswith(f"mine.yaml, space.{path}: has no effect where ")


def test_two_choices_that_mean_the_same_are_a_mistake() -> None:
    found = message(space_of("training.lr: {choices: [0.1, 0.2]}\nguide.gate: {choices: [default, input, bottleneck]}"))
    assert found.startswith("mine.yaml, space.guide.gate: 'default' and 'bottleneck' are the same experiment")
    assert "leave one of them out" in found


def test_a_study_that_searched_what_changes_no_result_goes_on_with_a_note() -> None:
    space = space_of("training.lr: {choices: [0.1, 0.2]}\ntraining.channels_last: {choices: [true, false]}")
    assert "changes no result" in message(space)
    (note,) = check_space(space, begun=True)
    assert "space.training.channels_last" in note


@pytest.mark.parametrize("fixed", ["weighted", "mean", "softmax", ""])
def test_the_number_of_prototypes_where_they_are_one_vector_is_remarked(fixed: str) -> None:
    number = "guide.tokenbook.num_prototypes: {type: int, low: 4, high: 64}"
    if fixed:
        space = override(space_of(number), [f"guide.tokenbook.aggregation={fixed}"])
    else:
        space = space_of("guide.tokenbook.aggregation: {choices: [weighted, mean, softmax]}\n" + number)
    notes = check_space(space)
    if fixed == "softmax":
        assert notes == []
        return
    (note,) = notes
    assert note.startswith(f"mine.yaml, space.guide.tokenbook.num_prototypes: with aggregation {fixed or 'mean and weighted'} the ")
    condition = note.partition("`")[2].rstrip("`")
    advised = space_of(f"guide.tokenbook.aggregation: {{choices: [weighted, mean, softmax]}}\n{number[:-1]}, {condition}}}")
    assert check_space(advised) == []


def test_a_guide_on_other_values_than_its_training_s_is_remarked() -> None:
    space = space_of("training.lr: {choices: [0.1, 0.2]}\ndata.normalisation: {choices: [imagenet, zscore]}")
    (note,) = check_space(space)
    assert note.startswith("mine.yaml, data.normalisation: 'zscore' shows the DINO backbone other values")
    assert check_space(override(space, ["guide.kind=none"])) == []


def test_recipes_share_what_all_trials_share() -> None:
    """The data is made once, from the base experiment: a recipe's own split or classes would be ignored."""
    recipe = {"data": {"kind": "demo", "image_size": 64}, "guide": {"kind": "none"}, "segmenter": {"kind": "unet"}}
    other = {**recipe, "segmenter": {"kind": "nnunet"}}
    choices = "recipe: {choices: [a, b]}"
    check_space(space_of(choices, experiment=recipe, recipes={"a": recipe, "b": other}))
    for path in ("group_duplicates", "split_seed"):
        found = message(
            space_of(
                choices,
                experiment=recipe,
                recipes={"a": recipe, "b": {**other, "data": {**recipe["data"], path: 1 if path == "split_seed" else True}}},
            )
        )
        assert found.startswith(f"mine.yaml, recipes.b.data.{path}: ")
        assert "the split must be the same in all trials" in found


@pytest.mark.parametrize(
    "path", ["data.kind", "data.split_seed", "data.group_duplicates", "data.validation_fraction", "data.max_validation_cases"]
)
def test_what_all_trials_share_cannot_be_searched(path: str) -> None:
    """The split of a study is made once: another seed in a trial would fail there, and another fraction would be ignored."""
    values = {"data.group_duplicates": "[true, false]", "data.kind": "[demo, kvasir]", "data.validation_fraction": "[0.1, 0.2]"}.get(
        path, "[1, 2]"
    )
    found = message(space_of(f"training.lr: {{choices: [0.1, 1.0]}}\n{path}: {{choices: {values}}}"))
    assert found.startswith(f"mine.yaml, space.{path}: cannot be searched")
    assert "a study for each value" in found


@pytest.mark.parametrize(
    ("text", "path", "value", "reason"),
    [
        ("training.lr: {type: float, low: 0, high: 1}", "training.lr", "0.0", "greater than 0"),
        ("guide.lora.dropout: {type: float, low: 0.5, high: 1}", "guide.lora.dropout", "1.0", "less than 1"),
        ("loss.hinge_band: {choices: [3, 4]}", "loss.hinge_band", "4", "odd"),
        ("loss.guide_loss: {choices: [bce, dice]}", "loss.guide_loss", "'dice'", "'bce' or 'mse'"),
        ("guide.backbone: {choices: [vits16, vits17]}", "guide.backbone", "'vits17'", "did you mean 'vits16'"),
        ("segmenter.kind: {choices: [unet, unett]}", "segmenter.kind", "'unett'", "did you mean 'unet'"),
        ("guide.lora: {choices: [1, 2]}", "guide.lora", "", "no mapping"),
        ("segmenter.kind: {choices: [unet, segguidino]}\nguide.gate: {choices: [input, features]}", "guide.gate", "", "is no place in"),
        ("guide.kind: {choices: [dino, none]}\nsegmenter.kind: {choices: [unet, segdino]}", "segmenter.kind", "'segdino'", "needs guide"),
    ],
)
def test_an_invalid_value_is_named_with_its_parameter_only(text: str, path: str, value: str, reason: str) -> None:
    above, below = "training.weight_decay: {type: float, low: 0.001, high: 0.1}", "loss.batch_dice: {choices: [true, false]}"
    found = message(space_of(f"{above}\n{text}\n{below}"))
    assert found.startswith(f"mine.yaml, space.{path}: {value}")
    assert reason in found
    assert "makes no valid experiment" in found
    assert "weight_decay" not in found
    assert "batch_dice" not in found


def test_a_value_between_valid_ends_may_be_invalid() -> None:
    found = message(space_of("segmenter.kind: {choices: [nnwnet]}\nsegmenter.base_width: {type: int, low: 8, high: 16}"))
    assert found.startswith("mine.yaml, space.segmenter.base_width: ")
    check_space(space_of("segmenter.kind: {choices: [nnwnet]}\nsegmenter.base_width: {type: int, low: 8, high: 16, step: 2}"))


@pytest.mark.parametrize(
    ("text", "upper", "lower"),
    [
        (f"{ALPHA}: {{choices: [1, 2], when: {{{RANK}: {{gt: 0}}}}}}\n{RANK}: {{choices: [0, 4]}}", ALPHA, RANK),
        ("segmenter.base_width: {choices: [8, 16]}\nsegmenter.kind: {choices: [unet, nnwnet]}", "segmenter.base_width", "segmenter.kind"),
    ],
)
def test_a_parameter_stands_below_what_decides_about_it(text: str, upper: str, lower: str) -> None:
    found = message(space_of(text))
    assert f"space.{upper}" in found
    assert f"move it below {lower}" in found


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        ({"training.lr": 2.0}, ["first_trials[1].training.lr", "2.0 lies outside 0.1 .. 1"]),
        ({"training.lrr": 0.5}, ["first_trials[1].training.lrr", "not searched", "'training.lr'"]),
        ({"training.epochs": 5}, ["first_trials[1].training.epochs", "not searched", "`experiment`"]),
        ({"segmenter.kind": "segdino"}, ["first_trials[1].segmenter.kind", "'segdino' lies outside unet, nnwnet"]),
        ({"training.lr": "fast"}, ["first_trials[1].training.lr", "'fast' lies outside"]),
    ],
)
def test_first_trials_outside(trial: dict[str, Any], expected: list[str]) -> None:
    text = "segmenter.kind: {choices: [unet, nnwnet]}\ntraining.lr: {type: float, low: 0.1, high: 1}"
    found = message(space_of(text, first_trials=[{"training.lr": 0.5}, trial]))
    assert all(part in found for part in expected), found


def test_first_rung_within_the_budget() -> None:
    space = space_of("training.lr: {choices: [0.1, 1.0]}", study={"min_epochs": 500})
    assert "min_epochs 500 is above training.epochs 400" in message(space)


def test_removing_the_guide_leaves_the_plain_networks() -> None:
    space = without_idle(override(load_space("kvasir"), ["guide.kind=none"]))
    check_space(space)
    assert space.parameters["segmenter.kind"].choices == ("unet", "nnunet", "nnwnet", "swinunet", "h2former", "ukan")
    assert {t["segmenter.kind"] for t in space.first_trials} == {"unet", "nnwnet"}
    assert any("segdino, segguidino, dinounet" in note for note in space.notes)


def test_a_precision_that_depends_on_the_node_is_no_choice() -> None:
    space = space_of("training.precision: {choices: [auto, fp32]}")
    assert "another precision on another node" in message(space)
    assert "training.precision=auto" in message(space)
