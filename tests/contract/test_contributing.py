"""CONTRIBUTING.md's example, done as it is written, in a copy of the package: the new segmenter is found, built, trained and tested."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "CONTRIBUTING.md").read_text().partition("### Example: a segmenter")[2].partition("\n## ")[0]
TRY = """
import torch
from guidino_tune.config import Experiment
from guidino_tune.losses import SegmentationLoss
from guidino_tune.models import build_model
for guide, name in (({"kind": "none"}, "PlainNet"), ({"kind": "dino", "backbone": "tiny", "weights": "random"}, "GuiDINO-P")):
    values = {"data": {"kind": "demo", "image_size": 64}, "guide": guide, "segmenter": {"kind": "plainnet", "width": 4}}
    experiment = Experiment.from_dict(values)
    model = build_model(experiment).train()
    prediction = model(torch.randn(2, 3, 64, 64))
    loss = SegmentationLoss(experiment.loss)(prediction.logits, prediction.guide, torch.ones(2, 1, 64, 64))["total"]
    loss.backward()
    assert experiment.name == name, experiment.name
    assert model.segmenter.conv.weight.grad.abs().max() > 0
    assert prediction.logits[0].shape == (2, 1, 64, 64)
print("trained")
"""


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
    file.write_text(text.replace(old, new))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package as it is once somebody has followed steps 1 to 3, with the suite of step 4."""
    options, network = (textwrap.dedent(code) for code in re.findall(r"```python\n(.*?)```", EXAMPLE, re.DOTALL))
    package = tmp_path / "guidino_tune"
    shutil.copytree(ROOT / "guidino_tune", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "search_spaces", tmp_path / "search_spaces")

    def named(pattern: str) -> Path:
        """A file that the text names."""
        (path,) = set(re.findall(pattern, EXAMPLE))
        return tmp_path / path

    sections = named(r"`(guidino_tune/config/\w+\.py)`")
    edit(sections, "\n\nSegmenter = Annotated[", f"\n\n{options}\n\nSegmenter = Annotated[")
    edit(sections, " | Custom, Field", " | Custom | PlainNet, Field")
    exports = package / "config" / "__init__.py"
    edit(exports, "    NNWNet,\n", "    NNWNet,\n    PlainNet,\n")
    edit(exports, '"NoGuide",', '"NoGuide", "PlainNet",')
    named(r"`(guidino_tune/models/segmenters/plainnet\.py)`").write_text(network)
    (line,) = re.findall(r"`(\"plainnet\": \w+,)` in `SEGMENTERS`", EXAMPLE)
    registry = named(r"`(guidino_tune/models/segmenters/__init__\.py)`")
    edit(registry, "SEGMENTERS: dict", "from guidino_tune.models.segmenters.plainnet import PlainNet\n\nSEGMENTERS: dict")
    edit(registry, '    "unet": UNet,\n', f'    "unet": UNet,\n    {line}\n')
    suite = re.search(r'PYTEST_ARGS="(tests/contract/test_segmenters\.py)"', EXAMPLE)
    assert suite
    shutil.copy(ROOT / suite[1], tmp_path)
    return tmp_path


def run(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(copy), "GUIDINO_TUNE_HOME": str(copy / "home"), "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, timeout=500)


def test_the_example_is_what_one_has_to_do(copy: Path) -> None:
    done = run(copy, "-c", TRY)
    assert done.stdout == "trained\n", done.stderr
    done = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "plainnet or every_configuration", "test_segmenters.py")
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 9  # type: ignore[index]
    (command,) = re.findall(r"`guidino-tune (search demo --set segmenter\.kind=plainnet)`", EXAMPLE)
    done = run(copy, "-m", "guidino_tune", *command.split(), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "segmenter.kind = plainnet" in done.stdout, done.stdout
