"""Whatever stands in a configuration, it is a valid one or one message that names the file and the path in it."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzz_helpers import FULL, SPACE, checked, examples, mappings_of
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from guidino_tune.config import Experiment, Resources, Study
from guidino_tune.config.parsing import parse
from guidino_tune.errors import UserError
from guidino_tune.space.parameters import get_path, leaf_paths


def attempt(cls: type[Any], values: dict[str, Any]) -> tuple[Any, str]:
    """What the values make, or ``None`` and the message."""
    try:
        return parse(cls, values, "f.yaml"), ""
    except UserError as error:
        return None, str(error)


@given(values=mappings_of(Experiment))
@examples(50)
def test_a_drawn_experiment_is_valid_and_the_same_from_dictionary_and_yaml_or_is_told_why_not(values: dict[str, Any]) -> None:
    before = copy.deepcopy(values)
    made, told = attempt(Experiment, values)
    if made is None:
        # Each value is within its limits: what is wrong is how two of them fit, and one of them is named.
        assert told.startswith("f.yaml: ")
        assert any(part in told for part in ("guide.", "data.", "'data' = ", "loss: ", "loss.", "segmenter '", "'segmenter")), told
        return
    assert values == before
    follows = {"data.num_classes"} if values["data"].get("labels") else set()
    paths = [path for path in leaf_paths(values) if path not in follows and get_path(values, path) != {}]
    assert all(get_path(made.to_dict(), path) == get_path(values, path) for path in paths)
    for again in (
        Experiment.from_dict(made.to_dict()),
        Experiment.from_dict(yaml.safe_load(made.to_yaml())),
        Experiment.from_dict(yaml.safe_load(yaml.safe_dump(values, sort_keys=False))),
    ):
        assert again == made
        assert (again.hash, again.to_yaml()) == (made.hash, made.to_yaml())


def test_enough_of_what_is_drawn_is_valid() -> None:
    found: list[bool] = []

    @given(values=mappings_of(Experiment))
    @settings(max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    def draw(values: dict[str, Any]) -> None:
        found.append(attempt(Experiment, values)[0] is not None)

    draw()
    assert sum(found) > len(found) / 4


@pytest.mark.parametrize("cls", [Study, Resources])
def test_drawn_settings_are_the_same_from_their_dictionary(cls: type[Any]) -> None:
    @given(values=mappings_of(cls))
    @examples(40)
    def check(values: dict[str, Any]) -> None:
        made, told = attempt(cls, values)
        assert any(name in told for name in ("_per_gpu", "gpus_per_worker", "objectives", "pruner", "_options")) is (
            made is None
        )  # how they fit the others
        if made is not None:
            assert attempt(cls, yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(made)))))) == (made, "")

    check()


# ------------------------------------------------------------------------------------------------------------------- mutations

WRONG = [
    [], {}, [1, "x"], {"a": 1}, [[[[[]]]]], float("nan"), float("inf"), float("-inf"), -1, 10**400, -(10**30), datetime.date(2020, 1, 1),
    datetime.datetime(2020, 1, 1, 12), {"x"},
]  # fmt: skip
"""No field takes any of them; every number has a lower limit of 0 or above."""
NAMES = ["zzz", "Kind", "kind ", "", " ", "ä", "\u202e", "a.b", "<<", "__class__", "a" * 300, 5, 1.5, None, True, datetime.date(2020, 1, 1)]
MAPPINGS = ["", "data", "guide", "guide.tokenbook", "guide.lora", "segmenter", "loss", "training"]


def changed(values: dict[str, Any], path: str, change: Callable[[dict[Any, Any], str], None]) -> dict[str, Any]:
    """A copy in which ``change`` was called with the mapping that holds the path's last name, and with that name."""
    made = copy.deepcopy(values)
    *above, last = path.split(".")
    change(get_path(made, ".".join(above)) if above else made, last)
    return made


def refused(values: Any, folder: Path, read: Callable[[Path], Any] = Experiment.from_yaml) -> str:
    """Writes the values as YAML, checks that reading them ends with a message about that file, and returns it."""
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read(file)
    assert str(caught.value).startswith(str(file)), caught.value
    assert len(str(caught.value)) < 3000
    return str(caught.value)


@given(path=st.sampled_from(leaf_paths(FULL)), wrong=st.sampled_from(WRONG))
@examples(30)
def test_a_wrong_value_is_told_with_its_path(tmp_path: Path, path: str, wrong: Any) -> None:
    assert f"'{path}" in refused(changed(FULL, path, lambda level, name: level.update({name: wrong})), tmp_path)


@given(path=st.sampled_from(MAPPINGS[1:]), wrong=st.sampled_from([*WRONG, None, "text", 5, True]))
@examples(30)
def test_a_value_in_the_place_of_a_section_is_told_with_its_path(tmp_path: Path, path: str, wrong: Any) -> None:
    assume(wrong != {} or path in ("data", "guide", "segmenter"))
    assert f"'{path}" in refused(changed(FULL, path, lambda level, name: level.update({name: wrong})), tmp_path)


@given(path=st.sampled_from(MAPPINGS), name=st.sampled_from(NAMES), value=st.sampled_from([*WRONG, 1, "x", None]))
@examples(50)
def test_an_unknown_name_is_told_with_its_path(tmp_path: Path, path: str, name: Any, value: Any) -> None:
    def change(level: dict[Any, Any], last: str) -> None:
        (level[last] if path else level)[name] = value

    told = refused(changed(FULL, path or "data", change), tmp_path)
    assert f"'{path}{'.' if path else ''}" in told
    if isinstance(name, str):
        assert f"'{path}{'.' if path else ''}{name}'" in told


@given(section=st.sampled_from(MAPPINGS[1:]), place=st.sampled_from(MAPPINGS[1:]))
@examples(30)
def test_a_section_inside_another_one_is_told_with_its_path(tmp_path: Path, section: str, place: str) -> None:
    last = section.rpartition(".")[2]
    assume(place != section and last not in get_path(FULL, place))
    told = refused(changed(FULL, f"{place}.{last}", lambda level, name: level.update({name: get_path(FULL, section)})), tmp_path)
    assert f"'{place}.{last}'" in told


@pytest.mark.parametrize("path", ["data", "data.kind", "guide.kind", "segmenter.kind"])
def test_what_is_missing_is_told_with_its_path(tmp_path: Path, path: str) -> None:
    told = refused(changed(FULL, path, lambda level, name: typing.cast(None, level.pop(name))), tmp_path)
    assert f"'{path}' is missing" in told


# ----------------------------------------------------------------------------------------------------------- space, study, resources


def spaced(*path: str | int, to: Any) -> dict[str, Any]:
    made = copy.deepcopy(SPACE)
    level: Any = made
    for step in path[:-1]:
        level = level[step]
    level[path[-1]] = to
    return made


@given(
    section=st.sampled_from(["experiment", "space", "study", "resources", "first_trials", "recipes"]),
    wrong=st.sampled_from([*WRONG, "", "text", 0, 5, False, True]),
)
@examples(30)
def test_a_value_in_the_place_of_a_part_of_a_space_is_told_with_it(tmp_path: Path, section: str, wrong: Any) -> None:
    assume(wrong not in ({}, []) or section == "experiment")
    assert section in refused(spaced(section, to=wrong), tmp_path, checked)


@given(
    path=st.sampled_from(list(SPACE["space"])),
    field=st.sampled_from([None, "type", "low", "choices", "when"]),
    wrong=st.sampled_from(WRONG),
)
@examples(50)
def test_a_wrong_parameter_is_told_with_its_path(tmp_path: Path, path: str, field: str | None, wrong: Any) -> None:
    place = ("space", path) if field is None else ("space", path, field)
    assume((field, wrong) not in (("when", {}), ("choices", [])))
    assert f"space.{path}" in refused(spaced(*place, to=wrong), tmp_path, checked)


@given(path=st.sampled_from(list(SPACE["first_trials"][0])), wrong=st.sampled_from([*WRONG, "zzz", True, None]))
@examples(30)
def test_a_wrong_first_trial_is_told_with_its_path(tmp_path: Path, path: str, wrong: Any) -> None:
    assert f"first_trials[0].{path}" in refused(spaced("first_trials", 0, path, to=wrong), tmp_path, checked)


@given(section=st.sampled_from([("study", Study), ("resources", Resources)]), data=st.data(), wrong=st.sampled_from(WRONG))
@examples(50)
def test_wrong_settings_are_told_with_their_path(tmp_path: Path, section: tuple[str, type], data: st.DataObject, wrong: Any) -> None:
    name = data.draw(st.sampled_from([field.name for field in dataclasses.fields(section[1])]))
    assume((name, wrong) != ("constraints", {}))
    told = refused(spaced(section[0], name, to=wrong), tmp_path, checked)
    assert f"mine.yaml, {section[0]}: '{name}" in told


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("space: {training.lr: {type: float, low: 0.1, high: 1, step: 1.0e-320}}", "space.training.lr"),
        ("space: {training.lr: {type: float, low: -1.0e+308, high: 1.0e+308}}", "space.training.lr"),
        ("space: {training.lr: {type: float, low: on, high: 1}}", "'low' = True"),
        ("space: {training.epochs: {type: int, low: 1, high: 1.0e+300}}", "whole numbers up to"),
        ("space: {training.lr: {type: float, low: 1, high: 2, when: {training.epochs: {gtt: 1}}}}", "'when.training.epochs'"),
        ("space: {training.lr: {type: float, low: 1, high: 2, when: {training.epochs: {}}}}", "'when.training.epochs'"),
        ("space: {training.lr: {type: float, low: 1, high: 2, when: {training.epochs: {gt: on}}}}", "'when.training.epochs'"),
        ("space: {segmenter.branch_widths: {choices: [[1, 2, 3, 4], [2, 2, 2, 2]]}}", "'choices.0' = [1, 2, 3, 4]: one value"),
        ("space: {recipe: {choices: [a]}}", "every recipe's name"),
        ("space: {training.lr: {choices: [1.0, 2.0]}}\nfirst_trials: [{5: 1}]", "first_trials[0].5"),
        ("space: {training.lr: {choices: [1.0, 2.0]}}\nfirst_trials: [{5: 1, x: 1, training.lr: 1.0}]\nstudy: {sampler: listed}", "[0].5"),
        ("space: {segmenter.kind: {choices: [unet, nnwnet]}}\nfirst_trials: [{segmenter.kind: [unet]}]", "first_trials[0].segmenter.kind"),
        ("study: {seed: on}", "'seed' = True"),
        ("study: {seed: 5000000000}", "'seed' = 5000000000"),  # NumPy, on which Optuna builds, takes 32 bits
        ("study: {reduction_factor: yes}", "'reduction_factor' = True"),
        ("study: {name: \"a\\n\"}", "'name'"),
        ("resources: {max_failures: on}", "'max_failures' = True"),
        ("resources: {trials_per_gpu: on}", "'trials_per_gpu' = True"),
        ("resources: {views_folder: \"a\\0b\"}", "'views_folder'"),
        ("space: 0", "space"),
        ("first_trials: ''", "first_trials"),
    ],
)  # fmt: skip
def test_odd_values_of_a_space(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"experiment: {{data: {{kind: demo}}}}\n{text}\n")
    with pytest.raises(UserError) as caught:
        checked(file)
    assert str(caught.value).startswith(f"{file}, ")
    assert part in str(caught.value)
