"""Recipes and tables: every file is a valid space, says what the paper says, and makes the studies that are asked for."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import yaml

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.config.parsing import read_yaml
from guidino_tune.errors import UserError
from guidino_tune.space.check import check_space
from guidino_tune.space.recipes import BUDGETS, Request, datasets, load_tables, planned, recipe
from guidino_tune.space.space import RECIPE, Space, load_space, override, read_space, shipped

FILES = sorted(p.relative_to(shipped()).with_suffix("").as_posix() for p in (shipped() / "recipes").glob("*/*.yaml"))
TABLES = load_tables()


def ask(**values: Any) -> Request:
    return Request(**{"datasets": ("kvasir",), **values})


ROWS = {row.system: row for table in TABLES.values() for row in table.rows}


@pytest.mark.parametrize("name", FILES)
def test_every_recipe_is_a_checked_space(name: str) -> None:
    space = load_space(name)
    dataset, stem = name.split("/")[1:]
    if dataset == "kvasir" or stem.endswith("-reference"):
        check_space(space)  # the others differ from Kvasir's in nothing but the data set
    else:
        twin = load_space(f"recipes/kvasir/{stem}")
        assert space.parameters == twin.parameters
        assert dataclasses.replace(space.base, data=twin.base.data) == twin.base
    assert space.parameters
    assert space.base.data.kind == dataset
    assert space.study.name == f"{dataset}-{stem}"


@pytest.mark.parametrize("dataset", datasets())
def test_every_row_has_its_system_with_the_papers_settings(dataset: str) -> None:
    for row in ROWS.values():
        made = recipe(dataset, row)
        assert made is not None
        assert row.system.startswith(made.name.removesuffix("-LoRA"))
        assert ("LoRA" in row.system) == (made.name.endswith("-LoRA") and row.system != "MedDINOv3")
        training = made.training
        assert (made.data.image_size, training.epochs, training.batch_size, training.lr) == (256, 400, 4, 1e-4)
        if isinstance(made.guide, DINOGuide) and made.guide.lora.rank:
            assert (training.optimizer, training.lora_lr, made.guide.lora.rank) == ("adamw", 5e-4, 8)
        if made.gate:
            assert (made.loss.guide_loss, made.guide.tokenbook.aggregation) == ("bce", "weighted")  # type: ignore[union-attr]


def test_every_file_belongs_to_a_row() -> None:
    stems = {row.recipe for row in ROWS.values()}
    assert {name.rpartition("/")[2].removesuffix("-reference") for name in FILES} == stems


@pytest.mark.parametrize(
    ("dataset", "system", "expected"),
    [
        ("kvasir", "U-Net", (512, "zscore", "sgd", 1e-2, "poly", 1000)),
        ("isic2017", "GuiDINO-W", (512, "imagenet", "sgd", 1e-2, "cosine", 400)),
        ("tn3k", "GuiDINO-U", (352, "imagenet", "adamw", 1e-4, "poly", 400)),
        ("tn3k", "GuiDINO-W-LoRA", (256, "imagenet", "adamw", 1e-6, "poly", 400)),
        ("kvasir", "SegDINO", (256, "imagenet", "adamw", 1e-4, "cosine", 50)),
    ],
)
def test_reference_recipes_have_the_codes_settings(dataset: str, system: str, expected: tuple[object, ...]) -> None:
    made = recipe(dataset, ROWS[system], reference=True)
    assert made is not None
    t = made.training
    assert (made.data.image_size, made.data.normalisation, t.optimizer, t.lr, t.schedule, t.epochs) == expected
    assert made.loss.head_target == "nearest"
    if made.gate:
        assert (made.loss.guide_loss, made.loss.guide_target, made.guide.tokenbook.aggregation) == ("mse", "nearest", "mean")  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("-reference")])
def test_reference_recipes_read_images_as_the_code_does(name: str) -> None:
    """Squeezed, masks by the nearest pixel, and the corner of each cell; ImageNet's statistics with DINO only."""
    made = load_space(name).base
    assert (made.data.resize, made.data.mask_resize, made.loss.head_target) == ("squash", "nearest", "nearest")
    assert made.data.normalisation == ("imagenet" if isinstance(made.guide, DINOGuide) else "zscore")
    text = (shipped() / f"{name}.yaml").read_text()
    assert "halos of\n# JPEG compression" in text


ORDER = ("kvasir", "isic2017", "tn3k")
PRINTED = """
1 nnU-Net 83.92/89.71/20.85 82.30/89.18/13.38 72.81/82.38/33.47
1 SwinUNet - - -
1 H2Former 83.87/89.50/19.81 82.56/89.36/13.04 -
1 U-KAN 63.81/72.17/36.92 74.62/83.41/23.57 69.60/78.66/24.49
1 nnWNet 84.58/89.98/18.17 82.62/89.44/12.73 66.46/76.02/38.61
1 SegDINO 80.64/87.65/18.62 77.60/85.76/20.80 74.43/83.18/18.62
1 GuiDINO-W 84.82/90.86/17.50 82.32/89.81/13.14 74.48/83.40/24.80
2 U-Net 70.29/79.16/41.58 72.95/81.87/41.58 70.65/79.45/24.59
2 GuiDINO-U 83.18/89.51/17.78 81.24/88.78/17.86 72.09/81.41/24.97
2 nnWNet 84.58/89.98/18.17 82.62/89.44/12.73 66.46/76.02/38.61
2 GuiDINO-W 84.82/90.86/17.50 82.32/89.81/13.14 74.48/83.40/24.80
3 SegDINO 80.64/89.65/18.62 77.60/85.76/20.80 74.43/83.18/18.62
3 Seg-GuiDINO 79.10/87.23/18.64 81.08/89.23/16.42 61.67/73.08/16.13
3 Seg-GuiDINO-LoRA 87.37/92.72/12.16 79.54/88.11/16.56 74.58/83.56/21.41
3 GuiDINO-W 84.82/90.86/17.50 82.32/89.81/13.14 74.48/83.40/24.80
3 GuiDINO-W-LoRA 86.49/92.09/12.40 82.65/89.83/13.42 73.04/82.53/31.20
"""
"""As the paper prints them: table, system, then IoU/Dice/HD95 on Kvasir-SEG, ISIC 2017 and TN3K."""


def test_the_papers_numbers_are_those_of_the_tables() -> None:
    assert [len(TABLES[name].rows) for name in ("table1", "table2", "table3")] == [7, 4, 5]
    assert [row.system for row in TABLES["all"].rows] == [
        "nnU-Net", "SwinUNet", "H2Former", "U-KAN", "nnWNet", "SegDINO", "GuiDINO-W", "U-Net", "GuiDINO-U", "Seg-GuiDINO",
        "Seg-GuiDINO-LoRA", "GuiDINO-W-LoRA",
    ]  # fmt: skip
    by_table = {name: {row.system: row.paper for row in TABLES[name].rows} for name in ("table1", "table2", "table3")}
    lines = [line.split() for line in PRINTED.strip().splitlines()]
    assert [
        [
            name[5:],
            row.system.replace(" ", "_"),
            *(f"{'/'.join(f'{n:.2f}' for n in row.paper[k])}" if k in row.paper else "-" for k in ORDER),
        ]
        for name in ("table1", "table2", "table3")
        for row in TABLES[name].rows
    ] == lines
    assert by_table["table1"]["SegDINO"]["kvasir"] == (80.64, 87.65, 18.62)
    assert by_table["table3"]["SegDINO"]["kvasir"] == (80.64, 89.65, 18.62)  # the paper contradicts itself
    assert by_table["table1"]["SwinUNet"] == {"unnamed": (81.24, 88.38, 14.17)}
    for papers in by_table.values():
        for numbers in (n for paper in papers.values() for n in paper.values()):
            iou, dice, hd95 = numbers
            assert iou < dice < 100 and 10 < hd95 < 50  # noqa: PT018


# ------------------------------------------------------------------------------------------------------------------- studies


def only(request: Request) -> Space:
    (space,) = planned(request).spaces.values()
    return space


def test_a_table_lists_every_row_with_every_seed() -> None:
    space = only(ask(what="table2", seeds=2))
    assert space.study.name == "tables-kvasir"
    assert [(v[RECIPE], v["training.seed"]) for v in space.first_trials] == [
        (system, seed) for system in ("U-Net", "GuiDINO-U", "nnWNet", "GuiDINO-W") for seed in (0, 1)
    ]
    check_space(space)
    made = space.experiment(space.first_trials[3])
    assert (made.name, made.training.seed, made.training.epochs) == ("GuiDINO-U", 1, 400)


def test_more_rows_belong_to_the_same_study() -> None:
    one, two = only(ask(what="table2", rows=("U-Net",))).to_dict(), only(ask(what="table1")).to_dict()
    assert one.pop("first_trials") != two.pop("first_trials")
    one.pop("study"), two.pop("study")
    assert one == two
    bases = {name: only(ask(what=name, reference=True)).base for name in ("table1", "table2", "table3")}
    assert len({base.hash for base in bases.values()}) == 1  # else the study's images would differ from table to table


def test_a_table_space_is_read_back_from_its_yaml() -> None:
    space = only(ask(what="table3", budget="tiny"))
    again = read_space(yaml.safe_load(yaml.safe_dump(space.to_dict())), source="study.yaml")
    for values in space.first_trials:
        assert again.experiment(values) == space.experiment(values)


def test_budget_and_settings_reach_the_recipes_that_have_the_field() -> None:
    settings = ("training.lr=1e-3", "guide.backbone=tiny", "resources.concurrent=1", "data.root=/data")
    space = only(ask(what="table2", budget="tiny", settings=settings, epochs=5))
    plain, guided = (space.experiment({RECIPE: name, "training.seed": 0}) for name in ("U-Net", "GuiDINO-U"))
    for made in (plain, guided):
        assert (made.training.epochs, made.training.lr, made.data.image_size, made.data.root) == (5, 1e-3, 128, "/data")
    assert isinstance(guided.guide, DINOGuide)
    assert (guided.guide.backbone, guided.guide.weights) == ("tiny", "random")
    assert space.resources.concurrent == 1
    assert len(space.first_trials) == 4 * BUDGETS["tiny"].seeds


def test_a_setting_that_is_impossible_elsewhere_does_not_matter() -> None:
    space = only(ask(what="table2", settings=("data.image_size=48",)))
    assert "U-Net" in space.recipes
    assert "U-KAN" not in space.recipes  # needs multiples of 32
    with pytest.raises(UserError, match=r"recipe nnU-Net.*48 is no multiple of 32"):
        planned(ask(what="table1", settings=("data.image_size=48",)))


def test_reference_leaves_out_rows_without_a_recipe() -> None:
    plan = planned(ask(what="table1", reference=True))
    space = plan.spaces["kvasir"]
    assert space.study.name == "tables-kvasir-reference"
    assert {v[RECIPE] for v in space.first_trials} == {"nnWNet", "SegDINO", "GuiDINO-W"}
    assert sum("left out" in note for note in space.notes) == 4


def test_scaling_lists_the_grid() -> None:
    space = only(ask(what="scaling", backbones=("tiny", "vits16"), image_sizes=("64", "96"), seeds=1, budget="tiny"))
    check_space(space)
    assert space.study.name == "scaling-kvasir-tiny"
    made = [space.experiment(values) for values in space.first_trials]
    assert all(isinstance(m, Experiment) and m.name == "GuiDINO-W" for m in made)
    assert [(m.guide.backbone, m.data.image_size) for m in made] == [  # type: ignore[union-attr]
        ("tiny", 64), ("tiny", 96), ("vits16", 64), ("vits16", 96),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask(what="table1", rows=("GuiDINO-X",)), "no row 'GuiDINO-X'; did you mean 'GuiDINO-W'"),
        (ask(what="table1", datasets=("kvasr",)), "did you mean 'kvasir'"),
        (ask(what="table1", datasets=()), "names no data set"),
        (ask(what="table1", settings=("guide.lorra=3",)), "no recipe has a field 'guide.lorra'"),
        (ask(what="table1", settings=("training.lr=fast",)), "training.lr"),
        (ask(what="scaling", backbones=("vits17",), image_sizes=("64",)), "did you mean 'vits16'"),
        (ask(what="scaling", backbones=("vits16",), image_sizes=("big",)), "'big' is no image size"),
        (ask(what="scaling", rows=("U-Net",), backbones=("vits16",), image_sizes=("64",)), "no backbone to scale"),
        (ask(what="table2", datasets=("kvasir", "tn3k"), settings=("data.root=/x",)), "one data set at a time"),
        (ask(what="table1", rows=("U-KAN",), reference=True), "none of these rows has a recipe"),
        (ask(what="scaling", rows=("GuiDINO-W", "U-Net"), backbones=("vits16",), image_sizes=("64",)), "about one system"),
        (ask(what="scaling", rows=("GuiDINO-W-LoRA",), datasets=("isic2017",), reference=True), "no recipe of GuiDINO-W-LoRA"),
    ],
)
def test_mistakes_are_named(request_: Request, message: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(request_)
    assert message in str(caught.value)


def test_the_recipe_parameter_must_come_first_and_be_complete() -> None:
    values = only(ask(what="table2")).to_dict()
    values["space"] = dict(reversed(values["space"].items()))
    with pytest.raises(UserError, match="first parameter must be `recipe`"):
        read_space(values, source="x.yaml")


def test_settings_of_experiments_are_refused_where_recipes_decide() -> None:
    with pytest.raises(UserError, match="would change nothing"):
        override(only(ask(what="table2")), ["training.epochs=7"])


def test_values_count_in_the_order_of_the_space() -> None:
    space = only(ask(what="table2"))
    made = space.experiment({"training.seed": 5, "recipe": "U-Net"})  # the recipe would overwrite the seed
    assert (made.name, made.training.seed) == ("U-Net", 5)


def test_the_files_name_their_own_command() -> None:
    for name in FILES:
        text = (shipped() / f"{name}.yaml").read_text(encoding="utf-8")
        assert re.search(rf"guidino-tune search {re.escape(name)}$", text, re.MULTILINE)
        assert read_yaml(shipped() / f"{name}.yaml")
