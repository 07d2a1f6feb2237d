"""The trial of a wheel sees what is wrong with one."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from try_wheel import NAME, ROOT, SOURCES, differences, link, needed, undeclared


def test_what_a_wheel_lacks_or_holds_beside_the_package_is_told(tmp_path: Path) -> None:
    wheel = tmp_path / "one.whl"
    for left_out in ("", "reporting/page.css"):
        with zipfile.ZipFile(wheel, "w") as made:
            for place, folder in SOURCES.items():
                for file in folder.rglob("*"):
                    if file.is_file() and "__pycache__" not in file.parts and file.relative_to(folder).as_posix() != left_out:
                        made.writestr(f"{place}/{file.relative_to(folder).as_posix()}", "")
            made.writestr(f"{NAME}-1.dist-info/METADATA", "")
            if left_out:
                made.writestr("tests/test_it.py", "")
        assert differences(wheel, SOURCES) == (["lacks guidino_tune/reporting/page.css", "holds tests/test_it.py"] if left_out else [])


def test_what_is_needed_is_what_is_declared_with_its_extras_and_no_more() -> None:
    found = needed(metadata.requires("guidino-tune") or ())
    assert {"torch", "sympy", "ray", "aiohttp-cors", "mlflow-skinny", "sqlalchemy"} <= found.keys()  # the fourth by ray[default]
    assert not {"guidino-tune", "pytest", "ruff", "mkdocs", "moto", "onnxruntime", "pip"} & found.keys()
    assert "aiohttp-cors" not in needed(["ray"])
    with pytest.raises(metadata.PackageNotFoundError):
        needed(["no-such-package>=1"])


def test_every_import_is_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = metadata.requires("guidino-tune") or []
    assert undeclared(ROOT / NAME, every, needed(every)) == []
    owners = dict(metadata.packages_distributions())
    with monkeypatch.context() as users:  # whose environment has no extras: `make wheel` asks for none
        users.setattr(metadata, "packages_distributions", lambda: {k: v for k, v in owners.items() if k not in ("pydicom", "onnxruntime")})
        assert undeclared(ROOT / NAME, every, needed(every)) == []
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "one.py").write_text(
        "import json, torch\n\n\ndef f():\n    from hypothesis import given\n    import nibabel, nowhere.at\n"
    )
    found = undeclared(tmp_path / NAME, every, needed(every))
    assert sorted(found) == [
        "guidino_tune/one.py:5 imports hypothesis, which nothing declares",
        "guidino_tune/one.py:6 imports nowhere, which nothing declares",
    ]
    without = [text for text in every if not text.startswith("tifffile")]
    assert any("imports tifffile" in line for line in undeclared(ROOT / NAME, without, needed(without)))


def test_a_linked_distribution_is_imported_from_its_new_place(tmp_path: Path) -> None:
    link(needed(["PyYAML"])["pyyaml"], tmp_path)
    code = "import sys; sys.path = [sys.argv[1], *[p for p in sys.path if 'packages' not in p]]; import yaml; print(yaml.__file__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60)
    assert Path(done.stdout.strip()) == tmp_path / "yaml" / "__init__.py"


def test_ci_tries_the_wheel_and_fails_with_it() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "within make --no-print-directory wheel || wheel=$?" in script
    assert "lint == 0 && wheel == 0" in script
