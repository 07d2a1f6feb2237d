"""What a search, or a study that goes on, would stumble over: every problem at once. Nothing is changed, and nothing is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import TrialState
from safetensors import SafetensorError, safe_open

from guidino_tune import paths, targets
from guidino_tune.config import Data, DINOGuide
from guidino_tune.config.parsing import parse
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import check_split, read_split
from guidino_tune.errors import UserError
from guidino_tune.findings import Finding
from guidino_tune.known_backbones import Known, name_in
from guidino_tune.models import check_backbone
from guidino_tune.space.check import check_space
from guidino_tune.space.space import Space, absolute, load_space, override, read_setting
from guidino_tune.study.journal import database
from guidino_tune.study.outcomes import in_words
from guidino_tune.study.store import StudyFolder, as_begun, check_same_search, check_there, folder_of, stored_study
from guidino_tune.study.trials import orphans, tried
from guidino_tune.training.backbones import read_known
from guidino_tune.training.checkpoints import WEIGHTS, read_checkpoint
from guidino_tune.workflows.backbones import recalled
from guidino_tune.workflows.checks import check_decisions, check_models, check_storage, check_workers
from guidino_tune.workflows.data_page import data_page
from guidino_tune.workflows.resolve import resolve_data
from guidino_tune.workflows.track import waiting


def _problem(name: str, check: Callable[[], object], mark: Literal["note", "missing"] = "missing") -> list[Finding]:
    """The finding of a check that refuses; empty when it does not."""
    try:
        check()
    except UserError as error:
        return list(_refused(name, error, mark))
    except OSError as error:
        return [Finding(mark, name, str(error))]
    return []


def look_at(
    space: str | None,
    study: str | None,
    storage: str | None,
    images: bool,
    *,
    kind: str | None,
    data_root: str | None,
    settings: Sequence[str] = (),
) -> Iterator[Finding]:
    """All that is asked for, each thing whatever became of the others.

    Args:
        space: See ``look_at_space``.
        study: See ``look_at_study``.
        storage: Database URL of that study.
        images: Read those of the space, or else those of the data set that ``kind`` and ``data_root`` name.
        kind: As in ``data.kind``.
        data_root: Its folder.
        settings: Of the data set or the space, such as ``data.image_size=512``.
    """
    parts: dict[str, Callable[[], Iterator[Finding]]] = {}
    if space:
        parts["space"] = lambda: look_at_space(space, data_root, images=images, settings=settings)
    elif images:
        parts["images"] = lambda: data_page(told_data(str(kind), data_root, settings))
    if study:
        parts["study"] = lambda: look_at_study(study, storage)
    for name, look in parts.items():
        try:
            yield from look()
        except UserError as error:
            yield from _refused(name, error)


def _refused(name: str, error: UserError, mark: Literal["note", "missing"] = "missing") -> Iterator[Finding]:
    yield Finding(mark, name, f"{error.where}: {error.what}" if error.where else error.what, error.todo)


def told_data(kind: str, data_root: str | None, settings: Sequence[str] = ()) -> Data:
    """The section ``data`` of a data set that is named on the command line.

    Raises:
        UserError: A setting is wrong.
    """
    values: dict[str, Any] = {"kind": kind, "root": data_root}
    for text in settings:
        path, _, raw = text.partition("=")
        section, _, name = path.partition(".")
        if section != "data" or not name:
            raise UserError("with --kind only settings of the data have a meaning", where=f"--set {text}", todo="write data.NAME=VALUE")
        try:
            values[name] = read_setting(path, raw)
        except ValueError:
            raise UserError(f"{raw!r} is no YAML value", where=f"--set {text}") from None
    return parse(Data, values, "--kind and --set, data")


def look_at_space(name: str, data_root: str | None = None, *, images: bool = False, settings: Sequence[str] = ()) -> Iterator[Finding]:
    """Checks a space as a search does, but goes on after a problem.

    Args:
        name: Of a shipped space, or the path of a YAML file.
        data_root: Another folder of its data set.
        images: Read the training and validation images and masks too.
        settings: Other values, as of ``--set``.

    Yields:
        A finding for every problem; and one for what is fine.

    Raises:
        UserError: The space cannot be read at all.
    """
    space = absolute(override(load_space(name), [*([f"data.root={data_root}"] if data_root else []), *settings]))
    targets.trust(*space.targets)
    targets.look_in(Path(space.source).parent)
    unread: list[Finding] = []
    try:
        space = resolve_data(space)
    except UserError as error:
        unread = list(_refused("space's data", error))
    folder = folder_of(space.study.name)
    problems = _problem("space", lambda: check_space(space, begun=folder.definition.exists()))
    if not problems:  # else its experiments cannot be built
        problems += _problem("models", lambda: check_models(space))
        problems += _problem("sampler and pruner", lambda: check_decisions(space))
        problems += _problem("workers", lambda: check_workers(space.base, space.resources.workers))
    problems += _problem("study folder", lambda: check_storage(folder.path))
    problems += _problem("study folder", lambda: check_same_search(as_begun(space, folder), folder))
    if space.resources.shared:
        views = Path(space.resources.views_folder or paths.views())
        problems += _problem("shared views", lambda: check_storage(views))
    drawn = space.base.data.kind != "demo" or Path(space.base.data.root or paths.datasets() / "demo").is_dir()
    if drawn:  # else listing the images would draw them
        problems += unread or _problem("space's data", lambda: find_cases(space.base.data))
    yield from problems
    if not problems:
        yield Finding("ok", "space", f"{space.source}: {len(space.parameters)} parameters, {len(space.first_trials)} first trials")
    if images and drawn and not any(problem.name == "space's data" for problem in problems):
        yield from data_page(space.base.data)


def look_at_study(name: str, storage: str | None = None) -> Iterator[Finding]:
    """Looks a study over: its journal, who works on it, its trials and their files, its split, and what MLflow lacks.

    Args:
        name: Of the study.
        storage: Database URL of the Optuna study; by default the journal in the study's folder.

    Yields:
        ``missing`` for what keeps the study from going on, ``note`` for the rest.

    Raises:
        UserError: There is no such study, or its definition or journal is damaged.
    """
    folder = folder_of(name)
    check_there(folder)
    yield from _journal(folder, storage)
    stored = stored_study(name, storage)
    (_, study, space), holder = stored, stored.holder
    if holder:
        yield Finding("note", "study", f"a search works on it ({holder})", "wait for it, or stop it, before you start another one")
    yield from _trials(study, space, folder, running=bool(holder))
    yield from _backbones(folder)
    if folder.split.exists():
        yield from _problem("split", lambda: check_split(read_split(folder.split), find_cases(space.base.data), folder.split))
    if waits := waiting(name, storage):
        yield Finding("note", "MLflow records", f"not yet sent: {waits}", paths.next_command(f"track {name} --flush"))


def _journal(folder: StudyFolder, storage: str | None) -> Iterator[Finding]:
    if database(storage):
        return
    file = folder.journal
    if not file.exists():
        raise UserError(
            "the study's journal is gone, and with it its trials; unless they are kept in a database",
            where=str(file),
            todo="restore it from a copy, or name the database by --storage or GUIDINO_TUNE_STORAGE",
        )
    with file.open("rb") as stream:
        end = stream.seek(0, 2)
        stream.seek(max(0, end - 1))
        whole = stream.read() in (b"", b"\n")
    if not whole:
        yield Finding(
            "note", "journal", f"{file}: its last line is unfinished, as after a crash", "nothing: the next search cuts that line off"
        )


def _trials(study: optuna.Study, space: Space, folder: StudyFolder, *, running: bool) -> Iterator[Finding]:
    trials = tried(study)
    states = Counter(trial.state.name.lower() for trial in trials)
    yield Finding("ok", "study", f"{len(trials)} trials: {', '.join(f'{n} {state}' for state, n in states.items()) or 'none yet'}")
    for line in in_words(trials):
        yield Finding("note", "failed trials", line)
    if running:
        return  # its trials are being written
    left = orphans(study, space)
    if left:
        numbers = ", ".join(str(trial.number) for trial in left[:8])
        found = f"{len(left)} trials were left running by a search that ended before them (trial {numbers})"
        yield Finding("note", "running trials", found, "the same search command continues them from their checkpoints")
    for trial in left:
        for checkpoint in folder.trial(trial.number).checkpoints():
            yield from _problem("checkpoint", lambda checkpoint=checkpoint: read_checkpoint(checkpoint), "note")  # type: ignore[misc]
    for trial in trials:
        weights = folder.trial(trial.number).best / WEIGHTS
        if trial.state == TrialState.COMPLETE and weights.exists() and (reason := _unreadable(weights)):
            todo = "retrain the trial's configuration: guidino-tune export, then retrain"
            yield Finding("note", "best weights", f"{weights}: {reason}", todo)


def _backbones(folder: StudyFolder) -> Iterator[Finding]:
    """Of every backbone that a study has noted, whether its weights are still there and the same."""

    def load() -> None:
        with recalled(folder):
            for key in known:
                check_backbone(DINOGuide(backbone=name_in(key), weights="pretrained" if name_in(key) == key else "random"))

    known: dict[str, Known] = {}
    problems = _problem("backbones", lambda: known.update(read_known(folder.path)))
    problems += _problem("backbones", load)
    yield from problems
    if known and not problems:
        yield Finding("ok", "backbones", "; ".join(f"{key}: fingerprint {noted.fingerprint}" for key, noted in known.items()))


def _unreadable(weights: Path) -> str:
    """Why a safetensors file cannot be read; empty when its header is whole and its length is right."""
    try:
        with safe_open(weights, framework="pt"):
            return ""
    except (OSError, SafetensorError) as error:
        return f"the weights are damaged: {error}"
