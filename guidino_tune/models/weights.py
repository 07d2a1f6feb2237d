"""Where backbone weights come from: a model folder, the Hugging Face cache, the hub, or a configuration for random ones."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from guidino_tune import known_backbones as known
from guidino_tune.config import BACKBONES, is_local_backbone
from guidino_tune.errors import UserError, first_names
from guidino_tune.models.architectures import ARCHITECTURES, NUM_STAGES, SIZES, needs_licence, open_backbones

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
"""Files of a model folder; large models have, instead of ``WEIGHTS``, several files of weights and an ``INDEX`` that names them."""

MASK_TOKEN, HEAD = r"(.+\.)?mask_token", r"classifier\.(weight|bias)"
"""What a file may hold beyond the network: the token for masked patches where the configuration has none (``use_mask_token``), and the head
of a classifier (``architectures``). Features have no part of either."""

_LOCAL = "guide.weights=random makes a trial run without them"


def random_config(backbone: str) -> PreTrainedConfig:
    """The architecture of a named backbone or of a model folder, without its weights.

    Raises:
        UserError: The folder holds no configuration of an architecture in ``ARCHITECTURES``.
    """
    place = known.place_of(backbone)
    if is_local_backbone(place):
        return read_config(folder_of(backbone))
    backbone = place
    size = SIZES[backbone]
    return ARCHITECTURES[size.model_type].configure(dict(size.values))


def read_config(folder: Path) -> PreTrainedConfig:
    """Reads and checks the configuration in a model folder.

    Raises:
        UserError: No such folder, no ``config.json``, another architecture, or one of a shape that gives no token grid.
    """
    kinds = ", ".join(ARCHITECTURES)
    where = f"guide.backbone={folder}"
    todo = f"give the folder that save_pretrained wrote for one of {kinds} ({CONFIG} and {WEIGHTS}), or a name: {', '.join(BACKBONES)}"
    from guidino_tune.models.conversion import not_a_model_folder

    if refused := not_a_model_folder(folder):
        raise refused
    if not folder.is_dir():
        raise UserError("no such folder", where=where, todo=todo)
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = values.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"holds no readable {CONFIG}: {error}", where=where, todo=todo) from None
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(f"is a model of type {kind!r}, not one of {kinds}", where=where, todo=todo)
    try:
        config = ARCHITECTURES[kind].configure(values)
    except Exception as error:  # the classes that transformers raises for wrong values are not part of its interface
        raise UserError(f"{CONFIG} is no valid {kind} configuration: {error}", where=where, todo=todo) from None
    problem = _shape_problem(config)
    if problem:
        raise UserError(problem, where=where, todo=todo)
    return config


def _shape_problem(config: PreTrainedConfig) -> str:
    """What keeps the network from giving features of colour images on the token grid; empty when nothing does."""
    if config.num_channels != 3:
        return f"takes images of {config.num_channels} channels, not 3"
    patch = ARCHITECTURES[config.model_type].patch
    if patch is None:
        stages = (len(config.hidden_sizes), len(config.depths))
        return "" if stages == (NUM_STAGES, NUM_STAGES) else f"has {stages[0]} widths and {stages[1]} depths, not {NUM_STAGES} stages"
    if config.patch_size not in (patch, [patch, patch], (patch, patch)):
        return f"has patches of {config.patch_size} pixels; a {config.model_type} must have patches of {patch}"
    return ""


def load_pretrained(backbone: str, sha256: str | None = None) -> PreTrainedModel:
    """Loads every weight of a named backbone or of a model folder, in float32 on the CPU.

    Args:
        backbone: A name in ``BACKBONES`` or a path.
        sha256: Expected of the folder's file; see ``check_digest``.

    Raises:
        UserError: See ``load_backbone``.
    """
    folder = folder_of(backbone)
    config = read_config(folder)
    where = f"guide.backbone={known.place_of(backbone)}"
    todo = f"copy or download the model again (it lies in {folder}); {_LOCAL}"
    file = next((folder / name for name in (WEIGHTS, INDEX) if (folder / name).is_file()), None)
    if file is None:
        raise UserError(
            f"no {WEIGHTS} in {folder}", where=where, todo=f"convert the weights with save_pretrained (no pickle is read); {_LOCAL}"
        )
    if sha256 is not None:
        check_digest(file, sha256)
    try:
        if file.name == INDEX:
            _parts(file)
        with quiet():
            loaded: Any = ARCHITECTURES[config.model_type].model_class.from_pretrained(
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
    model: PreTrainedModel
    model, report = loaded
    problem = _problem(model, report)
    if problem:
        raise UserError(f"the weights in {folder} {problem}", where=where, todo=todo)
    return model


def _problem(model: PreTrainedModel, report: dict[str, Any]) -> str:
    """Why a model that was loaded is not what its folder holds; empty when it is."""
    # transformers gives missing weights random values and only logs it; a guide that is partly random must not pass for a pretrained one.
    lost = {*report["missing_keys"], *(str(item[0]) for item in report["mismatched_keys"])}
    if lost:
        return f"lack or do not fit {first_names(lost)}"
    # Nor one of which a part is left out: a file of twelve layers under a configuration of two would load without a word.
    heads = any("ForImageClassification" in name for name in model.config.architectures or ())
    harmless = [HEAD] if heads else []
    harmless += [] if getattr(model.config, "use_mask_token", True) else [MASK_TOKEN]
    extra = {name for name in report["unexpected_keys"] if not any(re.fullmatch(pattern, name) for pattern in harmless)}
    if extra:
        return f"hold what the network of its {CONFIG} has no place for: {first_names(extra)}; is {CONFIG} the one of these weights?"
    odd = not_finite(model.state_dict())
    return f"are damaged: NaN or infinity in {first_names(odd)}" if odd else ""


def not_finite(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the weights that hold NaN or infinity, sorted."""
    return sorted(name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all())


def folder_of(backbone: str) -> Path:
    """Where the weights of a backbone lie: its folder, wherever that is now, or the one from the hub.

    Raises:
        UserError: As ``hub_folder``; or the folder of a backbone that was used before is gone.
    """
    place = known.place_of(backbone)
    if not is_local_backbone(place):
        return hub_folder(place)
    folder = Path(place).expanduser()
    if known.expected(backbone) and not folder.exists():
        raise UserError(
            "no such folder",
            where=f"guide.backbone={backbone}" + (f" in {place}" if place != backbone else ""),
            todo="put the weights back, or name the folder where they are now by --backbone DIR",
        )
    return folder


def check_digest(file: Path, sha256: str, field: str = "guide.sha256") -> None:
    """Compares a file's SHA-256 with the expected one.

    Args:
        file: ``model.safetensors``, or of weights in several files their index. The index names those files but holds no digest of them:
            its own tells one model from another, not whether all parts are unchanged.
        sha256: 64 hexadecimal digits, lower case.
        field: That holds it, for the message.

    Raises:
        UserError: They differ, or the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read: {error}", where=str(file), todo="copy or download the model again") from None
    if found != sha256:
        raise UserError(
            f"its SHA-256 begins with {found[:12]}, but {field} with {sha256[:12]}: these are other weights, or damaged ones",
            where=str(file),
            todo=f"copy or download the model again, or correct {field} (`sha256sum` prints a file's digest) if these are meant",
        )


@contextmanager
def quiet() -> Iterator[None]:
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
    from huggingface_hub import HfApi

    name = BACKBONES[backbone]
    where = f"guide.backbone={backbone}"
    if name is None:
        raise UserError("has no published weights", where=where, todo="set guide.weights=random, or take another backbone")
    folder = cached_folder(backbone)
    if folder is not None:
        return folder
    try:
        # Asked first because it fails at once when the hub cannot be reached, where a download tries for half a minute.
        published = {file.rfilename for file in HfApi().model_info(name, timeout=10).siblings or ()}
        return _fetch(name, WEIGHTS if WEIGHTS in published else INDEX, local_files_only=False)
    except Exception as error:  # the hub client passes on the errors of its HTTP library, which it changes between versions
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"the weights of {name} cannot be downloaded ({type(error).__name__}: {reason})", where=where, todo=_ways_out(backbone)
        ) from None


def cached_folder(backbone: str) -> Path | None:
    """The folder of a named backbone in the Hugging Face cache, or ``None`` when it is not there with every file. Asks no network."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = BACKBONES[backbone]
    if name is None:
        return None
    for file in (WEIGHTS, INDEX):
        try:
            return _fetch(name, file, local_files_only=True)
        except (LocalEntryNotFoundError, ValueError, KeyError):  # the latter two: an index that cannot be read
            continue
    return None


def _fetch(name: str, file: str, *, local_files_only: bool) -> Path:
    """Configuration and weights of a repository, the latter in one file or as an index and its parts."""
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(name, file, local_files_only=local_files_only))
    if file == INDEX:
        for part in _parts(path):
            hf_hub_download(name, part, local_files_only=local_files_only)
    return Path(hf_hub_download(name, CONFIG, local_files_only=local_files_only)).parent


def _parts(index: Path) -> list[str]:
    """The files of weights that an index names. An index could lead elsewhere, or to a pickle, which runs code as it is read."""
    parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    foreign = [part for part in parts if Path(part).name != part or not part.endswith(".safetensors")]
    if foreign:
        raise ValueError(f"{index.name} names {foreign[0]!r}, which is no safetensors file of this folder")
    return parts


def _ways_out(backbone: str) -> str:
    folder = f"a local model folder as guide.backbone=/path/to/folder ({CONFIG} and {WEIGHTS}; guide.sha256 checks the latter)"
    if not needs_licence(backbone):
        return f"look after the network and try again, or give {folder}; {_LOCAL}"
    free = open_backbones()
    return (
        f"DINOv3 weights are gated: accept the licence at https://huggingface.co/{BACKBONES[backbone]} and log in with `hf auth login` or "
        f"HF_TOKEN; or give {folder}; or take a backbone that is not gated, such as guide.backbone={free[0]} "
        f"(also {', '.join(free[1:])}); {_LOCAL}"
    )
