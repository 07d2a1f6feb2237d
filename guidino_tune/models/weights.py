"""Where backbone weights come from: a model folder, the Hugging Face cache, the hub, or a configuration for random ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from guidino_tune.config import BACKBONES, PATCH, is_local_backbone
from guidino_tune.errors import UserError

if TYPE_CHECKING:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

# hidden size, layers, heads: vits16, vitb16 and vitl16 as published (Simeoni et al., DINOv3, 2025); the MLP ratio is 4 there and 2 in ours.
SIZES: dict[str, tuple[int, int, int]] = {"tiny": (64, 2, 2), "vits16": (384, 12, 6), "vitb16": (768, 12, 12), "vitl16": (1024, 24, 16)}
"""Shapes of the named backbones."""

NUM_REGISTERS = 4
"""Register tokens of every named backbone."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"

_LOCAL = "guide.weights=random makes a trial run without them"


def random_config(backbone: str) -> DINOv3ViTConfig:
    """The architecture of a named backbone or of a model folder, without its weights.

    Raises:
        UserError: The folder holds no DINOv3 configuration.
    """
    from transformers import DINOv3ViTConfig

    if is_local_backbone(backbone):
        return read_config(Path(backbone).expanduser())
    width, layers, heads = SIZES[backbone]
    return DINOv3ViTConfig(
        hidden_size=width,
        intermediate_size=width * (2 if backbone == "tiny" else 4),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_register_tokens=NUM_REGISTERS,
        patch_size=PATCH,
    )


def read_config(folder: Path) -> DINOv3ViTConfig:
    """Reads and checks the configuration in a model folder.

    Raises:
        UserError: No such folder, no ``config.json``, another architecture, or another patch size.
    """
    from transformers import DINOv3ViTConfig

    todo = f"give the folder that save_pretrained wrote for a DINOv3 ViT ({CONFIG} and {WEIGHTS}), or a name: {', '.join(BACKBONES)}"
    if not folder.is_dir():
        raise UserError("no such folder", where=f"guide.backbone={folder}", todo=todo)
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = values.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"holds no readable {CONFIG}: {error}", where=f"guide.backbone={folder}", todo=todo) from None
    if kind != "dinov3_vit":
        raise UserError(f"is a model of type {kind!r}, not 'dinov3_vit'", where=f"guide.backbone={folder}", todo=todo)
    try:
        config = DINOv3ViTConfig.from_dict(values)
    except Exception as error:  # the classes that transformers raises for wrong values are not part of its interface
        raise UserError(f"{CONFIG} is no valid DINOv3 configuration: {error}", where=f"guide.backbone={folder}", todo=todo) from None
    if config.patch_size not in (PATCH, [PATCH, PATCH], (PATCH, PATCH)):
        raise UserError(f"has patches of {config.patch_size} pixels, not {PATCH}", where=f"guide.backbone={folder}", todo=todo)
    return config


def load_pretrained(backbone: str) -> DINOv3ViTModel:
    """Loads every weight of a named backbone or of a model folder, in float32 on the CPU.

    Raises:
        UserError: See ``load_backbone``.
    """
    from transformers import DINOv3ViTModel

    folder = Path(backbone).expanduser() if is_local_backbone(backbone) else hub_folder(backbone)
    config = read_config(folder)
    where = f"guide.backbone={backbone}"
    todo = f"copy or download the model again (it lies in {folder}); {_LOCAL}"
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"no {WEIGHTS} in {folder}", where=where, todo=f"convert the weights with save_pretrained (no pickle is read); {_LOCAL}"
        )
    try:
        with _quiet():
            loaded: Any = DINOv3ViTModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported below, with all others, instead of raised one by one
                output_loading_info=True,
            )
    except Exception as error:  # safetensors, transformers and the file system each have errors of their own; all mean the same here
        raise UserError(f"the weights in {folder} cannot be read ({type(error).__name__}: {error})", where=where, todo=todo) from None
    vit: DINOv3ViTModel
    vit, report = loaded
    # transformers gives missing weights random values and only logs it; a guide that is partly random must not pass for a pretrained one.
    lost = sorted({*report["missing_keys"], *(str(item[0]) for item in report["mismatched_keys"])})
    if lost:
        names = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        raise UserError(f"the weights in {folder} lack or do not fit {names}", where=where, todo=todo)
    return vit


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no loading report of transformers in a trial's output; what matters of it becomes an error of ours."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def hub_folder(backbone: str) -> Path:
    """The local folder of a named backbone, downloaded from the hub unless it is in the Hugging Face cache.

    Raises:
        UserError: No published weights (``tiny``), no network, or the licence is not accepted.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = BACKBONES[backbone]
    where = f"guide.backbone={backbone}"
    if name is None:
        raise UserError("has no published weights", where=where, todo="set guide.weights=random, or take another backbone")
    try:
        hf_hub_download(name, WEIGHTS, local_files_only=True)
        return Path(hf_hub_download(name, CONFIG, local_files_only=True)).parent
    except LocalEntryNotFoundError:
        pass  # not in the cache: ask the hub
    try:
        # Asked first because it fails at once when the hub cannot be reached, where a download tries for half a minute.
        HfApi().model_info(name, timeout=10)
        hf_hub_download(name, WEIGHTS)
        return Path(hf_hub_download(name, CONFIG)).parent
    except Exception as error:  # the hub client passes on the errors of its HTTP library, which it changes between versions
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"the weights of {name} cannot be downloaded ({type(error).__name__}: {reason})",
            where=where,
            todo=(
                "DINOv3 weights are gated: accept the licence at "
                f"https://huggingface.co/{name} and log in with `hf auth login` or HF_TOKEN; without network, give a local model folder "
                f"as guide.backbone=/path/to/folder ({CONFIG} and {WEIGHTS}); {_LOCAL}"
            ),
        ) from None
