"""Journals of real searches, with the time of every line, played again: what was told on the way, and how long it really took.

``python tests/unit/recorded_journals.py STUDY_FOLDER FILE`` keeps the one of a search that ran in one go, from its start to its end.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from replayed_searches import Look

from guidino_tune.config.parsing import read_yaml
from guidino_tune.space.space import Space, read_space
from guidino_tune.study.journal import open_journal
from guidino_tune.study.promotion import DECISION
from guidino_tune.study.store import StudyFolder
from guidino_tune.study.tally import Tally
from guidino_tune.study.time_left import TimeLeft
from guidino_tune.study.trials import remaining

FOLDER = Path(__file__).with_name("recorded_journals")

CREATE, SET_STATE, SET_VALUE, SET_ATTRIBUTE = 4, 6, 7, 8
"""Codes of lines in Optuna's journal."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A search: what it searched, and each line of its journal with the seconds since its first; ``epochs`` that trials told, likewise."""

    space: Space
    lines: Sequence[tuple[float, dict[str, Any]]]
    epochs: Sequence[tuple[float, int, float]]

    @property
    def end(self) -> float:
        """Seconds from the first line to the last."""
        return self.lines[-1][0]


def keep(folder: StudyFolder, file: Path) -> None:
    """Writes the recording of a study: its definition, its journal without names of processes, and its epochs."""
    told = {
        (number, record.epoch): (record.time, record.metrics["epoch_seconds"])
        for number in range(len(list((folder.path / "trials").iterdir())))
        for record in folder.trial(number).history()
    }
    now, lines = 0.0, []
    for text in folder.journal.read_text().splitlines():
        line = json.loads(text)
        stamp = line.get("datetime_start") or line.get("datetime_complete")
        if stamp:
            now = max(now, datetime.fromisoformat(stamp).timestamp())
        elif line["op_code"] == SET_VALUE:
            now = max(now, told[line["trial_id"], line["step"]][0])
        if "node" not in line.get("user_attr", {}):
            lines.append((now, line | {"worker_id": "recorded"}))
    begin = next(at for at, _ in lines if at)
    epochs = sorted((at, number, seconds) for (number, _), (at, seconds) in told.items())
    definition = read_yaml(folder.definition)
    for name in ("root", "images", "masks"):
        definition["experiment"]["data"][name] = None
    with gzip.open(file, "wt") as stream:
        stream.write(
            json.dumps({"definition": definition, "epochs": [(round(at - begin, 3), n, round(s, 4)) for at, n, s in epochs]}) + "\n"
        )
        for at, line in lines:
            stream.write(json.dumps([round(max(0.0, at - begin), 3), line]) + "\n")


def recorded(name: str) -> Recorded:
    """One of those in ``FOLDER``."""
    with gzip.open(FOLDER / f"{name}.jsonl.gz", "rt") as stream:
        head, *lines = [json.loads(line) for line in stream]
    return Recorded(
        read_space(head["definition"], source=name), [(at, line) for at, line in lines], [tuple(epoch) for epoch in head["epochs"]]
    )


def replay(search: Recorded, shares: Sequence[float], folder: Path) -> Iterator[Look]:
    """What was told when these shares of the search were over.

    Args:
        search: The recording.
        shares: In ascending order.
        folder: An empty one.
    """
    for place, share in enumerate(shares):
        now = share * search.end
        past = [(at, line) for at, line in search.lines if at <= now]
        journal = folder / f"{place}.journal"
        journal.write_text("".join(json.dumps(line) + "\n" for _, line in past))
        study = optuna.load_study(study_name=search.space.study.name, storage=open_journal(journal))
        left = TimeLeft(study, search.space)
        for at, number, what in sorted(_events(search, now), key=lambda event: event[0]):
            trial = next((trial for trial in study.get_trials(deepcopy=False) if trial.number == number), None)
            kind = trial.user_attrs.get("name") if trial else None
            if what == "starts":
                left.started(number, (kind, search.space.experiment(trial.params).data.image_size) if trial else kind, at)
            elif what == "ends":
                left.ended(number)
            else:
                left.trained(number, at, what)
        tally = Tally(study)
        rest = remaining(study, search.space)
        state = left.state(now)
        yield Look(now, state.left() if state else None, now / tally.done * rest if tally.done else None)


def _events(search: Recorded, now: float) -> Iterator[tuple[float, int, Any]]:
    """Starts, epochs with their seconds, and ends, also those at a rung, until now."""
    number, waits = -1, set[int]()
    for at, line in search.lines:
        if at > now:
            break
        trial = line.get("trial_id")
        if line["op_code"] == CREATE:
            number += 1
            if line.get("state", 0) != 4:  # a queued one begins when its state says so
                yield at, number, "starts"
        elif line["op_code"] == SET_STATE:
            yield at, trial, "starts" if line["state"] == 0 else "ends"
        elif line["op_code"] == SET_ATTRIBUTE and (decision := line["user_attr"].get(DECISION)):
            if decision[1]:
                waits.add(trial)
                yield at, trial, "ends"
            elif trial in waits:
                waits.remove(trial)
                yield at, trial, "starts"
    yield from ((at, number, seconds) for at, number, seconds in search.epochs if at <= now)


if __name__ == "__main__":
    keep(StudyFolder(Path(sys.argv[1])), Path(sys.argv[2]))
