"""The site: what is made from the code says what the code says, and every link leads somewhere."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

import guidino_tune as gt
from guidino_tune import config
from guidino_tune.__main__ import COMMANDS, module_of
from guidino_tune.config.fields import Count, Fraction, Positive

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from builder import commands, configuration, docstrings, interface, notebook, pages, spaces  # noqa: E402


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sources of the site."""
    folder = tmp_path_factory.mktemp("site") / "docs"
    pages.assemble(folder)
    return folder


# ------------------------------------------------------------------------------------------------------------------ configuration

SHOWN = re.compile(
    r"^\*\*`(?P<path>[\w.]+)`\*\* · (?P<kind>.+) · (?:default `(?P<default>.*)`|must be given) \{ #(?P<anchor>[\w.-]+) \}\n\n"
    r":   (?P<text>.*)$",
    re.M,
)


def all_classes() -> Iterator[type]:
    """Every checked dataclass of the package, found without the builder."""
    for module in pkgutil.iter_modules(config.__path__):
        for cls in vars(importlib.import_module(f"guidino_tune.config.{module.name}")).values():
            if isinstance(cls, type) and cls.__module__ == f"guidino_tune.config.{module.name}" and hasattr(cls, "__pydantic_config__"):
                yield cls


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, dict) else value


def test_every_field_of_every_class_is_shown_with_its_default_and_a_meaning() -> None:
    *parts, backbones = re.split(r"^## ", configuration.page(), flags=re.M)[1:]
    assert re.findall(r"^\| `(\w+)` \|", backbones, re.M) == list(config.BACKBONES)
    classes = [section.cls for section in configuration.sections()]
    assert len(parts) == len(classes) >= 20
    assert {*classes} == {*all_classes()} - {config.Experiment}
    for cls, part in zip(classes, parts, strict=True):
        needed = {config.Data: {"kind": "demo"}, config.CustomTerm: {"target": "a:b"}}.get(cls, {})
        made, shown = cls(**needed), {found["path"].rpartition(".")[2]: found for found in SHOWN.finditer(part)}
        assert list(shown) == [field.name for field in dataclasses.fields(cls)]
        for name, found in shown.items():
            assert found["text"].strip(), f"{cls.__name__}.{name} has no line in its docstring"
            if name in needed:
                assert found["default"] is None
            elif dataclasses.is_dataclass(getattr(made, name)):
                assert found["default"] == "its own"
            else:
                assert yaml.safe_load(found["default"]) == plain(getattr(made, name)), found["path"]


def test_every_field_has_an_id_of_its_own() -> None:
    found = [one["anchor"] for one in SHOWN.finditer(configuration.page())]
    assert {"data.image_size", "segmenter-unet.base_width", "segmenter-nnwnet.base_width", "guide.lora.rank"} <= set(found)
    assert len(set(found)) == len(found) > 150


def test_a_path_of_the_page_is_one_that_can_be_set() -> None:
    for found in SHOWN.finditer(configuration.page()):
        section, *names = found["path"].split(".")
        if section in ("study", "resources", "protocol"):
            assert names[0] in {field.name for field in dataclasses.fields(getattr(config, section.title()))}
        else:
            assert section in {field.name for field in dataclasses.fields(config.Experiment)}


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Annotated[int, Field(ge=32, le=4096, multiple_of=16)], "whole number from 32 to 4096, a multiple of 16"),
        (Count, "whole number from 1"),
        (Positive, "number above 0"),
        (Fraction, "number from 0 below 1"),
        (Literal["mean", "off"], "`mean` or `'off'`"),
        (bool | None, "`true` or `false` or `null`"),
        (tuple[Count, Count], "list of 2: whole number from 1"),
        (tuple[float, ...], "list of number"),
        (Annotated[str, Field(pattern="^a$")], "text that matches `^a$`"),
        (dict[str, Positive], "mapping of names to number above 0"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert configuration.words(hint) == words


def test_docstrings_are_read_with_entries_of_several_lines() -> None:
    doc = docstrings.read(
        """What it is: ``a < b``.

        More.

        Attributes:
            width, height: In ``pixels``,
                of 2 * 3.
            name: See ``docs/data.md``.

        Returns:
            A number: 3.
        """
    )
    assert doc.text == "What it is: ``a < b``.\n\nMore."
    assert doc.entries("Attributes") == {
        "width": r"In ``pixels``, of 2 \* 3.",
        "height": r"In ``pixels``, of 2 \* 3.",
        "name": "See [data.md](../data.md).",
    }
    assert (doc.entries("Args"), doc.sections["Returns"]) == ({}, "A number: 3.")


# -------------------------------------------------------------------------------------------------- commands, spaces, Python, notebook


def test_every_option_of_every_command_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    parts = dict(part.split("\n", 1) for part in re.split(r"^## ", commands.page(), flags=re.M)[1:])
    assert list(parts) == list(COMMANDS)
    for name, part in parts.items():
        with pytest.raises(SystemExit):
            importlib.import_module(f"guidino_tune.{module_of(name)}").main(["--help"])
        printed = capsys.readouterr().out
        options = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", printed))
        assert options <= set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", part)), name
        assert "".join(printed.partition("examples:")[2].split()) in "".join(part.split()), name


def test_every_parameter_of_every_space_and_every_system_is_shown() -> None:
    page = spaces.page(ROOT / "search_spaces")
    for file in (ROOT / "search_spaces").glob("*.yaml"):
        part = page.partition(f"## {file.stem}\n")[2].partition("\n## ")[0]
        space = yaml.safe_load(file.read_text())
        for name, of in space["space"].items():
            (row,) = re.findall(rf"^\| `{re.escape(name)}` \| (.*) \|$", part, re.M)
            assert all(f"`{value}`" in row for value in of.get("choices", ())), row
            assert all(f"{of[end]:g}" in row for end in ("low", "high") if end in of), row
            assert all(f"`{other}`" in row for other in of.get("when", ())), row
    tables = yaml.safe_load((ROOT / "search_spaces" / "recipes" / "tables.yaml").read_text())
    recipes = {f"recipes/kvasir/{row['recipe']}" for table in tables.values() for row in table["rows"]}
    assert recipes == set(re.findall(r"recipes/kvasir/[\w-]+", page))


def test_every_public_name_is_shown_with_its_arguments() -> None:
    page = interface.page()
    titles = set(re.findall(r"^###? (.*)$", page, re.M))
    assert {f"gt.{name}" for name in gt.__all__ if name != "__version__"} <= titles
    assert {"StudyResult.best", "TrainedModel.predict", "Exported.save", "Retrained"} <= titles
    signature = page.partition("## gt.run_search\n")[2].partition("```python\n")[2].partition("```")[0]
    made = ast.parse(signature.replace("gt.run_search(", "def _(", 1).strip() + ": ...").body[0]
    assert isinstance(made, ast.FunctionDef)
    code = gt.run_search.__code__
    assert [a.arg for a in (*made.args.args, *made.args.kwonlyargs)] == list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def test_the_notebook_is_shown_with_what_it_printed_and_drew() -> None:
    text = (ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8")
    page, pictures = notebook.page(text, "tutorial")
    assert page.startswith("# From images to a model")
    assert page.count("```python\n") == text.count('"cell_type": "code"') > 3
    assert "<study 'tutorial': 4 trials" in page
    assert {name: data[:4] for name, data in pictures.items()} == {"tutorial-1.png": b"\x89PNG"}
    assert "](tutorial-1.png)" in page


# ------------------------------------------------------------------------------------------------------------------------- links

LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]*)\)")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """As Python-Markdown makes them of headings, and those that are named."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*?)(?: \{ #[\w.-]+ \})?$", text, re.M)
    slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in headings}
    return slugs | set(re.findall(r"\{ #([\w.-]+) \}$", text, re.M))


def test_every_link_of_the_site_leads_to_a_page_and_a_heading(sources: Path) -> None:
    broken = []
    for page in sources.rglob("*.md"):
        for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
            name, _, anchor = target.partition("#")
            there = (page.parent / name).resolve() if name else page
            if not there.is_file() or (anchor and anchor not in anchors(there)):
                broken.append(f"{page.relative_to(sources)}: {target}")
    assert broken == []


def test_every_link_of_the_repositorys_own_pages_leads_to_a_file_or_a_page_that_is_made() -> None:
    made = {path for path, _ in pages.made_pages()}
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
            name, _, anchor = target.partition("#")
            there = (page.parent / name).resolve() if name else page
            if there.is_relative_to(ROOT / "docs") and there.relative_to(ROOT / "docs").as_posix() in made:
                continue
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation(sources: Path) -> None:
    def named(part: Any) -> Iterator[str]:
        for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from [one] if isinstance(one, str) else named(one)

    nav = list(named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(set(nav)) == len(nav)
    assert set(nav) == {page.relative_to(sources).as_posix() for page in sources.rglob("*.md")}


@pytest.mark.skipif(util.find_spec("material") is None, reason="needs mkdocs-material")
def test_the_site_is_built_without_the_network_and_a_broken_link_ends_the_build(sources: Path, tmp_path: Path) -> None:
    def build(strict_of: Path) -> tuple[int, str]:
        settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
        settings |= {"docs_dir": str(strict_of), "site_dir": str(tmp_path / "site")}
        (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", tmp_path / "mkdocs.yml"]
        away = os.environ | dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
        done = subprocess.run(command, env=away | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    code, said = build(sources)
    assert (code, "WARNING" in said) == (0, False), said
    fetched = re.compile(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?(?:https?:)?//""")
    built = [*(tmp_path / "site").rglob("*.html")]
    assert len(built) > 30
    assert [page.name for page in built if fetched.search(page.read_text(encoding="utf-8"))] == []
    (sources / "limits.md").write_text("# Limits\n\n[nowhere](nobody.md)\n", encoding="utf-8")
    code, said = build(sources)
    assert code == 1
    assert "nobody.md" in said
