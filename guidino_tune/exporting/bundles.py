"""Folders in the form of others: a MONAI bundle, and one that ``transformers`` loads. The network in both is a program of torch.export.

Neither writes the network's code again: of a dozen architectures, backbones and adapters a second version would be needed, and each
could differ from the first. A graph is what was trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from guidino_tune.config import Experiment
from guidino_tune.exporting.graph import Graph
from guidino_tune.exporting.torch_files import PT2, write_pt2

TEMPLATES = Path(__file__).parent / "templates"
MODELING = "modeling_segmenter.py"


def write_hf(graph: Graph, folder: Path, experiment: Experiment, config: dict[str, Any]) -> list[str]:
    """Writes the program and the code that ``AutoModel.from_pretrained`` imports; adds to ``config`` how it is found."""
    write_pt2(graph, folder)
    shutil.copyfile(TEMPLATES / MODELING, folder / MODELING)
    module = MODELING.removesuffix(".py")
    config |= {
        "model_type": "guidino_segmenter",
        "architectures": ["Segmenter"],
        "auto_map": {"AutoConfig": f"{module}.SegmenterConfig", "AutoModel": f"{module}.Segmenter"},
    }
    return ["AutoModel.from_pretrained(FOLDER, trust_remote_code=True) loads it; look at the one file of code before"]


def write_bundle(graph: Graph, folder: Path, experiment: Experiment, config: dict[str, Any]) -> list[str]:
    """Writes ``models``, ``configs`` and ``scripts`` of a bundle."""
    for name in ("models", "configs", "scripts"):
        (folder / name).mkdir()
    write_pt2(graph, folder / "models")
    (folder / "scripts" / "__init__.py").write_text('"""Code of this bundle."""\n', encoding="utf-8")
    shutil.copyfile(TEMPLATES / "portable.py", folder / "scripts" / "portable.py")
    shutil.copyfile(TEMPLATES / "bundle_network.py", folder / "scripts" / "network.py")
    inference = {
        "bundle_root": ".",
        "images": "$@bundle_root + '/images'",
        "output": "$@bundle_root + '/eval'",
        "network_def": {"_target_": "scripts.network.Network", "file": f"$@bundle_root + '/models/{PT2}'"},
        "inferer": {"_target_": "monai.inferers.SimpleInferer"},
        "pipeline": {
            "_target_": "scripts.network.Pipeline",
            "network": "@network_def",
            "inferer": "@inferer",
            "settings": "@bundle_root",
        },
        "run": ["$@pipeline.run(@images, @output)"],
    }
    _write(folder / "configs" / "inference.json", inference)
    _write(folder / "configs" / "metadata.json", _metadata(graph, experiment, config))
    (folder / "docs").mkdir()
    how = "monai.bundle.run(config_file='configs/inference.json', images=FOLDER, output=DIR)"
    command = "python -m monai.bundle run --config_file configs/inference.json --images FOLDER --output DIR"
    return [f"in its folder {how} runs it; with the package fire also {command}"]


def _metadata(graph: Graph, experiment: Experiment, config: Mapping[str, Any]) -> dict[str, Any]:
    data, size = experiment.data, f"{graph.multiple}*n" if "height" in graph.dynamic else str(experiment.data.image_size)
    colours = {str(i): name for i, name in enumerate(["red", "green", "blue"] if data.channels == 3 else range(data.channels))}
    image = {
        "type": "image", "format": "RGB" if data.channels == 3 else "grey", "num_channels": data.channels, "spatial_shape": [size, size],
        "dtype": "float32", "value_range": [0, 255], "is_patch_data": data.view == "patch", "channel_def": colours,
    }  # fmt: skip
    pred = {
        "type": "probabilities", "format": "segmentation", "num_channels": config["num_labels"], "spatial_shape": [size, size],
        "dtype": "float32", "value_range": [0, 1], "is_patch_data": data.view == "patch", "channel_def": config["id2label"],
    }  # fmt: skip
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by guidino_tune"},
        "monai_version": metadata.version("monai"),
        "pytorch_version": metadata.version("torch").partition("+")[0],
        "numpy_version": metadata.version("numpy"),
        "required_packages_version": {"pillow": metadata.version("pillow")},
        "name": str(config["name"]),
        "task": f"segmentation of {', '.join(data.class_names)}",
        "description": f"{config['name']}, trained on {data.kind} by guidino_tune {config['versions']['guidino_tune']}",
        "authors": "to be filled in",
        "copyright": "to be filled in",
        "intended_use": "research; no medical device",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def _write(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
