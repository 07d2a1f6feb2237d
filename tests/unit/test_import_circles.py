"""No circle: modules can be ordered so that each imports only those before it, apart from imports inside functions."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from test_architecture import NAME, PACKAGE, imports


def order(package: Path) -> list[str]:
    """The modules, each after those it imports when it is imported itself."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for item in imports(package):
        if item.own and item.at_top and item.target not in ("", item.module):
            sorter.add(item.module, item.target)
    return list(sorter.static_order())


def test_no_module_imports_itself_by_a_detour() -> None:
    found = order(PACKAGE)
    assert found.index("config.experiment") < found.index("study.driver") < found.index("running.tune_adapter")


def test_a_circle_is_found(tmp_path: Path) -> None:
    for name, other in (("one", "two"), ("two", "three"), ("three", "one")):
        path = tmp_path / NAME / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"from guidino_tune.{other} import x\n")
    with pytest.raises(CycleError):
        order(tmp_path / NAME)
