"""``cluster/skypilot.yaml`` read by SkyPilot itself, and the AWS nodes of ``cluster/cloud/aws.yaml`` by Amazon's own model of EC2.

Run by ``make cluster-test`` in an environment of its own: SkyPilot brings a hundred packages, which nothing else here needs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import sky
import yaml
from botocore.validate import ParamValidator
from sky.jobs import recovery_strategy  # noqa: F401  (fills the registry)
from sky.utils import registry

CLUSTER = Path(__file__).parents[3] / "cluster"
JOB: dict[str, Any] = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
NODES: dict[str, Any] = yaml.safe_load((CLUSTER / "cloud" / "aws.yaml").read_text())["available_node_types"]


def task(config: dict[str, Any], **values: str) -> sky.Task:
    given = {"NFS": "fs.example:/"} | values
    return sky.Task.from_yaml_config(copy.deepcopy(config), env_overrides=given, secrets_overrides={"RAY_AUTH_TOKEN": "0" * 64})


def test_skypilot_takes_the_file() -> None:
    found = task(JOB)
    (resources,) = found.resources
    assert (found.name, found.num_nodes, resources.use_spot) == ("guidino-tune", 2, True)
    assert resources.accelerators == {"L4": 1}
    assert resources.job_recovery["strategy"].lower() in registry.JOBS_RECOVERY_STRATEGY_REGISTRY
    assert found.envs["GUIDINO_TUNE_HOME"].startswith("/shared/")


WRONG: dict[str, Callable[[dict[str, Any]], None]] = {
    "num_node": lambda job: job.update(num_node=2),
    "use_spots": lambda job: job["resources"].update(use_spots=True),
    "infra": lambda job: job["resources"].update(infra="awz/eu-central-1"),
    "restarts": lambda job: job["resources"]["job_recovery"].update(max_restarts_on_errors="three"),
    "secret": lambda job: job.update(secrets=3),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=list(WRONG))
def test_a_wrong_key_is_seen(change: Callable[[dict[str, Any]], None]) -> None:
    job = copy.deepcopy(JOB)
    change(job)
    with pytest.raises(sky.exceptions.InvalidSkyPilotConfigError):
        task(job)


def test_what_is_asked_for_is_missing_without_it() -> None:
    with pytest.raises(ValueError, match="NFS"):
        sky.Task.from_yaml_config(copy.deepcopy(JOB), secrets_overrides={"RAY_AUTH_TOKEN": "0"})


def told(config: dict[str, Any]) -> str:
    """What is wrong with the request for a machine."""
    shape = botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report: str = ParamValidator().validate({"MinCount": 1, "MaxCount": 1} | config, shape).generate_report()
    return report


@pytest.mark.parametrize("name", NODES)
def test_amazon_takes_the_nodes(name: str) -> None:
    config = NODES[name]["node_config"]
    assert told(config) == ""
    assert "InstanceTyp" in told(config | {"InstanceTyp": "g6.2xlarge"})
    assert "VolumSize" in told(config | {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumSize": 3}}]})
