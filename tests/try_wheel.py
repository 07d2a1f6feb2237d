"""Tries a wheel where nothing is but what it declares: ``python tests/try_wheel.py WHEEL FOLDER``, which `make wheel` does.

To install everything once more takes minutes, gigabytes and an index. So the environment is made of hard links to files of this one: of the
wheel's dependencies, of what these depend on in turn, and of nothing else, neither tools of development nor pip. What is imported without
being declared is missing there, as it is at a user's.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Container, Iterable
from importlib import metadata
from pathlib import Path
from zipfile import Path as ZipPath
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NAME = "guidino_tune"
SOURCES = {NAME: ROOT / NAME, f"{NAME}/search_spaces": ROOT / "search_spaces"}
"""Folders of a checkout, by where a wheel has them."""

IMPORTS = f"""
import importlib, pkgutil, sys
import {NAME} as gt
assert gt.__file__.startswith(sys.prefix), gt.__file__
assert not {{"torch", "ray"}} & set(sys.modules)
for name in gt.__all__:
    getattr(gt, name)
for module in pkgutil.walk_packages(gt.__path__, gt.__name__ + "."):
    if ".exporting.templates." not in module.name:  # they run elsewhere
        importlib.import_module(module.name)
"""
TRIED = (
    (("bin/guidino-tune", "-V"), "^guidino-tune [0-9]"),
    (("bin/guidino-tune", "--help"), "^  export-model "),
    (("bin/python", "-c", IMPORTS), ""),
    (("bin/guidino-tune", "doctor", "--home", "home"), "^ok +packages"),
    (("bin/guidino-tune", "search", "demo", "--dry-run", "--home", "home"), ""),
)
"""Commands, and what they print."""


def differences(wheel: Path, sources: dict[str, Path]) -> list[str]:
    """A line for every file of the package that a wheel lacks, and for everything else that it holds."""
    with ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if not re.match(rf"{NAME}-[^/]+\.dist-info/", name)}
    wanted = {
        f"{place}/{file.relative_to(folder).as_posix()}"
        for place, folder in sources.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    return [f"lacks {name}" for name in sorted(wanted - held)] + [f"holds {name}" for name in sorted(held - wanted)]


def needed(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """What is installed here of these requirements and of all that they require, by name.

    Raises:
        PackageNotFoundError: One of them is not installed.
    """
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        asked, extra = waiting.pop()
        if asked.marker is not None and not asked.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(asked.name)
        for more in {"", *asked.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, more))
            found.setdefault(name, metadata.distribution(asked.name))
            waiting += [(Requirement(text), more) for text in found[name].requires or ()]
    return found


def undeclared(package: Path, requirements: Iterable[str], installed: Container[str]) -> list[str]:
    """A line for every import, also those inside functions, of something that neither Python nor what is declared brings.

    Args:
        package: Its folder.
        requirements: Its own; those of an extra count too, but for ``dev``. What is not installed here is known by the name of its import.
        installed: Names of what comes with those without an extra.
    """
    extras = {canonicalize_name(Requirement(text).name) for text in requirements if not re.search("extra == .dev.", text)}
    owners = metadata.packages_distributions()
    found = []
    for file in sorted(file for file in package.rglob("*.py") if file.parent.name != "templates"):  # those run elsewhere
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.partition(".")[0] for name in names} - {NAME, *sys.stdlib_module_names}:
                if not any(owner in extras or owner in installed for owner in map(canonicalize_name, owners.get(name, (name,)))):
                    found.append(f"{file.relative_to(package.parent)}:{node.lineno} imports {name}, which nothing declares")
    return found


def link(distribution: metadata.Distribution, site: Path) -> None:
    """Puts the files of a distribution into another environment, with what Python has compiled of them."""
    for file in distribution.files or ():
        if ".." in file.parts:  # a command
            continue
        compiled = importlib.util.cache_from_source(str(file)) if file.suffix == ".py" else ""
        for name in filter(None, (str(file), compiled)):
            source, target = Path(str(distribution.locate_file(name))), site / name
            if source.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source, target)
                except OSError:  # another disk
                    shutil.copy2(source, target)


def main(wheel: Path, folder: Path) -> None:
    """Builds the environment and tries the wheel in it; ends the process with a message where something is wrong."""
    start = time.perf_counter()
    if wrong := differences(wheel, SOURCES):
        sys.exit("\n".join([f"error: {wheel.name} is not the package of this checkout:", *wrong]))
    shutil.rmtree(folder, ignore_errors=True)
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (site,) = folder.glob("lib/python3*/site-packages")
    (inside,) = (one for one in ZipPath(wheel).iterdir() if one.name.endswith(".dist-info"))
    requirements = metadata.PathDistribution(inside).requires or []  # type: ignore[arg-type]  # it has all that is asked of it
    try:
        distributions = needed(requirements)
    except metadata.PackageNotFoundError as error:
        sys.exit(f"error: {wheel.name} needs {error.name}, which is not installed here\n  -> remove .venv, and make it anew")
    if wrong := undeclared(ROOT / NAME, requirements, distributions):
        sys.exit("\n".join([f"error: {wheel.name} does not declare what it imports:", *wrong]))
    for one in distributions.values():
        link(one, site)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    _run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], Path.cwd())
    _run([*pip, "check"], Path.cwd())
    print(f"an environment of {wheel.name} and the {len(distributions)} distributions that it needs: {time.perf_counter() - start:.0f} s")
    for (program, *words), said in TRIED:
        start = time.perf_counter()
        printed = _run([str(folder / program), *words], folder)
        shown = "-c" if words[0] == "-c" else " ".join(words)
        if not re.search(said, printed, re.MULTILINE):
            sys.exit(f"error: {program} {shown} does not print {said!r}:\n{printed}")
        print(f"{program} {shown}: {time.perf_counter() - start:.0f} s")


def _run(command: list[str], cwd: Path) -> str:
    """What a command prints, which knows nothing of this checkout; `doctor` says by 1 that not everything is here."""
    ours = ("PYTHON", "GUIDINO_", "MLFLOW_", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode not in (0, 1 if "doctor" in command else 0):
        sys.exit(f"error: {' '.join(command)[:200]} ends with code {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
