"""Types and limits that all sections of an experiment share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainValidator

from guidino_tune.targets import TARGET

if TYPE_CHECKING:
    from guidino_tune.config.experiment import Experiment

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

PATCH = 16
"""Side of one DINOv3 patch in pixels; every image side is a multiple of it."""


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):  # YAML reads `on` and `yes` as true, which would silently count as 1
        raise ValueError("a number is needed, not true or false")
    return value


def _a_path(value: str) -> str:
    try:
        possible = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError("holds a character that no path can have")
    return value


LARGEST = 2**31 - 1
"""Of counts: more than anybody has, and few enough for every library to compute with."""

Number = BeforeValidator(_no_switch)
PathText = Annotated[str, AfterValidator(_a_path)]
Positive = Annotated[float, Field(gt=0), Number]
NonNegative = Annotated[float, Field(ge=0), Number]
Fraction = Annotated[float, Field(ge=0, lt=1), Number]
Count = Annotated[int, Field(ge=1, le=LARGEST), Number]
Index = Annotated[int, Field(ge=0, lt=2**63), Number]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32), Number]
"""What NumPy's older generators take, which Optuna uses."""

SAME: Any = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is known of a field beside its type and range; it stands in the field's ``Annotated``, for all who ask.

    Attributes:
        idle: Says of an experiment that the field changes nothing in it, whatever its value.
        before: The value with which everything is as it was before the field came: with it, an experiment has the hash it had then.
        only_how: What the field is that says how something is computed or checked, and changes no result but for rounding.
        shared: What all trials of a study have in common through this field, so that they can be compared.
        memory: What of its value decides about the memory that training takes; ``None``: nothing.
        heading: Of its column in tables; empty where none shows it.
    """

    idle: Callable[[Experiment], bool] | None = None
    before: Any = SAME
    only_how: str = ""
    shared: str = ""
    memory: Callable[[Any], Any] | None = None
    heading: str = ""

    def unseen(self, experiment: Experiment, value: Any) -> bool:
        """True when the field, with this value (as JSON has it), leaves no trace in the hash of this experiment."""
        return value == self.before or (self.idle is not None and self.idle(experiment))


@cache
def known_of(cls: type) -> dict[str, About]:
    """What is known of the fields of a section, by name; fields of which nothing is known are left out."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: note for name, hint in hints.items() for note in getattr(hint, "__metadata__", ()) if isinstance(note, About)}


@cache
def forgettable(cls: type) -> tuple[tuple[str, About], ...]:
    """The fields of a section that may be ``unseen``; asked for each hash, so the others are sorted out once."""
    return tuple((name, about) for name, about in known_of(cls).items() if about.idle is not None or about.before is not SAME)


def whole(value: Any) -> Any:
    """For ``About.memory``: the value itself decides."""
    return value


EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
"""``1e-4``, which PyYAML takes for text: YAML 1.1 wants ``1.0e-4``."""


class FrozenOptions(dict[str, Any]):
    """Keyword arguments for a user's own code; not to be changed, and so they can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _options(given: Any) -> FrozenOptions:
    if not isinstance(given, Mapping):
        raise ValueError("keyword arguments are needed, such as {width: 8}")
    found = FrozenOptions()
    for name, value in given.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{name!r} is no name of a keyword argument")
        number = float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
        if not isinstance(number, str | int | float | None) or (isinstance(number, float) and not abs(number) < float("inf")):
            raise ValueError(f"{name}: one value is needed: a finite number, text, true, false or null")
        found[name] = number
    return found


def target(value: str) -> str:
    """Checks the form of a target, ``module:name``."""
    if not TARGET.fullmatch(value):
        raise ValueError("your own code is named as module:name, such as my_package.nets:MyNet")
    return value


Options = Annotated[dict[str, Any], PlainValidator(_options)]
Target = Annotated[str, AfterValidator(target)]
