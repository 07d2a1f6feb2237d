"""Spaces: the shipped ones, conditions, overrides, checks and their messages, and Optuna's view of them."""

from __future__ import annotations

import importlib.resources
import random
import statistics
import tomllib
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from fuzz_helpers import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from guidino_tune.config import BACKBONES, DINOGuide
from guidino_tune.errors import UserError
from guidino_tune.space.check import check_space
from guidino_tune.space.parameters import Bounds, Parameter, get_path
from guidino_tune.space.space import Space, load_space, names, override, read_space
from guidino_tune.space.suggest import suggest

optuna.logging.set_verbosity(optuna.logging.WARNING)
ROOT = Path(__file__).parents[2]
REAL = ("kvasir", "isic2017", "tn3k")
RANK, ALPHA, LORA_LR = "guide.lora.rank", "guide.lora.alpha", "training.lora_lr"


def space_of(text: str, **sections: Any) -> Space:
    """A space over a small guided U-Net with these parameters (YAML)."""
    experiment = {"data": {"kind": "demo", "image_size": 64}, "guide": {"kind": "dino", "backbone": "tiny"}, "segmenter": {"kind": "unet"}}
    values = {"experiment": experiment, "space": yaml.safe_load(text), **sections}
    return read_space(values, source="mine.yaml")


# ------------------------------------------------------------------------------------------------------------ the shipped spaces


def test_shipped_names() -> None:
    assert names() == ["demo", "isic2017", "kvasir", "tn3k"]


@pytest.mark.parametrize("name", names())
def test_shipped_spaces_are_sound(name: str) -> None:
    space = load_space(name)
    check_space(space)
    assert space.study.name == name
    assert space.base.data.kind == name
    assert space.base.data.root is None
    assert space.notes == ()


@pytest.mark.parametrize("name", REAL)
def test_real_data_sets_search_what_the_paper_leaves_open(name: str) -> None:
    parameters = load_space(name).parameters
    assert (parameters["loss.lambda_guide"].type, parameters["loss.lambda_guide"].log) == ("float", True)
    prototypes = parameters["guide.tokenbook.num_prototypes"]
    assert (prototypes.type, prototypes.log) == ("int", True)
    assert parameters["loss.hinge_weight"].contains(0.0)
    assert parameters["loss.hinge_weight"].contains(0.1)
    assert set(parameters["guide.backbone"].choices) == {"vits16", "vitb16", "vitl16"} <= set(BACKBONES)
    assert {"unet", "nnwnet", "segguidino"} <= set(parameters["segmenter.kind"].choices)
    assert (parameters["training.lr"].type, parameters["training.lr"].log) == ("float", True)
    assert parameters["guide.train"].choices == ("frozen", "lora")  # half of what is drawn at random shares its tokens
    assert len(parameters[RANK].choices) > 1
    assert all(parameters[path].when == {"guide.train": "lora"} for path in (RANK, ALPHA, LORA_LR))


PAPER = {
    # Images 256x256, batch 4, learning rate 1e-4, adapters with AdamW at 5e-4, frozen ViT-S/16 (section "Implementation"); what the
    # paper leaves open is its code's: lambda 0.1, one prototype per patch, no hinge loss, LoRA with rank 8 and alpha 16.
    "guide.backbone": "vits16", "guide.train": "frozen", "guide.tokenbook.aggregation": "weighted",
    "loss.lambda_guide": 0.1, "loss.hinge_weight": 0.0, "training.lr": 0.0001,
}  # fmt: skip
ADAPTED = {"guide.train": "lora", RANK: 8, ALPHA: 16, LORA_LR: 0.0005}


@pytest.mark.parametrize("name", REAL)
def test_first_trials_are_the_papers_settings(name: str) -> None:
    space = load_space(name)
    assert list(space.first_trials) == [
        {"segmenter.kind": "segguidino", **PAPER},
        {"segmenter.kind": "nnwnet", "guide.gate": "input", **PAPER},
        {"segmenter.kind": "unet", "guide.gate": "bottleneck", **PAPER},
        {"segmenter.kind": "nnwnet", "guide.gate": "input", **PAPER, **ADAPTED},
        {"segmenter.kind": "segguidino", **PAPER, **ADAPTED},
    ]
    experiments = [space.experiment(trial) for trial in space.first_trials]
    assert [e.name for e in experiments] == ["Seg-GuiDINO", "GuiDINO-W", "GuiDINO-U", "GuiDINO-W-LoRA", "Seg-GuiDINO-LoRA"]
    assert len({e.hash for e in experiments}) == 5
    for e in experiments:
        assert (e.data.image_size, e.data.augmentation, e.training.batch_size, e.training.lr) == (256, "nnunet", 4, 1e-4)
        assert (e.training.optimizer, e.loss.guide_loss, e.loss.lambda_guide) == ("adamw", "bce", 0.1)
        assert isinstance(e.guide, DINOGuide)
        assert (e.guide.tokenbook.similarity, e.guide.weights) == ("cosine", "pretrained")
        assert e.gate == e.segmenter.gates[0]  # the paper's place


@pytest.mark.parametrize("name", names())
def test_first_trials_lie_inside_and_name_every_active_parameter(name: str) -> None:
    space = load_space(name)
    for trial in space.first_trials:
        assert all(space.parameters[path].contains(value) for path, value in trial.items())
        active, _ = space.walk(lambda path, _, trial=trial: trial[path])  # type: ignore[misc]  # one that is not named raises
        assert active == trial


# ------------------------------------------------------------------------------------------------------------------- conditions


@given(seed=st.integers(0, 10**9), name=st.sampled_from(names()))
@examples(25)
def test_adapter_parameters_are_drawn_exactly_with_adapters(seed: int, name: str) -> None:
    generator = random.Random(seed)
    space = load_space(name)
    values, mapping = space.walk(lambda _, parameter: parameter.draw(generator))
    rank = values.get(RANK, 0)
    assert isinstance(rank, int)
    assert (ALPHA in values, LORA_LR in values) == (rank > 0, rank > 0)
    assert all(space.parameters[path].contains(value) for path, value in values.items())
    experiment = space.experiment(values)
    assert all(get_path(experiment.to_dict(), path) == value == get_path(mapping, path) for path, value in values.items())
    assert experiment.name.endswith("-LoRA") == (rank > 0)


@pytest.mark.parametrize(
    ("condition", "value", "active"),
    [
        ("{gt: 0}", 0, False), ("{gt: 0}", 1, True), ("{ge: 1, lt: 3}", 3, False), ("{ge: 1, lt: 3}", 1, True),
        ("{le: 2}", 2, True), ("{le: 2}", 3, False), ("8", 8, True), ("8", 4, False), ("[4, 8]", 4, True), ("[4, 8]", 16, False),
        ("{gt: 0}", "text", False),
    ],
)  # fmt: skip
def test_conditions(condition: str, value: Any, active: bool) -> None:
    parameter = Parameter(type="float", low=1, high=2, when={RANK: yaml.safe_load(condition)})
    assert parameter.active({"guide": {"lora": {"rank": value}}}) is active


def test_a_condition_on_a_field_that_is_not_there_does_not_hold() -> None:
    parameter = Parameter(type="float", low=1, high=2, when={RANK: Bounds(ge=0), "guide.kind": "none"})
    assert not parameter.active({"guide": {"kind": "none"}})


def test_what_is_searched_on_a_log_scale_is_drawn_on_it() -> None:
    rate, number = Parameter(type="float", low=1e-5, high=1e-1, log=True), Parameter(type="int", low=1, high=10_000, log=True)
    generator = random.Random(0)
    assert statistics.median(rate.draw(generator) for _ in range(2000)) == pytest.approx(1e-3, rel=0.3)
    assert statistics.median(number.draw(generator) for _ in range(2000)) == pytest.approx(100, rel=0.3)


@given(
    low=st.integers(-20, 20),
    steps=st.integers(0, 30),
    step=st.sampled_from([None, 1, 3, 0.25]),
    kind=st.sampled_from(["int", "float"]),
    seed=st.integers(0, 999),
)
@settings(deadline=None)
def test_draws_and_ends_lie_inside_and_are_what_optuna_accepts(low: int, steps: int, step: float | None, kind: Any, seed: int) -> None:
    if kind == "int" and step == 0.25:
        step = 2
    parameter = Parameter(type=kind, low=low, high=low + steps * (step or 1), step=step)
    distribution: Any = (
        optuna.distributions.IntDistribution(*parameter.limits, step=int(step or 1))
        if kind == "int"
        else optuna.distributions.FloatDistribution(*parameter.limits, step=step)
    )
    for value in (parameter.draw(random.Random(seed)), *parameter.ends):
        assert parameter.contains(value)
        assert distribution._contains(distribution.to_internal_repr(value))


@pytest.mark.parametrize(
    ("parameter", "value", "inside"),
    [
        ({"type": "float", "low": 0.01, "high": 1}, 1, True),
        ({"type": "float", "low": 0.01, "high": 1}, 0.009, False),
        ({"type": "float", "low": 0.01, "high": 1}, True, False),
        ({"type": "float", "low": 0.01, "high": 1}, "0.1", False),
        ({"type": "float", "low": 0, "high": 1, "step": 0.1}, 0.3, True),
        ({"type": "float", "low": 0, "high": 1, "step": 0.1}, 0.35, False),
        ({"type": "int", "low": 1, "high": 9}, 2.5, False),
        ({"type": "int", "low": 8, "high": 64, "step": 8}, 24, True),
        ({"type": "int", "low": 8, "high": 64, "step": 8}, 20, False),
        ({"type": "choice", "choices": [0.0, 0.1]}, 0, True),
        ({"type": "choice", "choices": [0.0, 0.1]}, False, False),
        ({"type": "choice", "choices": ["a", None]}, None, True),
        ({"type": "choice", "choices": ["a", None]}, "b", False),
    ],
)
def test_contains(parameter: dict[str, Any], value: Any, inside: bool) -> None:
    assert Parameter(**parameter).contains(value) is inside


# --------------------------------------------------------------------------------------------------------------- files and names


def test_unknown_space_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'kvasir'"):
        load_space("kvasr")
    with pytest.raises(UserError, match="no such file"):
        load_space("./no_such.yaml")


def test_exponents_without_a_dot_are_numbers_in_a_space(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "experiment: {data: {kind: demo}}\n"
        "space:\n"
        "  training.lr: {type: float, low: 1e-5, high: 1E-2, log: true}\n"
        "  training.lora_lr: {choices: [1e-4, 5e-4], when: {training.lr: {gt: 1e-9}}}\n"
        "first_trials: [{training.lr: 1e-4, training.lora_lr: 5e-4}]\n"
    )
    space = load_space(str(file))
    assert space.parameters["training.lr"].limits == (1e-5, 1e-2)
    assert space.parameters["training.lora_lr"].choices == (1e-4, 5e-4)
    assert space.first_trials == ({"training.lr": 1e-4, "training.lora_lr": 5e-4},)
    assert space.study.name == "mine"


@pytest.mark.parametrize("name", names())
def test_a_space_survives_its_own_dictionary(name: str) -> None:
    space = override(load_space(name), ["training.epochs=12", "study.trials=7"])
    again = read_space(yaml.safe_load(yaml.safe_dump(space.to_dict(), sort_keys=False)), source=space.source)
    assert again.to_dict() == space.to_dict()
    for field in ("base", "parameters", "first_trials", "study", "resources"):
        assert getattr(again, field) == getattr(space, field), field


def test_zero_and_false_survive_the_dictionary() -> None:
    space = space_of(
        "loss.hinge_weight: {type: float, low: 0, high: 0.5, step: 0.1}\n"
        "loss.batch_dice: {choices: [false, true]}\n"
        "training.grad_clip: {choices: [null, 1.0]}\n"
        "loss.hinge_margin: {type: float, low: 0.5, high: 2, log: true, when: {loss.hinge_weight: {gt: 0}, loss.batch_dice: [false]}}\n"
    )
    again = read_space(yaml.safe_load(yaml.safe_dump(space.to_dict(), sort_keys=False)), source="mine.yaml")
    assert again.parameters == space.parameters
    assert list(again.parameters) == list(space.parameters)


# ----------------------------------------------------------------------------------------------------------------------- Optuna


def study_of(seed: int = 0) -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))


@pytest.mark.parametrize("name", names())
def test_enqueued_first_trials_come_as_they_are(name: str) -> None:
    space, study = load_space(name), study_of()
    for values in space.first_trials:
        study.enqueue_trial(dict(values))
    for values in space.first_trials:
        assert suggest(space, study.ask()) == values


@given(seed=st.integers(0, 2**31), name=st.sampled_from(names()))
@examples(15)
def test_the_same_trial_asked_again_gives_the_same_values(seed: int, name: str) -> None:
    space, study = load_space(name), study_of(seed)
    trial = study.ask()
    values = suggest(space, trial)
    frozen = study.get_trials(deepcopy=False)[0]
    assert frozen.params == values
    # As after a dead driver: another Trial object, and a sampler that would draw something else.
    study.sampler = optuna.samplers.RandomSampler(seed=seed + 1)
    again = optuna.trial.Trial(study, frozen._trial_id)
    assert suggest(space, again) == values
    assert space.experiment(suggest(space, again)).hash == space.experiment(values).hash


def test_distributions_are_those_of_the_space() -> None:
    space = space_of(
        "training.lr: {type: float, low: 0.001, high: 1, log: true}\n"
        "training.batch_size: {type: int, low: 2, high: 8, step: 2}\n"
        "guide.tokenbook.num_prototypes: {type: int, low: 4, high: 64, log: true}\n"
        "loss.hinge_weight: {choices: [0.0, 0.1]}\n"
    )
    study = study_of()
    suggest(space, study.ask())
    d = optuna.distributions
    assert study.get_trials()[0].distributions == {
        "training.lr": d.FloatDistribution(0.001, 1, log=True),
        "training.batch_size": d.IntDistribution(2, 8, step=2),
        "guide.tokenbook.num_prototypes": d.IntDistribution(4, 64, log=True),
        "loss.hinge_weight": d.CategoricalDistribution([0.0, 0.1]),
    }


def test_a_tpe_study_stays_inside_with_conditions() -> None:
    space = load_space("demo")
    sampler = optuna.samplers.TPESampler(seed=1, n_startup_trials=5, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(25):
        trial = study.ask()
        values = suggest(space, trial)
        assert (ALPHA in values) == (values[RANK] != 0)
        assert all(space.parameters[path].contains(value) for path, value in values.items())
        study.tell(trial, space.experiment(values).training.lr)


# ----------------------------------------------------------------------------------------------------------------- package data


def test_an_installed_package_holds_the_spaces() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    package = "guidino_tune.search_spaces"
    assert settings["package-dir"] == {"guidino_tune": "guidino_tune", package: "search_spaces"}
    patterns = settings["package-data"][package]
    shipped = {p for p in (ROOT / "search_spaces").rglob("*") if p.is_file()}
    assert {p for pattern in patterns for p in (ROOT / "search_spaces").glob(pattern)} == shipped
    modules = {p.parent.relative_to(ROOT) for p in (ROOT / "guidino_tune").rglob("*.py")}
    assert set(settings["packages"]) == {".".join(folder.parts) for folder in modules} | {package}


def test_an_installed_package_reads_its_own_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "mine.yaml").write_text("experiment: {data: {kind: demo}}\n")
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
    assert names() == ["mine"]
    assert load_space("mine").source == str(tmp_path / "search_spaces" / "mine.yaml")
