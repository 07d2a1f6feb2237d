"""Several trained models as one: the best of a study, chosen greedily on its validation cases, or models that are named."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.status import Status
from torch import nn

from guidino_tune import __version__
from guidino_tune.analysis.selection import Gain, Members, Step, best_of, greedy, held_out, ranked, weights_of
from guidino_tune.config import Data, Experiment, Protocol
from guidino_tune.data.carrying import DIGEST, provenance_of
from guidino_tune.data.cases import Case
from guidino_tune.data.rules import Rules
from guidino_tune.data.splits import read_split, split_digest
from guidino_tune.errors import UserError
from guidino_tune.inference import ImagePrediction
from guidino_tune.known_backbones import chosen as chosen_backbones
from guidino_tune.known_backbones import expecting
from guidino_tune.metrics import case_dice
from guidino_tune.models.ensemble import Ensemble
from guidino_tune.study.ensembles import MadeEnsemble, note_ensemble
from guidino_tune.study.store import StudyFolder, stored_study
from guidino_tune.study.trials import best_value, ranking
from guidino_tune.training.checkpoints import WEIGHTS
from guidino_tune.training.ensemble_folder import ALIKE, Member, export_ensemble, find_ensemble
from guidino_tune.training.evaluation import choose_cases, find_split, predict_case
from guidino_tune.training.model_folder import ENSEMBLE, best_device, find_rules, find_weights, load_single
from guidino_tune.workflows.progress import silent_console
from guidino_tune.workflows.study_page import in_command, storage_option

CANDIDATES = 20
"""Models of a study among which is chosen."""

MOST = 5
"""Different members of a chosen ensemble: each costs a forward pass for every image."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model that may become a member: by which name, where its weights are, and what was trained on which split."""

    name: str
    folder: Path
    source: Path
    experiment: Experiment
    split_file: Path
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ensembled:
    """An ensemble, and what is known of it.

    Attributes:
        model: Its folder.
        members: Weights by the members' names, the best alone first.
        dice: Mean Dice of the validation cases, with the masks compared at training size: ``ensemble``, ``alone`` (the best member), and
            ``flips``, of the ensemble with test-time flips. It was chosen on these cases, so that they say too much for it.
        gains: Over the best model alone, on cases that had no part in the choice; see ``analysis.selection.held_out``. Empty where nothing
            was chosen, or there are too few cases.
        seconds: For an image: ``ensemble``, ``alone`` and ``flips``.
        parameters: Backbones included: ``ensemble`` and ``alone``.
        study: Whose report tells of it, for a command; empty where the models are of no study that is here.
    """

    model: Path
    members: dict[str, int]
    dice: dict[str, float]
    gains: dict[str, Gain]
    seconds: dict[str, float]
    parameters: dict[str, int]
    study: str = ""


def make_ensemble(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    candidates: int = CANDIDATES,
    most: int = MOST,
    every: bool = False,
    force: bool = False,
    storage: str | None = None,
    data_root: str | None = None,
    backbones: Sequence[str] = (),
    console: Console | None = None,
) -> Ensembled:
    """Puts trained models together into a folder that every command takes as a model; see ``guidino-tune ensemble --help``.

    Args:
        sources: The name of a study, or folders of models and trials that were trained on one split.
        output: The new folder.
        candidates: Of a study: the best so many trials that have kept their weights.
        most: Different members that are chosen at most, from 1.
        every: Choose none: all named models, each with the same weight.
        force: Replace an ensemble that is there.
        storage: Database URL of the study; by default the journal in its folder.
        data_root: Where the images are now.
        backbones: Where the folder of a backbone is now.
        console: For progress and notes; ``None`` prints nothing.

    Raises:
        UserError: There are not two models, they were trained on other splits or see their images differently, the validation cases are
            not here, or ``output`` is there already.
    """
    console, target = console or silent_console(), Path(output).expanduser()
    check_target(target, force=force)
    is_study = len(sources) == 1 and not _is_model(Path(sources[0]).expanduser())
    found = of_study(str(sources[0]), candidates, storage) if is_study else [_named(Path(source).expanduser()) for source in sources]
    found = alike(found, console)
    data, rules = found[0].experiment.data, find_rules(found[0].folder, found[0].experiment.data)
    cases = choose_cases(found[0].folder, data, "validation", kind=None, root=data_root, split_file=str(found[0].split_file), reason=None)
    protocol = Protocol(resolution="training").of(data)
    with tempfile.TemporaryDirectory(prefix="guidino-tune-") as scratch, expecting(chosen_backbones(backbones)):
        scored = Scored(Path(scratch), data, protocol, rules, cases)
        with console.status("predicting") as status:
            for number, candidate in enumerate(found, 1):
                network, _ = load_single(candidate.folder, best_device())
                about = f"model {number} of {len(found)}"
                scored.add(network, partial(_progress, status, about, len(cases)))
                alone = f"validation Dice {_mean(scored.dice((number - 1,))):.4f}, {scored.seconds[-1]:.2g} s an image"
                console.print(f"{about}, {candidate.name}: {alone}", highlight=False, soft_wrap=True)
            status.update("choosing")
            everywhere = np.arange(len(cases))
            order = ranked(scored.dice, len(found), everywhere)
            steps = [] if every else greedy(scored.dice, len(found), most, everywhere)
            groups = np.unique([case.group for case in cases], return_inverse=True)[1]
            gains = {} if every else held_out(scored.dice, len(found), most, groups)
        members = tuple(range(len(found))) if every else best_of(steps).members
        weights = {number: weights_of(members)[number] for number in order if number in members}
        for line in _told([c.name for c in found], steps):
            console.print(line, highlight=False, soft_wrap=True)
        model = Ensemble([load_single(found[n].folder, best_device())[0] for n in weights], list(weights.values())).eval()
        with console.status("trying test-time flips") as status:
            flipped = Scored(Path(scratch) / "flips", data, replace(protocol, mirror=True), rules, cases)
            flipped.add(model, partial(_progress, status, "test-time flips", len(cases)))
        best = order[0]
        dice = {"ensemble": _mean(scored.dice(members)), "alone": _mean(scored.dice((best,))), "flips": _mean(flipped.dice((0,)))}
    seconds = {"ensemble": sum(scored.seconds[n] for n in weights), "alone": scored.seconds[best], "flips": flipped.seconds[0]}
    parameters = {"ensemble": _parameters(model), "alone": _parameters(model.members[list(weights).index(best)])}
    noted = {
        **provenance_of(found[0].split_file),
        "ensemble_of": {found[number].name: weight for number, weight in weights.items()},
        "candidates": len(found),
        "chosen": "none: all that were named" if every else "greedily on the validation cases",
        "val_dice_of_the_choice": {name: round(value, 6) for name, value in dice.items()},
        "gain_over_the_best_alone_held_out": {name: str(gain) for name, gain in gains.items()},
        "guidino_tune": __version__,
    }
    parts = [found[number] for number in weights]
    export_ensemble(
        [Member(part.source, part.experiment, part.split_file, part.provenance) for part in parts],
        target, noted, found[0].split_file, None if len(set(weights.values())) == 1 else list(weights.values()),
    )  # fmt: skip
    made = Ensembled(target, {found[number].name: weight for number, weight in weights.items()}, dice, gains, seconds, parameters)
    study = _note_with_study(made, found[0].split_file, len(found), groups, console, is_chosen=not every)
    return replace(made, study=study and study + storage_option(storage))


def _note_with_study(made: Ensembled, split_file: Path, candidates: int, groups: np.ndarray, console: Console, *, is_chosen: bool) -> str:
    """Notes an ensemble with the study on whose split its members were trained, for its report; gives the study for a command."""
    folder = StudyFolder(split_file.absolute().parent)
    if not folder.definition.is_file():
        return ""
    noted = MadeEnsemble(
        model=str(made.model.absolute()),
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        members=made.members,
        candidates=candidates,
        is_chosen=is_chosen,
        cases=len(groups),
        patients=len(np.unique(groups)),
        dice=made.dice,
        gains={name: astuple(gain) for name, gain in made.gains.items()},
        seconds=made.seconds,
        parameters=made.parameters,
    )
    try:
        note_ensemble(folder, noted)
    except OSError as error:  # of a study that can only be read
        why = f"the study's report will not tell of this ensemble: {error.filename} cannot be written ({error.strerror})"
        console.print(f"note: {why}", style="yellow", highlight=False, soft_wrap=True)
        return ""
    return in_command(folder)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def of_study(name: str, most: int, storage: str | None = None) -> list[Candidate]:
    """The best complete trials of a study whose weights are here, the best first.

    Raises:
        UserError: There is no such study, or there are not two of them.
    """
    folder, study, space = stored_study(name, storage)
    found = []
    for trial in ranking(study):
        place = folder.trial(trial.number)
        if (place.best / WEIGHTS).is_file():
            provenance = {"study": study.study_name, "trial": trial.number, "val_dice": best_value(trial), **provenance_of(folder.split)}
            about = f"trial {trial.number}"
            found.append(Candidate(about, place.path, place.best, space.experiment(trial.params), folder.split, provenance))
    if len(found) < 2:
        raise UserError(
            f"{len(found)} of {len(ranking(study))} complete trials have weights here; an ensemble needs two",
            where=str(folder.path),
            todo="let the search go on, keep the weights of more trials (study.keep_weights), or name the folders of trained models",
        )
    return found[:most]


def alike(found: Sequence[Candidate], console: Console) -> list[Candidate]:
    """Those that see their images as the first does; the others are told.

    Raises:
        UserError: There are not two, or one was trained on another split.
    """
    first, kept = found[0], list[Candidate]()
    for candidate in found:
        if split_digest(read_split(candidate.split_file)) != split_digest(read_split(first.split_file)):
            raise UserError(
                f"{candidate.name} was trained on another split than {first.name}",
                where=str(candidate.folder),
                todo="put together models of one split; for models of several folds there is `guidino-tune retrain --folds`",
            )
        differing = [name for name in ALIKE if getattr(candidate.experiment.data, name) != getattr(first.experiment.data, name)]
        if differing:
            what = f"{candidate.name} is left out: it differs from {first.name} in data.{differing[0]}"
            console.print(f"note: {what}", style="yellow", highlight=False, soft_wrap=True)
        else:
            kept.append(candidate)
    if len(kept) < 2:
        raise UserError(
            f"an ensemble needs two models that see their images alike; there is only {first.name}",
            where=str(first.folder),
            todo="name more models of the same study or configuration",
        )
    return kept


class Scored:
    """What models say of the validation cases, on the disk, and the Dice of any mean of them.

    Args:
        folder: Where predictions are kept; made if missing.
        data: How images are seen.
        protocol: How masks are made.
        rules: How files are read.
        cases: With masks.

    Attributes:
        seconds: For an image, the median, by model.
    """

    def __init__(self, folder: Path, data: Data, protocol: Protocol, rules: Rules, cases: Sequence[Case]) -> None:
        self._folder, self._data, self._protocol, self._rules, self._cases = folder, data, protocol, rules, cases
        self._truths: list[np.ndarray] = []
        self._models = 0
        self.seconds: list[float] = []
        self.dice = lru_cache(maxsize=None)(self._dice)
        self._sum = lru_cache(maxsize=2)(self._summed)  # a mean is asked for with each further member in turn
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, network: nn.Module, progress: Callable[[int], object]) -> None:
        """Takes in one more model; ``progress`` is told the number of the image."""
        times, truths = [], []
        for number, case in enumerate(self._cases, 1):
            progress(number)
            begun = time.perf_counter()
            found, truth = predict_case(network, case, self._data, self._protocol, self._rules)
            times.append(time.perf_counter() - begun)
            np.save(self._file(self._models, number - 1), _halved(found))
            truths.append(truth)
        self._truths = truths
        self._models += 1
        self.seconds.append(statistics.median(times))

    def _dice(self, members: Members) -> np.ndarray:
        *others, last = members
        sums = self._sum(tuple(others)) if others else None
        found = []
        for number, truth in enumerate(self._truths):
            mean = self._said(last, number) + (sums[number] if sums else 0)
            mask = mean[0] > len(members) / 2 if len(mean) == 1 else mean.argmax(0)
            classes, ignore = self._data.num_classes, self._data.has_ignored
            found.append(case_dice(mask.astype(np.uint8), truth, num_classes=classes, ignore=ignore))
        return np.array(found)

    def _summed(self, members: Members) -> list[np.ndarray]:
        return [sum(self._said(m, n) for m in members) for n in range(len(self._truths))]  # type: ignore[misc]

    def _said(self, model: int, case: int) -> np.ndarray:
        # Not mapped: of models times cases there are more than a process may open.
        said: np.ndarray = np.load(self._file(model, case))
        return said.astype(np.float32)

    def _file(self, model: int, case: int) -> Path:
        return self._folder / f"{model}-{case}.npy"


def _halved(found: ImagePrediction) -> np.ndarray:
    """Probabilities of a binary model's foreground alone, or of all classes, in half precision."""
    return (found.probabilities[1:] if len(found.probabilities) == 2 else found.probabilities).astype(np.float16)


def _progress(status: Status, what: str, count: int, done: int) -> None:
    status.update(f"{what}: image {done} of {count}")


def _mean(dice: np.ndarray) -> float:
    return float(dice.mean())


def _told(names: Sequence[str], steps: Sequence[Step]) -> list[str]:
    """A line for each step up to the best one."""
    best, lines = best_of(steps).members if steps else (), []
    for number, step in enumerate(steps, 1):
        words = ", ".join(f"{names[m]}{f' x{times}' if times > 1 else ''}" for m, times in weights_of(step.members).items())
        lines.append(f"  step {number}: validation Dice {step.dice:.4f}  {words}")
        if step.members == best:
            break
    return lines


def _is_model(folder: Path) -> bool:
    if (folder / "study.yaml").is_file():
        return False  # which has models below it
    return folder.is_dir() and (find_ensemble(folder) is not None or any(folder.glob(f"**/{WEIGHTS}")))


def _named(folder: Path) -> Candidate:
    """A model or trial folder that somebody names.

    Raises:
        UserError: It holds no single model, or its split is gone.
    """
    if find_ensemble(folder):
        raise UserError("is an ensemble itself", where=str(folder), todo="name its members (MODEL/member-0, ...)")
    weights, experiment = find_weights(folder)
    split_file = find_split(folder, None)
    if split_file is None:
        raise UserError("no split.json in this model, beside it or above it", where=str(folder), todo="put it back into the folder")
    provenance = {"model": str(folder), DIGEST: split_digest(read_split(split_file))}
    return Candidate(str(folder), folder, weights.parent, experiment, split_file, provenance)


def check_target(target: Path, *, force: bool) -> None:
    """Refuses to write over anything; with ``force`` an ensemble may be replaced.

    Raises:
        UserError: Something is there.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / ENSEMBLE).is_file():
        raise UserError("is there already and holds no ensemble", where=f"--output {target}", todo="choose another --output")
    if not force:
        raise UserError("the ensemble is there already", where=f"--output {target}", todo="choose another --output, or --force")
