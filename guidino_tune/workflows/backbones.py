"""The guide backbones of a study: noted when it starts, the same ever after, and found again where their folders have moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from guidino_tune.config import BACKBONES, DINOGuide, Experiment
from guidino_tune.config.parsing import read_yaml
from guidino_tune.known_backbones import Known, check_of_use, chosen, expecting, key_of, name_in, other_weights
from guidino_tune.models import check_backbone, fingerprint_of
from guidino_tune.space.check import examples
from guidino_tune.space.space import Space, read_space
from guidino_tune.study.store import StudyFolder, as_begun
from guidino_tune.training.backbones import known_in, read_known, write_known
from guidino_tune.training.folder import EXPERIMENT

PATH = "guide.backbone"

RETRAIN_OTHERS = "to retrain with other weights, set guide.backbone to their folder, and choose another name for the result"

NOTED = "backbones"
"""User attribute of a study: the fingerprint of each of its backbones, by ``key_of``."""


def guides_of(experiments: Sequence[Experiment]) -> dict[str, DINOGuide]:
    """One guide for each backbone of these experiments, by ``key_of``."""
    return {key_of(e.guide): e.guide for e in experiments if isinstance(e.guide, DINOGuide)}


def names_of(space: Space) -> list[str]:
    """The backbones that a space names, whether or not a trial can have them."""
    experiments = [space.base, *space.recipes.values()]
    found = [e.guide.backbone for e in experiments if isinstance(e.guide, DINOGuide)]
    if PATH in space.parameters:
        found += [str(choice) for choice in space.parameters[PATH].choices]
    found += [str(trial[PATH]) for trial in space.first_trials if PATH in trial]
    return list(dict.fromkeys(found))


@contextmanager
def moved(space: Space, options: Sequence[str]) -> Iterator[None]:
    """Inside, backbones of a space are read where ``--backbone`` says.

    Raises:
        UserError: See ``known.chosen``.
    """
    with expecting(chosen(options, names_of(space) if options else ())):
        yield


@contextmanager
def recalled(folder: StudyFolder) -> Iterator[None]:
    """Inside, the backbones of a study must be those that it notes, wherever they lie.

    Raises:
        UserError: What it notes is damaged.
    """
    name = folder.path.name
    with expecting(
        read_known(folder.path, owner=f"study {name!r}", otherwise="for other weights start another study with another study.name")
    ):
        yield


@contextmanager
def continued(space: Space, folder: StudyFolder) -> Iterator[Space]:
    """As ``recalled``; sampler and pruner are the study's where the space leaves them to ``auto``.

    A backbone that the space names by another path, but which is one of the study's, goes by the study's name.

    Yields:
        The space with the study's names.

    Raises:
        UserError: A backbone whose path is new has other weights than the one that it would replace.
    """
    with recalled(folder):
        space = as_begun(space, folder)
        names = _renamed(space, folder)
        with expecting({old: Known(place=new) for new, old in names.items()}):
            yield _with_names(space, names) if names else space


def _renamed(space: Space, folder: StudyFolder) -> dict[str, str]:
    """By the path that the space gives, the name under which the study knows the same backbone."""
    known = {name_in(key): noted for key, noted in read_known(folder.path, owner=f"study {folder.path.name!r}").items()}
    if not known or not folder.definition.is_file():
        return {}
    now, before = names_of(space), names_of(read_space(read_yaml(folder.definition), source=str(folder.definition)))
    new = [name for name in now if name not in before and name not in BACKBONES]
    gone = [name for name in before if name not in now and name not in BACKBONES and name in known]
    found: dict[str, str] = {}
    for path in new:
        guide = next((g for g in guides_of([space.base, *space.recipes.values()]).values() if g.backbone == path), DINOGuide(backbone=path))
        fingerprint = fingerprint_of(dataclasses.replace(guide, backbone=path, sha256=None))
        same = [name for name in gone if known[name].fingerprint == fingerprint]
        if same:
            found[path] = same[0]
        elif len(new) == len(gone) == 1:
            raise other_weights(path, fingerprint, known[gone[0]])
    return found


def _with_names(space: Space, names: Mapping[str, str]) -> Space:
    def name(value: Any) -> Any:
        return names.get(str(value), value)

    def renamed(experiment: Experiment) -> Experiment:
        guide = experiment.guide
        if not isinstance(guide, DINOGuide):
            return experiment
        return dataclasses.replace(experiment, guide=dataclasses.replace(guide, backbone=name(guide.backbone)))

    parameters = {
        path: dataclasses.replace(p, choices=tuple(map(name, p.choices))) if path == PATH else p for path, p in space.parameters.items()
    }
    first = tuple({path: name(value) if path == PATH else value for path, value in trial.items()} for trial in space.first_trials)
    recipes = {key: renamed(recipe) for key, recipe in space.recipes.items()}
    return dataclasses.replace(space, base=renamed(space.base), parameters=parameters, first_trials=first, recipes=recipes)


def note(study: optuna.Study, space: Space, folder: StudyFolder) -> tuple[dict[str, Known], list[str]]:
    """Notes the backbones of a study that starts, or compares them with those that it has noted.

    Args:
        study: To be noted in.
        space: Its backbones are there, and could be loaded.
        folder: Of the study.

    Returns:
        What every process of the study must find, and notes for the user.

    Raises:
        UserError: A backbone is not the one that the study was started with.
    """
    before: Mapping[str, str] = study.user_attrs.get(NOTED, {})
    begun = any(trial.state.is_finished() or trial.params for trial in study.get_trials(deepcopy=False))
    found, notes = {}, []
    for key, guide in guides_of(examples(space)).items():
        found[key] = fingerprint_of(guide)
        if key in before and before[key] != found[key]:
            otherwise = "for other weights start another study with another study.name"
            known = Known(fingerprint=before[key], owner=f"study {space.study.name!r}", otherwise=otherwise)
            raise other_weights(guide.backbone, found[key], known)
        if key not in before and begun and not space.study.is_list:
            notes.append(
                f"an earlier version did not note the fingerprint of {guide.backbone}; taken to be the one of its trials, and noted now: "
                f"{found[key]}"
            )
    if found and dict(before) != {**before, **found}:
        study.set_user_attr(NOTED, {**before, **found})
    write_known(folder.path, found)
    return {key: Known(fingerprint=value, owner=f"study {space.study.name!r}") for key, value in found.items()}, notes


@contextmanager
def retrained_backbone(experiment: Experiment, provenance: Mapping[str, Any], home: Path, console: Console) -> Iterator[Experiment]:
    """Inside, the backbone must be the one that the export, or an earlier call in the same folder, speaks of; it is noted there.

    Args:
        experiment: What is retrained.
        provenance: Of the export.
        home: Folder of the retraining.
        console: For a note where the export speaks of none.

    Yields:
        The experiment; a backbone that is the export's at another path goes by the export's name.

    Raises:
        UserError: It is another one, or cannot be loaded.
    """
    guide = experiment.guide
    check_of_use(guide)
    if not isinstance(guide, DINOGuide):
        yield experiment
        return
    place, name = guide.backbone, _name_in_export(provenance, guide)
    if name == place:
        place = ""
    else:
        guide = dataclasses.replace(guide, backbone=name)
        experiment = dataclasses.replace(experiment, guide=guide)
    exported = known_in(provenance, guide, owner="the configuration in the export", otherwise=RETRAIN_OTHERS)
    with (
        expecting({key_of(guide): Known(place=place)} if place else {}),
        expecting(exported),
        expecting(read_known(home, owner=f"the retraining in {home}", otherwise=RETRAIN_OTHERS)),
    ):
        found = check_backbone(guide)
        stored = home / EXPERIMENT
        if not stored.exists() or Experiment.from_yaml(stored).guide == guide:  # else it will be refused, and is left as it is
            write_known(home, {key_of(guide): found})
        if provenance and not exported and "backbone" not in provenance:
            note = f"the export does not note the fingerprint of {guide.backbone}; taken to be the one of its trial: {found}"
            console.print(f"note: {note}", style="yellow", highlight=False, soft_wrap=True)
        yield experiment


def _name_in_export(provenance: Mapping[str, Any], guide: DINOGuide) -> str:
    """The name under which an export knows this backbone, where it was given another path: hashes follow the name."""
    exported = provenance.get("backbone")
    if not isinstance(exported, Mapping) or guide.backbone in BACKBONES or guide.weights == "random":
        return guide.backbone
    other = exported.get("name") not in (None, key_of(guide))
    return str(exported["name"]) if other and exported.get("fingerprint") == fingerprint_of(guide) else guide.backbone
