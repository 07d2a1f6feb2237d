"""The files for Ray's cluster launcher: its own schema takes them, and the nodes are started by our scripts."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment import CLUSTER, LAUNCHER, ROOT

CLOUDS = [file for file in LAUNCHER if file.parent.name == "cloud"]
every = pytest.mark.parametrize("file", LAUNCHER, ids=lambda file: file.stem)


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """What the launcher makes of a file, which it refuses if it does not know a key."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    found: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(found)
    return found


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def test_they_are_all_here() -> None:
    assert [file.name for file in LAUNCHER] == ["ray-cluster.yaml", "aws.yaml", "gcp.yaml"]


@every
def test_the_launcher_takes_it(file: Path) -> None:
    found = prepared(read(file))
    assert not [command for command in found["setup_commands"] if "s3-us-west" in command]  # none of the launcher's own are left


@every
@pytest.mark.parametrize("wrong", ["max_worker", "idle_timeout", "worker_start_ray_command"])
def test_a_wrong_key_is_seen(file: Path, wrong: str) -> None:
    with pytest.raises(Exception, match=f"'{wrong}' was unexpected"):
        prepared(read(file) | {wrong: 1})


@pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.stem)
def test_a_wrong_key_of_a_node_type_is_seen(file: Path) -> None:
    config = read(file)
    config["available_node_types"]["spot"]["min_worker"] = 0
    with pytest.raises(Exception, match="'min_worker' was unexpected"):
        prepared(config)


@pytest.mark.parametrize("file", CLOUDS, ids=lambda file: file.stem)
def test_the_head_steers_and_spot_workers_come_and_go(file: Path) -> None:
    types = read(file)["available_node_types"]
    assert set(types) == {"head", "spot"}
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["spot"]["min_workers"] == 0 < types["spot"]["max_workers"]
    assert "SPOT" in yaml.safe_dump(types["spot"]["node_config"]).upper()
    assert "SPOT" not in yaml.safe_dump(types["head"]["node_config"]).upper()
    assert "--num-cpus=0 --num-gpus=0" in read(file)["head_start_ray_commands"][-1]


def test_a_job_can_do_no_more_in_the_account_than_the_file_says() -> None:
    """Without these fields Ray gives the head a role of its own, which may do far more, and lets in SSH from everywhere."""
    head, spot = (read(CLUSTER / "cloud" / "aws.yaml")["available_node_types"][name]["node_config"] for name in ("head", "spot"))
    assert re.fullmatch(r"arn:aws:iam::\d{12}:instance-profile/[\w-]+", head["IamInstanceProfile"]["Arn"])
    assert "ray-autoscaler" not in head["IamInstanceProfile"]["Arn"]
    assert "IamInstanceProfile" not in spot
    assert head["SecurityGroupIds"] == spot["SecurityGroupIds"] != []
    head, spot = (read(CLUSTER / "cloud" / "gcp.yaml")["available_node_types"][name]["node_config"] for name in ("head", "spot"))
    (account,) = head["serviceAccounts"]
    assert not account["email"].startswith("ray-autoscaler")
    assert account["scopes"] == ["https://www.googleapis.com/auth/compute"]
    assert "serviceAccounts" not in spot


@every
def test_nodes_are_started_by_the_scripts_with_token_and_shared_folder(file: Path) -> None:
    config = read(file)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"
    checkout = next(there for there, here in config["file_mounts"].items() if here == ".")
    for key, script in (("head_start_ray_commands", "head.sh"), ("worker_start_ray_commands", "worker.sh $RAY_HEAD_IP")):
        last = config[key][-1]
        assert f"{checkout}/cluster/{script}" in last
        assert last.startswith("export GUIDINO_TUNE_HOME=/shared/guidino_tune;")
        assert "RAY_" not in last.replace("$RAY_HEAD_IP", "")  # the scripts set all that
    assert config["head_start_ray_commands"][-1].endswith("--autoscaling-config=~/ray_bootstrap_config.yaml")


@every
def test_commands_are_what_a_shell_takes(file: Path) -> None:
    for key, commands in prepared(read(file)).items():
        for command in commands if key.endswith("_commands") else ():
            done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
            assert done.returncode == 0, (command, done.stderr)


def test_the_commands_of_the_job_for_skypilot_are_what_a_shell_takes() -> None:
    """``make cluster-test`` has SkyPilot itself read the file."""
    job = read(CLUSTER / "skypilot.yaml")
    for key in ("setup", "run"):
        assert subprocess.run(["bash", "-n", "-c", job[key]]).returncode == 0
    assert job["resources"]["use_spot"] is True
    assert "python -m guidino_tune.search $SEARCH" in job["run"].splitlines()
    assert "ray stop" not in job["run"]
    assert re.search(r"https://astral\.sh/uv/\d+\.\d+\.\d+/install\.sh", job["setup"])  # the same one tomorrow
    assert {name for name, value in job["secrets"].items() if value is None} == {"RAY_AUTH_TOKEN"}


def test_a_job_for_skypilot_whose_head_does_not_start_ends(tmp_path: Path) -> None:
    """Else it would wait, and be paid for, until somebody looks."""
    for name, text in {"cluster/head.sh": "exit 3", ".venv/bin/ray": "exit 1", ".venv/bin/python": "exit 0"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = os.environ | {"SKYPILOT_NODE_IPS": "127.0.0.1", "SKYPILOT_NODE_RANK": "0", "SEARCH": "demo"}
    command = ["bash", "-c", read(CLUSTER / "skypilot.yaml")["run"]]
    assert subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, timeout=30).returncode == 1


def test_pages_and_comments_name_files_that_are_there() -> None:
    files = [*CLUSTER.rglob("*"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        name
        for file in files
        if file.is_file()
        for name in re.findall(r"\bcluster/[\w/.-]+\.(?:sh|yaml)\b", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert {name for name in named if not (ROOT / name).exists()} == set()
