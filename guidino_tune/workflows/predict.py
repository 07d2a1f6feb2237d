"""A trained model that segments images: arrays, Pillow images and files."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from guidino_tune import paths
from guidino_tune.config import Experiment, Protocol
from guidino_tune.config.data import BACKGROUND
from guidino_tune.config.parsing import parse, read_yaml
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.data.arrays import decode_array
from guidino_tune.data.decoding import read_image
from guidino_tune.data.files import slice_of, stem
from guidino_tune.data.rules import Rules
from guidino_tune.errors import UserError, about
from guidino_tune.framing import Array
from guidino_tune.inference import ImagePrediction, predict_image
from guidino_tune.known_backbones import chosen, expecting
from guidino_tune.models import GuidedSegmenter
from guidino_tune.models.ensemble import Ensemble
from guidino_tune.tracking import tracking_uri
from guidino_tune.tracking.downloads import downloaded, is_in_mlflow
from guidino_tune.training import model_folder
from guidino_tune.training.ensemble_folder import find_ensemble
from guidino_tune.workflows.prediction_files import by_channels
from guidino_tune.workflows.prediction_tiles import predict_tiles

Picture = np.ndarray | Image.Image | str | Path
"""One image, in memory or as a file."""


def load_model(
    model: str | Path,
    *,
    protocol: Protocol | Mapping[str, Any] = DEFAULT_PROTOCOL,
    device: str = "auto",
    backbone: str | Path | None = None,
) -> TrainedModel:
    """Loads a trained model, or an ensemble of folds, for as many predictions as wanted.

    Nothing in the files is executed: weights are safetensors, everything else is YAML and JSON. A network of somebody's own code is named
    in them, and imported only after ``guidino_tune.targets.trust("module:name")``, or where a study of this home names it.

    Args:
        model: The model folder of `retrain`, a trial's folder in a study, or a model in MLflow: ``models:/NAME/VERSION``,
            ``models:/NAME@ALIAS`` or ``runs:/RUN/model`` (at ``MLFLOW_TRACKING_URI``, else in the home folder's database).
        protocol: How to predict, as the options of the command ``predict``: whole images resized are the default and the fastest,
            ``{"inference": "sliding", "mirror": True}`` is the most thorough.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        backbone: Folder in which the weights of the guide's backbone lie now, if they were moved.

    Raises:
        UserError: No model is there, its files are damaged or incomplete, MLflow cannot be reached, or the protocol or device does not fit.

    Example:
        >>> model = load_model("~/guidino_tune/retrained/kvasir-12/model")  # doctest: +SKIP
        >>> model.predict("polyp.jpg").shape  # doctest: +SKIP
        (529, 622)
    """
    how = protocol if isinstance(protocol, Protocol) else parse(Protocol, dict(protocol), "protocol")
    if how.largest_component == "validation" or how.resolution != "native":
        raise UserError(
            "a mask is made at the image's own size, and there are no true masks to decide its post-processing on",
            where="protocol",
            todo="leave resolution out, and choose largest_component 'never' or 'always'",
        )
    place = _device(device)
    with expecting(chosen([str(backbone)] if backbone is not None else [])):
        if is_in_mlflow(str(model)):
            with downloaded(str(model), tracking_uri(paths.home() / "mlflow.db")) as folder:
                try:
                    return _load(folder, how, place)
                except UserError as error:  # the folder of which it speaks is gone then
                    raise UserError(error.what, where=error.where.replace(str(folder), str(model)), todo=error.todo) from None
        return _load(Path(model).expanduser(), how, place)


def _load(folder: Path, protocol: Protocol, device: torch.device) -> TrainedModel:
    network, experiment = model_folder.load_model(folder, str(device))
    noted = (find_ensemble(folder) or model_folder.find_weights(folder)[0].parent) / model_folder.PROVENANCE
    provenance = MappingProxyType(read_yaml(noted) if noted.is_file() else {})
    rules = model_folder.find_rules(folder, experiment.data)
    return TrainedModel(network, experiment, rules, protocol.of(experiment.data), device, provenance)


def _device(name: str) -> torch.device:
    todo = "choose auto, cpu, or a GPU that is there (cuda, cuda:1, ...)"
    try:
        device = torch.device(model_folder.best_device() if name == "auto" else name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("its tensors hold no numbers")
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # which of them depends on how torch was built
        raise UserError(f"torch cannot use it: {str(error).splitlines()[0]}", where=f"device {name!r}", todo=todo) from None
    return device


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TrainedModel:
    """A trained network with all that is needed to segment an image as it was trained to.

    An image is an array (H, W) or (H, W, C), a Pillow image, or the path of a file (with slice 12 of a volume as ``ct.nii.gz#12``; where an
    image has several files, NAME_0000, NAME_0001, ..., the path of one of them). Each gives exactly the same mask as the others of the same
    numbers (but Pillow keeps 8 bits of 16-bit colours: give such files by their path); see ``data.arrays.decode_array`` for what floats
    mean. A list of images gives a list of results. They are read and segmented one after the other, so that a list of any length needs no
    more memory than one image, and each has the mask that it has alone.

    Several threads may use one model: they read their images at the same time, and take turns in the network.

    Attributes:
        network: In eval mode, on ``device``.
        experiment: The configuration that was trained (of an ensemble: that of its first member).
        rules: How the numbers of an image are read.
        protocol: How masks are made.
        device: Where the network is.
        provenance: Where the weights come from, as its folder says; empty where it says nothing.
    """

    network: GuidedSegmenter | Ensemble
    experiment: Experiment
    rules: Rules
    protocol: Protocol
    device: torch.device
    provenance: Mapping[str, Any]
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.experiment.name}: {', '.join(self.class_names)}; {self.image_size} px, {self.device}>"

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label: ``background`` first."""
        return BACKGROUND, *self.experiment.data.class_names

    @property
    def image_size(self) -> int:
        """Side in pixels of the square that the network sees: the whole image resized, or a window of it."""
        return self.experiment.data.image_size

    @overload
    def predict(self, image: Picture, *, threshold: float = 0.5) -> np.ndarray: ...
    @overload
    def predict(self, image: list[Any] | tuple[Any, ...], *, threshold: float = 0.5) -> list[np.ndarray]: ...
    def predict(self, image: Any, *, threshold: float = 0.5) -> Any:
        """Segments an image, or each of a list.

        Args:
            image: See the class.
            threshold: Of the probability of foreground, in (0, 1); for binary masks only.

        Returns:
            Labels (H, W), uint8, of the image's own size: 0 is background, ``class_names`` names all.

        Raises:
            UserError: It is no image of the kind that the model was trained on, or the threshold does not fit.
        """
        return self._each(image, lambda found: found.mask, threshold)

    @overload
    def predict_proba(self, image: Picture) -> np.ndarray: ...
    @overload
    def predict_proba(self, image: list[Any] | tuple[Any, ...]) -> list[np.ndarray]: ...
    def predict_proba(self, image: Any) -> Any:
        """Probabilities of an image, or of each of a list: those that ``predict`` compares.

        Without post-processing the label is the most probable class (the first of several), in a binary mask 1 where ``[1]`` is above
        the threshold.

        Args:
            image: See the class.

        Returns:
            (C, H, W), float32, of the image's own size, in the order of ``class_names``: of a binary model background and foreground.

        Raises:
            UserError: As ``predict``.
        """
        return self._each(image, lambda found: found.probabilities)

    @overload
    def guide_mask(self, image: Picture) -> np.ndarray: ...
    @overload
    def guide_mask(self, image: list[Any] | tuple[Any, ...]) -> list[np.ndarray]: ...
    def guide_mask(self, image: Any) -> Any:
        """Where the guide looks: (H, W), float32 in [0, 1], of the image's own size; of each of a list.

        Args:
            image: See the class.

        Raises:
            UserError: As ``predict``, or the network has no guide mask.
        """

        def guide_of(found: ImagePrediction) -> np.ndarray:
            if found.guide is None:
                raise UserError(
                    f"{self.experiment.name} has no guide mask",
                    where="guide_mask",
                    todo="load a model with a guide and a gate, such as GuiDINO-U or GuiDINO-W",
                )
            return found.guide.clip(0, 1)  # sums of windows and flips may be a last digit beyond

        return self._each(image, guide_of)

    def decode(self, image: Picture) -> Array:
        """One image as the network's input is made from: (H, W, C), uint8 or uint16.

        Raises:
            UserError: As ``predict``.
        """
        files = self._files(Path(image).expanduser()) if isinstance(image, str | Path) else ()
        try:
            if files:
                return read_image(files, self.rules)
            if isinstance(image, np.ndarray | Image.Image):
                return decode_array(image, self.rules, _name_of(image))
            raise UserError("is no NumPy array, Pillow image, str or Path", where=_name_of(image))
        except UserError as error:  # what to do about it in training does not help here
            raise UserError(error.what, where=error.where, todo=self._expected()) from None

    def segment(self, pixels: Array, threshold: float = 0.5) -> ImagePrediction:
        """Mask, probabilities and guide mask of one image that ``decode`` has read."""
        with self._turn:
            return predict_image(self.network, pixels, self.experiment.data, self.protocol, threshold=threshold, device=self.device)

    def segment_tiles(self, pixels: Array, threshold: float = 0.5, **how: Any) -> ImagePrediction:
        """As ``segment``, of an image too large for it; with the options of ``prediction_tiles.predict_tiles``."""
        with self._turn:
            data = self.experiment.data
            return predict_tiles(self.network, pixels, data, self.protocol, threshold=threshold, device=self.device, **how)

    def _each(self, image: Any, part: Callable[[ImagePrediction], np.ndarray], threshold: float = 0.5) -> Any:
        if not isinstance(image, list | tuple):
            with about(_name_of(image)):
                return part(self.segment(self.decode(image), threshold))
        results = []
        for number, one in enumerate(image):
            try:
                with about(_name_of(one)):
                    results.append(part(self.segment(self.decode(one), threshold)))
            except UserError as error:
                raise UserError(error.what, where=f"[{number}] {error.where}", todo=error.todo) from None
        return results

    def _files(self, path: Path) -> tuple[Path, ...]:
        """The files of one image; of several the others lie beside it."""
        file = slice_of(path)[0]
        if os.path.isdir(file):
            todo = "name its images, alone or as a list; the command `guidino-tune predict` takes folders"
            raise UserError("is a folder, and no image", where=str(path), todo=todo)
        if not os.path.isfile(file):
            raise UserError("no such file", where=str(path), todo="correct the path")
        whole, problems = by_channels({path: Path(stem(path))}, len(self.rules.intensity.depths))
        if problems:
            raise UserError(problems[0].removeprefix(f"{path}: "), where=str(path), todo="put all files of an image into one folder")
        return next(iter(whole))

    def _expected(self) -> str:
        return (
            f"give one image like those of the training ({self.rules.intensity.form}; data.channels is {self.rules.channels}), as an array "
            "(H, W) or (H, W, C), a Pillow image or the path of a file; several as a list"
        )


def _name_of(image: Any) -> str:
    """An image in messages."""
    if isinstance(image, np.ndarray):
        return f"array of shape {image.shape}, {image.dtype}"
    if isinstance(image, Image.Image):
        return f"Pillow image ({image.mode}, {image.width}x{image.height})"
    return str(image) if isinstance(image, str | Path) else f"a {type(image).__name__}"
