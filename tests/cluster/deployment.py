"""What the tests of the deployment files share: where the files are, and what all of them must agree about."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
LAUNCHER = [CLUSTER / "ray-cluster.yaml", *sorted((CLUSTER / "cloud").glob("*.yaml"))]


def documents(file: Path) -> list[dict[str, Any]]:
    """The objects of a YAML file."""
    return [found for found in yaml.safe_load_all(file.read_text(encoding="utf-8")) if found]


def of_kind(kind: str) -> dict[str, Any]:
    """The one object of this kind among the files for Kubernetes."""
    (found,) = (item for file in KUBERNETES for item in documents(file) if item["kind"] == kind)
    return found


def below(value: Any) -> Iterator[Any]:
    """A value, and all that it holds, at any depth."""
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from below(item)


def variables_of_head() -> dict[str, str]:
    """What ``head.sh`` sets unless it is set: name and value."""
    return dict(re.findall(r"^export (\w+)=\$\{\1:-(\w+)\}$", (CLUSTER / "head.sh").read_text(encoding="utf-8"), re.MULTILINE))


@functools.cache
def _strict(kind: str) -> jsonschema.protocols.Validator:
    schema = json.loads((Path(__file__).parent / "schemas" / f"{kind.lower()}s.v1.json").read_text(encoding="utf-8"))
    for part in below(schema):
        if not isinstance(part, dict):
            continue
        if part.pop("x-kubernetes-int-or-string", False):
            part.pop("type", None)
            part["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        if isinstance(part.get("properties"), dict) and part.get("type") == "object":
            part.setdefault("additionalProperties", False)
    # What every object has, and the API server checks apart.
    schema["properties"]["metadata"] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": {"type": "object"}},
    }
    return jsonschema.Draft202012Validator(schema)


def check(found: dict[str, Any]) -> None:
    """Raises if Kubernetes would not take an object, or would leave out a field of it that it does not know."""
    if found["apiVersion"].startswith("ray.io/"):
        _strict(found["kind"]).validate(found)
    elif not found["apiVersion"].startswith("kustomize."):
        import kubernetes_validate

        kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)
