"""``cluster/kubernetes/``: Kubernetes takes every field, and the files agree with one another and with ``head.sh``."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from deployment import CLUSTER, KUBERNETES, LAUNCHER, ROOT, below, check, documents, of_kind, variables_of_head

OBJECTS = [pytest.param(item, id=f"{file.stem}-{item['kind']}") for file in KUBERNETES for item in documents(file)]
REFUSED = (jsonschema.ValidationError, kubernetes_validate.ValidationError)


def containers() -> list[dict[str, Any]]:
    return [
        item for file in KUBERNETES for found in below(documents(file)) if isinstance(found, dict) for item in found.get("containers", [])
    ]


def cluster_spec(kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(kind)["spec"]
    return spec.get("rayClusterSpec", spec)


@pytest.mark.parametrize("found", OBJECTS)
def test_kubernetes_takes_the_files(found: dict[str, Any]) -> None:
    check(found)


WRONG = [
    ("RayCluster", ("spec", "enableInTreeAutoscalin"), True),
    ("RayCluster", ("spec", "authOptions", "mode"), "tokens"),
    ("RayCluster", ("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),  # all of them are text
    ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "evn"), []),
    ("RayCluster", ("spec", "workerGroupSpecs", 0, "maxReplica"), 8),
    ("RayCluster", ("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources", "limit"), {}),
    ("RayJob", ("spec", "backofLimit"), 3),
    ("RayJob", ("spec", "backoffLimit"), "ten"),
    ("RayJob", ("spec", "submitterPodTemplate", "spec", "securityContex"), {}),
    ("Deployment", ("spec", "template", "spec", "containers", 0, "resourcs"), {}),
    ("StatefulSet", ("spec", "replicas"), "one"),
    ("Service", ("spec", "ports", 0, "port"), "http"),
    ("NetworkPolicy", ("spec", "podSelektor"), {}),
    ("PersistentVolumeClaim", ("spec", "accessMode"), []),
]


@pytest.mark.parametrize(("kind", "path", "value"), WRONG, ids=lambda value: value[-1] if isinstance(value, tuple) else None)
def test_a_wrong_field_is_seen(kind: str, path: tuple[Any, ...], value: Any) -> None:
    found = copy.deepcopy(next(item for file in KUBERNETES for item in documents(file) if item["kind"] == kind))
    place: Any = found
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(REFUSED):
        check(found)


def test_everything_is_in_one_namespace_and_listed() -> None:
    kustomization = of_kind("Kustomization")
    listed = {*kustomization["resources"], "kustomization.yaml", "raycluster.yaml", "rayjob.yaml"}
    assert listed == {file.name for file in KUBERNETES}
    named = {item["metadata"].get("namespace") for file in KUBERNETES for item in documents(file) if "metadata" in item}
    assert named == {kustomization["namespace"], None}  # None: the namespace itself
    assert of_kind("Namespace")["metadata"]["name"] == kustomization["namespace"]


def test_a_job_has_the_cluster_of_the_one_that_stays() -> None:
    assert cluster_spec("RayJob") == cluster_spec("RayCluster")


def test_our_image_is_the_same_everywhere_and_its_user_too() -> None:
    images = {item["image"] for item in containers()}
    (ours,) = (image for image in images if "guidino" in image)
    assert images == {ours, "docker.io/library/postgres:17-bookworm"}
    for pod in (found for file in KUBERNETES for found in below(documents(file)) if isinstance(found, dict) and "containers" in found):
        user = re.search(r"^ARG USER_ID=(\d+)$", (CLUSTER / "Containerfile").read_text(), re.MULTILINE)
        assert user is not None
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == (int(user[1]) if pod["containers"][0]["image"] == ours else 999)


def test_every_container_has_requests_and_limits() -> None:
    for item in containers():
        assert set(item["resources"]) == {"requests", "limits"}, item["name"]
        assert {"cpu", "memory"} <= set(item["resources"]["limits"]), item["name"]
    (worker,) = (item for item in cluster_spec("RayCluster")["workerGroupSpecs"][0]["template"]["spec"]["containers"])
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_head_steers_and_has_the_variables_of_the_script() -> None:
    head = cluster_spec("RayCluster")["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    (container,) = head["template"]["spec"]["containers"]
    given = {item["name"]: item.get("value") for item in container["env"]}
    expected = variables_of_head()
    assert len(expected) == 4
    assert {name: given.get(name) for name in expected} == expected
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray is not None
    assert cluster_spec("RayCluster")["rayVersion"] == ray[1]


def test_workers_come_and_go_and_keep_views_on_their_own_disk() -> None:
    spec = cluster_spec("RayCluster")
    (group,) = spec["workerGroupSpecs"]
    assert (spec["enableInTreeAutoscaling"], spec["autoscalerOptions"]["version"]) == (True, "v2")
    assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    pod = group["template"]["spec"]
    mounts = {item["mountPath"]: item["name"] for item in pod["containers"][0]["volumeMounts"]}
    volumes = {item["name"]: item for item in pod["volumes"]}
    assert volumes[mounts["/var/tmp"]]["emptyDir"] == {}  # where paths.views() has them if the home is on a network
    assert volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"] == of_kind("PersistentVolumeClaim")["metadata"]["name"]
    assert of_kind("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    homes = [env["value"] for item in containers() for env in item.get("env", []) if env["name"] == "GUIDINO_TUNE_HOME"]
    assert set(homes) == {"/shared/guidino_tune"}


def test_a_driver_that_dies_comes_back_with_the_literal_command() -> None:
    spec = of_kind("RayJob")["spec"]
    assert re.match(r"python -m guidino_tune\.search kvasir( |$)", spec["entrypoint"])
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True


def test_nothing_is_reached_from_outside() -> None:
    services = [item for file in KUBERNETES for item in documents(file) if item["kind"] == "Service"]
    assert {item["metadata"]["name"]: item["spec"]["type"] for item in services} == {"mlflow": "ClusterIP", "postgres": "ClusterIP"}
    head = cluster_spec("RayCluster")["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert "enableIngress" not in head
    assert not [item for file in KUBERNETES for item in documents(file) if item["kind"] in ("Ingress", "HTTPRoute")]
    assert not [
        port for port in below([documents(file) for file in KUBERNETES]) if isinstance(port, dict) and {"hostPort", "nodePort"} & set(port)
    ]
    kept = of_kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    templates = [t for file in KUBERNETES for t in below(documents(file)) if isinstance(t, dict) and "containers" in t.get("spec", {})]
    assert len(templates) == 7
    assert all(kept.items() <= template["metadata"]["labels"].items() for template in templates)


def test_ray_tells_nobody_of_its_use() -> None:
    from ray._common.usage.usage_constants import USAGE_STATS_ENABLED_ENV_VAR

    spec = cluster_spec("RayCluster")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": USAGE_STATS_ENABLED_ENV_VAR, "value": "0"} in container["env"], container["name"]


def test_who_may_speak_with_kubernetes_and_with_the_head() -> None:
    pods = [found for file in KUBERNETES for found in below(documents(file)) if isinstance(found, dict) and "containers" in found]
    given = {pod["containers"][0]["name"] for pod in pods if pod.get("automountServiceAccountToken", True)}
    assert given == {"ray-head"}  # its autoscaler asks for workers
    (ours, operator) = (rule["from"] for rule in of_kind("NetworkPolicy")["spec"]["ingress"])
    assert [set(peer) for peer in ours] == [{"podSelector"}]  # of this namespace
    assert [peer["namespaceSelector"]["matchLabels"] for peer in operator] == [{"kubernetes.io/metadata.name": "kuberay-operator"}]
    page = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    installed = re.search(r"helm install kuberay-operator \S+ --version (\d+)\.(\d+)\.\d+ --namespace kuberay-operator", page)
    assert installed is not None
    assert (int(installed[1]), int(installed[2])) >= (1, 6)


def test_passwords_and_tokens_are_in_the_secret_alone() -> None:
    assert not [item for file in KUBERNETES for item in documents(file) if item["kind"] == "Secret"]
    assert cluster_spec("RayCluster")["authOptions"] == {"mode": "token", "secretName": "guidino-tune"}
    for variable in (env for item in containers() for env in item.get("env", [])):
        if re.search("PASSWORD|TOKEN|STORAGE", variable["name"]):
            assert variable["valueFrom"]["secretKeyRef"]["name"] == "guidino-tune", variable["name"]
        else:
            assert not re.search(r"://[^/@]*:(?!\$\()[^/@]+@", variable["value"]), variable["name"]


@pytest.mark.parametrize("file", [*KUBERNETES, *LAUNCHER, *CLUSTER.glob("*.yaml"), CLUSTER / "Containerfile"], ids=lambda file: file.name)
def test_files_are_short_and_narrow(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 400
    assert max(map(len, lines)) <= 140
