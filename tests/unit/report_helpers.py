"""Studies for the report: simulated ones of any size, with the folders that real trials leave, and their pages taken apart."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from synthetic_curves import Formula, synthetic_space

from guidino_tune.simulation.executor import simulate
from guidino_tune.space.space import Space, override
from guidino_tune.study.store import StoredStudy, StudyFolder
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.reporter import EpochRecord

START = datetime(2026, 11, 30, 8, 0)
EPOCH = 30.0
"""Seconds of one epoch."""

START_UP = 5.0
"""Seconds of a trial besides its epochs."""


def simulated(folder: Path, epochs: int = 600, *, name: str = "synthetic", histories: bool = True, **study: Any) -> StoredStudy:
    """A search over curves by formula, four trials side by side, whose trials have the times and histories that real ones have."""
    settings = {f"study.{key}": value for key, value in {"name": name, "sampler": "random", "pruner": "asha", **study}.items()}
    space = override(synthetic_space(27), settings)
    _, found = simulate(space, Formula(epochs=27), workers=4, epochs=epochs)
    return stored(folder, space, found.get_trials(deepcopy=False), histories=histories)


def stored(folder: Path, space: Space, trials: list[FrozenTrial], *, histories: bool = True) -> StoredStudy:
    """These trials as a study with a folder; four work side by side."""
    place, free = StudyFolder(folder), [START] * 4
    study = optuna.create_study(study_name=space.study.name, directions=["maximize", *["minimize"] * (len(space.study.objectives) - 1)])
    study.set_user_attr("data", {"num_train": 8, "num_validation": 2, "constant_mask_dice": 0.25})
    timed = []
    for trial in trials:
        worker = free.index(min(free))
        begun = free[worker]
        free[worker] = ended = begun + timedelta(seconds=EPOCH * max(trial.intermediate_values, default=0) + START_UP)
        attributes = {"name": "GuiDINO-U", "epochs": 27, "node": f"node-{worker % 2} 0123456789abcdef", **trial.user_attrs}
        copy = create_trial(
            state=trial.state, params=trial.params, distributions=trial.distributions, values=trial.values, user_attrs=attributes,
            intermediate_values=trial.intermediate_values,
        )  # fmt: skip
        copy.datetime_start, copy.datetime_complete = begun, ended if trial.state.is_finished() else None
        timed.append(copy)
        if histories and trial.intermediate_values:
            write_history(place.trial(len(timed) - 1), trial.intermediate_values, begun)
    study.add_trials(timed)
    place.path.mkdir(parents=True, exist_ok=True)
    place.definition.write_text("experiment: {}\n")
    return StoredStudy(place, study, space)


def write_history(folder: TrialFolder, curve: dict[int, float], begun: datetime) -> None:
    """As a trial writes it."""
    begun = begun.replace(tzinfo=None)
    folder.write_history(
        EpochRecord(epoch, {"val_dice": dice, "epoch_seconds": EPOCH}, begun.timestamp() + EPOCH * epoch) for epoch, dice in curve.items()
    )


def failed(trial: FrozenTrial, kind: str, message: str) -> FrozenTrial:
    """The same trial, had it failed."""
    return create_trial(
        state=TrialState.FAIL, params=trial.params, distributions=trial.distributions, user_attrs={"failure": kind, "message": message}
    )


def split_file(folder: StudyFolder) -> None:
    """Eight training, two validation and three sealed cases."""
    parts = {"train": 8, "validation": 2, "test": 3}
    names = {part: [f"{part}_{n}" for n in range(count)] for part, count in parts.items()}
    folder.split.write_text(json.dumps({**names, "origin": "published", "seed": 0, "made": datetime.now(UTC).isoformat()}))


class Parts(HTMLParser):
    """What is in a page: its texts, its tags, and what it would load."""

    VOID = frozenset({"meta", "img", "br", "wbr", "link", "input", "line", "circle", "path", "rect", "polygon"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.titles: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.loads += [str(given[name]) for name in ("src", "href", "data", "action", "srcset") if name in given]
        self.ids += [str(given["id"])] if "id" in given else []
        assert not [name for name in given if name.startswith("on")], given
        if tag not in self.VOID or tag in ("circle", "path", "rect", "polygon"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script") and data.strip():
            (self.titles if self._open[-1] == "title" else self.texts).append(" ".join(data.split()))

    @property
    def text(self) -> str:
        """All that one reads."""
        return "\n".join(self.texts)
