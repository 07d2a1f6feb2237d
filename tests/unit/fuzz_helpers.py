"""What the fuzz tests share: plain values drawn by the types and limits of the configuration's fields, and a space in YAML.

They draw at most 25 examples, the same in every run; `GUIDINO_TUNE_FUZZ=1` draws as many as each asks for, and other ones in every run;
`GUIDINO_TUNE_FUZZ=50` fifty times as many.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from guidino_tune.config import Experiment
from guidino_tune.config.study import CONSTRAINTS, OBJECTIVES
from guidino_tune.space.check import check_space, without_idle
from guidino_tune.space.space import absolute, load_space, override

TIMES = int(os.environ.get("GUIDINO_TUNE_FUZZ", "0"))


def examples(number: int) -> settings:
    return settings(
        max_examples=number * TIMES or min(number, 25),
        deadline=None,
        derandomize=not TIMES,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
    )


# -------------------------------------------------------------------------------------------------- values by the types of fields


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Plain YAML values that the type and its limits allow."""
    limits: dict[str, Any] = {}
    if get_origin(hint) is Annotated:
        hint, *marks = get_args(hint)
        for field in marks:
            for limit in getattr(field, "metadata", ()):
                limits |= {
                    name: getattr(limit, name) for name in ("gt", "ge", "lt", "le", "multiple_of", "pattern") if hasattr(limit, name)
                }
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(*map(values_of, get_args(hint)))
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        return st.lists(values_of(get_args(hint)[0]), min_size=1, max_size=3)
    if get_origin(hint) is tuple:
        return st.tuples(*map(values_of, get_args(hint))).map(list)
    if dataclasses.is_dataclass(hint):
        return mappings_of(typing.cast(type, hint))
    if hint is type(None):
        return st.none()
    if hint is bool:
        return st.booleans()
    if hint is int:
        step = limits.get("multiple_of", 1)
        low = limits.get("ge", limits.get("gt", -1) + 1)
        high = min(limits.get("le", 2**40), limits.get("lt", 2**40) - 1, low + 2000)
        return st.integers(-(-low // step), high // step).map(lambda n: n * step)
    if hint is float:
        low = limits.get("ge", limits.get("gt"))
        high = limits.get("le", limits.get("lt", 1e6))
        return st.floats(low, high, exclude_min="gt" in limits, exclude_max="lt" in limits)
    if hint is str:
        plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
        return st.from_regex(limits["pattern"], fullmatch=True) if "pattern" in limits else plain
    raise AssertionError(f"no values for {hint}")


PLAIN = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1e9, 1e9) | st.text("ab: #", max_size=4)


def mappings_of(cls: type) -> st.SearchStrategy[dict[str, Any]]:
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    special: dict[str, st.SearchStrategy[Any]] = {
        "backbone": st.sampled_from(["vits16", "tiny", "convnext_base", "./model", "~/ä: b #c"]),
        "image_size": st.sampled_from([64, 128, 224, 256, 448, 512, 1024]),
        "hinge_band": st.integers(1, 15).map(lambda n: 2 * n + 1),
        "normalisation": st.sampled_from(["imagenet", "zscore"]),
        "images": st.sampled_from([None, None, "scans/*.png"]),
        "masks": st.sampled_from([None, None, "labels", "instances"]),
        "labels": st.sampled_from([None, None, {"polyp": [255]}, {"background": [0], "a b": [[255, 0, 0], 7], "c: #": [[0, 0, 9]]}]),
        "channels": st.sampled_from([1, 3, 3, 4]),
        "window": st.sampled_from([None, "percentiles", "file", [0.0, 100.0], [[0.0, 1.0], [-5.0, 5.0], [2.0, 9.0]]]),
        "resize": st.sampled_from(["squash", "squash", "pad"]),
        "view": st.sampled_from(["image", "image", "patch"]),
        "fold": st.sampled_from([0, 0, 1]),
        "gate": st.sampled_from(["default", "default", "default", "input", "bottleneck", "features", "none"]),
        "objectives": st.just(["val_dice"])
        | st.sets(st.sampled_from(sorted(OBJECTIVES))).map(lambda s: ["val_dice", *sorted(s - {"val_dice"})]),
        "constraints": st.dictionaries(st.sampled_from(CONSTRAINTS), st.floats(1e-3, 1e9)),
        "sampler": st.sampled_from(["auto", "tpe", "random", "qmc", "listed", "optuna.samplers:NSGAIISampler"]),
        "pruner": st.sampled_from(["auto", "promotion", "asha", "none", "optuna.pruners:MedianPruner"]),
        "target": st.sampled_from(["my.parts:Net", "parts:term"]),
        **dict.fromkeys(("options", "sampler_options", "pruner_options"), st.dictionaries(st.sampled_from(["a", "width"]), PLAIN)),
        "trials_per_gpu": st.none() | st.integers(1, 64) | st.just("auto"),
        "view_makers": st.integers(0, 64) | st.just("auto"),
    }
    made = {name: special[name] if name in special else values_of(hints[name]) for name in names}
    needed = [field.name for field in dataclasses.fields(cls) if field.name == "kind" or field.default is dataclasses.MISSING]
    return st.fixed_dictionaries({n: made[n] for n in needed}, optional={n: s for n, s in made.items() if n not in needed})


FULL: dict[str, Any] = Experiment.from_dict(
    {
        "data": {"kind": "demo", "image_size": 64},
        "guide": {"kind": "dino", "backbone": "tiny", "weights": "random"},
        "segmenter": {"kind": "segdino"},
    }
).to_dict()

TEXT = """\
experiment:
  data: {kind: demo, image_size: 64}
  segmenter: &net {kind: unet, base_width: 8}
space:
  training.lr: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  loss.hinge_weight: {choices: [0.0, 0.1]}
  loss.hinge_margin: {type: float, low: 0.5, high: 2, when: {loss.hinge_weight: {gt: 0}}}
first_trials:
  - {training.lr: 0.001, loss.hinge_weight: 0.0}
study: {trials: 4, min_epochs: 1}
resources: {concurrent: 1}
"""
SPACE: dict[str, Any] = yaml.safe_load(TEXT)


def checked(file: Path) -> None:
    """All that a search does with a space file before it looks at images, weights and machines."""
    check_space(absolute(without_idle(override(load_space(str(file)), []))))
