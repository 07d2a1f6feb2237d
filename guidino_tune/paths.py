"""Where things are kept: one home folder for studies, data sets, caches and the tracking database; and commands that find it again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import stat
import sys
import uuid
from pathlib import Path

PLACES = "places.json"
"""In the home folder: the paths that it has had."""

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


NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "pvfs", "wekafs", "fuse.")
"""How the types of file systems begin that are read over a network."""


def views() -> Path:
    """Augmented images and tokens that the trials of a node share; may be deleted at any time.

    In the cache; where that is on a network file system, on a disk of the node: they are read again in every epoch.
    """
    local = _own_folder(Path(f"/var/tmp/guidino_tune-{os.getuid()}")) if is_on_network(cache()) else None
    return (local or cache()) / "views"


def _own_folder(folder: Path) -> Path | None:
    """A folder that nobody else can write to; ``None`` where somebody else was there before."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    return folder if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022 else None


def is_on_network(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether a path is on a network file system, by the table of mounts of this machine; false where there is no such table."""
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return False
    place = Path(os.path.realpath(path))
    # The last one counts: it hides what was mounted there before.
    found = [(len(where), number, kind) for number, (_, where, kind, *_) in enumerate(lines) if place.is_relative_to(_unescaped(where))]
    return max(found, default=(0, 0, ""))[2].startswith(NETWORK)


def _unescaped(where: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), where)


def studies() -> Path:
    """One folder per study."""
    return home() / "studies"


def places() -> list[Path]:
    """Where this home folder is known to have been, with where it was first; it is kept in the folder itself, and moves with it."""
    try:
        return [Path(str(text)) for text in json.loads((home() / PLACES).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def remember_home(*former: Path) -> None:
    """Adds where the home folder is now, and former places that were found out, to ``places``; a folder that is not there stays so."""
    now = home()
    known = places()
    new = [place for place in (*former, now) if place not in known]
    if not new or not now.is_dir():
        return
    draft = now / f".{PLACES}.{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # of a home that can only be read, nothing follows
        draft.write_text(json.dumps([str(place) for place in [*known, *new]], indent=1) + "\n", encoding="utf-8")
        os.replace(draft, now / PLACES)


def rebased(path: Path) -> Path:
    """A path as it was written down before the home folder was moved, where it is now.

    What is there under its own name is left alone; so is what is not in the home folder either.
    """
    if os.path.lexists(path):
        return path
    for place in places():
        if path.is_relative_to(place) and (here := home() / path.relative_to(place)).exists():
            return here
    return path


def use_home(folder: str | None) -> None:
    """Takes another home folder, as ``--home`` does, for this process and those it starts; ``None`` leaves the environment's."""
    _named_home[:] = [folder] if folder else []
    if folder:
        os.environ["GUIDINO_TUNE_HOME"] = folder


def next_command(words: str) -> str:
    """A command of this package as it works when copied: the ``guidino-tune`` beside this Python, and the home that ``--home`` named.

    Args:
        words: The command and its arguments, quoted for a shell where they need it.
    """
    home = ""
    if _named_home:
        home = f" --home{'=' if _named_home[0].startswith('-') else ' '}{shlex.quote(_named_home[0])}"
    return f"{_program()} {words}{home}"


def _program() -> str:
    """``guidino-tune`` as a shell finds the one of this Python; ``python -m guidino_tune`` where it has none."""
    python = Path(sys.executable)
    script = python.with_name("guidino-tune")
    program, words = (script, "") if script.is_file() else (python, " -m guidino_tune")
    if shutil.which(program.name) == str(program):
        return f"{program.name}{words}"
    place = str(program)
    with contextlib.suppress(ValueError, OSError):  # elsewhere than below this folder, or this folder is gone
        place = os.path.join(program.parent.relative_to(Path.cwd()) or ".", program.name)
    return f"{shlex.quote(place)}{words}"
