"""YAML and mappings into checked dataclasses, with messages that name the file, the path in it and the nearest valid name."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from guidino_tune.errors import UserError, nearest

T = TypeVar("T")

MAX_BYTES = 10_000_000
"""Of a YAML file: the largest table of experiments has a thousandth of it, and reading a hundred times as much would take hours."""

MAX_NODES = 100_000
"""Names and values in a YAML text once its aliases are written out: a few lines of aliases of aliases unfold to more than any memory."""

_MALFORMED = (ValueError, KeyError, IndexError, AttributeError, TypeError)  # what PyYAML raises for `!!int x`, `2020-13-41`, `0x_`, ...

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxstring, _short.maxother = 2, 8, 120, 120


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a mapping that holds the same name twice: YAML forbids it, PyYAML takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Composes as usual, then compares the names as they are written; merged ones (``<<``) come later and may be overridden."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the name {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        """Builds the values, unless aliases make them endless or enormous."""
        _unfolded(node, {})
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Builds one value; one that its tag or form does not fit is told with its line."""
        try:
            return super().construct_object(node, deep)
        except _MALFORMED:
            kind = node.tag.rpartition(":")[2]
            what = shown(node.value) if isinstance(node, yaml.ScalarNode) else "this"
            raise yaml.constructor.ConstructorError(None, None, f"{what} is no {kind}", node.start_mark) from None


def _unfolded(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many nodes there are below a node and with it, aliases written out."""
    if id(node) in known:
        number = known[id(node)]
        if number is None:
            raise yaml.constructor.ConstructorError(None, None, "an alias stands inside what it names", node.start_mark)
        return number
    known[id(node)] = None
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    number = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(_unfolded(part, known) for part in parts))
    if number > MAX_NODES:
        raise yaml.constructor.ConstructorError(None, None, f"it holds more than {MAX_NODES} values", node.start_mark)
    known[id(node)] = number
    return number


def shown(value: Any) -> str:
    """A value as Python writes it, cut short where it is long."""
    return _short.repr(value)


def read_value(text: str) -> Any:
    """The value that a YAML text holds, by the safe loader.

    Raises:
        ValueError: It is no valid YAML, with the line and the reason.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a safe loader, see above
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"{f', line {mark.line + 1}' if mark else ''}: {getattr(error, 'problem', error)}") from None
    except RecursionError:
        raise ValueError(": it is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # an escape such as "\UFFFFFFFF", which no character has
        raise ValueError(f": {error}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads one mapping with the safe loader.

    Raises:
        UserError: No such file, no readable YAML, the same name twice, too large, or not a mapping.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"is larger than {MAX_BYTES / 1e6:g} MB: no file of ours is", where=str(path), todo="check the path")
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), todo="check the path; a shipped space is named without .yaml") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    try:
        values = read_value(text)
    except ValueError as error:
        raise UserError(f"is no valid YAML{error}", where=str(path), todo="mend that line") from None
    if not isinstance(values, dict):
        raise UserError("holds no mapping of names to values", where=str(path))
    return values


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def parse(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Builds a dataclass from a mapping.

    Raises:
        UserError: Not a mapping; else lists every problem with its path inside ``source``.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{shown(values)} is no mapping of names to values", where=source)
    try:
        made: T = _adapter(cls).validate_python(dict(values))  # type: ignore[arg-type]
        return made
    except ValidationError as error:
        problems = [_describe(cls, item) for item in error.errors()]
        raise UserError("; ".join(dict.fromkeys(problems)), where=source, todo="correct the value or the name, and run it again") from None


def _describe(cls: type, item: Any) -> str:
    path: list[str] = []
    level: Any = cls
    parent: Any = cls
    for step in item["loc"]:
        # Below a discriminated union pydantic puts the member's tag into the location; the user's path has no such step.
        member = None if dataclasses.is_dataclass(level) else next((k for k in _members(level) if _tag(k) == step), None)
        if member is not None:
            level = member
        else:
            path.append(str(step))
            parent, level = level, _fields(level).get(str(step))
    where = ".".join(path) if path else "experiment"
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown name '{where}'; {nearest(path[-1], _fields(parent))}"
    if item["type"] in ("missing", "missing_argument"):
        return f"'{where}' is missing"
    if item["type"] == "union_tag_invalid":
        tag, expected = item["ctx"]["tag"], item["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"'{where}.kind': unknown kind {shown(tag)}; {nearest(tag, expected)}"
    if item["type"] == "union_tag_not_found":
        return f"'{where}.kind' is missing; known: {', '.join(sorted(filter(None, map(_tag, _members(level)))))}"
    if item["type"] in ("dataclass_type", "model_attributes_type"):
        return f"'{where}' = {shown(item['input'])}: is no mapping of names to values"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        message += f"; {nearest(item['input'], [w.strip(chr(39)) for w in item['ctx']['expected'].replace(' or ', ', ').split(', ')])}"
    return f"'{where}' = {shown(item['input'])}: {message}" if path else message


def _members(level: Any) -> list[Any]:
    members: list[Any] = []
    for part in get_args(level):
        members += [part] if isinstance(part, type) and dataclasses.is_dataclass(part) else _members(part) if get_args(part) else []
    return members


def _tag(cls: Any) -> str | None:
    return next((str(f.default) for f in dataclasses.fields(cls) if f.name == "kind"), None)


def _fields(level: Any) -> dict[str, Any]:
    """Field names and types of a dataclass, or of all members of a union of them."""
    classes = [level] if dataclasses.is_dataclass(level) else _members(level)
    known: dict[str, Any] = {}
    for one in classes:
        hints = get_type_hints(one, include_extras=True)
        known |= {f.name: hints[f.name] for f in dataclasses.fields(one)}
    return known
