"""``cluster/compose.yaml``, read as podman-compose reads it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment import CLUSTER, ROOT, below, of_kind

FILE = CLUSTER / "compose.yaml"
SECRETS = {"RAY_AUTH_TOKEN": "planted-token", "POSTGRES_PASSWORD": "planted-password"}
BIN = Path(sys.executable).parent


def read(folder: Path, *options: str, file: Path = FILE, secrets: dict[str, str] = SECRETS) -> subprocess.CompletedProcess[str]:
    """``podman-compose config`` of a copy of the file beside a ``.env``; podman itself is only asked for its version."""
    (folder / "podman").write_text("#!/bin/sh\necho podman version 5.4.0\n")
    (folder / "podman").chmod(stat.S_IRWXU)
    shutil.copy(file, folder / "compose.yaml")
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in secrets.items()))
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS and not name.startswith("GUIDINO_TUNE_")}
    environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "podman_compose", "-f", str(folder / "compose.yaml"), *options, "config"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=folder.parent)


@pytest.fixture
def services(tmp_path: Path) -> dict[str, Any]:
    """What is started, with both profiles."""
    shown = read(tmp_path, "--profile", "cpu", "--profile", "gpu")
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = yaml.safe_load(shown.stdout)["services"]
    return found


def test_profiles_choose_the_worker(tmp_path: Path, services: dict[str, Any]) -> None:
    assert set(services) == {"postgres", "mlflow", "head", "worker-cpu", "worker-gpu"}
    alone = yaml.safe_load(read(tmp_path, "--profile", "cpu").stdout)["services"]
    assert set(services) - set(alone) == {"worker-gpu"}
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize("missing", SECRETS)
def test_secrets_are_asked_for(missing: str, tmp_path: Path) -> None:
    shown = read(tmp_path, secrets={name: value for name, value in SECRETS.items() if name != missing})
    assert shown.returncode != 0
    assert f"write {missing} into cluster/.env" in shown.stderr
    assert "planted" not in FILE.read_text()


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """A database keeps the password of its first start, whatever is written later."""
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    command = page[page.index("[ -e cluster/.env ]") :].partition("\npodman")[0]
    (tmp_path / "cluster").mkdir()
    made = []
    for _ in range(2):
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=60)
        made.append((tmp_path / "cluster" / ".env").read_text())
    assert made[0] == made[1]
    assert [line.partition("=")[0] for line in made[0].splitlines()] == list(SECRETS)
    assert (tmp_path / "cluster" / ".env").stat().st_mode & 0o777 == 0o600
    in_file = " ".join(line.removeprefix("#").strip() for line in FILE.read_text().splitlines())
    assert " ".join(re.sub(r"\s# .*", "", command).split()) in in_file


def test_a_folder_with_images_is_named_by_our_own_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/planted")  # what others call theirs
    monkeypatch.setenv("GUIDINO_TUNE_DATA", "/mine")
    monkeypatch.setenv("GUIDINO_TUNE_IMAGE", "mine")
    found = yaml.safe_load(read(tmp_path).stdout)["services"]["head"]
    assert (found["image"], found["volumes"][1]) == ("guidino-tune", "datasets:/data:ro")
    found = yaml.safe_load(read(tmp_path, secrets=SECRETS | {"GUIDINO_TUNE_DATA": "/images"}).stdout)["services"]["head"]
    assert found["volumes"][1] == "/images:/data:ro"


def test_the_file_with_secrets_goes_nowhere() -> None:
    """Neither into the repository and a job, which leave out what .gitignore names, nor into an image."""
    assert "cluster/.env" in (ROOT / ".gitignore").read_text().splitlines()
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert [rule for rule in rules if rule.startswith("!cluster")] == ["!cluster/*.sh"]


def test_ports_are_on_this_machine_alone(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(ports) == ["127.0.0.1:5000:5000", "127.0.0.1:8265:8265"]
    assert not [service for service in services.values() if "network_mode" in service or service.get("privileged")]


def test_services_start_the_scripts_with_options_that_they_take(services: dict[str, Any]) -> None:
    ours = {name: service for name, service in services.items() if service["image"] == "guidino-tune"}
    assert set(services) - set(ours) == {"postgres"}
    for service in ours.values():
        assert (CLUSTER / service["command"][0]).exists()
        assert "home:/shared/guidino_tune" in service["volumes"]
    assert "ENV PATH=/opt/guidino_tune/.venv/bin:/opt/guidino_tune/cluster:$PATH" in (CLUSTER / "Containerfile").read_text()
    head, worker = services["head"], services["worker-cpu"]
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(head["command"])
    assert worker["command"] == ["worker.sh", "--rejoin", "head"]
    for node in (head, worker, services["worker-gpu"]):
        assert node["environment"]["RAY_AUTH_MODE"] == "token"
        assert node["environment"]["RAY_AUTH_TOKEN"] == SECRETS["RAY_AUTH_TOKEN"]
    from ray.scripts.scripts import start

    assert {option.partition("=")[0] for option in head["command"][1:]} <= {name for option in start.params for name in option.opts}


def test_mlflow_answers_under_the_same_names_as_on_kubernetes(services: dict[str, Any]) -> None:
    (container,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    assert services["mlflow"]["command"] == container["command"]
    assert services["head"]["environment"]["MLFLOW_TRACKING_URI"] in [
        item["value"] for item in below(of_kind("RayCluster")) if isinstance(item, dict) and item.get("name") == "MLFLOW_TRACKING_URI"
    ]


@pytest.mark.parametrize(("right", "wrong"), [("", ""), ("stop_grace_period", "stop_grace_perid"), ("condition:", "conditon:")])
def test_keys_are_those_of_the_compose_specification(right: str, wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(FILE.read_text().replace(right, wrong) if right else FILE.read_text())
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == (1 if right else 0), shown.stdout
    assert wrong.rstrip(":") in shown.stdout
