"""What the benchmarks of ``predict`` share: a small network that has seen Kvasir, as a model folder."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from precision import Trainer, read_batches

from guidino_tune.config import Experiment
from guidino_tune.data.rules import RULES, plain_rules, write_rules
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.model_folder import export_model


def small_model(root: str, image_size: int, steps: int, folder: Path) -> Path:
    """A U-Net of a width of 8, without a guide, after a few steps of training: of an untrained one all masks are noise."""
    data = {"kind": "kvasir", "root": root, "image_size": image_size, "augmentation": "none", "max_train_cases": 16}
    segmenter = {"kind": "unet", "base_width": 8}
    experiment = Experiment.from_dict({"data": data | {"max_validation_cases": 1}, "guide": {"kind": "none"}, "segmenter": segmenter})
    experiment = dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, lr=1e-3))
    trainer = Trainer(experiment, read_batches(experiment), bf16=False, channels_last=False)
    for _ in range(steps):
        trainer.step()
    with tempfile.TemporaryDirectory() as best:
        save_weights(Path(best) / WEIGHTS, trainer.model.trained_state())
        model = export_model(Path(best), experiment, folder / "model", {})
    write_rules(plain_rules(experiment.data), model / RULES)
    return model
