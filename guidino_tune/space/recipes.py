"""The systems of the papers' tables as recipes, and spaces that list them: tables, and the scaling study."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guidino_tune.config import BACKBONES, Experiment, is_local_backbone
from guidino_tune.config.parsing import read_yaml
from guidino_tune.errors import UserError, nearest
from guidino_tune.space.parameters import Values, has_path
from guidino_tune.space.space import RECIPE, Space, absolute, load_space, override, read_space, shipped

ALL = "all"
"""The rows of tables 1 to 3 together, each once."""

SIZES = {"type": "int", "low": 32, "high": 2048, "step": 16}
SEEDS = {"type": "int", "low": 0, "high": 9999}


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A system of a table.

    Attributes:
        system: Its name.
        recipe: Name of its files in ``recipes/DATASET/``.
        paper: IoU and Dice in per cent and HD95 in pixels, by data set; ``unnamed`` where the paper does not say which.
    """

    system: str
    recipe: str
    paper: Mapping[str, tuple[float, float, float]]


@dataclasses.dataclass(frozen=True, slots=True)
class PaperTable:
    """A table of the paper: ``name`` as on the command line, ``title``, ``rows``."""

    name: str
    title: str
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """How much a table may cost.

    Attributes:
        seeds: Trainings of each system.
        settings: Values that replace the recipe's, wherever a recipe has such a field.
        test_cases: Only the first so many test cases; ``None`` takes all.
    """

    seeds: int
    settings: Mapping[str, Any]
    test_cases: int | None = None


FRAMES = {"kvasir": "native", "isic2017": "training", "tn3k": "training"}
"""Where GuiDINO's code compares masks, by data set, and in whose pixels distances are: those of the image, or of the training size."""

BUDGETS: dict[str, Budget] = {
    "full": Budget(3, {}),
    "short": Budget(3, {"training.epochs": 40}),
    "tiny": Budget(
        1,
        {
            "training.epochs": 2,
            "training.steps_per_epoch": "cases",
            "data.image_size": 128,
            "data.max_train_cases": 40,
            "data.max_validation_cases": 20,
            "guide.weights": "random",
        },
        test_cases=20,
    ),
}
"""``full``: as in the papers. ``short``: 40 epochs each. ``tiny``: only shows that everything runs; its numbers mean nothing."""


def datasets() -> list[str]:
    """Data sets that have recipes: those of the papers' tables."""
    return sorted(folder.name for folder in (shipped() / "recipes").iterdir() if folder.is_dir())


def load_tables() -> dict[str, PaperTable]:
    """The papers' tables by name, ``all`` (tables 1 to 3 without repetitions; each row with its first numbers) last."""
    tables = {}
    for name, table in read_yaml(shipped() / "recipes" / "tables.yaml").items():
        rows = [
            Row(row["system"], row["recipe"], {k: (v[0], v[1], v[2]) for k, v in row.items() if k not in ("system", "recipe")})
            for row in table["rows"]
        ]
        tables[name] = PaperTable(name, table["title"], tuple(rows))
    once: dict[str, Row] = {}
    for name in ("table1", "table2", "table3"):
        for row in tables[name].rows:
            once.setdefault(row.system, row)
    return {**tables, ALL: PaperTable(ALL, "Tables 1 to 3", tuple(once.values()))}


def choose_rows(table: PaperTable, systems: Sequence[str]) -> tuple[Row, ...]:
    """The rows with these names, in the table's order; all when none is named.

    Raises:
        UserError: No such row.
    """
    known = {row.system.lower(): row.system for row in table.rows}
    for name in systems:
        if name.lower() not in known:
            raise UserError(f"{table.name} has no row {name!r}; {nearest(name, known.values())}", where="--rows")
    wanted = {name.lower() for name in systems}
    return tuple(row for row in table.rows if not wanted or row.system.lower() in wanted)


def recipe(dataset: str, row: Row, *, reference: bool = False) -> Experiment | None:
    """The experiment of a row; ``None`` where there is no recipe with the reference code's settings."""
    name = f"recipes/{dataset}/{row.recipe}{'-reference' if reference else ''}"
    return load_space(name).base if (shipped() / f"{name}.yaml").is_file() else None


def paper_sizes(dataset: str, row: Row) -> set[int]:
    """Training sizes, in pixels, at which the paper's number of a row may have been measured: that of its text, and that of its code."""
    made = [recipe(dataset, row), recipe(dataset, row, reference=True)]
    return {one.data.image_size for one in made if one is not None}


def table_space(
    dataset: str, rows: Sequence[Row], budget: Budget, *, name: str, reference: bool = False, settings: Iterable[str] = ()
) -> Space:
    """A space whose only trials are these rows, each with every seed.

    It holds the recipe of every known row, so that the same study can be extended by other rows or more seeds.

    Args:
        dataset: Of ``datasets()``.
        rows: What is wanted now.
        budget: Seeds, and settings that replace those of the recipes.
        name: Of the study.
        reference: Take the settings of the reference code instead of the paper's, where there are any.
        settings: ``PATH=VALUE`` of study, resources, or experiment; of the experiment wherever a recipe has such a field.

    Raises:
        UserError: A setting is wrong or fits no recipe, or none of the rows has a recipe.
    """
    known = {row.system: row for table in load_tables().values() for row in table.rows}
    found = {system: made for system, row in known.items() if (made := recipe(dataset, row, reference=reference)) is not None}
    recipes = _with_settings(found, budget, list(settings), needed={row.system for row in rows})
    listed = [{RECIPE: row.system, "training.seed": seed} for row in rows if row.system in recipes for seed in range(budget.seeds)]
    if not listed:
        raise UserError(f"none of these rows has a recipe of the reference code on {dataset}", where="--variant reference")
    missing = [row.system for row in rows if row.system not in recipes]
    space = read_space(
        {
            "experiment": recipes[min(recipes)].to_dict(),  # the same for every choice of rows: the study's images are read as it says
            "recipes": {system: made.to_dict() for system, made in recipes.items()},
            "space": {RECIPE: {"choices": sorted(recipes)}, "training.seed": SEEDS},
            "first_trials": listed,
            "study": {"name": name, "sampler": "listed", "pruner": "none", "trials": len(listed)},
        },
        source=f"tables on {dataset}",
    )
    space = override(space, [text for text in settings if text.startswith(("study.", "resources."))])
    notes = tuple(f"the reference code has no recipe of {system} on {dataset}: left out" for system in missing)
    return dataclasses.replace(space, notes=(*space.notes, *notes))


def scaling_space(
    dataset: str,
    row: Row,
    backbones: Sequence[str],
    sizes: Sequence[int],
    budget: Budget,
    *,
    name: str,
    reference: bool = False,
    settings: Iterable[str] = (),
) -> Space:
    """A space whose only trials are one system with every backbone at every image size, each with every seed.

    Raises:
        UserError: The system has no guide, or a backbone, size or setting is wrong.
    """
    base = recipe(dataset, row, reference=reference)
    if base is None:
        raise UserError(f"the reference code has no recipe of {row.system} on {dataset}", where="--variant reference")
    if base.guide.kind == "none":
        raise UserError(f"{row.system} has no backbone to scale", where="--rows", todo="name a guided system, such as GuiDINO-W")
    unknown = [b for b in backbones if b not in BACKBONES and not is_local_backbone(b)]
    if unknown:
        raise UserError(f"unknown backbone {unknown[0]!r}; {nearest(unknown[0], BACKBONES)}", where="--backbones")
    (base,) = _with_settings({row.system: base}, budget, list(settings), needed={row.system}).values()
    local = [b for b in backbones if b not in BACKBONES]
    listed: list[Values] = [
        {"guide.backbone": backbone, "data.image_size": size, "training.seed": seed}
        for backbone, size, seed in itertools.product(backbones, sizes, range(budget.seeds))
    ]
    space = read_space(
        {
            "experiment": base.to_dict(),
            "space": {"guide.backbone": {"choices": [*BACKBONES, *local]}, "data.image_size": SIZES, "training.seed": SEEDS},
            "first_trials": listed,
            "study": {"name": name, "sampler": "listed", "pruner": "none", "trials": len(listed)},
        },
        source=f"scaling study on {dataset}",
    )
    return absolute(override(space, [text for text in settings if text.startswith(("study.", "resources."))]))


def _with_settings(recipes: Mapping[str, Experiment], budget: Budget, settings: Sequence[str], needed: set[str]) -> dict[str, Experiment]:
    """The recipes with the budget's and the user's settings, each where it fits. What these make impossible is left out, unless needed."""
    mine = [text for text in settings if not text.startswith(("study.", "resources."))]
    paths = {text: text.partition("=")[0] for text in mine}
    values = {name: made.to_dict() for name, made in recipes.items()}
    for text, path in paths.items():
        if not any(has_path(experiment, path) for experiment in values.values()):
            raise UserError(f"no recipe has a field {path!r}", where=f"--set {text}", todo="see a recipe's fields in search_spaces/recipes")
    changed = {}
    for name, experiment in values.items():
        texts = [f"{path}={'null' if value is None else value}" for path, value in budget.settings.items() if path not in paths.values()]
        fitting = [text for text in (*texts, *mine) if has_path(experiment, text.partition("=")[0])]
        try:
            changed[name] = absolute(override(read_space({"experiment": experiment}, source=f"recipe {name}"), fitting)).base
        except UserError as error:
            if name in needed:
                raise UserError(error.what, where=f"recipe {name}, {error.where}", todo=error.todo) from None
    return changed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asks to reproduce: names as on the command line of ``reproduce``; ``None`` takes the budget's."""

    what: str
    datasets: tuple[str, ...]
    rows: tuple[str, ...] = ()
    reference: bool = False
    budget: str = "full"
    epochs: int | None = None
    seeds: int | None = None
    test_cases: int | None = None
    name: str | None = None
    backbones: tuple[str, ...] = ()
    image_sizes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """What that means: spaces by data set, the rows of a table (``None`` for a scaling study), and the budget in words."""

    table: PaperTable | None
    rows: tuple[Row, ...]
    spaces: Mapping[str, Space]
    about: str
    test_cases: int | None


def planned(request: Request) -> Planned:
    """Turns a request into studies.

    Raises:
        UserError: An unknown name, or settings that fit nothing.
    """
    known = datasets()
    if not request.datasets:
        raise UserError("names no data set", where="--dataset", todo=f"name one or more of {', '.join(known)}")
    for dataset in request.datasets:
        if dataset not in known:
            raise UserError(f"no table has a data set {dataset!r}; {nearest(dataset, known)}", where="--dataset")
    several = len(request.datasets) > 1
    if several and (request.what == "scaling" or any(text.startswith("data.root=") for text in request.settings)):
        raise UserError("one data set at a time for a scaling study, and with --data-root", where="--dataset", todo="name one data set")
    budget = BUDGETS[request.budget]
    settings = {**budget.settings, **({"training.epochs": request.epochs} if request.epochs else {})}
    if request.what == "scaling":
        settings.pop("data.image_size", None)  # it varies
    budget = Budget(request.seeds or budget.seeds, settings, request.test_cases or budget.test_cases)
    about = f"{request.budget}, {budget.seeds} seed(s)" + "".join(f", {path}={value}" for path, value in settings.items())
    about += f"; settings of the {'reference code' if request.reference else 'paper'}"
    about += "".join(f", {text}" for text in request.settings if not text.startswith(("data.root=", "resources.")))
    suffix = ("" if request.budget == "full" else f"-{request.budget}") + ("-reference" if request.reference else "")
    tables = load_tables()
    if request.what == "scaling":
        rows = choose_rows(tables[ALL], request.rows or ("GuiDINO-W",))
        if len(rows) != 1:
            raise UserError("a scaling study is about one system", where="--rows", todo="name one of them")
        name = request.name or f"scaling-{request.datasets[0]}{suffix}"
        if bad := [size for size in request.image_sizes if not (size.isascii() and size.isdigit())]:
            raise UserError(f"{bad[0]!r} is no image size in pixels", where="--image-sizes", todo="give numbers such as 256,512")
        sizes = [int(size) for size in request.image_sizes]
        space = scaling_space(
            request.datasets[0], rows[0], request.backbones, sizes, budget,
            name=name, reference=request.reference, settings=request.settings,
        )  # fmt: skip
        return Planned(None, rows, {request.datasets[0]: space}, about, budget.test_cases)
    table = tables[request.what]
    rows = choose_rows(table, request.rows)
    spaces = {}
    for dataset in request.datasets:
        name = f"{request.name}-{dataset}" if request.name and several else request.name or f"tables-{dataset}{suffix}"
        spaces[dataset] = table_space(dataset, rows, budget, name=name, reference=request.reference, settings=request.settings)
    return Planned(table, rows, spaces, about, budget.test_cases)
