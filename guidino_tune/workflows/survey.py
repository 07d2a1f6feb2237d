"""What is on this machine and what is missing, one check after the other; a check that fails is a finding as well."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from guidino_tune.findings import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from guidino_tune.errors import UserError

NAME = "guidino-tune"
GIB = 2**30

Check = Callable[[argparse.Namespace], Iterable[Finding]]
"""Of the options of the command ``doctor``. Imports stand inside: what is broken is to spoil its own check alone."""


def asked(checks: Mapping[str, Check], options: argparse.Namespace) -> dict[str, Check]:
    """The checks that belong to what is asked for by name; all of them where nothing is."""
    wanted = {name for option, names in BELONGING.items() if getattr(options, option, None) for name in names}
    return {name: check for name, check in checks.items() if name in wanted or not wanted}


def survey(checks: Mapping[str, Check], options: argparse.Namespace) -> Iterator[Finding]:
    """Runs the checks one by one; one that fails is a row as well, ``missing`` when a demo search needs what it looks at."""
    from guidino_tune.errors import UserError, redacted

    for name, check in checks.items():
        mark: Literal["note", "missing"] = "missing" if name in NEEDED else "note"
        try:
            yield from check(options)
        except UserError as error:
            yield _refused(mark, name, error)
        except Exception as error:  # a doctor that falls ill itself helps nobody
            yield Finding(mark, name, redacted(f"could not be checked ({type(error).__name__}: {error})"))


def _refused(mark: Literal["note", "missing"], name: str, error: UserError) -> Finding:
    return Finding(mark, name, f"{error.where}: {error.what}" if error.where else error.what, error.todo)


def _python(options: argparse.Namespace) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    version = ".".join(map(str, sys.version_info[:3]))
    wanted = metadata.metadata(NAME)["Requires-Python"]
    good = SpecifierSet(wanted).contains(version, prereleases=True)
    yield Finding("ok" if good else "missing", "Python", f"{version} ({wanted} needed) at {sys.executable}")


def _packages(options: argparse.Namespace) -> Iterator[Finding]:
    wrong, count = [], 0
    for requirement in _requirements():
        count += 1
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, needed {requirement.specifier}")
    if wrong:
        todo = f"{sys.executable} -m pip install -c constraints.txt -e .   (in the project's folder)"
        yield Finding("missing", "packages", "; ".join(wrong), todo)
    else:
        yield Finding("ok", "packages", f"all {count} as needed; {NAME} {metadata.version(NAME)}, torch {metadata.version('torch')}")


def _requirements() -> Iterator[Requirement]:
    """What the package needs, with the extras of what it needs: Ray without its dashboard is installed, and yet hangs."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, metadata.requires(NAME) or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        yield requirement
        try:
            inner = [Requirement(text) for text in (metadata.requires(requirement.name) or ())] if requirement.extras else []
        except metadata.PackageNotFoundError:
            continue  # told above
        for extra in sorted(requirement.extras):
            yield from (r for r in inner if r.marker and r.marker.evaluate({"extra": extra}) and not r.marker.evaluate({"extra": ""}))


def _spaces(options: argparse.Namespace) -> Iterator[Finding]:
    from guidino_tune.errors import UserError
    from guidino_tune.space.space import load_space, names

    whole = []
    for name in names():
        try:
            load_space(name)
            whole.append(name)
        except UserError as error:
            yield _refused("missing" if name == "demo" else "note", "search spaces", error)
    yield Finding("ok", "search spaces", ", ".join(whole))


def _processor(options: argparse.Namespace) -> Iterator[Finding]:
    import torch

    from guidino_tune.models.precision import use_bf16
    from guidino_tune.training import loop  # noqa: F401  # imports what every trial imports

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of the container, if we are in one
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    precision = "bf16" if use_bf16("auto", torch.device("cpu")) else "no fast bf16, trials compute in fp32"
    few = memory < 4 * GIB
    todo = "a search with two trials side by side takes about 3 GiB: use --concurrent 1" if few else ""
    yield Finding("note" if few else "ok", "processor", f"{cores} CPU cores, {memory / GIB:.1f} GiB of memory, {precision}", todo)


def _gpus(options: argparse.Namespace) -> Iterator[Finding]:
    import torch

    from guidino_tune.running.hardware import mps_is_on, sharing_line

    if not torch.cuda.is_available():
        there = shutil.which("nvidia-smi") is not None
        reason = f"nvidia-smi is here, but torch {torch.__version__} finds no GPU" if there else "none: trials run on the CPU"
        todo = "install a torch that was built for this driver: https://pytorch.org/get-started" if there else ""
        if not there and torch.version.cuda:
            reason += f"; torch {torch.__version__} is built for CUDA {torch.version.cuda}"
            todo = "the build for CPUs is some gigabytes smaller; in a new environment: UV_TORCH_BACKEND=cpu with uv, else "
            todo += "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
        yield Finding("note", "GPU", reason, todo)
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        yield Finding("ok", f"GPU {index}", f"{device.name}, {device.total_memory / GIB:.0f} GiB, {bf16}")
    yield Finding("ok" if mps_is_on(os.environ) else "note", "GPU sharing", sharing_line(os.environ))


def _home(options: argparse.Namespace) -> Iterator[Finding]:
    from guidino_tune import paths
    from guidino_tune.tracking.moved import ARTIFACTS, find_moved, why_not

    home = paths.home()
    folder = next(place for place in (home, *home.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        todo = "choose another folder with --home or GUIDINO_TUNE_HOME"
        yield Finding("missing", "home folder", f"{folder} cannot be written ({error.strerror})", todo)
        return
    free = shutil.disk_usage(folder).free / GIB
    new = "" if home.exists() else ", made by the first search"
    todo = "" if free >= 5 else "make room, or choose another folder with --home or GUIDINO_TUNE_HOME"
    yield Finding("note" if todo else "ok", "home folder", f"{home} ({free:.1f} GiB free{new})", todo)
    for moved in find_moved(home):
        if moved.absent:
            here, there = (shlex.quote(str(folder / ARTIFACTS)) for folder in (home, moved.former))
            todo = f"to move them here: mkdir -p {here} && cp -Rn {there}/. {here}/ && {paths.next_command('track --all --flush')}"
            yield Finding("note", "home folder", why_not(moved), todo)
        else:
            found = f"it was moved here from {moved.former}: MLflow looks there for the files of {moved.runs} runs"
            yield Finding("note", "home folder", found, f"the next search mends that, or now: {paths.next_command('track --all --flush')}")


def _ray(options: argparse.Namespace) -> Iterator[Finding]:
    shell = dict(os.environ)  # before the import below sets what is not set
    from guidino_tune.running import inspection

    yield from inspection.look(shell)


def _mlflow(options: argparse.Namespace) -> Iterator[Finding]:
    from guidino_tune import paths
    from guidino_tune.tracking import tracking_uri
    from guidino_tune.tracking.inspection import deleted, reach

    uri = tracking_uri(paths.home() / "mlflow.db")
    yield Finding("ok", "MLflow", reach(uri))
    if restore := deleted(uri):
        yield Finding("note", "MLflow", "the experiment of the studies was deleted there: records wait, and are not sent", restore)


def _weights(options: argparse.Namespace) -> Iterator[Finding]:
    from guidino_tune.config import BACKBONES
    from guidino_tune.models.architectures import needs_licence
    from guidino_tune.models.weights import WEIGHTS, cached_folder

    if options.backbone:
        yield _loaded(options.backbone)
        return
    published = {name: repository for name, repository in BACKBONES.items() if repository is not None}
    cached = [name for name in published if cached_folder(name) is not None]
    if cached:
        yield Finding("ok", "weights here", f"{', '.join(cached)} (--backbone NAME really loads one)")
    for family, gated in (("DINOv3 weights", True), ("DINOv2 weights", False)):
        absent = [name for name in published if name not in cached and needs_licence(name) == gated]
        if not absent:
            continue
        repository = published[absent[0]]
        reason = _hub_answer(repository, WEIGHTS)
        todo = f"a search downloads them by itself; now: hf download {repository}"
        if not reason.startswith("may be"):
            todo = f"accept the licence at https://huggingface.co/{repository} and run `hf auth login`; or " if gated else ""
            todo += "name a model folder: --set guide.backbone=/path/to/folder"
        yield Finding("note", family, f"not on this machine: {', '.join(absent)}; {absent[0]}: {reason}", todo)


def _loaded(name: str) -> Finding:
    from guidino_tune.config import BACKBONES, DINOGuide
    from guidino_tune.errors import UserError
    from guidino_tune.models.backbone import check_backbone

    random = BACKBONES.get(name, "") is None
    try:
        fingerprint = check_backbone(DINOGuide(backbone=name, weights="random" if random else "pretrained"))
    except UserError as error:
        return Finding("missing", name, error.what, error.todo)
    return Finding("ok", name, "needs no weights" if random else f"weights load; fingerprint {fingerprint}")


def _hub_answer(repository: str, file: str) -> str:
    """What the Hugging Face hub says to a request for ``file``, without a download."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import GatedRepoError

    try:
        size = get_hf_file_metadata(hf_hub_url(repository, file), timeout=5).size or 0
    except GatedRepoError:
        return "the licence is not accepted, or nobody is logged in"
    except Exception as error:  # the hub client passes on the errors of its HTTP library, which it changes between versions
        return f"the hub does not answer ({type(error).__name__})"
    return f"may be downloaded ({size / 1e6:.0f} MB)"


def _data(options: argparse.Namespace) -> Iterator[Finding]:
    from guidino_tune import paths
    from guidino_tune.config import Data
    from guidino_tune.data.sources import SOURCES, find_cases
    from guidino_tune.data.sources.demo import VERSION
    from guidino_tune.errors import UserError

    for kind in [options.kind] if options.kind else SOURCES:
        asked = kind == options.kind
        if kind == "folder" and not asked:
            continue  # may lie anywhere
        root = Path(options.data_root).expanduser().absolute() if asked and options.data_root else paths.datasets() / kind
        if kind == "demo" and not (root / f"v{VERSION}").is_dir():
            yield Finding("ok", "data: demo", "drawn by the first search, in seconds")  # listing it would draw it
            continue
        try:
            data = Data(kind=kind, root=str(root))  # type: ignore[arg-type]  # it is one of them
            if asked and getattr(options, "set", None):
                from guidino_tune.workflows.doctor import told_data  # imports what a search does

                data = told_data(kind, str(root), options.set)
            listing = find_cases(data)
        except UserError as error:
            yield _refused("missing" if asked or kind == "demo" else "note", f"data: {kind}", error)
            continue
        except OSError as error:
            yield Finding("missing" if asked or kind == "demo" else "note", f"data: {kind}", str(error))
            continue
        yield Finding("ok", f"data: {kind}", "; ".join((f"{len(listing.cases)} images with masks in {root}", *listing.notes)))


def _studies(options: argparse.Namespace) -> Iterator[Finding]:
    from guidino_tune import paths

    names = sorted(file.parent.name for file in paths.studies().glob("*/study.yaml"))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    yield Finding("ok", "studies", f"{', '.join(names[:8])}{more}" if names else "none yet")


def _asked_for(options: argparse.Namespace) -> Iterator[Finding]:
    if options.space or options.study or options.images:
        from guidino_tune.workflows.doctor import look_at

        found = look_at(
            options.space,
            options.study,
            options.storage,
            options.images,
            kind=options.kind,
            data_root=options.data_root,
            settings=options.set,
        )
        yield from (Finding(f.mark, f.name, f.found, f.todo) for f in found)


CHECKS: dict[str, Check] = {
    "Python": _python,
    "packages": _packages,
    "search spaces": _spaces,
    "processor": _processor,
    "GPU": _gpus,
    "home folder": _home,
    "Ray": _ray,
    "MLflow": _mlflow,
    "weights": _weights,
    "data": _data,
    "studies": _studies,
    "asked for": _asked_for,
}
"""Checks by the name that a failure of the check itself gets, in the order in which they are printed."""

BELONGING = {
    "kind": ("data", "asked for"),
    "backbone": ("weights",),
    "space": ("home folder", "asked for"),
    "study": ("home folder", "asked for"),
}
"""The checks that answer what an option asks; with several options, all of theirs."""

NEEDED = frozenset({"Python", "packages", "search spaces", "processor", "home folder", "Ray", "data", "asked for"})
"""Checks of what a demo search cannot do without, or of what was asked for by name."""
