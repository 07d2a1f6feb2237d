"""The page of every field that can be set: found in the classes themselves, with type, range, default and meaning."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic.fields import FieldInfo

from guidino_tune import config
from guidino_tune.config.fields import About, known_of
from guidino_tune.config.segmenters import GATES, Common

from . import docstrings

ROOTS: tuple[tuple[str, type], ...] = (("", config.Experiment), ("study", config.Study), ("resources", config.Resources))
"""Where the walk begins: the prefix of the paths, and the class. ``Protocol`` has options of commands instead of paths."""

INTRODUCTION = """\
# Configuration

A search space is a YAML file with `experiment`, `space`, `first_trials`, `study` and `resources` ([The search space](../spaces.md)). Every
field has a path, such as `training.lr` or `study.trials`, under which it is set (`--set training.lr=3e-4`) and, in an experiment, searched.
What is left out has the default. This page is made from the classes in `guidino_tune/config/` themselves.

*One for all trials* marks fields that no space can search, for its trials could not be compared. *Changes no result* marks fields that
say how something is computed or checked.
"""

NAMED = """\
## Backbones by name { #backbones }

| `guide.backbone` | weights |
|---|---|"""

NAMES = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", type(None): "`null`", Any: "any value"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One field as the page shows it.

    Attributes:
        path: Under which it is set.
        anchor: Its id on the page; fields of several kinds of a section share a path.
        kind: Type and range in words.
        default: As YAML; empty where a value must be given.
        meaning: The docstring's words.
        marks: What else is known of it.
    """

    path: str
    anchor: str
    kind: str
    default: str
    meaning: str
    marks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """One class as the page shows it.

    Attributes:
        title: Its heading, as Markdown.
        anchor: The heading's id.
        cls: The class.
        entries: Its fields.
    """

    title: str
    anchor: str
    cls: type
    entries: tuple[Entry, ...]


def sections() -> Iterator[Section]:
    """Every class, in the order in which an experiment holds them, then ``study``, ``resources`` and the protocol of measurements."""
    for prefix, cls in ROOTS:
        yield from _walk(prefix, cls)
    yield Section("How a model is measured", "protocol", config.Protocol, tuple(_entries("protocol", config.Protocol)))


def page() -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION]
    for section in sections():
        parts += [f"## {section.title} {{ #{section.anchor} }}\n", docstrings.read(section.cls.__doc__).text + "\n"]
        parts += [*_known_as(section.cls), *map(_shown, section.entries)]
    return "\n".join([*parts, NAMED, *(f"| `{name}` | {_repository(held)} |" for name, held in config.BACKBONES.items())]) + "\n"


def _repository(name: str | None) -> str:
    return f"`{name}` at Hugging Face" if name else "two layers with random weights, for the demo and for tests"


def _known_as(cls: type) -> Iterator[str]:
    """What a segmenter's class tells beside its fields: its names in tables, and where the guide mask may multiply."""
    if not issubclass(cls, Common) or not isinstance(cls.plain_name, str):  # those of one's own network follow from its class
        return
    first, *others = (f"{GATES[place]} (`{place}`)" for place in cls.gates)
    yield (
        f"In tables *{cls.plain_name}*, with a guide mask *{cls.guided_name}*. The mask multiplies {first}, or by `guide.gate` "
        f"{', '.join(others)}." + (" A head on the backbone's features, which needs one.\n" if cls.needs_features else "\n")
    )


def _shown(entry: Entry) -> str:
    default = f"default `{entry.default}`" if entry.default else "must be given"
    marks = "".join(f" *{mark}.*" for mark in entry.marks)
    return f"**`{entry.path}`** · {entry.kind} · {default} {{ #{entry.anchor} }}\n\n:   {entry.meaning}{marks}\n"


def _kind(cls: type) -> str:
    """The name by which a class is chosen where several may stand; empty where none is."""
    kinds = [field.default for field in dataclasses.fields(cls) if field.name == "kind"]
    return kinds[0] if kinds and isinstance(kinds[0], str) else ""


def _place(path: str, cls: type) -> str:
    """The id of a class's heading."""
    return f"{path}-{_kind(cls)}" if _kind(cls) else path


def _walk(path: str, cls: type) -> Iterator[Section]:
    if path:
        title = f"`{path}`" + (f" of kind `{_kind(cls)}`" if _kind(cls) else "")
        yield Section(title, _place(path, cls), cls, tuple(_entries(path, cls)))
    for name, hint in get_type_hints(cls, include_extras=True).items():
        for one in _classes(hint):
            yield from _walk(f"{path}.{name}".strip("."), one)


def _classes(hint: Any) -> Iterator[type]:
    """The sections that a field may hold."""
    if get_origin(hint) is ClassVar:
        return
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for part in get_args(hint) if get_origin(hint) in (Annotated, Union, types.UnionType) else ():
        yield from _classes(part)


def _entries(place: str, cls: type) -> Iterator[Entry]:
    hints, known = get_type_hints(cls, include_extras=True), known_of(cls)
    meanings = {"kind": "Chooses this class."} | docstrings.read(cls.__doc__).entries("Attributes")
    for field in dataclasses.fields(cls):
        default, about, path = default_of(field), known.get(field.name, About()), f"{place}.{field.name}"
        held = list(_classes(hints[field.name]))
        kind = f"[a section](#{_place(path, held[0])})" if held else words(hints[field.name])
        told = {"One for all trials": about.shared, "Changes no result": about.only_how}
        marks = tuple(f"{mark}: {text}" for mark, text in told.items() if text)
        yield Entry(path, f"{_place(place, cls)}.{field.name}", kind, as_yaml(default), _told(meanings.get(field.name, "")), marks)


def _told(meaning: str) -> str:
    """A docstring's words as a reader of YAML needs them."""
    return (
        meaning.replace("``None``", "`null`").replace("``BACKBONES``", "[the list](#backbones)").replace(" (see ``segmenters.GATES``)", "")
    )


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default; ``MISSING`` where a value must be given."""
    default = field.default
    if isinstance(default, FieldInfo):  # pydantic's own way to say it
        default = default.default_factory() if default.default_factory else default.default  # type: ignore[call-arg]
    elif default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return default


def as_yaml(value: Any) -> str:
    """A value as it is written in a space, on one line; nothing for a value that must be given."""
    if value is dataclasses.MISSING:
        return ""
    if dataclasses.is_dataclass(value):
        return "its own"
    plain = list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, dict) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def words(hint: Any) -> str:
    """A type in words, with its range: ``whole number from 1``, ``mean or weighted``."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        return words(inner) + _range([limit for note in notes for limit in getattr(note, "metadata", [note])])
    if get_origin(hint) is Literal:
        return " or ".join(f"`{as_yaml(value)}`" for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(part) for part in get_args(hint)))
    if get_origin(hint) is tuple:
        of = get_args(hint)
        if of[-1] is Ellipsis:
            return f"list of {words(of[0])}"
        return f"list of {len(of)}: {words(of[0])}" if len({*map(str, of)}) == 1 else f"list of: {', '.join(map(words, of))}"
    if get_origin(hint) is dict:
        return f"mapping of names to {words(get_args(hint)[1])}"
    return NAMES.get(hint, "`" + getattr(hint, "__name__", str(hint)) + "`")


def _range(limits: list[Any]) -> str:
    names = ("gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length")
    found = {name: value for limit in limits for name in names if (value := getattr(limit, name, None)) is not None}
    shown = ""
    if "gt" in found:
        shown += f" above {found['gt']:g}"
    if "ge" in found:
        shown += f" from {found['ge']:g}"
    if "lt" in found and found["lt"] < 2**31:
        shown += f" below {found['lt']:g}"
    if "le" in found and found["le"] < 2**31 - 1:
        shown += f" to {found['le']:g}"
    if "multiple_of" in found:
        shown += f", a multiple of {found['multiple_of']}"
    if "min_length" in found:
        shown += f", at least {found['min_length']}"
    return shown + (f" that matches `{found['pattern']}`" if "pattern" in found else "")
