"""An export: the model's graph in one of the formats, checked against the network, with the lines that use it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidino_tune.config import Experiment
from guidino_tune.errors import UserError
from guidino_tune.exporting.bundles import TEMPLATES, write_bundle, write_hf
from guidino_tune.exporting.graph import INPUT, Graph, PixelsToProbabilities, normalised_in_graph, trace
from guidino_tune.exporting.onnx_file import ONNX, check_installed, load_onnx, write_onnx
from guidino_tune.exporting.torch_files import PT2, TORCHSCRIPT, Network, load_pt2, load_torchscript, write_pt2, write_torchscript
from guidino_tune.training.card import FILES
from guidino_tune.training.folder import replace_folder

CLOSE = 1e-3
"""Difference of an export's probabilities from the network's beyond which it is refused: other kernels round otherwise, mostly by 1e-6."""

BF16 = "small models of Kvasir-SEG and their exports so differed in 0.04 % of the pixels (0.2 % in the worst image), at borders"
"""What bf16 changes, as it was measured; see docs/models.md."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a graph is written and run.

    Attributes:
        file: Of the graph, in the export's folder.
        write: Writes the graph into a folder, may add to ``config.json``, and returns notes.
        load: What the file gives for pixels, as a function.
        check: Of what must be installed; raises UserError.
        library: That runs it, as the hub calls it.
        program: It is made of a program of ``torch.export``.
        plain_attention: It knows no fused attention.
    """

    file: str
    write: Callable[[Graph, Path, Experiment, dict[str, Any]], list[str]]
    load: Callable[[Path], Network]
    check: Callable[[], None] = lambda: None
    library: str = "pytorch"
    program: bool = True
    plain_attention: bool = False


FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        ONNX, lambda graph, folder, *_: write_onnx(graph, folder), load_onnx, check_installed, library="onnx", plain_attention=True
    ),
    "torch-export": Format(PT2, lambda graph, folder, *_: write_pt2(graph, folder), load_pt2),
    "torchscript": Format(TORCHSCRIPT, lambda graph, folder, *_: write_torchscript(graph, folder), load_torchscript, program=False),
    "monai-bundle": Format(f"models/{PT2}", write_bundle, load_pt2, library="monai"),
    "hf": Format(PT2, write_hf, load_pt2, library="transformers"),
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of an export.

    Attributes:
        folder: Where it is.
        size: Of all its files, in bytes.
        dynamic: Sides that need not be those of the training.
        difference: The largest of its outputs from the network's.
        notes: What a person should know.
    """

    folder: Path
    size: int
    dynamic: tuple[str, ...]
    difference: float
    notes: tuple[str, ...]


class Unreadable(Exception):
    """A file that was written, and that its own program does not load or run."""


def export_network(
    module: PixelsToProbabilities, name: str, target: Path, experiment: Experiment, described: Mapping[str, str], *, force: bool = False
) -> Exported:
    """Traces a network and writes it, see ``write_export``; with fixed height and width where a file with free ones cannot be read back.

    Raises:
        UserError: As ``graph.trace`` and ``write_export``.
    """
    form = FORMATS[name]
    for sides in (True, False):
        graph = trace(module, experiment, program=form.program, plain_attention=form.plain_attention, sides=sides)
        try:
            return write_export(graph, name, target, experiment, described, force=force)
        except Unreadable as error:
            problem = str(error).strip().partition("\n")[0]
    raise UserError(f"the file that was written cannot be loaded: {problem}", where=f"format {name}", todo="take another format")


def write_export(
    graph: Graph, name: str, target: Path, experiment: Experiment, described: Mapping[str, str], *, force: bool = False
) -> Exported:
    """Writes an export, whole or not at all.

    Args:
        graph: Of the model.
        name: In ``FORMATS``.
        target: The new folder.
        experiment: What was trained.
        described: Texts of the files that describe the model, by name; ``config.json`` and ``preprocessor_config.json`` among them.
        force: Replace what is there, even if it is no export.

    Raises:
        UserError: The folder holds something else, the graph cannot be written so, or does not compute what the network does.
        Unreadable: The file cannot be loaded again.
    """
    form = FORMATS[name]
    check_target(target, force=force)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.draft")
    draft.mkdir(parents=True)
    try:
        config = json.loads(described["config.json"])
        notes = [*form.write(graph, draft, experiment, config), *_of_precision(experiment.training.precision)]
        dynamic, difference = _verified(graph, form, draft)
        config["export"] = {
            "format": name, "file": form.file, "input": INPUT, "outputs": list(graph.outputs), "dynamic": list(dynamic),
            "precision": "float32", "notes": notes,
        }  # fmt: skip
        prepared = json.loads(described["preprocessor_config.json"])
        prepared["normalised_in_graph"] = normalised_in_graph(experiment.data)
        texts = {**described, "config.json": _text(config), "preprocessor_config.json": _text(prepared)}
        texts["README.md"] = _card(described["README.md"], form, notes)
        for file, text in texts.items():
            (draft / file).write_text(text, encoding="utf-8")
        if name == "monai-bundle":  # where such bundles have it
            shutil.copyfile(draft / "README.md", draft / "docs" / "README.md")
        else:
            shutil.copyfile(TEMPLATES / "portable.py", draft / "portable.py")
        shutil.copyfile(TEMPLATES / f"use_{name.replace('-', '_')}.py", draft / "use.py")
        size = sum(file.stat().st_size for file in draft.rglob("*") if file.is_file())
        replace_folder(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Exported(target, size, dynamic, difference, tuple(notes))


def _of_precision(precision: str) -> list[str]:
    """What is to be known of a model with which this package does not predict in float32, in which every export computes."""
    if precision not in ("bf16", "auto"):
        return []
    where = "" if precision == "bf16" else " where the hardware computes in it"
    return [f"guidino_tune itself predicts with this model in bf16{where}, as it was trained: {BF16}"]


def _card(text: str, form: Format, notes: Sequence[str]) -> str:
    """The model's card, with the way in which this export is used."""
    use = [
        "## How to use",
        "",
        "```bash",
        "python use.py IMAGE --output masks",
        "```",
        "",
        f"`use.py` runs `{form.file}` without guidino_tune, in float32.",
    ]
    use += [f"Note: {note}." for note in notes]
    text = text.replace("library_name: guidino_tune", f"library_name: {form.library}").replace(f"{FILES}\n\n", "")
    return text.partition("## How to use")[0] + "\n".join(use) + "\n"


def check_target(target: Path, *, force: bool) -> None:
    """Refuses to replace what is no export.

    Raises:
        UserError: Something else is there, or the folder of all folders is meant.
    """
    if not os.path.lexists(target):
        above = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
        if not above.is_dir():
            raise UserError("is no folder, and cannot hold one", where=str(above), todo="choose another folder")
        return
    todo = "choose another folder" + ("" if force else ", or replace it (force)")
    if not target.is_dir() or target.is_symlink():
        raise UserError("is no folder", where=str(target), todo="choose another folder")
    here = target.resolve()
    if here in (Path.home().resolve(), Path.cwd().resolve(), *Path.cwd().resolve().parents):
        raise UserError("is a folder that holds much else", where=str(target), todo="choose another folder")
    if any(target.iterdir()) and not force and not _is_export(target):
        raise UserError("holds something that is no export of guidino-tune, and nothing was changed", where=str(target), todo=todo)


def _is_export(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config["format"] == "guidino_tune" and "export" in config
    except (OSError, ValueError, KeyError, TypeError):
        return False


@torch.no_grad()
def _verified(graph: Graph, form: Format, folder: Path) -> tuple[tuple[str, ...], float]:
    """Which sides the written file really leaves free, and how far it is from the network.

    Raises:
        UserError: It does not compute the same.
        Unreadable: It cannot be loaded, or not be run.
    """
    example, file = graph.example, folder / form.file
    try:
        run = form.load(file)
        found = run(example)
    except Exception as error:  # of the other program
        raise Unreadable(str(error)) from error
    difference = _difference(graph, found, example)
    if not difference <= CLOSE:
        raise UserError(
            f"the file computes other probabilities than the network: {difference:.2g} apart",
            where=file.name,
            todo="take another format, and report the network",
        )
    free = []
    wider = torch.cat([example[:1], example[:1].flip(2)], 2)
    for name, images in (("batch", example[:1]), ("height", wider), ("width", wider.transpose(2, 3))):
        if name in graph.dynamic:
            try:
                apart = _difference(graph, run(images), images)
            except Exception:  # whatever the other program says to a size that it does not take
                continue
            if apart <= CLOSE:
                free.append(name)
                difference = max(difference, apart)
    return tuple(free), difference


def _difference(graph: Graph, found: Sequence[Tensor], images: Tensor) -> float:
    wanted = graph.module(images)
    return max((a.float() - b.float()).abs().max().item() for a, b in zip(found, wanted, strict=True))


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
