"""One searched parameter: a range or a choice, with an optional condition on the rest of the experiment."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, model_validator
from pydantic.dataclasses import dataclass

from guidino_tune.config import section_defaults
from guidino_tune.config.fields import LARGEST, STRICT, Number

Scalar: TypeAlias = bool | int | float | str | None
Values: TypeAlias = dict[str, Scalar]
"""Values of searched parameters by their path in the experiment, such as ``{"loss.lambda_guide": 0.1}``."""


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Bounds:
    """Numeric limits in a condition; all that are given must hold."""

    gt: Annotated[float | None, Number] = None
    ge: Annotated[float | None, Number] = None
    lt: Annotated[float | None, Number] = None
    le: Annotated[float | None, Number] = None

    def hold(self, value: Any) -> bool:
        """True when ``value`` is a number within the limits."""
        return (
            isinstance(value, int | float)
            and (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )


def _one_value(value: Any) -> Any:
    if not is_scalar(value):
        raise ValueError("one value is needed: a finite number, text, true, false or null")
    return value


def _condition(wanted: Any) -> Any:
    # Said here in one sentence: of a union, pydantic tells what is wrong for each of its members.
    if isinstance(wanted, Mapping):
        given = {key: limit for key, limit in wanted.items() if limit is not None}
        if not given or any(key not in ("gt", "ge", "lt", "le") for key in wanted):
            raise ValueError("limits are one or more of gt, ge, lt and le, such as {gt: 0}")
        if any(isinstance(limit, bool) or not isinstance(limit, int | float) or not is_scalar(limit) for limit in given.values()):
            raise ValueError("limits are finite numbers")
    elif not all(map(is_scalar, wanted if isinstance(wanted, list) else [wanted])) and not isinstance(wanted, Bounds):
        raise ValueError("a value, a list of values, or limits such as {gt: 0} are needed")
    return wanted


def is_scalar(value: Any) -> bool:
    """True for what one parameter of a trial may be: a finite number that fits a float, text, true, false or null."""
    if isinstance(value, int | float):
        return abs(value) < float("inf") and (isinstance(value, float) or abs(value) < 1 << 1023)
    return value is None or isinstance(value, str)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Parameter:
    """How one path of the experiment varies.

    Attributes:
        type: ``float`` or ``int`` with ``low`` and ``high`` (inclusive), or ``choice`` with ``choices``.
        log: Search the logarithm.
        step: Grid of a range, counted from ``low``.
        when: Path -> value, list of values, or limits (``{gt: 0}``) that the experiment must have for the parameter to be searched.
    """

    type: Literal["float", "int", "choice"]
    low: Annotated[float | None, Number] = None
    high: Annotated[float | None, Number] = None
    log: bool = False
    step: Annotated[float | None, Number] = None
    choices: tuple[Annotated[Scalar, BeforeValidator(_one_value)], ...] = ()
    when: dict[str, Annotated[Bounds | list[Scalar] | Scalar, BeforeValidator(_condition)]] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Parameter:
        if self.type == "choice":
            if not self.choices or self.low is not None or self.high is not None or self.log or self.step is not None:
                raise ValueError("type 'choice' takes 'choices' (at least one) and no low, high, log or step")
            if len(set(map(repr, self.choices))) < len(self.choices):
                raise ValueError("the same choice stands twice")
            return self
        if self.low is None or self.high is None or self.choices:
            raise ValueError(f"type {self.type!r} takes 'low' and 'high', and no 'choices'")
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"from low {self.low:g} to high {self.high:g} is further than numbers reach")
        if self.step is not None and (self.step <= 0 or not _whole((self.high - self.low) / self.step)):
            raise ValueError(f"from low {self.low:g} to high {self.high:g} is no whole number of steps of {self.step:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0 and no step")
        if self.type == "int" and not all(float(x).is_integer() for x in (self.low, self.high, self.step or 1)):
            raise ValueError("type 'int' takes whole numbers")
        if self.type == "int" and max(-self.low, self.high) > LARGEST:
            raise ValueError(f"type 'int' takes whole numbers up to {LARGEST}")
        return self

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """Both ends of the range, or every choice."""
        if self.type == "choice":
            return self.choices
        low, high = self.limits
        return (low, high)

    @property
    def limits(self) -> tuple[Any, Any]:
        """Both ends of a range as numbers of its type."""
        assert self.low is not None
        assert self.high is not None
        return (int(self.low), int(self.high)) if self.type == "int" else (float(self.low), float(self.high))

    def contains(self, value: Scalar) -> bool:
        """True when a study could choose this value."""
        if self.type == "choice":
            return any(value == choice and isinstance(value, bool) is isinstance(choice, bool) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.type == "int" and value % 1 != 0):
            return False
        low, high = self.limits
        return bool(low <= value <= high) and (self.step is None or _whole((value - low) / self.step))

    def active(self, experiment: Mapping[str, Any]) -> bool:
        """True when the condition holds for a nested experiment mapping."""
        for path, wanted in (self.when or {}).items():
            value = get_path(experiment, path, default=_ABSENT)
            if isinstance(wanted, Bounds):
                if not wanted.hold(value):
                    return False
            elif value not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def draw(self, generator: random.Random) -> Scalar:
        """A random value, evenly in the parameter's own scale."""
        if self.type == "choice":
            return generator.choice(self.choices)
        low, high = self.limits
        if self.step is not None:
            value = low + generator.randint(0, round((high - low) / self.step)) * self.step
            return int(value) if self.type == "int" else min(float(value), high)
        if self.log:
            drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
            return round(drawn) if self.type == "int" else min(max(drawn, float(low)), float(high))
        return generator.randint(low, high) if self.type == "int" else generator.uniform(low, high)

    def describe(self) -> str:
        """One short line, such as ``0.01 .. 1 (log) when guide.lora.rank gt 0``."""
        if self.type == "choice":
            text = ", ".join("null" if c is None else str(c) for c in self.choices)
        else:
            text = f"{self.low:g} .. {self.high:g}" + (" (log)" if self.log else "") + (f" step {self.step:g}" if self.step else "")
        for path, wanted in (self.when or {}).items():
            if isinstance(wanted, Bounds):
                limits = " and ".join(f"{k} {v:g}" for k in ("gt", "ge", "lt", "le") if (v := getattr(wanted, k)) is not None)
                text += f", when {path} {limits}"
            else:
                text += f", when {path} is {wanted}"
        return text


_ABSENT = object()


def _whole(number: float) -> bool:
    return math.isfinite(number) and abs(number - round(number)) < 1e-8


def get_path(values: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted path, or ``default`` where there is none."""
    level: Any = values
    for key in path.split("."):
        if not isinstance(level, Mapping) or key not in level:
            return default
        level = level[key]
    return level


def has_path(values: Mapping[str, Any], path: str) -> bool:
    """True when the dotted path leads to a value."""
    return get_path(values, path, default=_ABSENT) is not _ABSENT


def leaf_paths(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted paths of everything that is no mapping itself."""
    found = []
    for key, value in values.items():
        found += leaf_paths(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key]
    return found


def set_path(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at an existing path.

    A new ``guide.kind`` or ``segmenter.kind`` starts from that kind's defaults, for another kind has other fields.

    Raises:
        KeyError: No such path.
    """
    if not has_path(values, path):
        raise KeyError(path)
    head, _, rest = path.partition(".")
    if rest == "kind" and values[head]["kind"] != value:
        section = section_defaults(head, str(value))
        if section is not None:
            return {**values, head: section}
    return {**values, head: set_path(values[head], rest, value) if rest else value}
