"""A trained model in a form that runs elsewhere."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from guidino_tune import __version__, paths
from guidino_tune.config.parsing import read_yaml
from guidino_tune.data.carrying import FILE
from guidino_tune.errors import UserError, nearest
from guidino_tune.exporting.formats import FORMATS, Exported, check_target, export_network
from guidino_tune.exporting.graph import PixelsToProbabilities
from guidino_tune.known_backbones import chosen, expecting
from guidino_tune.tracking import tracking_uri
from guidino_tune.tracking.downloads import downloaded, is_in_mlflow
from guidino_tune.training import model_folder
from guidino_tune.training.backbones import known_of_model
from guidino_tune.training.checkpoints import WEIGHTS
from guidino_tune.training.description import CARD, CONFIG, PREPROCESSOR, SCORES, as_json
from guidino_tune.training.ensemble_folder import find_ensemble, members_of, store_backbones
from guidino_tune.training.folder import TrialFolder, replace_folder
from guidino_tune.training.model_folder import PROVENANCE, describe, find_rules, find_weights, load_model
from guidino_tune.training.stored_backbone import find_stored, store_backbone

FOLDER = "folder"
"""The format that this package itself reads."""

_LEVELS = 4  # folders above a trial in which its study's split is looked for


def export_model(
    model: str | Path,
    output: str | Path,
    format: str,
    *,
    with_backbone: bool = False,
    backbone: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Writes a trained model as a folder that other programs run, as ``guidino-tune export-model`` does; whole or not at all.

    Args:
        model: What ``load_model`` takes: a model folder, a trial's folder, an ensemble's, or ``models:/NAME/VERSION`` in MLflow.
        output: The new folder; an earlier export there is replaced.
        format: ``onnx`` (needs the extra ``export``), ``torch-export``, ``torchscript``, ``monai-bundle``, ``hf``; or ``folder``, that of
            this package.
        with_backbone: Of ``folder``: the frozen backbone's weights go along; all other formats hold them anyway.
        backbone: Folder in which the weights of the guide's backbone lie now, if they were moved.
        force: Replace what is at ``output``, even if it is no export.

    Returns:
        The folder. Its ``README.md`` says how it is used, ``config.json`` what is in it.

    Raises:
        UserError: No model, no such format, a missing extra, an output that holds something else, or a network that the format cannot hold.

    Example:
        >>> folder = export_model("kvasir-whole", "kvasir-ts", format="torchscript")
        >>> sorted(file.name for file in folder.iterdir())
        ['README.md', 'config.json', 'model.ts', 'portable.py', 'preprocessor_config.json', 'use.py']
        >>> export_model("kvasir-whole", "kvasir-ts", format="torchscipt")
        Traceback (most recent call last):
            ...
        guidino_tune.errors.UserError: format: unknown format 'torchscipt'
          -> did you mean 'torchscript'?
    """
    backbones = [str(backbone)] if backbone is not None else []
    return export(model, format, output, with_backbone=with_backbone, backbones=backbones, force=force).folder


def export(
    model: str | Path,
    form: str,
    output: str | Path,
    *,
    with_backbone: bool = False,
    backbones: Sequence[str] = (),
    force: bool = False,
) -> Exported:
    """Writes a trained model as a folder that runs elsewhere, whole or not at all.

    Args:
        model: A model folder, a trial's folder, an ensemble's, or a model in MLflow.
        form: ``folder``, or one of ``exporting.formats.FORMATS``.
        output: The new folder.
        with_backbone: Of ``folder``: the frozen backbone's weights go along; all other formats hold them anyway.
        backbones: Where the folder of its backbone is now.
        force: Replace what is there, even if it is no export.

    Raises:
        UserError: No model, no such format, a missing extra, a folder that holds something else, or a network that the format cannot hold.
    """
    for where, path in (("model", model), ("output", output)):
        if not str(path):
            raise UserError("is empty", where=where, todo="name a path; an empty one would be the present folder")
    if form != FOLDER and form not in FORMATS:
        raise UserError(f"unknown format {form!r}", where="format", todo=nearest(str(form), [*FORMATS, FOLDER]))
    target = Path(output).expanduser()
    if form != FOLDER:
        FORMATS[form].check()
    with ExitStack() as stack:
        if is_in_mlflow(str(model)):
            folder = stack.enter_context(downloaded(str(model), tracking_uri(paths.home() / "mlflow.db")))
        else:
            folder = Path(model).expanduser()
        check_target(target, force=force)
        if target.resolve() == folder.resolve() or target.resolve() in folder.resolve().parents:
            raise UserError("is the model, or holds it", where=str(target), todo="choose another folder")
        stack.enter_context(expecting(chosen(backbones)))
        if form == FOLDER:
            return _as_folder(folder, target, with_backbone)
        network, experiment = load_model(folder)
        return export_network(PixelsToProbabilities(network, experiment.data), form, target, experiment, _described(folder), force=force)


def _described(folder: Path) -> dict[str, str]:
    """The texts that describe a model: those of its folder, made anew where they are missing, as in a trial's."""
    place = find_ensemble(folder) or find_weights(folder)[0].parent
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        _describe(folder, place, made)
        return {
            name: (place / name if (place / name).is_file() else made / name).read_text(encoding="utf-8")
            for name in (CONFIG, PREPROCESSOR, CARD, SCORES)
            if (place / name).is_file() or (made / name).is_file()
        }


def _describe(folder: Path, place: Path, made: Path) -> None:
    experiment = find_weights(next(iter(_parts(place))))[1]
    for number, file in enumerate(_parts(place)):  # numbered: members that lie elsewhere may have one name
        (made / str(number)).mkdir()
        (made / str(number) / WEIGHTS).symlink_to(find_weights(file)[0].resolve())
    provenance = read_yaml(place / PROVENANCE) if (place / PROVENANCE).is_file() else {}
    describe(made, experiment, find_rules(folder, experiment.data), provenance, scores=_scores(folder))


def _parts(place: Path) -> list[Path]:
    return members_of(place) if find_ensemble(place) else [place]


def _scores(folder: Path) -> dict[str, Any] | None:
    """What the history of a trial says of it."""
    dice = [record.metrics["val_dice"] for record in TrialFolder(folder).history() if "val_dice" in record.metrics]
    return {"validation": {"how": "at training size, at its best epoch", "scores": {"dice": {"mean": max(dice)}}}} if dice else None


def _as_folder(folder: Path, target: Path, with_backbone: bool) -> Exported:
    """A model folder of its own."""
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.draft")
    load_model(folder)  # damaged weights, and a backbone that is not here, are told before anything is written
    place = find_ensemble(folder)
    if place and (far := [part for part in members_of(place) if place.resolve() not in part.resolve().parents]):
        raise UserError(
            f"its members lie elsewhere ({far[0].name} ...), and would not come along",
            where=str(place),
            todo="name one that holds its members: the folder `model` of a retraining on folds, or what `guidino-tune ensemble` writes",
        )
    weights, experiment = find_weights(_parts(place)[0] if place else folder)
    source = place or weights.parent
    if source.resolve() in target.resolve().parents:
        raise UserError("lies in the model, which would be copied into itself", where=str(target), todo="choose another folder")
    try:
        if (source / PROVENANCE).is_file():
            shutil.copytree(source, draft)
            if with_backbone and find_stored(weights.parent) is None:
                if place:
                    store_backbones(draft)
                else:
                    with expecting(known_of_model(weights.parent, experiment)):
                        store_backbone(experiment, draft)
            texts = json.loads((draft / SCORES).read_text(encoding="utf-8")) if (draft / SCORES).is_file() else None
            describe(draft, experiment, find_rules(folder, experiment.data), read_yaml(draft / PROVENANCE), scores=texts)
        else:
            above = [folder, *folder.absolute().parents[:_LEVELS]]
            split = next((a / FILE for a in above if (a / FILE).is_file()), None)
            noted = {"trial_folder": str(folder), "guidino_tune": __version__}
            model_folder.export_model(source, experiment, draft, noted, split, scores=_scores(folder), with_backbone=with_backbone)
        config = json.loads((draft / CONFIG).read_text(encoding="utf-8"))
        (draft / CONFIG).write_text(as_json({**config, "export": {"format": FOLDER}}), encoding="utf-8")
        size = sum(file.stat().st_size for file in draft.rglob("*") if file.is_file())
        replace_folder(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Exported(target, size, (), 0.0, ())
