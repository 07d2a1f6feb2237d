"""What a search leaves behind holds no secret, and a cluster takes no job from somebody without its token."""

from __future__ import annotations

import argparse
import json
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import Command
from small_searches import slow_space, trials_of

from guidino_tune import export
from guidino_tune.running.executors import _failure
from guidino_tune.workflows import survey

SECRETS = {
    "HF_TOKEN": "hf_Planted7WordForTheHub",
    "MLFLOW_TRACKING_PASSWORD": "Planted7WordForMLflow",
    "PGPASSWORD": "Planted7WordForPostgres",
    "in the study's URL": "Planted7Word/for@Optuna",
    "in MLflow's URL": "Planted7Word/for@Tracking",
}
FORMS = sorted({form.encode() for secret in SECRETS.values() for form in (secret, quote(secret, safe=""))})


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets where people have them: in variables, and in the URLs of both databases."""
    monkeypatch.chdir(tmp_path)  # where MLflow makes a folder of such a URL's name
    for name, value in SECRETS.items():
        if " " not in name:
            monkeypatch.setenv(name, value)
    for name, secret in (("GUIDINO_TUNE_STORAGE", "in the study's URL"), ("MLFLOW_TRACKING_URI", "in MLflow's URL")):
        file = f"{tmp_path}/{name.lower()}.db"
        monkeypatch.setenv(name, f"sqlite:///file:{file}?uri=true&password={quote(SECRETS[secret], safe='')}")


def leaks(*places: Path) -> list[str]:
    """Files below these folders that hold one of the secrets; what a search removes meanwhile is passed over."""
    found = []
    for file in sorted(Path(folder) / name for place in places for folder, _, names in os.walk(place) for name in names):
        try:
            content = file.read_bytes() if file.is_file() else b""
        except FileNotFoundError:
            continue
        found += [f"{file}: {form.decode()}" for form in FORMS if form in content or form in os.fsencode(file)]
    return found


def command_lines() -> list[str]:
    """Of all processes on this machine that show a secret, as ``ps`` does."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            content = file.read_bytes()
        except OSError:
            continue  # it has ended
        found += [content.decode(errors="replace") for form in FORMS if form in content]
    return found


def ray_session() -> Path:
    import ray

    return Path(ray._private.worker.global_worker.node.get_session_dir_path())


def jobs() -> str:
    """All that Ray remembers of the jobs: their commands, their environments, their errors."""
    return ask("/api/jobs/", token())


@pytest.mark.timeout(200)
def test_a_search_leaves_no_secret_behind(
    tmp_path: Path,
    demo: Path,
    planted: None,
    monkeypatch: pytest.MonkeyPatch,
    start: Callable[..., Command],
    capfd: pytest.CaptureFixture[str],
) -> None:
    home, space_file = tmp_path / "home", slow_space(tmp_path, demo, epochs=1, trials=1)
    options = ("--home", str(home), "--concurrent", "1")
    running = start("guidino_tune.search", str(space_file), *options)
    study = home / "studies" / "small"
    running.until(lambda: any((study / "trials").glob("*")))
    assert command_lines() == []
    assert leaks(home) == []  # also what Ray Tune keeps only while it runs
    assert running.wait() == 0, running.log.read_text()[-3000:]
    assert len(trials_of(home, "small")) == 1
    assert not (study / "optuna.journal").exists()  # it was in the database that the variable names
    with (tmp_path / "guidino_tune_storage.db").open("rb") as file:
        assert file.read(6) == b"SQLite"

    assert export.main(["small", "--home", str(home), "--output", str(tmp_path / "best.yaml")]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{quote(SECRETS['MLFLOW_TRACKING_PASSWORD'])}@127.0.0.1:1")  # nobody answers
    told = [*survey.survey({"MLflow": survey.CHECKS["MLflow"]}, argparse.Namespace())]
    shown = "".join(capfd.readouterr()) + repr(told)
    (tmp_path / "shown.txt").write_text(shown)
    assert "://***@127.0.0.1:1" in shown

    assert address().startswith(("http://127.0.0.1:", "http://localhost:"))
    file = Path.home() / ".ray/auth_token"
    assert not file.exists() or stat.S_IMODE(file.stat().st_mode) == 0o600  # Ray makes it readable for all

    assert leaks(tmp_path, ray_session() / "logs") == []
    known = jobs()
    assert f"-m guidino_tune.search {space_file}" in known  # so it would show a password on the command line
    assert not [form for form in FORMS if form.decode() in known]
    planted_file = tmp_path / "home" / "planted.txt"  # the search above finds what is there
    planted_file.write_bytes(b"x" * 5000 + FORMS[0])
    assert leaks(tmp_path) == [f"{planted_file}: {FORMS[0].decode()}"]


def test_a_trials_error_is_kept_without_the_secret(tmp_path: Path, planted: None) -> None:
    try:
        raise RuntimeError(f"refused: Bearer {SECRETS['HF_TOKEN']} at http://me:{SECRETS['PGPASSWORD']}@host")
    except RuntimeError as error:
        told = _failure(error, {"folder": str(tmp_path)})
    assert told["failure"] == "bug"
    assert told["message"].startswith("refused: Bearer *** at http://***@host (traceback: ")
    assert "RuntimeError: refused" in (tmp_path / "traceback.txt").read_text()
    assert leaks(tmp_path) == []
    assert FORMS[0].decode() not in json.dumps(told)


# -------------------------------------------------------------------------------------------------------------------- Ray's token


def address() -> str:
    import ray

    return f"http://{ray._private.worker.get_dashboard_url()}"


def token() -> str:
    return os.environ.get("RAY_AUTH_TOKEN") or Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token").read_text()


def ask(path: str, word: str | None, body: dict[str, str] | None = None) -> str:
    """The dashboard's answer to somebody with this token."""
    headers = {"Content-Type": "application/json"} | ({} if word is None else {"Authorization": f"Bearer {word.strip()}"})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address() + path, data, headers), timeout=30) as answer:
        return str(answer.read().decode())


def submit(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "RAY_ADDRESS"))} | variables
    line = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address(), "--", *command]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("word", [None, "0" * 64, ""])
def test_without_the_right_token_no_job_is_taken(word: str | None, tmp_path: Path) -> None:
    body = {"entrypoint": f"touch {tmp_path / 'was_here'}"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask("/api/jobs/", word, body)
    assert refused.value.code in (401, 403)
    assert body["entrypoint"] not in jobs()
    assert not (tmp_path / "was_here").exists()


@pytest.mark.timeout(150)
def test_a_job_is_submitted_with_the_token_and_not_without() -> None:
    search = (sys.executable, "-m", "guidino_tune.search", "--help")
    refused = submit(*search, RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "usage: guidino-tune search" not in refused.stdout
    assert "authentication token" in refused.stdout + refused.stderr
    taken = submit(*search, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token().strip())
    assert taken.returncode == 0, taken.stdout + taken.stderr
    assert "usage: guidino-tune search" in taken.stdout
