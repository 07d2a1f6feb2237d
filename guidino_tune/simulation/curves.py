"""Recorded learning curves of one space, as a Parquet table: one row for each configuration, seed and epoch."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from optuna.trial import TrialState

from guidino_tune import __version__, paths
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.errors import UserError
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space, read_space
from guidino_tune.study.outcomes import as_key
from guidino_tune.study.store import stored_study
from guidino_tune.study.trials import finished

COMPLETE, STOPPED = "complete", "stopped"
"""How a curve ends that did not fail; one that failed ends with the kind of its failure."""

OTHERS = ("val_hd95",)
"""Metrics that are recorded beside the objective where a training measured them."""

_COLUMNS = {
    "configuration": pa.int32(), "seed": pa.int64(), "epoch": pa.int32(), OBJECTIVE: pa.float64(), "seconds": pa.float64(),
    "state": pa.string(), "parameters": pa.string(),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """What one training told.

    Attributes:
        configuration: The same number for the same parameters.
        seed: Of the training.
        parameters: What was searched and active, by path.
        dice: Validation Dice after epoch 1, 2, ...; NaN where none was measured.
        seconds: Of each epoch.
        state: ``complete``, ``stopped`` (early), or the kind of a failure, which came in the epoch after the last.
        others: More metrics by name, each an array like ``dice``.
    """

    configuration: int
    seed: int
    parameters: Values
    dice: np.ndarray
    seconds: np.ndarray
    state: str = COMPLETE
    others: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """True when the training ended with a failure."""
        return self.state not in (COMPLETE, STOPPED)

    def filled(self) -> np.ndarray:
        """Dice of every epoch; between two that were validated on a straight line."""
        known = np.flatnonzero(np.isfinite(self.dice))
        return np.interp(np.arange(len(self.dice)), known, self.dice[known]) if len(known) else np.zeros(len(self.dice))


@dataclasses.dataclass(frozen=True, slots=True)
class CurveTable:
    """Curves of one space.

    Attributes:
        space: What they were drawn from.
        curves: At least one.
        origin: Where they come from, in plain types: data set, machine, version, date.
    """

    space: Space
    curves: tuple[Curve, ...]
    origin: Mapping[str, Any]

    @property
    def epochs(self) -> int:
        """Of a whole training."""
        return self.space.base.training.epochs

    def joined(self, others: Sequence[Curve]) -> CurveTable:
        """With more curves of the same space; the same parameters get the same number."""
        numbers = {as_key(curve.parameters): curve.configuration for curve in self.curves}
        more = tuple(
            dataclasses.replace(curve, configuration=numbers.setdefault(as_key(curve.parameters), len(numbers))) for curve in others
        )
        return dataclasses.replace(self, curves=(*self.curves, *more))


def write_table(table: CurveTable, file: Path) -> None:
    """Writes a table beside its place and renames it."""
    rows: dict[str, list[Any]] = {name: [] for name in (*_COLUMNS, *OTHERS)}
    for curve in table.curves:
        parameters, length = json.dumps(curve.parameters), len(curve.dice)
        for epoch in range(1, length + 1) if length else (0,):  # a failure in the first epoch has a row too
            at = epoch - 1
            row = {
                "configuration": curve.configuration, "seed": curve.seed, "epoch": epoch, "parameters": parameters,
                OBJECTIVE: float(curve.dice[at]) if epoch else math.nan, "seconds": float(curve.seconds[at]) if epoch else math.nan,
                "state": curve.state if epoch == length else None,
                **{n: float(curve.others[n][at]) if epoch and n in curve.others else None for n in OTHERS},
            }  # fmt: skip
            for name, column in rows.items():
                column.append(row[name])
    schema = pa.schema({**_COLUMNS, **dict.fromkeys(OTHERS, pa.float64())})
    metadata = {"space": yaml.safe_dump(table.space.to_dict(), sort_keys=False), "origin": json.dumps(dict(table.origin))}
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}")
    pq.write_table(pa.table(rows, schema=schema).replace_schema_metadata(metadata), draft, compression="zstd")
    draft.replace(file)


def read_table(file: Path) -> CurveTable:
    """Reads what ``write_table`` wrote, here or elsewhere.

    Raises:
        UserError: There is no such file, or it is no table of curves; says what is missing.
    """
    todo = f"record one: {paths.next_command('record SPACE --configurations 100 --output TABLE')}"
    try:
        read = pq.read_table(file)
    except FileNotFoundError:
        raise UserError("no such file", where=str(file), todo=todo) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"is no Parquet file ({' '.join(str(error).split())[:200]})", where=str(file), todo=todo) from None
    metadata = {key.decode(): value.decode() for key, value in (read.schema.metadata or {}).items()}
    missing = [name for name in _COLUMNS if name not in read.column_names]
    if missing := missing + [f"metadata {name!r}" for name in ("space", "origin") if name not in metadata]:
        raise UserError(f"is no table of curves: {', '.join(missing)} missing", where=str(file), todo=todo)
    try:
        values, origin = yaml.safe_load(metadata["space"]), json.loads(metadata["origin"])
    except (yaml.YAMLError, ValueError):
        raise UserError("its metadata cannot be read", where=str(file), todo=todo) from None
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in read.to_pylist():
        groups.setdefault((row["configuration"], row["seed"]), []).append(row)
    if not groups:
        raise UserError("holds no curve", where=str(file), todo=todo)
    curves = tuple(_curve(key, sorted(rows, key=lambda r: r["epoch"]), str(file)) for key, rows in groups.items())
    return CurveTable(_checked(read_space(values, source=str(file)), str(file)), curves, origin)


def _curve(key: tuple[int, int], rows: Sequence[Mapping[str, Any]], where: str) -> Curve:
    epochs = [row["epoch"] for row in rows]
    if epochs != [0] and epochs != list(range(1, len(rows) + 1)):
        raise UserError(f"the epochs of configuration {key[0]}, seed {key[1]}, are not 1, 2, 3, ...", where=where, todo="mend the table")
    parameters, state = json.loads(rows[0]["parameters"]), rows[-1]["state"]
    rows = [row for row in rows if row["epoch"]]
    arrays = {n: np.array([row.get(n) for row in rows], dtype=float) for n in (OBJECTIVE, "seconds", *OTHERS)}
    others = {n: arrays[n] for n in OTHERS if np.isfinite(arrays[n]).any()}
    return Curve(*key, parameters, arrays[OBJECTIVE], arrays["seconds"], state or STOPPED, others)


def _checked(space: Space, where: str) -> Space:
    if "training.epochs" in space.parameters or len({made.training.epochs for made in (space.base, *space.recipes.values())}) > 1:
        raise UserError("trials of different lengths cannot be simulated", where=where, todo="fix training.epochs in the space")
    return space


def from_study(*folders: str | Path, space: Space | None = None) -> CurveTable:
    """The curves of one or several studies of one space: of their complete, stopped and failed trials.

    What a machine did to a trial is left out, and so is a trial that was never trained.

    Args:
        folders: Names or paths of studies, see ``store.folder_of``.
        space: Kept in the table; ``None``: that of the first study.

    Raises:
        UserError: There is no such study, or none of its trials has a curve.
    """
    curves: list[Curve] = []
    numbers: dict[Any, int] = {}
    for name in folders:
        folder, study, stored = stored_study(name)
        space = space or stored
        for trial in finished(study):
            history = {r.epoch: r.metrics for r in folder.trial(trial.number).history()}
            length = next((n for n in range(len(history) + 1) if n + 1 not in history), 0)
            failure = str(trial.user_attrs.get("failure", "")) if trial.state == TrialState.FAIL else ""
            if not length and not failure:
                continue
            columns = {
                n: np.array([history[e].get(n, math.nan) for e in range(1, length + 1)], dtype=float)
                for n in (OBJECTIVE, "epoch_seconds", *OTHERS)
            }
            curves.append(
                Curve(
                    numbers.setdefault(as_key(trial.params), len(numbers)), stored.experiment(trial.params).training.seed,
                    dict(trial.params),
                    columns[OBJECTIVE], columns["epoch_seconds"], failure or (COMPLETE if trial.state == TrialState.COMPLETE else STOPPED),
                    {n: columns[n] for n in OTHERS if np.isfinite(columns[n]).any()},
                )
            )  # fmt: skip
    if not curves or space is None:
        raise UserError("no trial of it has a curve", where=str(folders[0]), todo="let the search finish some trials first")
    origin = {
        "data": space.base.data.kind, "machine": platform.node(), "version": __version__, "date": date.today().isoformat(),
        "studies": [str(name) for name in folders],
    }  # fmt: skip
    return CurveTable(_checked(space, str(folders[0])), tuple(curves), origin)
