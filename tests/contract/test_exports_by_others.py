"""MONAI bundles and Hugging Face folders of every kind of network, run by MONAI and transformers where this package is not."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports_elsewhere import PROGRAMS, Program, read_mask
from PIL import Image
from test_exports import CLOSE, described, experiment_of, guide_of, network, rounding
from test_segmenters import TINY

from guidino_tune.config import Experiment
from guidino_tune.data.sources.demo import generate
from guidino_tune.exporting.formats import Exported, Unreadable, write_export
from guidino_tune.exporting.graph import Graph, PixelsToProbabilities, trace
from guidino_tune.inference import predict_image
from guidino_tune.models.ensemble import Ensemble
from guidino_tune.models.segmenters import SEGMENTERS
from guidino_tune.normalisation import normalise
from guidino_tune.targets import trust

trust("own_parts:monai_unet")

ALL = bool(os.environ.get("GUIDINO_TUNE_EXPORTS"))
MONAI = {"target": "own_parts:monai_unet", "gates": ("input",)}

NETWORKS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "guided U-Net": ("unet", TINY, {}),
    "nnwnet": ("nnwnet", None, {}),
    "segdino": ("segdino", TINY, {}),
    "network of MONAI": ("custom", None, MONAI),
    "own network, guided": ("custom", TINY | {"lora": {"rank": 2}}, {}),
    "several classes": ("unet", None, {}),
    "ensemble": ("unet", None, {}),
}
"""Segmenter, guide and options: one of each kind of network."""

if ALL:
    NETWORKS = {kind: (kind, guide_of(kind), {}) for kind in SEGMENTERS} | NETWORKS


@functools.lru_cache(maxsize=1)
def built(name: str) -> tuple[Experiment, Any]:
    """A network with random weights, in eval mode."""
    kind, guide, options = NETWORKS[name]
    data = {"num_classes": 2, "kind": "folder"} if name == "several classes" else {}
    values = experiment_of(kind, guide, **data).to_dict()
    values["segmenter"] |= options
    experiment = Experiment.from_dict(values)
    if name != "ensemble":
        return experiment, network(experiment)
    values["training"] |= {"seed": 1}
    return experiment, Ensemble([network(experiment), network(Experiment.from_dict(values))]).eval()


@functools.lru_cache(maxsize=1)
def traced(name: str, sides: bool) -> Graph:
    """Both formats hold the same program, and to make it takes longest."""
    experiment, model = built(name)
    return trace(PixelsToProbabilities(copy.deepcopy(model), experiment.data), experiment, sides=sides)


def export(name: str, form: str, folder: Path) -> Exported:
    """Only where all is tested with sides that are free, where the file can be read then."""
    experiment, _ = built(name)
    for sides in (True, False) if ALL else (False,):
        try:
            return write_export(traced(name, sides), form, folder, experiment, described(experiment))
        except Unreadable as error:
            problem = error
    raise problem


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Program]]:
    """The program that runs a format, started when it is first asked for."""
    started: dict[str, Program] = {}

    def of(form: str) -> Program:
        if form not in started:
            started[form] = Program(form, tmp_path_factory.mktemp(form))
        return started[form]

    torch.set_num_threads(1)
    yield of
    for one in started.values():
        one.close()


@pytest.mark.parametrize("form", PROGRAMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_others_compute_the_same(name: str, form: str, program: Callable[[str], Program], tmp_path: Path) -> None:
    made = export(name, form, tmp_path / re.sub(r"\W+", "-", name))
    experiment, model = built(name)
    config = json.loads((made.folder / "config.json").read_text())
    wanted_outputs = ["probabilities", "guide"] if experiment.gate else ["probabilities"]
    assert config["export"]["outputs"] == wanted_outputs
    assert "batch" in made.dynamic

    image = generate(3, 90)[0][:70]
    Image.fromarray(image).save(file := tmp_path / "one.png")
    arrays = [generate(number, 64)[0] for number in range(3)]
    found = program(form)(made.folder, file, np.stack([array.transpose(2, 0, 1) for array in arrays]).astype(np.float32))
    with torch.no_grad():
        wanted = model(torch.stack([normalise(array, experiment.data.normalisation) for array in arrays]))
    logits = wanted.logits[0]
    foreground = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, 1:]
    difference = float((torch.from_numpy(found["probabilities"])[:, 1:] - foreground).abs().max())
    print(f"{name} {form}: {difference:.1e}")
    assert difference < CLOSE or difference < 2 * rounding(model, experiment, arrays, foreground)
    assert foreground.std() > 0.01
    if form == "monai-bundle":
        mask = read_mask(made.folder.with_name(f"{made.folder.name}.masks") / "one.mask.png")
        assert (mask != predict_image(model, image, experiment.data).mask).mean() < 1e-3
    elif wanted.guide is not None:
        assert np.abs(found["guide"] - wanted.guide.numpy()).max() < CLOSE
