"""The page of ``import guidino_tune``: signatures and docstrings as they stand in the files. Nothing is imported, so torch may be away."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import guidino_tune

from . import docstrings

PACKAGE = Path(guidino_tune.__file__).parent

INTRODUCTION = """\
# Python

All names of `import guidino_tune as gt`, and what they return. [From Python](../python.md) shows them at work. Mistakes of yours are
`gt.UserError`, with one message that says what, where, and what to do.
"""

Definition = ast.FunctionDef | ast.ClassDef


def page() -> str:
    """The page as Markdown."""
    return "\n".join([INTRODUCTION, *(part for title, node in definitions() for part in _shown(title, node))])


def definitions() -> Iterator[tuple[str, Definition]]:
    """Each public name with its definition; then the classes that these return, of their own modules."""
    later: dict[str, Definition] = {}
    for name in sorted(set(guidino_tune.__all__) - {"__version__"}, key=str.lower):
        node, module = _find(name)
        yield f"gt.{name}", node
        known = {one.name: one for one in module.body if isinstance(one, ast.ClassDef) and one.name not in guidino_tune.__all__}
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef) and part.returns is not None and not part.name.startswith("_"):
                later |= {word: known[word] for word in re.findall(r"\w+", ast.unparse(part.returns)) if word in known}
    yield from sorted(later.items())


def _find(name: str) -> tuple[Definition, ast.Module]:
    """The definition behind a name, as the stub file ``__init__.pyi`` says where it is."""
    for line in ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")).body:
        for alias in line.names if isinstance(line, ast.ImportFrom) else ():
            if (alias.asname or alias.name) == name and isinstance(line, ast.ImportFrom):
                file = PACKAGE.parent / (str(line.module).replace(".", "/") + ".py")
                module = ast.parse(file.read_text(encoding="utf-8"))
                return next(one for one in module.body if isinstance(one, Definition) and one.name == alias.name), module
    raise LookupError(f"__init__.pyi does not say where {name} is")


def _shown(title: str, node: Definition) -> Iterator[str]:
    yield f"## {title}\n"
    yield from _body(node, title)
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and not _is_overload(method):
                yield f"### {title.removeprefix('gt.')}.{method.name}\n"
                yield from _body(method, method.name)


def _body(node: Definition, title: str) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        yield f"```python\n{_signature(node, title)}\n```\n"
    doc = docstrings.read(ast.get_docstring(node))
    yield doc.text + "\n"
    for name, section in doc.sections.items():
        if isinstance(section, dict):
            yield f"**{name}**\n"
            yield "".join(f"- `{entry}`: {text}\n" for entry, text in section.items())
        elif name.startswith("Example"):
            yield f"```pycon\n{section.replace('  # doctest: +SKIP', '')}\n```\n"
        else:
            yield f"**{name}**\n\n{section}\n"


def _signature(node: ast.FunctionDef, title: str) -> str:
    """As it is written, one argument a line where it is long; without ``self``."""
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if any(ast.unparse(one) in ("property", "cached_property") for one in node.decorator_list):
        return f"{title}{result.replace(' -> ', ': ')}"
    bare = ast.parse(ast.unparse(node.args).join(("def _(", "): ..."))).body[0]
    assert isinstance(bare, ast.FunctionDef)
    arguments = bare.args
    arguments.args = [one for one in arguments.args if one.arg not in ("self", "cls")]
    parts = [re.sub(r"^(\w+: [^=]*\S)=", r"\1 = ", part) for part in _split(ast.unparse(arguments)) if part]
    text = ", ".join(parts)
    if len(title) + len(text) + len(result) < 100:
        return f"{title}({text}){result}"
    return f"{title}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


def _split(text: str) -> list[str]:
    """At commas that are in no brackets or quotes."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _is_overload(method: ast.FunctionDef) -> bool:
    return any(ast.unparse(one) == "overload" for one in method.decorator_list)
