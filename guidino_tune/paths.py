"""Where things are kept: one home folder for studies, data sets, caches and the tracking database; and commands that find it again."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

_named_home: list[str] = []


def home() -> Path:
    """``$GUIDINO_TUNE_HOME``, or ``~/guidino_tune``: absolute, so that a job that Ray runs elsewhere finds the same place."""
    return Path(os.environ.get("GUIDINO_TUNE_HOME") or "~/guidino_tune").expanduser().absolute()


def datasets() -> Path:
    """Where ``prepare`` puts data sets, one folder per kind."""
    return home() / "datasets"


def cache() -> Path:
    """Decoded cases; may be deleted at any time."""
    return home() / "cache"


def views() -> Path:
    """Augmented images and tokens that trials share; may be deleted at any time."""
    return cache() / "views"


def studies() -> Path:
    """One folder per study."""
    return home() / "studies"


def use_home(folder: str | None) -> None:
    """Takes another home folder, as ``--home`` does, for this process and those it starts; ``None`` leaves the environment's."""
    _named_home[:] = [folder] if folder else []
    if folder:
        os.environ["GUIDINO_TUNE_HOME"] = folder


def next_command(words: str) -> str:
    """A command of this package as it works when copied: with this Python, and with the home folder where ``--home`` named one.

    Args:
        words: The command and its arguments, quoted for a shell where they need it.
    """
    executable = Path(sys.executable)
    python = "python" if shutil.which("python") == sys.executable else str(executable)
    if executable.is_relative_to(Path.cwd()):
        python = python if python == "python" else str(executable.relative_to(Path.cwd()))
    name, _, rest = words.partition(" ")
    home = ""
    if _named_home:
        home = f" --home{'=' if _named_home[0].startswith('-') else ' '}{shlex.quote(_named_home[0])}"
    return f"{shlex.quote(python)} -m guidino_tune.{name} {rest}{home}"
