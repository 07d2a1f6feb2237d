"""A question with a name in it is answered alone, and at once."""

import argparse
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from guidino_tune import doctor
from guidino_tune.workflows import survey


@pytest.mark.parametrize(
    ("asked", "checks"),
    [
        ({}, set(survey.CHECKS)),
        ({"kind": "folder"}, {"data", "asked for"}),
        ({"backbone": "vits16"}, {"weights"}),
        ({"space": "demo"}, {"home folder", "asked for"}),
        ({"kind": "kvasir", "study": "s"}, {"data", "home folder", "asked for"}),
    ],
)
def test_only_what_belongs_to_the_question_is_looked_at(asked, checks):
    assert set(survey.asked(survey.CHECKS, argparse.Namespace(**asked))) == checks
    assert {name for names in survey.BELONGING.values() for name in names} <= set(survey.CHECKS)


def test_a_question_about_a_data_set_has_one_answer_and_needs_no_torch(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in "abc":
            Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / folder / f"{name}.png")
    code = "import sys\nimport guidino_tune.doctor as d\ncode = d.main(sys.argv[1:])\n"
    code += "print(sorted({'torch', 'ray', 'mlflow', 'optuna', 'huggingface_hub'} & sys.modules.keys()), code)"
    arguments = ["--kind", "folder", "--data-root", str(tmp_path)]
    shown = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[-1] == "[] 0"
    assert [line.split()[:3] for line in shown if line[:2] in ("ok", "no", "mi")] == [["ok", "data:", "folder"]]
    assert "Nothing of what you asked for is missing." in shown
    (tmp_path / "masks" / "a.png").unlink()
    shown = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[-1] == "[] 1"


def test_a_pattern_or_a_number_names_files_here_as_in_a_search(tmp_path, capsys):
    """To YAML ``*.png`` is an alias, and ``1`` a number."""
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
        for name in "abc":
            Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / folder / f"{name}.png")
    for images, masks in (("*1/*.png", "*2/*.png"), ("1", "2")):
        asked = ["--kind", "folder", "--data-root", str(tmp_path), "--set", f"data.images={images}", "--set", f"data.masks={masks}"]
        assert doctor.main(asked) == 0, capsys.readouterr().out
        assert "3 images with masks" in capsys.readouterr().out
