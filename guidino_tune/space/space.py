"""A search space: base experiment, parameters, first trials, study settings and resources, as one checked object."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from guidino_tune.config import BACKBONES, Experiment, Resources, Study, is_local_backbone
from guidino_tune.config.fields import EXPONENT
from guidino_tune.config.parsing import parse, read_value, read_yaml, shown
from guidino_tune.errors import UserError, nearest
from guidino_tune.space.parameters import Parameter, Scalar, Values, get_path, has_path, is_scalar, leaf_paths, set_path

RECIPE = "recipe"
"""The parameter that chooses one of a space's recipes."""

TEXT = ("data.root", "data.images", "data.masks", "data.group", "guide.backbone", "study.name")
"""Paths whose value is text whatever it looks like: a study may be called 2024, and to YAML ``*.png`` is an alias."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What a study searches.

    Attributes:
        base: The experiment whose values hold wherever nothing is searched.
        parameters: By path, in the order in which they are drawn; a condition may look at those before.
        recipes: Complete experiments by name. The parameter ``recipe``, which comes first, chooses one of them in place of ``base``.
        first_trials: Values tried first, such as the paper's settings; what they leave out is sampled.
        source: The file it came from, for messages.
        notes: What overrides fixed or dropped, in words.
        origin: The space as it was before any override; ``None`` when there was none.
    """

    base: Experiment
    parameters: Mapping[str, Parameter]
    first_trials: tuple[Values, ...]
    study: Study
    resources: Resources
    source: str
    recipes: Mapping[str, Experiment] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    origin: Space | None = dataclasses.field(default=None, repr=False, compare=False)
    _plain_base: dict[str, Any] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Every trial starts from the same mapping, which nobody changes: ``set_path`` copies."""
        object.__setattr__(self, "_plain_base", self.base.to_dict())

    @property
    def targets(self) -> set[str]:
        """The user's own code that this space may use: networks, loss terms, sampler and pruner."""
        varied = {str(c) for path, parameter in self.parameters.items() if path.endswith(".target") for c in parameter.choices}
        named = {target for made in (self.base, *self.recipes.values()) for target in made.targets.values()}
        return varied | named | {name for name in (self.study.sampler, self.study.pruner) if ":" in name}

    @property
    def longest(self) -> int:
        """Epochs of the longest training that a trial may have."""
        searched = self.parameters.get("training.epochs")
        ends = [int(end) for end in searched.ends if isinstance(end, int | float)] if searched else []
        return max(*(made.training.epochs for made in self.recipes.values() or (self.base,)), *ends, 0)

    def walk(self, choose: Callable[[str, Parameter], Scalar]) -> tuple[Values, dict[str, Any]]:
        """Chooses a value for each active parameter in order.

        Returns:
            The values, and the nested experiment mapping that has them, not to be changed.
        """
        experiment, values = self._plain_base, Values()
        for path, parameter in self.parameters.items():
            if path == RECIPE or (has_path(experiment, path) and parameter.active(experiment)):
                values[path] = choose(path, parameter)
                experiment = self._with(experiment, path, values[path])
        return values, experiment

    def experiment(self, values: Mapping[str, Scalar]) -> Experiment:
        """The experiment of a trial with these values.

        Raises:
            UserError: The values make no valid experiment.
        """
        experiment = self._plain_base
        order = [path for path in self.parameters if path in values]  # a recipe or kind replaces what was set before it
        for path in (*order, *(path for path in values if path not in self.parameters)):
            experiment = self._with(experiment, path, values[path])
        return Experiment.from_dict(experiment, source=f"{self.source}, with {_line(values)}")

    def _with(self, experiment: Mapping[str, Any], path: str, value: Scalar) -> dict[str, Any]:
        return self.recipes[str(value)].to_dict() if path == RECIPE else set_path(experiment, path, value)

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides the trials, in plain YAML types; ``read_space`` reads it back. The order of parameters counts."""
        parameters = {path: _plain(parameter) for path, parameter in self.parameters.items()}
        return {
            "experiment": self.base.to_dict(),
            "space": parameters,
            **({"recipes": {name: recipe.to_dict() for name, recipe in self.recipes.items()}} if self.recipes else {}),
            "first_trials": [dict(v) for v in self.first_trials],
            "study": _plain(self.study, keep_none=True),
            "resources": _plain(self.resources, keep_none=True),
        }


def names() -> list[str]:
    """The spaces that come with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in shipped().iterdir() if p.name.endswith(".yaml"))


def shipped() -> Any:
    """``search_spaces``: package data when installed, the folder beside the package in a checkout."""
    installed = resources.files("guidino_tune") / "search_spaces"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "search_spaces"


def load_space(name: str) -> Space:
    """Reads a shipped space by name, or a YAML file by path.

    Raises:
        UserError: No such space; or its file has a mistake, with the path in it.
    """
    if name in names() or (name.startswith("recipes/") and (shipped() / f"{name}.yaml").is_file()):
        path = str(shipped() / f"{name}.yaml")
    elif "/" in name or name.endswith((".yaml", ".yml")):
        path = name
    else:
        raise UserError(f"no search space {name!r}; {nearest(name, names())}", todo="give one of these names, or the path of a YAML file")
    return read_space(read_yaml(path), source=path, default_name=Path(path).stem)


def read_space(values: Mapping[str, Any], *, source: str, default_name: str = "study") -> Space:
    """Builds a space from the mapping in a YAML file.

    Raises:
        UserError: Names the file, the path in it and the nearest valid name.
    """
    known = ("experiment", "recipes", "space", "first_trials", "study", "resources")
    for key in values:
        if key not in known:
            raise UserError(f"unknown name {key!r}; {nearest(str(key), known)}", where=source)
    base = Experiment.from_dict(_mapping(values, "experiment", source), source=f"{source}, experiment")
    parameters: dict[str, Parameter] = {}
    for path, spec in _mapping(values, "space", source).items():
        if not isinstance(spec, Mapping):
            raise UserError("is no mapping such as {type: float, low: 0.1, high: 1}", where=f"{source}, space.{path}")
        inferred = {"type": "choice"} if "choices" in spec else {}
        parameters[str(path)] = parse(Parameter, {**inferred, **_numbers(spec)}, f"{source}, space.{path}")
    recipes = {
        str(name): Experiment.from_dict(recipe, source=f"{source}, recipes.{name}")
        for name, recipe in _mapping(values, "recipes", source).items()
    }
    if (recipes or RECIPE in parameters) and (next(iter(parameters), "") != RECIPE or set(parameters[RECIPE].choices) != set(recipes)):
        raise UserError("the first parameter must be `recipe`, with every recipe's name as a choice", where=f"{source}, space")
    first = values.get("first_trials", [])
    if not isinstance(first, list | None) or not all(isinstance(v, Mapping) for v in first or ()):
        raise UserError("is no list of mappings from a path to a value", where=f"{source}, first_trials")
    for number, trial in enumerate(first or ()):
        for path, value in trial.items():
            where = f"{source}, first_trials[{number}].{path}"
            if not isinstance(path, str):
                raise UserError(f"{shown(path)} is no path such as training.lr", where=where)
            if not is_scalar(value):
                raise UserError(f"{shown(value)} is not one value: a finite number, text, true, false or null", where=where)
    study = parse(Study, {"name": default_name, **_mapping(values, "study", source)}, f"{source}, study")
    space = Space(
        base=base,
        parameters=parameters,
        first_trials=tuple(_numbers(v) for v in first or ()),
        study=study,
        resources=parse(Resources, _mapping(values, "resources", source), f"{source}, resources"),
        source=source,
        recipes=recipes,
    )
    return dataclasses.replace(space, first_trials=_listed(space)) if study.is_list else space


def _listed(space: Space) -> tuple[Values, ...]:
    """The listed trials as a study will know them: each once, and only with the values that have an effect in it."""
    found: list[Values] = []
    for number, trial in enumerate(space.first_trials or [{}]):
        try:
            values, _ = space.walk(lambda path, _, trial=trial: trial[path])  # type: ignore[misc]
        except KeyError as error:
            raise UserError(
                f"sampler 'listed' runs first_trials and nothing else, and this one gives {error.args[0]} no value",
                where=f"{space.source}, first_trials[{number}]",
                todo="complete the list, or take another sampler",
            ) from None
        if unknown := sorted(set(trial) - set(space.parameters)):
            raise UserError(
                f"{unknown[0]!r} is not searched", where=f"{space.source}, first_trials[{number}]", todo="put it into `experiment`"
            )
        if values not in found:
            found.append(values)
    return tuple(found)


def _mapping(values: Mapping[str, Any], section: str, source: str) -> Mapping[str, Any]:
    found = values.get(section)
    if not isinstance(found, Mapping | None):
        raise UserError(f"{shown(found)} is no mapping of names to values", where=f"{source}, {section}")
    return found or {}


def _numbers(value: Any) -> Any:
    """Reads ``1e-4`` as the number that is meant: PyYAML, with YAML 1.1, takes it for text unless it is written ``1.0e-4``."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def read_setting(path: str, text: str) -> Any:
    """The value that ``--set PATH=TEXT`` gives: the text itself where the path holds text, else what it is as YAML.

    Raises:
        ValueError: It is no valid YAML.
    """
    return text if path in TEXT and text not in ("", "null") else read_value(text)


def _assigned(assignments: Mapping[str, Any] | Iterable[str]) -> Iterator[tuple[str, Any, str]]:
    """Path, value and where it was said, of each assignment."""
    if isinstance(assignments, Mapping):
        for path, value in assignments.items():
            plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            yield path, plain, f"{path} = {value!r}"
        return
    for text in assignments:
        path, equals, raw = text.partition("=")
        if not equals:
            raise UserError("has no '='", where=text, todo="write path=value, such as training.epochs=20")
        try:
            yield path, read_setting(path, raw), text
        except ValueError:
            raise UserError(f"{shown(raw)} is no YAML value", where=text) from None


def override(space: Space, assignments: Mapping[str, Any] | Iterable[str]) -> Space:
    """Applies values by path, or texts ``path=value``; a searched parameter that is set is fixed and no longer searched.

    Raises:
        UserError: No ``=``, no such path, or an invalid value.
    """
    experiment = space.base.to_dict()
    settings: dict[str, dict[str, Any]] = {
        "study": _plain(space.study, keep_none=True),
        "resources": _plain(space.resources, keep_none=True),
    }
    fixed: dict[str, Any] = {}
    for path, value, where in _assigned(assignments):
        head, _, rest = path.partition(".")
        if head in settings:
            if rest not in settings[head]:
                raise UserError(f"unknown name {path!r}; {nearest(path, [f'{head}.{k}' for k in settings[head]])}", where=where)
            settings[head][rest] = value
            continue
        if space.recipes:
            raise UserError("this space takes its experiments from recipes, where this would change nothing", where=where)
        if not has_path(experiment, path):
            hint = nearest(path, [*leaf_paths(experiment), *(f"{s}.{k}" for s in settings for k in settings[s])])
            raise UserError(f"unknown name {path!r}; {hint}", where=where)
        experiment = set_path(experiment, path, value)
        fixed[path] = value
    base = Experiment.from_dict(experiment, source="experiment with what is set")
    checked = base.to_dict()  # `1e-4` came as text and is a number by now
    fixed = {p: get_path(checked, p) for p in fixed}
    notes = [f"set, no longer searched: {p} = {fixed[p]}" for p in space.parameters if p in fixed]
    # What was set replaces the same path in the first trials; those that differed only there become one.
    first: list[Values] = []
    for trial in space.first_trials:
        kept = {p: v for p, v in trial.items() if p not in fixed}
        if kept and kept not in first:
            first.append(kept)
    return dataclasses.replace(
        space,
        base=base,
        parameters={p: spec for p, spec in space.parameters.items() if p not in fixed},
        first_trials=tuple(first),
        study=parse(Study, settings["study"], "study"),
        resources=parse(Resources, settings["resources"], "resources"),
        notes=(*space.notes, *notes),
        origin=space.origin or space,
    )


def absolute(space: Space) -> Space:
    """The same space with absolute paths, for its trials run in other folders or on other machines, and the digest of a pretrained file."""
    parameters = {path: dataclasses.replace(p, choices=tuple(_place(path, c) for c in p.choices)) for path, p in space.parameters.items()}
    first = tuple({path: _place(path, value) for path, value in trial.items()} for trial in space.first_trials)
    recipes = {name: _placed(made, space.source) for name, made in space.recipes.items()}
    return dataclasses.replace(space, base=_placed(space.base, space.source), recipes=recipes, parameters=parameters, first_trials=first)


def _placed(made: Experiment, source: str) -> Experiment:
    experiment = made.to_dict()
    root, guide, segmenter = experiment["data"]["root"], experiment["guide"], experiment["segmenter"]
    if root is not None:
        experiment["data"]["root"] = _absolute(root)
    if "backbone" in guide:
        guide["backbone"] = _backbone(guide["backbone"])
    if file := segmenter.get("pretrained"):
        segmenter["pretrained"] = _absolute(file)
        segmenter["sha256"] = segmenter["sha256"] or _digest(Path(segmenter["pretrained"]))
    return Experiment.from_dict(experiment, source=source)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _place(path: str, value: Scalar) -> Scalar:
    if path == "segmenter.pretrained" and value is not None:
        return _absolute(str(value))
    return _backbone(value) if path == "guide.backbone" else value


def _digest(file: Path) -> str | None:
    if not file.is_file():
        return None  # which is told by whoever reads it
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _backbone(name: Scalar) -> Scalar:
    return _absolute(str(name)) if name not in BACKBONES and is_local_backbone(str(name)) else name


def _plain(item: Any, *, keep_none: bool = False) -> dict[str, Any]:
    values = dataclasses.asdict(item)
    plain = {k: list(v) if isinstance(v, tuple) else dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    return {k: v for k, v in plain.items() if keep_none or not (v is None or v is False or v == [])}


def _line(values: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{k}={v}" for k, v in values.items())
