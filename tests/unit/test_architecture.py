"""The plan of the house, kept by a machine: layers, light imports, thin commands and sizes."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guidino_tune.__main__ import COMMANDS, module_of

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "guidino_tune"
NAME = "guidino_tune"

# ---------------------------------------------------------------------------------------------------------------------- layers

HEAVY = {"torch", "monai", "transformers", "peft", "optuna", "mlflow", "ray", "pandas", "plotly", "matplotlib", "pyarrow"}
"""Third-party packages that only some layers may import; the others are light."""

IMPORTERS = ("importlib.import_module", "import_module", "__import__")
FOUNDATION = ("errors", "paths", "findings", "stopping", "targets")
BELOW_TRAINING = ("config", "space", "normalisation", "framing", "monai_parts", "known_backbones", "data", "models")
BELOW_TRAINING += ("custom_loss", "losses", "metrics", "inference")
BELOW_RUNNING = (*BELOW_TRAINING, "training", "study", "analysis")


@dataclass(frozen=True)
class Layer:
    """What a folder or file may import: parts of the package (besides itself and the foundation), and heavy third-party packages."""

    package: tuple[str, ...] = ()
    heavy: frozenset[str] = frozenset()


def layer(*package: str, heavy: str = "") -> Layer:
    return Layer(package, frozenset(heavy.split()))


LAYERS = {
    **dict.fromkeys((*FOUNDATION, "cli", "config"), layer()),
    "space": layer("config", heavy="optuna"),
    "normalisation": layer(heavy="torch"),
    "framing": layer("config"),
    "monai_parts": layer(heavy="monai"),
    "data": layer("config", "normalisation", "framing", heavy="torch pyarrow"),
    "known_backbones": layer("config"),
    "models": layer("config", "normalisation", "known_backbones", heavy="torch transformers peft"),
    "custom_loss": layer("config", heavy="torch"),
    "losses": layer("config", "custom_loss", heavy="torch"),
    "metrics": layer("config", heavy="torch"),
    "inference": layer("config", "normalisation", "framing", "monai_parts", heavy="torch"),
    "training": layer(*BELOW_TRAINING, heavy="torch"),
    "exporting": layer(*BELOW_TRAINING, "training", heavy="torch transformers monai"),
    "study": layer("config", "space", "data", "training", heavy="optuna"),
    "simulation": layer("config", "space", "training", "study", heavy="optuna pyarrow"),
    "tracking": layer("config", "training.reporter", heavy="mlflow"),
    "analysis": layer("config", heavy="matplotlib pandas"),
    "running": layer(*BELOW_RUNNING, heavy="torch optuna ray"),
    "workflows": layer(*BELOW_RUNNING, "exporting", "simulation", "tracking", "running", heavy="torch optuna pandas"),
    "api": layer("config", "space"),
}
"""By folder or top-level module. Only ``monai_parts`` (and files copied into exports) has monai, only ``tracking`` mlflow, only
``running`` ray."""

COMMAND_FILES = {*map(module_of, COMMANDS), "report"}
"""Top-level modules with a command each: they import their library inside functions, so that ``--help`` is quick."""

SEALED = "data.sealed"
OPENERS = {"running.measuring", "training.evaluation"}
"""Who may open the sealed test split: retraining, and the function behind ``evaluate``."""
SEARCH = ("search", "workflows.search", "workflows.dry_run", "study.driver", "running.tune_adapter", "running.executors", "training.loop")
"""What runs in a search, which must not even reach it."""


@dataclass(frozen=True)
class Import:
    """One import statement: the importing module and the imported one (dotted; own modules without the package's name)."""

    module: str
    line: int
    target: str
    own: bool
    at_top: bool

    def inside(self, *parts: str) -> bool:
        """True when the imported module is one of these, or lies below one."""
        return any(self.target == part or self.target.startswith(f"{part}.") for part in parts)

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def modules(package: Path) -> dict[str, Path]:
    """Every module by its dotted name without the package's; a folder's ``__init__`` has the folder's name, the package's is ``''``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(package: Path) -> list[Import]:
    """All imports of all modules, those inside functions and of ``importlib.import_module("...")`` too."""
    known = modules(package)
    found = []
    for module, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {id(node) for node in _executed(tree.body)}
        base = [NAME, *(module.split(".") if module else [])]
        if path.name != "__init__.py":
            base.pop()
        for node in ast.walk(tree):
            for name in _targets(node, base, known):
                own = name == NAME or name.startswith(f"{NAME}.")
                target = name.removeprefix(NAME).removeprefix(".") if own else name
                found.append(Import(module, node.lineno, target, own, id(node) in top))  # type: ignore[attr-defined]
    return found


def _targets(node: ast.AST, base: list[str], known: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = base[: len(base) + 1 - node.level] if node.level else []
        source = ".".join([*start, *([node.module] if node.module else [])])
        for alias in node.names:  # `from package import module` imports the module
            deeper = f"{source}.{alias.name}"
            yield deeper if deeper.removeprefix(f"{NAME}.") in known else source
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTERS and node.args and isinstance(node.args[0], ast.Constant):
        yield str(node.args[0].value)


def _executed(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """What runs when a module is imported: everything outside functions and ``if TYPE_CHECKING``."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _executed(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from _executed(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from _executed(handler.body)


def violations(package: Path) -> list[str]:
    """Every import that breaks the table, in words; empty for a package that keeps it."""
    found = []
    every = imports(package)
    for module in modules(package):
        head = module.partition(".")[0]
        if head not in LAYERS and head not in COMMAND_FILES and head not in ("", "__main__"):
            found.append(f"{module}: {head!r} has no layer")
    for item in every:
        head = item.module.partition(".")[0]
        top_package = item.target.partition(".")[0]
        if not item.own and top_package == "mlflow" and head != "tracking":
            found.append(f"{item}: only tracking imports mlflow")
        elif not item.own and top_package == "ray" and head != "running":
            found.append(f"{item}: only running imports ray")
        elif head in COMMAND_FILES or head in ("", "__main__"):
            allowed = item.inside("cli", *FOUNDATION) or item.target == "" if item.own else top_package in sys.stdlib_module_names
            if item.at_top and not allowed:
                found.append(f"{item}: a command imports its library inside a function")
        elif item.own and head in LAYERS:
            if not item.inside(head, *FOUNDATION, *LAYERS[head].package) and item.target:
                found.append(f"{item}: {head} may import {', '.join(LAYERS[head].package) or 'nothing of the package'}")
        elif head in LAYERS and top_package in HEAVY - LAYERS[head].heavy:
            found.append(f"{item}: {head} may not import {top_package}")
        elif head == "config" and top_package not in {*sys.stdlib_module_names, "pydantic", "yaml"}:
            found.append(f"{item}: config imports the standard library, pydantic and yaml only")
        if item.own and item.inside(SEALED) and item.module not in OPENERS:
            found.append(f"{item}: only {', '.join(sorted(OPENERS))} open the sealed test split")
    for start in SEARCH:
        if way := _way(every, start, SEALED):
            found.append(f"a search can reach the sealed test split: {' -> '.join(way)}")
    return found


def _way(every: list[Import], start: str, goal: str) -> list[str]:
    """A chain of imports from one module to another; importing a module also imports the folders above it."""
    edges: dict[str, set[str]] = {}
    for item in every:
        if item.own:
            parts = item.target.split(".")
            edges.setdefault(item.module, set()).update(".".join(parts[:n]) for n in range(1, len(parts) + 1))
    ways, queue = {start: [start]}, [start]
    while queue:
        module = queue.pop(0)
        for target in sorted(edges.get(module, ())):
            if target not in ways:
                ways[target] = [*ways[module], target]
                queue.append(target)
    return ways.get(goal, [])


def test_every_import_keeps_the_layers() -> None:
    assert violations(PACKAGE) == []


def test_the_package_is_really_seen() -> None:
    seen = {(item.module, item.target) for item in imports(PACKAGE)}
    assert ("running.measuring", "data.sealed") in seen
    assert ("space.suggest", "optuna") in seen
    assert ("search", "workflows.search") in seen
    assert any(module.startswith("tracking") and target.startswith("mlflow") for module, target in seen)
    assert any(module.startswith("running") and target.startswith("ray") for module, target in seen)


def test_layers_have_no_cycle() -> None:
    order = list(LAYERS)
    for name, allowed in LAYERS.items():
        assert all(order.index(part.partition(".")[0]) < order.index(name) for part in allowed.package), name


CLEAN = {
    "__init__.py": "",
    "search.py": "import argparse\nfrom guidino_tune.cli import run\ndef f():\n    from guidino_tune.workflows.search import g\n",
    "cli.py": "import os\n",
    "errors.py": "",
    "config/__init__.py": "import yaml\nfrom guidino_tune.errors import UserError\nfrom . import sections\n",
    "config/sections.py": "from pydantic import Field\n",
    "data/sealed.py": "import torch\nfrom guidino_tune.config import sections\n",
    "running/__init__.py": "import ray\n",
    "workflows/__init__.py": "",
    "workflows/search.py": "import guidino_tune.running\n",
    "running/measuring.py": "from guidino_tune.data.sealed import open_test\n",
}


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("config/extra.py", "def f():\n    import torch\n", "config.extra:2 imports torch: config may not import torch"),
        ("config/extra.py", "import numpy\n", "config imports the standard library, pydantic and yaml only"),
        ("config/extra.py", "from ..data import sealed\n", "config.extra:1 imports data.sealed: config may import nothing"),
        ("space/a.py", "import torch.nn as nn\n", "space may not import torch"),
        ("data/a.py", "from guidino_tune import models\n", ""),
        ("data/a.py", "from guidino_tune.models.gate import Gate\n", "data.a:1 imports models.gate: data may import config"),
        ("models/a.py", "from mlflow import log\n", "only tracking imports mlflow"),
        ("models/a.py", "from guidino_tune.data.views import x\n", "models may import config"),
        ("training/a.py", "try:\n    import ray.train\nexcept ImportError:\n    pass\n", "only running imports ray"),
        ("training/a.py", "import importlib\nimportlib.import_module('optuna')\n", "training may not import optuna"),
        ("tracking/a.py", "from guidino_tune.training.loop import x\n", "tracking may import config, training.reporter"),
        ("running/a.py", "import mlflow\n", "only tracking imports mlflow"),
        ("workflows/a.py", "import ray\n", "only running imports ray"),
        ("running/a.py", "from guidino_tune.workflows import search\n", "running.a:1 imports workflows.search: running may import"),
        ("study/a.py", "def f():\n    import torch\n", "study may not import torch"),
        ("workflows/a.py", "from guidino_tune.data.sealed import open_test\n", "only running.measuring, training.evaluation open"),
        (
            "workflows/search.py",
            "from guidino_tune.running.measuring import x\n",
            "reach the sealed test split: search -> workflows.search ->",
        ),
        ("search.py", "import torch\n", "a command imports its library inside a function"),
        ("search.py", "from guidino_tune.workflows.search import g\n", "a command imports its library inside a function"),
        ("search.py", "def f():\n    import ray\n", "only running imports ray"),
        ("extra/a.py", "", "'extra' has no layer"),
    ],
)
def test_the_checker_finds_violations(tmp_path: Path, file: str, text: str, expected: str) -> None:
    for name, content in {**CLEAN, file: text}.items():
        path = tmp_path / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    found = violations(tmp_path / NAME)
    assert any(expected in line for line in found) if expected else found == [], found


def test_the_checker_accepts_a_clean_tree(tmp_path: Path) -> None:
    for name, content in CLEAN.items():
        path = tmp_path / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert violations(tmp_path / NAME) == []


def test_a_segmenters_file_is_imported_by_the_registry_only() -> None:
    importers = {
        (item.target, item.module)
        for item in imports(PACKAGE)
        if item.own and item.target.startswith("models.segmenters.") and not item.inside("models.segmenters.base")
    }
    assert importers
    assert {module for _, module in importers} == {"models.segmenters"}


# --------------------------------------------------------------------------------------------------------------- light imports

PROBE = """
import contextlib, importlib, io, sys
text, code = io.StringIO(), 0
with contextlib.redirect_stdout(text):
    try:
        {action}
    except SystemExit as stop:
        code = stop.code or 0
print(code, len(text.getvalue()), *sorted({{name.partition('.')[0] for name in sys.modules}} & set({heavy})))
"""


def loaded(action: str) -> tuple[int, int, set[str]]:
    """Exit code, characters printed and heavy packages loaded by a statement in a Python process of its own."""
    text = PROBE.format(action=action, heavy=sorted(HEAVY | {"numpy", "scipy"}))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    code, printed, *heavy = done.stdout.split()
    return int(code), int(printed), set(heavy)


def test_the_package_imports_nothing_heavy() -> None:
    assert loaded(f"import {NAME}, {NAME}.errors, {NAME}.paths, {NAME}.config") == (0, 0, set())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    code, printed, heavy = loaded(f"importlib.import_module('{NAME}.{module_of(command)}').main(['--help'])")
    assert (code, heavy) == (0, set())
    assert printed > 200


def test_a_study_needs_neither_ray_nor_torch_nor_mlflow() -> None:
    every = ", ".join(f"{NAME}.{module}" for module in modules(PACKAGE) if module.partition(".")[0] in ("study", "simulation"))
    assert "study.driver" in every
    assert loaded(f"import {every}")[2] & {"ray", "torch", "mlflow", "transformers", "monai"} == set()


def test_the_probe_sees_what_is_heavy() -> None:
    assert loaded("import optuna")[2] >= {"optuna"}


def test_the_list_of_commands_is_light() -> None:
    code, printed, heavy = loaded(f"sys.argv = ['guidino-tune', '--help']; importlib.import_module('{NAME}.__main__').main()")
    assert (code, heavy) == (0, set())
    assert printed > 300


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_thin(command: str) -> None:
    text = (PACKAGE / f"{module_of(command)}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "main" in functions
    assert any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXAMPLES" for node in tree.body)
    assert "__main__" in text  # `python -m guidino_tune.NAME` works as `guidino-tune NAME` does
    assert len(text.splitlines()) <= 150


# ------------------------------------------------------------------------------------------------------------------------ sizes


def test_no_file_is_long() -> None:
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    long = {path: number for path, number in lines.items() if number > 400}
    assert long == {}


READS_OTHERS = PACKAGE / "models" / "published.py"
"""Reads the checkpoints that others publish, which are what ``torch.save`` writes: tensors alone, nothing that could run."""


def test_torch_load_and_pickle_are_used_nowhere() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in ("yaml.unsafe_load", "yaml.full_load"))
        or (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load" and path != READS_OTHERS)
        or (isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load" and "weights_only=True" not in ast.unparse(node))
        or (isinstance(node, ast.Import) and any(alias.name in ("pickle", "cloudpickle", "dill") for alias in node.names))
    ]
    assert found == []


def test_every_dependency_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    declared = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    for requirement in declared:
        line = next(line for line in text.splitlines() if f'"{requirement}"' in line)
        reason = line.partition("#")[2].split()
        assert len(reason) >= 3, f"{requirement}: say after # why it is needed"
        assert re.search(r">=\d", requirement), f"{requirement}: name the lowest version"
        assert re.search(r",<\d", requirement), f"{requirement}: name a version that is too new"
