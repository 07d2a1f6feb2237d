"""How MLflow itself loads and serves a registered model, and which version of it is the champion."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from typing import Any

CHAMPION = "champion"
"""Alias of the version that is best on validation."""

SCORE = "guidino.validation"
"""Tag of a version: its score on validation, by which versions are compared. The test has no say."""

SET = "guidino.champion"
"""Tag of a registered model: the version to which the alias was given here. A person who gives it to another is not overruled."""

EXAMPLE, SERVING_EXAMPLE = "input_example.json", "serving_input_example.json"


def python_function(loader_module: str) -> dict[str, Any]:
    """The flavour that ``mlflow.pyfunc`` reads: a module's name, and no code, neither pickled nor as a file."""
    return {"loader_module": loader_module, "python_version": platform.python_version()}


def signature() -> dict[str, Any]:
    """What the model takes and gives, as ``MLmodel`` has it.

    An image may be an array, a path or text, and MLflow's own types know no such choice: the model checks its input itself.
    """
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, ParamSchema, ParamSpec, Schema

    params = ParamSchema([ParamSpec("threshold", "double", 0.5), ParamSpec("output", "string", "mask")])
    return {
        "signature": ModelSignature(
            inputs=Schema([ColSpec(AnyType(), name="image")]), outputs=Schema([ColSpec(AnyType(), name="mask")]), params=params
        ).to_dict(),
        "is_signature_from_type_hint": True,
        "type_hint_from_example": False,
    }


def example_files(image: Any) -> Mapping[str, str]:
    """The files of an input example: one image as a list of rows, as a request holds it."""
    return {EXAMPLE: json.dumps([image]), SERVING_EXAMPLE: json.dumps({"inputs": [image]})}


def example_info() -> dict[str, Any]:
    """What ``MLmodel`` says of them."""
    return {"saved_input_example_info": {"artifact_path": EXAMPLE, "type": "json_object", "serving_input_path": SERVING_EXAMPLE}}


def crown(client: Any, name: str) -> str:
    """Gives the alias to the version that is best on validation, the newest of several, unless a person gave it to another.

    Args:
        client: An ``MlflowClient``.
        name: Of the registered model.

    Returns:
        The number of the version that has the alias now; empty where none has.
    """
    model = client.get_registered_model(name)
    current = str(model.aliases.get(CHAMPION, ""))
    if current and current != str(model.tags.get(SET, "")):
        return current
    scored = [
        (score, int(one.version)) for one in client.search_model_versions(f"name = '{name}'") if (score := _score(one.tags)) is not None
    ]
    if not scored:
        return current
    best = str(max(scored)[1])
    if best != current:
        client.set_registered_model_alias(name, CHAMPION, best)
        client.set_registered_model_tag(name, SET, best)
    return best


def _score(tags: Mapping[str, str]) -> float | None:
    """``None`` where there is none, or no number: people can change tags."""
    try:
        score = float(tags.get(SCORE, ""))
    except ValueError:
        return None
    return score if math.isfinite(score) else None
