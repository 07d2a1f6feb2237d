"""Files beside the package: pinned dependencies and the scripts for a cluster."""

import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from guidino_tune.workflows import survey

ROOT = Path(__file__).parents[2]


def test_constraints_pin_every_direct_dependency_inside_its_range():
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    assert len(pinned) == len(pins)
    assert not [version for version in pinned.values() if "+" in version]
    direct = [Requirement(text) for text in metadata.requires(survey.NAME)]
    outside = [r.name for r in direct if not r.specifier.contains(pinned.get(canonicalize_name(r.name), "0"))]
    assert outside == []


@pytest.mark.parametrize("script", ["cluster/head.sh", "cluster/worker.sh", "cluster/mlflow.sh", "cluster/submit.sh"])
def test_cluster_scripts_tell_their_usage_and_start_nothing(script):
    shown = subprocess.run(["bash", ROOT / script, "--help"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, timeout=10)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"usage: {script}")
    assert "127.0.0.1" in shown.stdout or "token" in shown.stdout


def test_no_two_test_files_share_a_name() -> None:
    """Tests of all folders are collected by one process, which knows a module by its name alone."""
    names = [file.name for file in ROOT.glob("tests/*/*.py") if file.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)
