"""The model card of a trained model: Markdown for people, with the metadata in front that Hugging Face reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.data.rules import Rules
from guidino_tune.data.splits import Split
from guidino_tune.metrics import NAMES

Scores = Mapping[str, Any]
"""By a key of ``PARTS``: ``cases``, ``how`` they were measured, and ``scores``: name -> ``mean``, and where known ``low`` and ``high`` of a
95 % interval."""

FILES = "All settings are in `experiment.yaml`, and where the weights come from in `provenance.yaml`."
"""A sentence of a model folder's card; exports lack these files."""

PARTS = {"validation": "Validation", "out_of_fold": "Out of fold", "test": "Sealed test"}


def card_of(
    experiment: Experiment,
    rules: Rules,
    config: Mapping[str, Any],
    *,
    scores: Scores,
    split: Split | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """The text of ``README.md``.

    Args:
        experiment: What was trained (of an ensemble: its first member).
        rules: How its images are read.
        config: As ``description.config_of`` gives it.
        scores: What is known of its quality; may be empty.
        split: How many cases it was trained, chosen and tested on.
        provenance: Where the weights come from.
    """
    front = yaml.safe_dump(_metadata(experiment, config, scores), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n".join(_body(experiment, rules, config, scores, split, provenance or {})) + "\n"


def _metadata(experiment: Experiment, config: Mapping[str, Any], scores: Scores) -> dict[str, Any]:
    guide = experiment.guide
    tags = ["image-segmentation", "medical-imaging", "pytorch", experiment.segmenter.kind, experiment.data.kind]
    tags += [_name(guide)] if isinstance(guide, DINOGuide) else []
    found: dict[str, Any] = {
        "library_name": "guidino_tune",
        "pipeline_tag": "image-segmentation",
        "license": "other",
        "license_name": "to-be-chosen",
        "tags": list(dict.fromkeys(tags)),
        "datasets": [experiment.data.kind],
        "metrics": list(NAMES),
    }
    results = [
        {
            "task": {"type": "image-segmentation"},
            "dataset": {"type": experiment.data.kind, "name": f"{experiment.data.kind} ({PARTS[part].lower()})", "split": part},
            "metrics": [{"type": name, "value": round(float(value["mean"]), 4)} for name, value in _known(scores[part])],
        }
        for part in PARTS
        if part in scores
    ]
    return found | ({"model-index": [{"name": config["name"], "results": results}]} if results else {})


def _name(guide: DINOGuide) -> str:
    """Of its backbone, without the folders of this machine."""
    return guide.backbone.rstrip("/").rpartition("/")[2]


def _known(part: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, part["scores"][name]) for name in NAMES if name in part["scores"]]


def _body(
    experiment: Experiment, rules: Rules, config: Mapping[str, Any], scores: Scores, split: Split | None, provenance: Mapping[str, Any]
) -> Iterator[str]:
    data, classes = experiment.data, ", ".join(experiment.data.class_names)
    yield from (
        f"# {config['name']} on {data.kind}",
        "",
        f"Segments images into background and {classes}. Trained by guidino_tune {config['versions']['guidino_tune']}"
        + (f", trial {provenance['trial']} of study {provenance['study']}." if {"study", "trial"} <= provenance.keys() else "."),
        "",
        "## Intended use",
        "",
        f"For images like those it was trained on ({rules.intensity.form}, {_channels(data.channels)}), in research. It is no medical "
        "device: nobody has examined it for diagnosis or treatment. Check it on images of your own before you rely on it.",
        "",
        "The licence of the weights is still to be chosen by whoever publishes them. It has to respect the terms of the data set"
        + (" and of the DINO backbone whose features it uses (DINOv3 has a licence of its own)." if config["backbone"] else "."),
        "",
        "## Data",
        "",
        f"- Data set: `{data.kind}`" + (f"; {_counts(split)}" if split else ""),
        *(f"- {line[:1].upper()}{line[1:]}" for line in rules.lines),
        f"- {_seen(experiment)}",
        "",
        "## Training",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _settings(experiment, config)),
        "",
        FILES,
        "",
        "## Scores",
        "",
        *_scores(scores),
        "",
        "## Limits",
        "",
        "- It knows the images of its data set: other cameras, scanners, sites or patients may be segmented worse, and nothing here says "
        "how much.",
        "- It marks classes, not objects, and gives a mask for any image, also for one that shows nothing of the kind.",
        f"- What is smaller than a pixel at {data.image_size} x {data.image_size} is lost.",
        "- A validation score is that of the checkpoint it has chosen, and so a little too good.",
        "",
        "## How to use",
        "",
        "```python",
        "import guidino_tune as gt",
        "",
        'model = gt.load_model("this/folder")',
        'mask = model.predict("image.png")  # (H, W), uint8: ' + ", ".join(f"{n} {name}" for n, name in config["id2label"].items()),
        "```",
        "",
        "`guidino-tune predict FOLDER IMAGES --output DIR` does it for a folder of images. `guidino-tune export-model FOLDER --format onnx "
        "--output DIR` gives a file that runs without guidino_tune (also torch-export, torchscript, monai-bundle and hf)."
        + (_of_backbone(config["backbone"]) if config["backbone"] else ""),
    )


def _of_backbone(backbone: Mapping[str, Any]) -> str:
    if backbone.get("inside"):
        return " The backbone's weights lie in `backbone/`."
    return f" The backbone's weights ({backbone['name']}, fingerprint {backbone.get('fingerprint') or 'not noted'}) are not in this folder."


def _channels(number: int) -> str:
    return {1: "grey", 3: "RGB"}.get(number, f"{number} channels")


def _counts(split: Split) -> str:
    return f"{len(split.train)} training, {len(split.validation)} validation and {len(split.test)} test cases ({split.origin})"


def _seen(experiment: Experiment) -> str:
    data = experiment.data
    if data.view == "patch":
        return f"Patches of {data.image_size} x {data.image_size} pixels at the images' own scale; normalisation {data.normalisation}"
    how = "squeezed" if data.resize == "squash" else "padded"
    return f"Images {how} to {data.image_size} x {data.image_size} pixels; normalisation {data.normalisation}"


def _settings(experiment: Experiment, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    training, loss = experiment.training, experiment.loss
    yield "segmenter", experiment.segmenter.kind
    if isinstance(experiment.guide, DINOGuide):
        guide = experiment.guide
        yield "guide", f"{_name(guide)} ({guide.weights}, {guide.trained})" + (f", gate {experiment.gate}" if experiment.gate else "")
    yield "parameters", f"{config['parameters']:,}" if config["parameters"] else "not counted"
    terms = {"Dice": loss.dice_weight, "cross-entropy": loss.bce_weight, "hinge": loss.hinge_weight, "focal": loss.focal_weight}
    terms |= {"Tversky": loss.tversky_weight, "top-k": loss.top_k_weight, "boundary": loss.boundary_weight}
    terms |= {"guide": loss.lambda_guide if experiment.gate else 0}
    yield "loss", " + ".join(f"{weight:g} {name}" for name, weight in terms.items() if weight) or "own code"
    yield "optimiser", f"{training.optimizer}, lr {training.lr:g}, weight decay {training.weight_decay:g}, {training.schedule}"
    yield "epochs", training.epochs
    yield "batch size", training.batch_size
    yield "augmentation", experiment.data.augmentation
    yield "precision", training.precision
    yield "seed", training.seed


def _scores(scores: Scores) -> Iterator[str]:
    if not any(part in scores for part in PARTS):
        yield "None are noted. `guidino-tune evaluate FOLDER` measures them."
        return
    yield "| part | cases | " + " | ".join(name if name in ("dice", "iou") else f"{name} (pixels)" for name in NAMES) + " | how |"
    yield "|---|---:|" + "---:|" * len(NAMES) + "---|"
    for part, title in PARTS.items():
        if part in scores:
            found = scores[part]
            cells = [_cell(found["scores"].get(name)) for name in NAMES]
            yield f"| {title} | {found.get('cases') or ''} | {' | '.join(cells)} | {found.get('how', '')} |"
    if any("low" in value for part in PARTS if part in scores for value in scores[part]["scores"].values()):
        yield ""
        yield "In brackets: 95 % interval of the mean over cases (bootstrap, patients drawn whole)."


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    interval = f" [{value['low']:.4f}, {value['high']:.4f}]" if "low" in value else ""
    return f"{value['mean']:.4f}{interval}"
