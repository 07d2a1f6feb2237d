"""Plants defects for real: files, folders, environment and processes. Each function returns the arguments of `doctor` that ask for it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from guidino_tune import paths
from guidino_tune.config import Data
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import Split, make_split, write_split
from guidino_tune.models.weights import random_config
from guidino_tune.space.space import load_space
from guidino_tune.space.suggest import suggest
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.tracking.client import connect
from guidino_tune.training.checkpoints import snapshot, write_checkpoint

SPACE = """\
experiment:
  data: {kind: folder, root: %s, image_size: 64}
  guide: {kind: none}
  segmenter: {kind: unet, base_width: 4}
  training: {epochs: 4}
space:
  training.lr: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
study: {name: mine, trials: 4, sampler: random}
"""


@dataclass
class Place:
    """A healthy set-up: a data set, a space for it, a study of that space, and a model folder."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        self.data, self.space, self.model = self.folder / "data", self.folder / "mine.yaml", self.folder / "model"
        generator = np.random.default_rng(0)
        for part in ("images", "masks"):
            (self.data / part).mkdir(parents=True)
        for i in range(10):
            image = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            self.picture("images", i, np.asarray(Image.fromarray(image).resize((40, 32), Image.Resampling.BICUBIC)))
            mask = np.zeros((32, 40), np.uint8)
            mask[8:20, 5 + i : 20] = 255
            self.picture("masks", i, mask)
        self.space.write_text(SPACE % self.data)

    def picture(self, part: str, number: int, array: np.ndarray) -> Path:
        file = self.data / part / f"{number}.png"
        Image.fromarray(array).save(file)
        return file

    @property
    def study(self) -> StudyFolder:
        return StudyFolder(paths.studies() / "mine")

    def training(self) -> tuple[str, ...]:
        data = Data(kind="folder", root=str(self.data))
        return make_split(find_cases(data), data).train

    def make_study(self) -> StudyFolder:
        space = load_space(str(self.space))
        study = open_study(space, self.study)
        for _ in range(2):
            trial = study.ask()
            suggest(space, trial)
            trial.report(0.5, 1)
            study.tell(trial, 0.5)
        write_split(Split(tuple("0123456"), ("7", "8"), ("9",), "seeded", 0), self.study.split)
        return self.study

    def make_model(self, kind: str = "dinov3_vit") -> Path:
        from transformers import DINOv3ViTModel

        config = random_config("tiny")
        DINOv3ViTModel(config).save_pretrained(self.model)
        if kind != "dinov3_vit":
            values = json.loads((self.model / "config.json").read_text())
            (self.model / "config.json").write_text(json.dumps(values | {"model_type": kind}))
        return self.model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def distribution(place: Place, name: str, version: str, *needs: str) -> None:
    """A package's metadata before all others on the path."""
    folder = place.folder / "site" / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    place.monkeypatch.syspath_prepend(str(folder.parent))


# ------------------------------------------------------------------------------------------- planting: each returns arguments


def package_missing(place: Place) -> list[str]:
    distribution(place, "guidino_tune", metadata.version("guidino-tune"), "no-such-package>=1", "numpy>=1")
    return []


def package_old(place: Place) -> list[str]:
    distribution(place, "numpy", "0.9")
    return []


def dashboard_old(place: Place) -> list[str]:
    distribution(place, "aiohttp_cors", "0.0.1")
    distribution(place, "ray", metadata.version("ray"), "aiohttp_cors>=0.7; extra == 'default'")
    return []


def home_is_a_file(place: Place) -> list[str]:
    (place.folder / "h").write_text("")
    return ["--home", str(place.folder / "h")]


def home_cannot_be_written(place: Place) -> list[str]:
    return ["--home", "/proc/guidino_tune"]


def disk_full(place: Place) -> list[str]:
    folder = place.folder / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    return ["--home", str(folder / "h")]


def data_missing(place: Place) -> list[str]:
    return ["--kind", "kvasir", "--data-root", str(place.folder / "nowhere")]


def image_without_mask(place: Place) -> list[str]:
    (place.data / "masks" / "3.png").unlink()
    return ["--kind", "folder", "--data-root", str(place.data)]


def mask_without_image(place: Place) -> list[str]:
    (place.data / "images" / "3.png").unlink()
    return ["--kind", "folder", "--data-root", str(place.data)]


def unknown_case_in_list(place: Place) -> list[str]:
    (place.data / "train.txt").write_text("0\n1\nnobody\n")
    return ["--kind", "folder", "--data-root", str(place.data)]


def read_images(place: Place) -> list[str]:
    return ["--kind", "folder", "--data-root", str(place.data), "--images"]


def image_damaged(place: Place) -> list[str]:
    file = place.data / "images" / f"{place.training()[0]}.png"
    file.write_bytes(file.read_bytes()[:-200])
    return read_images(place)


def sizes_differ(place: Place) -> list[str]:
    for name in place.training()[:2]:
        place.picture("masks", int(name), np.zeros((16, 40), np.uint8))
    return read_images(place)


def labels_outside(place: Place) -> list[str]:
    for name in place.training()[:2]:
        place.picture("masks", int(name), np.full((32, 40), 3, np.uint8))
    return read_images(place)


def masks_inverted(place: Place) -> list[str]:
    for file in (place.data / "masks").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    return read_images(place)


def copies(place: Place) -> list[str]:
    for number in range(1, 10):
        shutil.copy(place.data / "images" / "0.png", place.data / "images" / f"{number}.png")
    return read_images(place)


def model_without_config(place: Place) -> list[str]:
    (place.make_model() / "config.json").unlink()
    return ["--backbone", str(place.model)]


def model_of_another_kind(place: Place) -> list[str]:
    return ["--backbone", str(place.make_model("resnet"))]


def model_truncated(place: Place) -> list[str]:
    file = place.make_model() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return ["--backbone", str(place.model)]


def model_partial(place: Place) -> list[str]:
    file = place.make_model() / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file, {"format": "pt"})
    return ["--backbone", str(place.model)]


def token_absent(place: Place) -> list[str]:
    place.monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return []


def token_readable(place: Place) -> list[str]:
    place.monkeypatch.setenv("RAY_AUTH_MODE", "token")
    file = place.folder / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    file.chmod(0o644)
    return []


def cluster_dead(place: Place) -> list[str]:
    place.monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    return []


def mlflow_dead(place: Place) -> list[str]:
    place.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    return []


def mlflow_deleted(place: Place) -> list[str]:
    paths.home().mkdir(parents=True)
    client = connect(f"sqlite:///{paths.home() / 'mlflow.db'}")
    client.delete_experiment(client.create_experiment("guidino_tune"))
    return []


def space_mistaken(place: Place) -> list[str]:
    place.space.write_text(place.space.read_text().replace("training.lr", "training.learning_rate"))
    return ["--space", str(place.space)]


def space_no_yaml(place: Place) -> list[str]:
    place.space.write_text(place.space.read_text() + "space: {")
    return ["--space", str(place.space)]


def space_views(place: Place) -> list[str]:
    (place.folder / "views").write_text("")
    place.space.write_text(place.space.read_text() + f"resources: {{views_folder: {place.folder / 'views'}}}\n")
    return ["--space", str(place.space)]


def space_changed(place: Place) -> list[str]:
    place.make_study()
    place.space.write_text(place.space.read_text().replace("1.0e-2", "5.0e-3"))
    return ["--space", str(place.space)]


def journal_damaged(place: Place) -> list[str]:
    lines = place.make_study().journal.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:10] + b"\n"
    place.study.journal.write_bytes(b"".join(lines))
    return ["--study", "mine"]


def journal_torn(place: Place) -> list[str]:
    with place.make_study().journal.open("ab") as file:
        file.write(b'{"op_code": 5, "worker')
    return ["--study", "mine"]


def journal_gone(place: Place) -> list[str]:
    place.make_study().journal.unlink()
    return ["--study", "mine"]


DRIVER = """
import os, sys
from guidino_tune.space.space import load_space
from guidino_tune.space.suggest import suggest
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune import paths
folder = StudyFolder(paths.studies() / "mine")
space = load_space(sys.argv[1])
held = folder.lock()
study = open_study(space, folder)
suggest(space, study.ask())
print("holds", flush=True)
sys.stdin.read()
"""


@contextmanager
def driver(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the study and has a trial running."""
    place.make_study()
    command = [sys.executable, "-c", DRIVER, str(place.space)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        try:
            yield process
        finally:
            process.kill()


def driver_died(place: Place) -> list[str]:
    with driver(place) as process:
        process.kill()  # as when the machine's memory ran out
        process.wait()
    return ["--study", "mine"]


def checkpoint_damaged(place: Place) -> list[str]:
    import torch

    driver_died(place)
    net = torch.nn.Linear(2, 2)
    checkpoint = place.study.trial(2).path / "checkpoints" / "epoch-00001"
    checkpoint.mkdir(parents=True)
    write_checkpoint(checkpoint, snapshot(net.state_dict(), torch.optim.AdamW(net.parameters())), experiment_hash="0" * 12, history=[])
    content = bytearray((checkpoint / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "weights.safetensors").write_bytes(content)
    return ["--study", "mine"]


def best_truncated(place: Place) -> list[str]:
    import torch

    file = place.make_study().trial(1).best / "weights.safetensors"
    file.parent.mkdir(parents=True)
    save_file({"a": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:-4])
    return ["--study", "mine"]


def split_of_other_data(place: Place) -> list[str]:
    place.make_study()
    for part in ("images", "masks"):
        (place.data / part / "7.png").unlink()
    return ["--study", "mine"]


def records_wait(place: Place) -> list[str]:
    place.make_study()
    return ["--study", "mine"]


def no_such_study(place: Place) -> list[str]:
    place.make_study()
    return ["--study", "kvasir"]
