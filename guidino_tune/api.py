"""What a program needs beside the workflows: a search space with values of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from guidino_tune.space.check import without_idle
from guidino_tune.space.space import Space, absolute, override, read_space
from guidino_tune.space.space import load_space as read


def load_space(space: str | Path | Mapping[str, Any], values: Mapping[str, Any] | Iterable[str] = ()) -> Space:
    """A search space, with some of its values replaced, as ``guidino-tune search SPACE --set ...`` searches it.

    Args:
        space: A shipped space by name, a YAML file by path, or what such a file holds as a mapping.
        values: By path in experiment, ``study`` or ``resources``; or texts ``path=value``. A parameter that is set is no longer searched.

    Raises:
        UserError: There is no such space, or a mistake in it or in a value; names the path and the nearest valid name.

    Example:
        >>> space = load_space("demo", {"training.lr": 1e-3, "study.trials": 4})
        >>> space.study.trials, space.base.training.lr, "training.lr" in space.parameters
        (4, 0.001, False)
        >>> load_space("demo", ["study.trials=4"]).study.trials
        4
        >>> load_space("demo", {"study.trails": 4})
        Traceback (most recent call last):
            ...
        guidino_tune.errors.UserError: study.trails = 4: unknown name 'study.trails'; did you mean 'study.trials'?
    """
    read_in = read_space(space, source="the mapping") if isinstance(space, Mapping) else read(str(space))
    return absolute(without_idle(override(read_in, values)))
