"""A user's own code by its target, ``module:name``: imported only where the user named it, and looked for where the user works.

A target may be imported when this process was told so (``trust``: the space of a search, a value of ``--set``, the option ``--trust``), or
when a study of this home names it. A model, an export or a checkpoint from elsewhere imports nothing by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import platform
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from guidino_tune import paths
from guidino_tune.errors import UserError, nearest

TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

FOLDER = "own_folder"
"""Attribute of a study whose space names the user's own code: the folder of that space's file."""

EVERYTHING = "*"
"""What ``--trust`` trusts: whatever the file that was named with it names."""

_trusted: set[str] = set()
_folders: list[str] = []


class NotImportable(UserError):
    """The code that a target names cannot be imported on this machine; another machine may have it."""


def trust(*targets: str) -> None:
    """Allows this process to import these targets, or ``EVERYTHING``."""
    _trusted.update(targets)


def trust_values(values: Iterable[str]) -> None:
    """Allows this process to import those values of settings that are targets; a pattern such as ``*`` is none."""
    trust(*(value.strip() for value in values if TARGET.fullmatch(value.strip())))


def look_in(folder: str | Path) -> None:
    """Modules are also looked for in this folder, after all others and after the one in which the command runs."""
    _folders.append(str(Path(folder).absolute()))


def look_in_noted(attributes: Mapping[str, Any]) -> None:
    """Modules are also looked for in the folder of the space that a study was begun with, which its attributes note."""
    if FOLDER in attributes:
        look_in(attributes[FOLDER])


def packed() -> dict[str, list[str]]:
    """What is trusted, and where modules are looked for, in plain types, for ``adopt`` in another process."""
    return {"trusted": sorted(_trusted), "folders": _here()}


def adopt(given: dict[str, list[str]]) -> None:
    """Takes over what another process has ``packed``."""
    trust(*given.get("trusted", ()))
    _folders.extend(folder for folder in given.get("folders", ()) if folder not in _folders)


def load(target: str, where: str) -> Any:
    """What a target names.

    Args:
        target: ``module:name``.
        where: The setting that names it, for messages.

    Raises:
        UserError: Nobody who may do so has named it.
        NotImportable: The module is not there or fails, or has no such name; says on which machine, and where it was looked for.
    """
    module, _, name = target.partition(":")
    where = f"{where}={target}"
    if not _trusted & {target, EVERYTHING} and not _named_by_a_study(target):
        raise UserError(
            "this code is named by a file that may come from elsewhere, and by no study in this home; it is not imported",
            where=where,
            todo=f"read the code, and add --trust if you want it to run (in Python: guidino_tune.targets.trust({target!r}))",
        )
    sys.path.extend(folder for folder in _here() if folder not in sys.path)
    importlib.invalidate_caches()
    machine = f"on {platform.node()}"
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise NotImportable(
                f"there is no module {error.name!r} {machine}; looked in {', '.join(_here())} and where Python looks",
                where=where,
                todo="run the command in the folder that holds it, or put that folder into PYTHONPATH or the package into the environment; "
                "to another machine `ray job submit --working-dir .` carries the folder",
            ) from None
        raise NotImportable(
            f"importing it {machine} {_raised(error)}", where=where, todo="mend the module, or install what it needs"
        ) from None
    if not hasattr(found, name):
        names = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
        file = getattr(found, "__file__", None) or module
        raise NotImportable(f"{file} {machine} has no {name!r}", where=where, todo=nearest(name, names) if names else "correct the name")
    made = getattr(found, name)
    if not callable(made):
        raise NotImportable(f"it is a {type(made).__name__}, which cannot be called", where=where, todo="name a function or a class")
    return made


@contextlib.contextmanager
def blaming(target: str, where: str) -> Iterator[None]:
    """Tells an exception inside as the one of a user's own code, in one message with its line.

    Raises:
        UserError: Instead of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        todo = "install that package" if isinstance(error, ImportError) else "mend it there, or its options"
        raise UserError(f"it {_raised(error)}", where=f"{where}={target}", todo=todo) from None


def digests(targets: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the source file of each target that this process has imported; what it imports in turn is not in it."""
    found = {}
    for target in targets:
        module, _, name = target.partition(":")
        there = sys.modules.get(module)
        owner = sys.modules.get(getattr(getattr(there, name, None), "__module__", None) or module, there)
        with contextlib.suppress(OSError):
            if file := getattr(owner, "__file__", None):
                found[target] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found


def _here() -> list[str]:
    with contextlib.suppress(FileNotFoundError):  # the folder was removed
        return list(dict.fromkeys([os.getcwd(), *_folders]))
    return list(_folders)


def _raised(error: BaseException) -> str:
    """What was raised, and the last line outside of our own code and of libraries that did it."""
    others = (str(Path(__file__).parent), os.path.dirname(os.__file__), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/site-packages/" not in frame.filename and not frame.filename.startswith(others)]
    line = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"raises {type(error).__name__}: {' '.join(str(error).split())[:500]}{line}"


def _named_by_a_study(target: str) -> bool:
    line = re.compile(rf"^[\s-]*(?:[\w.]+: )?(['\"]?){re.escape(target)}\1$", re.MULTILINE)
    for file in paths.studies().glob("*/study.yaml"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if line.search(file.read_text(encoding="utf-8")):
                return True
    return False
