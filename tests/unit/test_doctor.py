import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.utils import canonicalize_name
from PIL import Image

from guidino_tune import doctor
from guidino_tune.errors import UserError
from guidino_tune.findings import Finding
from guidino_tune.running import inspection
from guidino_tune.tracking import inspection as tracking
from guidino_tune.workflows import survey

ROOT = Path(__file__).parents[2]
NOTHING = argparse.Namespace(kind=None, data_root=None, backbone=None)


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """A user without any files or settings."""
    for name in [n for n in os.environ if n.startswith(("RAY_", "MLFLOW_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "home"))


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def open_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def crash(options):
    yield Finding("ok", "first", "fine")
    raise OSError("disk on fire")


def refuse(options):
    raise UserError("is broken", where="the thing", todo="mend it")


def test_a_check_that_fails_is_a_row_and_the_others_go_on():
    rows = list(
        survey.survey(
            {"Python": crash, "MLflow": refuse, "Ray": refuse, "GPU": crash, "studies": lambda _: [Finding("ok", "last", "")]}, NOTHING
        )
    )
    assert [(row.mark, row.name) for row in rows] == [
        ("ok", "first"), ("missing", "Python"), ("note", "MLflow"), ("missing", "Ray"), ("ok", "first"), ("note", "GPU"), ("ok", "last"),
    ]  # fmt: skip
    assert "OSError: disk on fire" in rows[1].found
    assert (rows[2].found, rows[2].todo) == ("the thing: is broken", "mend it")
    assert set(survey.CHECKS) > survey.NEEDED


@pytest.mark.parametrize(("marks", "code"), [(["ok", "note"], 0), (["note", "missing", "ok"], 1)])
def test_exit_code_and_table(marks, code, monkeypatch, capsys):
    monkeypatch.setattr(
        survey, "CHECKS", {"all": lambda _: [Finding(m, f"thing {i}", "a\n b [/red]", "x" * 200) for i, m in enumerate(marks)]}
    )
    assert doctor.main([]) == code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: 2 * len(marks) : 2]] == marks
    assert lines[0].endswith("a b [/red]")
    assert lines[1].strip() == "-> " + "x" * 200  # never broken: a command must be copied whole
    assert ("1 missing" in lines[-1]) == (code == 1)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--data-root", "/x"], "--kind"),
        (["--kind", "folder"], "--data-root"),
        (["--backbone", "vits61"], "did you mean 'vits16'"),
    ],
)
def test_questions_that_cannot_be_answered(argv, hint, monkeypatch, capsys):
    monkeypatch.setattr(survey, "CHECKS", {})
    assert doctor.main(argv) == 2
    assert hint in capsys.readouterr().err


def test_help_is_light():
    code = (
        "import sys\ntry:\n import guidino_tune.doctor as d; d.main(['--help'])\n"
        "except SystemExit as e:\n print(sorted({'torch','ray','mlflow','rich','pydantic'} & sys.modules.keys()), e.code)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[] 0"
    assert "--backbone" in shown


def test_packages_here_are_as_needed_and_the_dashboard_is_among_them():
    (row,) = survey._packages(NOTHING)
    assert row.mark == "ok"
    names = {canonicalize_name(r.name) for r in survey._requirements()}
    assert {"ray", "torch", "aiohttp-cors"} <= names
    assert "pytest" not in names


def test_wrong_and_absent_packages_are_named(monkeypatch):
    needed = ["numpy>=99", "no-such-package>=1", "no-such-other[extra]>=1", "pytest>=99; extra == 'dev'", "PyYAML>=6"]
    monkeypatch.setattr(survey.metadata, "requires", lambda name: needed if name == survey.NAME else metadata.distribution(name).requires)
    (row,) = survey._packages(NOTHING)
    assert row.mark == "missing"
    version = metadata.version("numpy")
    assert row.found == f"numpy is {version}, needed >=99; no-such-package is not installed; no-such-other is not installed"


def test_an_old_python_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 9))
    (row,) = survey._python(NOTHING)
    assert row.mark == "missing"


def test_home_is_checked_without_being_made(tmp_path):
    (row,) = survey._home(NOTHING)
    assert row.mark in ("ok", "note")
    assert "made by the first search" in row.found
    assert not (tmp_path / "home").exists()
    (tmp_path / "home").write_text("a file where the folder should be")
    (row,) = survey._home(NOTHING)
    assert row.mark == "missing"
    assert "GUIDINO_TUNE_HOME" in row.todo


def test_little_room_is_noted(monkeypatch):
    monkeypatch.setattr(survey.shutil, "disk_usage", lambda _: argparse.Namespace(free=2 * survey.GIB))
    (row,) = survey._home(NOTHING)
    assert (row.mark, "2.0 GiB free" in row.found) == ("note", True)


def test_tokens_are_found_in_ray_s_order(tmp_path):
    assert inspection.find_token({}) == inspection.Token("", "")
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    file.chmod(0o600)
    assert inspection.find_token({}) == inspection.Token(str(file), "", False)
    file.chmod(0o644)
    assert inspection.find_token({"RAY_AUTH_MODE": "TOKEN"}) == inspection.Token(str(file), "token", True)
    assert inspection.find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent")}) == inspection.Token("", "")
    assert inspection.find_token({"RAY_AUTH_TOKEN": "secret"}).place == "RAY_AUTH_TOKEN"


@pytest.mark.parametrize(
    ("environ", "file", "mark", "hint"),
    [
        ({}, None, "note", "--generate"),
        ({}, 0o600, "note", "export RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "token"}, 0o600, "ok", ""),
        ({"RAY_AUTH_MODE": "token"}, 0o640, "note", "chmod 600"),
        ({"RAY_AUTH_MODE": "token"}, None, "missing", "--generate"),
        ({"RAY_AUTH_MODE": "disabled"}, 0o600, "note", "unset RAY_AUTH_MODE"),
    ],
)
def test_token_rows(environ, file, mark, hint, tmp_path, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    if file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("very secret")
        (tmp_path / ".ray" / "auth_token").chmod(file)
    monkeypatch.setattr(inspection, "ray_version", lambda: "2")
    rows = list(survey._ray(NOTHING))
    last = [row for row in rows if row.name == "Ray token"][-1]
    assert (last.mark, hint in last.todo) == (mark, True)
    assert "very secret" not in str(rows)


def test_no_cluster_is_no_problem(tmp_path):
    assert inspection.find_cluster({"RAY_TMPDIR": str(tmp_path)}) == inspection.Cluster()
    assert inspection.find_cluster({"RAY_ADDRESS": "local"}) == inspection.Cluster()
    assert "no cluster runs" in inspection.find_cluster({"RAY_ADDRESS": "auto", "RAY_TMPDIR": str(tmp_path)}).problem


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_named_cluster_that_is_away(form, closed_port):
    cluster = inspection.find_cluster({"RAY_ADDRESS": form.format(closed_port)})
    assert "nothing answers" in cluster.problem
    assert "RAY_ADDRESS" in cluster.todo
    assert inspection.find_cluster({"RAY_ADDRESS": "127.0.0.1:no-port"}).problem


def test_the_trace_of_a_dead_cluster_is_told_with_its_file(tmp_path, closed_port):
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text(f"127.0.0.1:{closed_port}\n")
    cluster = inspection.find_cluster({"TMPDIR": str(tmp_path)})
    assert (cluster.address, cluster.origin) == (f"127.0.0.1:{closed_port}", str(file))
    assert f"remove {file}" in cluster.todo


def test_a_dashboard_is_no_cluster():
    cluster = inspection.find_cluster({"RAY_ADDRESS": "http://127.0.0.1:8265"})
    assert "dashboard" in cluster.problem
    assert "RAY_API_SERVER_ADDRESS" in cluster.todo


STATUS = """\
======== Autoscaler status: 2026-11-01 10:00:00.000000 ========
Total Usage:
 1.0/12.0 CPU
 0.5/2.0 GPU
 0B/20.00GiB memory
 0B/8.00GiB object_store_memory
"""


def test_resources_are_read_from_the_status():
    assert inspection.resources(STATUS) == "12 CPU, 2 GPU"
    assert inspection.resources("nothing of use") == ""


@pytest.mark.parametrize(
    ("code", "out", "err", "expected"),
    [
        (0, STATUS, "", {"resources": "12 CPU, 2 GPU", "problem": ""}),
        (1, "", "AuthenticationError: InvalidAuthToken", {"problem": "refuses us: the token is wrong or missing"}),
        (1, "", "Traceback\nRuntimeError: Version mismatch", {"problem": "RuntimeError: Version mismatch"}),
        (134, "", "", {"problem": "`ray status` failed with exit code 134"}),
    ],
)
def test_what_a_living_cluster_answers(code, out, err, expected, open_port, monkeypatch):
    asked = []

    def answer(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(inspection.subprocess, "run", answer)
    cluster = inspection.find_cluster({"RAY_ADDRESS": f"127.0.0.1:{open_port}"})
    assert {name: getattr(cluster, name) for name in expected} == expected
    assert asked[0][-2:] == ["--address", f"127.0.0.1:{open_port}"]


def test_a_cluster_that_hangs_is_given_up(open_port, monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(inspection.subprocess, "run", hang)
    assert "no status within 3 s" in inspection.find_cluster({"RAY_ADDRESS": f"127.0.0.1:{open_port}"}, timeout=3).problem


def test_a_database_that_is_not_there_is_not_made(tmp_path):
    file = tmp_path / "absent" / "mlflow.db"
    assert "first search creates it" in tracking.reach(f"sqlite:///{file}")
    assert not file.parent.exists()


@pytest.mark.parametrize("uri", ["http://user:password@127.0.0.1:{}", "postgresql://user:password@127.0.0.1:{}/db"])
def test_an_mlflow_that_is_away_is_told_soon_and_without_its_password(uri, closed_port):
    start = time.monotonic()
    with pytest.raises(UserError, match="refused") as told:
        tracking.reach(uri.format(closed_port), timeout=2)
    assert time.monotonic() - start < 15
    assert "password" not in str(told.value)
    assert "MLFLOW_TRACKING_URI" in told.value.todo


def test_an_mlflow_server_that_answers():
    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.dumps({"experiments": [{"experiment_id": "1", "name": "a", "lifecycle_stage": "active"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert tracking.reach(f"http://127.0.0.1:{server.server_port}").endswith("answers, 1 experiment")
    finally:
        server.shutdown()
        server.server_close()


def make_kvasir(root: Path) -> None:
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.zeros((16, 16), np.uint8)).save(root / part / f"{i}.jpg")


def test_data_sets_in_their_places_and_where_the_user_says(tmp_path):
    make_kvasir(tmp_path / "home" / "datasets" / "kvasir")
    rows = {row.name: row for row in survey._data(NOTHING)}
    assert {name: row.mark for name, row in rows.items()} == {
        "data: kvasir": "ok", "data: isic2017": "note", "data: tn3k": "note", "data: demo": "ok",
    }  # fmt: skip
    assert "3 images" in rows["data: kvasir"].found
    assert "prepare tn3k" in rows["data: tn3k"].todo
    assert not (tmp_path / "home" / "datasets" / "demo").exists()
    make_kvasir(tmp_path / "mine")
    asked = argparse.Namespace(kind="folder", data_root=str(tmp_path / "mine"))
    assert {row.name: row.mark for row in survey._data(asked)}["data: folder"] == "ok"
    (tmp_path / "mine" / "masks" / "1.jpg").unlink()
    assert {row.name: row.mark for row in survey._data(asked)}["data: folder"] == "missing"


def test_an_empty_or_unreadable_data_set_is_told_and_the_others_are_looked_at(tmp_path, monkeypatch):
    from guidino_tune.data.sources import SOURCES

    def unreadable(root, on_bad):
        raise PermissionError(13, "Permission denied", str(root))

    (tmp_path / "home" / "datasets" / "kvasir" / "images").mkdir(parents=True)
    (tmp_path / "home" / "datasets" / "kvasir" / "masks").mkdir()
    monkeypatch.setitem(SOURCES, "isic2017", unreadable)
    rows = {row.name: row for row in survey._data(NOTHING)}
    assert [row.mark for row in rows.values()] == ["note", "note", "note", "ok"]
    assert "Permission denied" in rows["data: isic2017"].found
    assert not rows["data: kvasir"].found.startswith(":")


def test_a_damaged_demo_set_stops_a_demo_search(tmp_path):
    from guidino_tune.data.sources.demo import VERSION

    (tmp_path / "home" / "datasets" / "demo" / f"v{VERSION}").mkdir(parents=True)
    assert {row.name: row.mark for row in survey._data(NOTHING)}["data: demo"] == "missing"


def test_absent_weights_are_a_note_with_the_licence_and_never_downloaded(monkeypatch):
    import huggingface_hub as hub

    asked = []

    def head(url, **_):
        asked.append(url)
        raise OSError("no network")

    def download(*_, local_files_only=False, **__):
        assert local_files_only
        raise hub.errors.LocalEntryNotFoundError("absent")

    monkeypatch.setattr(hub, "get_hf_file_metadata", head)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    rows = list(survey._weights(NOTHING))
    assert [(row.mark, row.name) for row in rows] == [("note", "DINOv3 weights"), ("note", "DINOv2 weights")]
    assert len(asked) == 2
    assert "vits16, vits16plus, vitb16" in rows[0].found
    assert "https://huggingface.co/facebook/dinov3-vits16-pretrain-lvd1689m" in rows[0].todo
    assert "licence" not in rows[1].todo  # anybody may download those
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *_, **__: argparse.Namespace(size=86_000_000))
    rows = list(survey._weights(NOTHING))
    assert "may be downloaded (86 MB)" in rows[0].found
    assert "hf download" in rows[0].todo


def test_the_backbone_asked_for_must_load(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "_hub_answer", lambda *_: "the hub is not asked")
    ask = lambda name: next(iter(survey._weights(argparse.Namespace(backbone=name))))  # noqa: E731
    row = ask(str(tmp_path / "absent"))
    assert (row.mark, row.found) == ("missing", "no such folder")
    assert ask("tiny").mark == "ok"


def test_studies_are_listed(tmp_path):
    for name in ("b", "a"):
        (tmp_path / "home" / "studies" / name).mkdir(parents=True)
        (tmp_path / "home" / "studies" / name / "study.yaml").touch()
    (tmp_path / "home" / "studies" / "no-study").mkdir()
    (row,) = survey._studies(NOTHING)
    assert row.found == "a, b"
