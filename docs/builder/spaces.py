"""The page of the search spaces that come with the package, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .configuration import as_yaml

INTRODUCTION = """\
# Shipped search spaces

`guidino-tune search NAME` takes each of these by name; the files are in `search_spaces/`. How a space is written, and how to write your
own: [The search space](../spaces.md).
"""


def page(folder: Path) -> str:
    """The page as Markdown, of a folder with spaces, and recipes with their ``tables.yaml``."""
    parts = [INTRODUCTION, *(_space(file) for file in sorted(folder.glob("*.yaml"))), _recipes(folder / "recipes")]
    return "\n".join(parts)


def _space(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    space = yaml.safe_load(text)
    about = "  \n".join(line.lstrip("# ") for line in text.partition("\nexperiment:")[0].splitlines() if line.startswith("#"))
    trials = space.get("first_trials", [])
    varying = [name for name in space["space"] if len({as_yaml(trial.get(name)) for trial in trials}) > 1]
    parts = [
        f"## {file.stem}\n\n{about}\n",
        "Fixed, and the base of what is searched:\n\n```yaml\n" + _yaml(space["experiment"]) + "```\n",
        _table(("searched", "values", "only where"), [(f"`{name}`", *_parameter(of)) for name, of in space["space"].items()]),
        f"Study: `{as_yaml(space.get('study', {}))}`. Resources: `{as_yaml(space.get('resources', {}))}`.\n",
    ]
    if trials:
        rows = [(str(n), *(f"`{as_yaml(trial[name])}`" if name in trial else "" for name in varying)) for n, trial in enumerate(trials)]
        parts.append("First trials, as far as they differ:\n\n" + _table(("", *(f"`{name}`" for name in varying)), rows))
    return "\n".join(parts)


def _parameter(of: Any) -> tuple[str, str]:
    when = ", ".join(f"`{name}` is `{as_yaml(value)}`" for name, value in of.get("when", {}).items())
    if "choices" in of:
        return ", ".join(f"`{as_yaml(value)}`" for value in of["choices"]), when
    step = f", in steps of {of['step']}" if "step" in of else ""
    return f"{of['type']}, {of['low']:g} to {of['high']:g}{', logarithmic' if of.get('log') else ''}{step}", when


def _recipes(folder: Path) -> str:
    """Each system once, with the data sets that have a recipe for it."""
    tables = yaml.safe_load((folder / "tables.yaml").read_text(encoding="utf-8"))
    datasets = sorted(part.name for part in folder.iterdir() if part.is_dir())
    seen: dict[str, tuple[str, ...]] = {}
    for table in tables.values():
        for row in table["rows"]:
            here = [f"`recipes/{name}/{row['recipe']}`" if (folder / name / f"{row['recipe']}.yaml").exists() else "" for name in datasets]
            seen.setdefault(row["system"], (row["system"], *here))
    return (
        "## Recipes\n\nA small space around each system of the papers, with its authors' settings; `guidino-tune reproduce` trains them as "
        "tables ([The papers' tables](../tables.md)). A file beside one that ends in `-reference` has the settings of their code.\n\n"
        + _table(("system", *datasets), list(seen.values()))
    )


def _yaml(values: Any) -> str:
    return "".join(f"{name}: {as_yaml(value)}\n" for name, value in values.items())


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"
