"""Files beside the package: pinned dependencies and the scripts for a cluster."""

import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import guidino_tune
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


def test_a_release_has_one_version_and_one_date():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "guidino_tune.__version__"}
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    latest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert latest is not None
    assert guidino_tune.__version__ == cited["version"] == latest[1]
    assert cited["date-released"] == latest[2]
    assert (cited["license"], cited["cff-version"]) == (project["project"]["license"], "1.2.0")


@pytest.mark.parametrize("script", ["head.sh", "worker.sh", "mlflow.sh", "submit.sh", "env.sh", "backup.sh", "restore.sh"])
def test_cluster_scripts_tell_their_usage_and_start_nothing(script):
    shown = subprocess.run(
        ["bash", ROOT / "cluster" / script, "--help"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, timeout=10
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"usage: {'source ' if script == 'env.sh' else ''}cluster/{script}")
    assert any(word in shown.stdout for word in ("127.0.0.1", "token", "GUIDINO_TUNE_STORAGE"))


def test_a_slurm_job_tells_its_usage_and_wants_a_space_and_slurm():
    def call(*arguments):
        command = ["bash", ROOT / "cluster" / "slurm" / "search.sbatch", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, timeout=10)
        return done.returncode, done.stdout, done.stderr

    code, usage, said = call("--help")
    assert (code, said) == (0, "")
    assert usage.startswith("usage: sbatch [options of sbatch] cluster/slurm/search.sbatch SPACE")
    assert "\n#SBATCH --requeue\n" in usage  # what its defaults are
    for arguments in ((), ("--trials", "200")):
        assert call(*arguments) == (2, "", usage)
    assert call("kvasir", "--trials", "9") == (
        2,
        "",
        "error: this is no Slurm job\n  -> sbatch cluster/slurm/search.sbatch kvasir --trials 9\n",
    )


def test_slurm_reads_every_option_of_its_job():
    """It looks for them no further than the first command."""
    lines = (ROOT / "cluster" / "slurm" / "search.sbatch").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert [line for line in lines[first:] if line.startswith("#SBATCH")] == []
    assert sum(line.startswith("#SBATCH ") for line in lines[:first]) == 7


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize("script", sorted((ROOT / "cluster").rglob("*.s[hb]*")), ids=lambda script: script.name)
def test_shell_scripts_have_no_known_mistakes(script):
    shown = subprocess.run(["shellcheck", "--shell=bash", "--severity=warning", script], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", sorted((ROOT / "cluster" / "systemd").iterdir()), ids=lambda unit: unit.stem)
def test_services_are_what_systemd_takes(unit, tmp_path):
    """With a command that is no service's, so that its check is seen to look."""
    installed, broken = tmp_path / unit.name, tmp_path / f"broken-{unit.name}"
    installed.write_text(unit.read_text().replace("/opt/guidino_tune", str(ROOT)))
    broken.write_text(unit.read_text().replace("Restart=", "Restart=alwys-"))
    shown = [
        subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=60) for file in (installed, broken)
    ]
    assert shown[0].stderr.count(unit.name) == 0, shown[0].stderr
    assert "alwys" in shown[1].stderr


def test_a_worker_says_whom_it_cannot_find_and_whom_it_waited_for(tmp_path):
    (tmp_path / "ray").write_text("#!/bin/sh\n")
    (tmp_path / "ray").chmod(0o700)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "RAY_AUTH_TOKEN": "0" * 64, "WAIT": "1"}

    def start(head):
        command = ["bash", ROOT / "cluster" / "worker.sh", head]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)

    unknown, silent = start("nobody.invalid"), start("127.0.0.1:1")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "nobody knows the address of nobody.invalid\n  -> give its number" in unknown.stderr
    assert (silent.returncode, silent.stdout) == (1, "")
    assert "waiting for the head at 127.0.0.1:1, at most 1 s\nerror: nothing answers" in silent.stderr


def test_a_job_takes_the_package_along_and_little_else():
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    ignored = get_excludes_from_ignore_files(ROOT, include_gitignore=True)

    def sent(name):
        return not any(rule(ROOT / name) for rule in ignored)

    assert not [name for name in (".git/config", ".venv/pyvenv.cfg", "tests/conftest.py", "docs/searching.md") if sent(name)]
    assert all(sent(name) for name in ("guidino_tune/search.py", "search_spaces/kvasir.yaml", "cluster/env.sh", "pyproject.toml"))


def test_no_two_test_files_share_a_name() -> None:
    """Tests of all folders are collected by one process, which knows a module by its name alone."""
    names = [file.name for file in ROOT.glob("tests/*/*.py") if file.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)
