"""``cluster/Containerfile``, as far as it can be read; ``make image-test`` builds it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

from deployment import CLUSTER, KUBERNETES, ROOT

FILE = (CLUSTER / "Containerfile").read_text(encoding="utf-8")
CLIENTS = {"bookworm": 15, "trixie": 17}
"""PostgreSQL of Debian's versions."""


def test_a_checkout_that_is_its_owners_alone_can_be_read_in_the_image(tmp_path: Path) -> None:
    command = re.search(r"^COPY \. \.\nRUN (find .*?) \\$", FILE, re.MULTILINE)
    assert command is not None
    for name in ("guidino_tune/a.py", "cluster/head.sh", ".venv/bin/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "cluster" / "head.sh").chmod(0o700)
    for path in [*tmp_path.rglob("*")]:
        path.chmod(path.stat().st_mode & 0o700)
    subprocess.run(["bash", "-c", command[1]], cwd=tmp_path, check=True)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes["guidino_tune"] == modes["cluster/head.sh"] == 0o755
    assert modes["guidino_tune/a.py"] == 0o644
    assert modes[".venv"] == 0o700  # not looked at: thousands of files, which pip made


def test_backups_can_be_made_in_it() -> None:
    """``pg_dump`` refuses a server that is newer than itself."""
    base = re.search(r"^ARG BASE=\S+-(\w+)$", FILE, re.MULTILINE)
    assert base is not None
    assert "postgresql-client" in FILE
    servers = re.findall(r"library/postgres:(\d+)", "".join(file.read_text() for file in (*KUBERNETES, CLUSTER / "compose.yaml")))
    assert len(servers) == 2
    assert max(map(int, servers)) <= CLIENTS[base[1]]


def test_its_extras_are_all_that_a_deployment_may_need() -> None:
    extras = re.search(r'^ARG EXTRAS="(.*)"$', FILE, re.MULTILINE)
    assert extras is not None
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras[1].split()) == set(known) - {"dev", "docs"}


def test_a_number_that_the_base_has_given_away_is_taken_too() -> None:
    assert re.search(r'^RUN useradd --uid "\$USER_ID" --non-unique ', FILE, re.MULTILINE)  # Ubuntu has a user 1000
