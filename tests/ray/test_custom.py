"""A network and a loss term in a file outside the package, searched on a cluster by ``ray job submit --working-dir .``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_searches import SPACE, trials_of

from guidino_tune import export
from guidino_tune.config import Experiment
from guidino_tune.errors import UserError
from guidino_tune.training.model_folder import load_model

CODE = '''
import torch
from torch import nn


class MyNet(nn.Module):
    """Gated at the map between its two convolutions."""

    def __init__(self, in_channels, num_outputs, image_size, width=4):
        super().__init__()
        self.first, self.last = nn.Conv2d(in_channels, width, 3, padding=1), nn.Conv2d(width, num_outputs, 1)

    def forward(self, images, gate):
        return self.last(gate("bottleneck", torch.relu(self.first(images))))


def my_term(logits, masks):
    return (logits.sigmoid() - masks).abs().mean()
'''


@pytest.mark.timeout(400)
def test_own_code_travels_with_a_job(cluster: str, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    folder, home = tmp_path / "mine", tmp_path / "home"
    folder.mkdir()
    (folder / "my_nets.py").write_text(CODE)
    space: dict[str, Any] = {
        **SPACE,
        "experiment": SPACE["experiment"]
        | {
            "data": SPACE["experiment"]["data"] | {"image_size": 64, "root": str(demo)},
            "segmenter": {"kind": "custom", "target": "my_nets:MyNet", "options": {"width": 4}, "gates": ["bottleneck"]},
            "loss": {"custom": {"target": "my_nets:my_term", "weight": 0.3}},
            "training": SPACE["experiment"]["training"] | {"epochs": 1},
        },
        "space": {"segmenter.options.width": {"choices": [4, 6]}, "loss.custom.weight": {"type": "float", "low": 0.1, "high": 1.0}},
        "first_trials": [{"segmenter.options.width": 4}, {"segmenter.options.width": 6}],
        "study": {"name": "own", "trials": 2, "sampler": "optuna.samplers:RandomSampler", "pruner": "optuna.pruners:MedianPruner"},
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    dashboard = f"http://{ray._private.worker.get_dashboard_url()}"
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", dashboard, "--working-dir", "."]
    command = [sys.executable, "-m", "guidino_tune.search", "space.yaml", "--home", str(home)]
    done = subprocess.run([*submit, "--", *command], cwd=folder, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

    trials = trials_of(home, "own")
    assert [(trial.state.name, trial.user_attrs["name"]) for trial in trials] == [("COMPLETE", "GuiDINO-MyNet")] * 2
    assert {trial.params["segmenter.options.width"] for trial in trials} == {4, 6}
    assert export.main(["own", "--home", str(home), "--output", str(tmp_path / "best.yaml")]) == 0
    assert Experiment.from_yaml(tmp_path / "best.yaml").targets == {
        "segmenter.target": "my_nets:MyNet",
        "loss.custom.target": "my_nets:my_term",
    }
    assert "my_nets" not in sys.modules

    trial = home / "studies" / "own" / "trials" / "00000"
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
    with pytest.raises(UserError, match="there is no module 'my_nets'"):
        load_model(trial)
    monkeypatch.chdir(folder)
    assert type(load_model(trial)[0].segmenter.network).__name__ == "MyNet"  # type: ignore[union-attr]
