"""No secret in what people read, and no code from files that others may write."""

from __future__ import annotations

import ast
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import optuna
import pytest

from guidino_tune import cli, compare, delete, doctor, ensemble, export, report, reproduce_trial, search, show, track, ui
from guidino_tune import list as listing
from guidino_tune.errors import UserError, passwords, redacted
from guidino_tune.running.environment import protect_token
from guidino_tune.space.space import load_space
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.tracking import MLflowTracker, StudySnapshot
from guidino_tune.tracking.client import explain
from guidino_tune.workflows import survey

ROOT = Path(__file__).parents[2]
SECRET = "s3cr3t/P@ss"  # as a password may be, and `%2F` and `%40` in a URL
QUOTED = "s3cr3t%2FP%40ss"

# -------------------------------------------------------------------------------------------------------------------- redaction


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host:81/", "http://***@host:81/"),
        (f"postgresql+psycopg2://me:{SECRET}@host/db", "postgresql+psycopg2://***@host/db"),
        (f"cannot open 'mysql://me:{QUOTED}@host/db' (refused)", "cannot open 'mysql://***@host/db' (refused)"),
        ("first a://u:one@h/x then b://u:two@h/y", "first a://***@h/x then b://***@h/y"),
        ("http://host/x?api_key=abc&y=1", "http://host/x?api_key=***&y=1"),
        ("sqlite:///file:/s.db?uri=true&PassWord=abc", "sqlite:///file:/s.db?uri=true&PassWord=***"),
        ("https://h/x?X-Amz-Security-Token=abc", "https://h/x?X-Amz-Security-Token=***"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
        ("sqlite:////home/me@corp/mlflow.db", "sqlite:////home/me@corp/mlflow.db"),
        ("redis://:pw@host", "redis://***@host"),
        ("http://h:5000/path?mail=a@b.c", "http://h:5000/path?mail=a@b.c"),
        ("http://h:5000?mail=a@b.c", "http://h:5000?mail=a@b.c"),
        ("s3://bucket:9000/models/x@v1/weights", "s3://bucket:9000/models/x@v1/weights"),
        ("http://h:80/x@y,http://me:p/w@host", "http://h:80/x@y,http://***@host"),
        ("http://me:12345@host/x", "http://***@host/x"),
        ("http://me:1234567/8@host/x", "http://***@host/x"),
        ("git+https://github.com:org/repo@main", "git+https://github.com:org/repo@main"),
        ("git+https://me:token@github.com/org/repo@main", "git+https://***@github.com/org/repo@main"),
        ("guide.tokenbook.num_prototypes=16, mail me@host", "guide.tokenbook.num_prototypes=16, mail me@host"),
    ],
)
def test_the_login_in_a_url_is_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_secrets_of_the_environment_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("PGPASSWORD", "open sesame")
    monkeypatch.setenv("ANY_TOKEN", "1")  # too short to be told from other text
    monkeypatch.setenv("PLAIN_SETTING", "plainly visible")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{QUOTED}@host")
    text = f"Illegal header 'Bearer hf_abcdefgh', open sesame, {SECRET}, {QUOTED}, plainly visible, 1"
    assert redacted(text) == "Illegal header 'Bearer ***', ***, ***, ***, plainly visible, 1"


def test_passwords_of_a_url() -> None:
    assert passwords(f"http://me:{QUOTED}@host/x?token=abc") == {QUOTED, SECRET, "abc"}
    assert passwords("https://abc123token@dagshub.com/x.mlflow") == {"abc123token"}  # no user's name: a token in its place
    assert passwords("git+https://github.com:org/repo@main") == passwords("s3://bucket:9000/models/x@v1") == set()
    assert passwords("postgresql://me@host:80/x") == passwords("sqlite:////folder/me@host.db") == set()


def test_a_users_mistake_is_told_without_passwords() -> None:
    url = f"postgresql://me:{QUOTED}@host/db"
    error = UserError(f"no answer from {url}", where=url, todo=f"start {url}")
    assert QUOTED not in str(error) + repr(error) + repr(error.args)
    assert str(error) == "postgresql://***@host/db: no answer from postgresql://***@host/db\n  -> start postgresql://***@host/db"


def test_what_mlflow_says_is_told_without_the_password() -> None:
    uri = f"http://me:{QUOTED}@127.0.0.1:1"
    error = RuntimeError(f"API request to {uri}/api failed for {SECRET}")
    told = explain(error, uri)
    assert told == "http://***@127.0.0.1:1: API request to http://***@127.0.0.1:1/api failed for ***"


def test_a_refused_record_is_told_without_the_password(tmp_path: Path) -> None:
    tracker = MLflowTracker(f"http://me:{QUOTED}@127.0.0.1:1", "e", StudySnapshot("s"), tmp_path / "ledger.jsonl")
    tracker._refuse(f"http://me:{QUOTED}@127.0.0.1:1/api refuses {SECRET}")
    assert tracker.last_error == "http://***@127.0.0.1:1/api refuses ***"


def test_a_failing_check_of_the_doctor_is_told_without_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")

    def ill(options):
        raise RuntimeError("Bearer hf_abcdefgh")

    (row,) = survey.survey({"weights": ill}, None)
    assert row.found == "could not be checked (RuntimeError: Bearer ***)"


BUG = """
import sys
from guidino_tune.cli import parser, run
def broken(options):
    raise RuntimeError("cannot use postgresql://me:hidden-word@host/db")
sys.exit(run(broken, parser("search", "", ""), []))
"""


def test_the_traceback_of_a_bug_is_complete_but_for_the_password() -> None:
    done = subprocess.run([sys.executable, "-c", BUG], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "hidden-word" not in done.stdout + done.stderr
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "line 5, in broken" in done.stderr
    assert done.stderr.endswith("RuntimeError: cannot use postgresql://***@host/db\n")


# ------------------------------------------------------------------------------------------------------- the database of a study


TAKE_A_DATABASE = (search, listing, show, report, export, ensemble, compare, track, doctor, reproduce_trial, ui, delete)


@pytest.mark.parametrize("command", TAKE_A_DATABASE)
@pytest.mark.parametrize("url", [f"postgresql://me:{QUOTED}@host/db", "sqlite:///file:/s.db?uri=true&password=abcdef"])
def test_a_password_on_the_command_line_is_refused(command, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All users see it in the list of processes, and Ray stores it as the job's entry point."""
    assert command.main(["demo", "--storage", url]) == 2
    told = capsys.readouterr()
    assert "GUIDINO_TUNE_STORAGE" in told.err
    assert QUOTED not in told.out + told.err
    assert "abcdef" not in told.out + told.err


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{QUOTED}@127.0.0.1:1/db",
        f"nonsense://me:{QUOTED}@host",
        f"sqlite:///file:/no/such/folder/x.db?uri=true&password={QUOTED}",
    ],
)
def test_a_database_that_cannot_be_opened_is_a_users_mistake_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        open_study(load_space("demo"), StudyFolder(tmp_path / "study"), url)
    assert "GUIDINO_TUNE_STORAGE" in told.value.todo
    assert QUOTED not in str(told.value)
    assert SECRET not in str(told.value)


def test_the_variable_names_the_database_and_nothing_of_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///file:{tmp_path}/team.db?uri=true&password={QUOTED}"
    monkeypatch.setenv("GUIDINO_TUNE_STORAGE", url)
    space, folder = load_space("demo"), StudyFolder(tmp_path / "study")
    study = open_study(space, folder)
    study.ask()
    assert not folder.journal.exists()
    assert [s.study_name for s in optuna.get_all_study_summaries(url)] == [space.study.name]
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        for form in (QUOTED, SECRET):
            assert form.encode() not in file.read_bytes(), file


# --------------------------------------------------------------------------------------------------------------- file permissions


def test_the_token_is_readable_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    protect_token()
    folder = tmp_path / ".ray"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    token = folder / "auth_token"
    token.write_text("t")
    token.chmod(0o644)  # as Ray leaves it
    protect_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == "t"


# ---------------------------------------------------------------------------------------------------------------- scripts


def _script(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables}
    return subprocess.run(["bash", ROOT / "cluster" / name, *arguments], capture_output=True, text=True, env=environment, timeout=30)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{QUOTED}@host/db",
        f"sqlite:///file:/s.db?uri=true&Password={QUOTED}",
        f"https://{QUOTED}@dagshub.com/x.mlflow",
        f"https://host/x?api_key={QUOTED}",
        f"mssql://host/db;password={QUOTED}",
    ],
)
def test_submit_refuses_a_password_in_the_command(url: str) -> None:
    done = _script("submit.sh", "demo", "--storage", url, RAY_API_SERVER_ADDRESS="http://127.0.0.1:1")
    assert done.returncode == 2
    assert "GUIDINO_TUNE_STORAGE" in done.stderr
    assert QUOTED not in done.stdout + done.stderr


@pytest.mark.parametrize("login", [f"{SECRET}@", f"me:{SECRET}@", "me@"])
def test_submit_keeps_a_login_of_mlflow_to_itself(login: str, tmp_path: Path) -> None:
    """With the script alone in its checkout, so that `ray` is one that shows what it is given."""
    (tmp_path / "cluster").mkdir()
    shutil.copy(ROOT / "cluster" / "submit.sh", tmp_path / "cluster")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "ray").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / ".venv" / "bin" / "ray").chmod(0o700)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HOME": "/hf", "MLFLOW_TRACKING_URI": f"https://{login}host/x"}
    command = ["bash", tmp_path / "cluster" / "submit.sh", "demo"]
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as dashboard:  # it refuses every question, and so it is there
        threading.Thread(target=dashboard.serve_forever, daemon=True).start()
        environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard.server_port}"
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
        dashboard.shutdown()
    assert '{"env_vars": {"HF_HOME": "/hf", "RAY_JOB_STOP_WAIT_TIME_S": "60"}}' in done.stdout
    assert "not passed on" in done.stderr
    assert "host/x" not in done.stdout + done.stderr


@pytest.mark.parametrize("script", sorted(str(p.relative_to(ROOT / "cluster")) for p in (ROOT / "cluster").rglob("*.*") if p.is_file()))
def test_nothing_listens_on_all_addresses(script: str) -> None:
    text = (ROOT / "cluster" / script).read_text()
    if script == "compose.yaml" or script.startswith("kubernetes/"):
        return  # in a container it is of that container alone; tests/cluster looks at what leads into it
    assert not re.search(r"0\.0\.0\.0|--(?:dashboard-)?host[= ](?!127\.0\.0\.1)[\w:*]", re.sub(r"(?m)^\s*#.*", "", text))
    assert script != "mlflow.sh" or "--host 127.0.0.1" in text
    assert script != "head.sh" or "--dashboard-host=127.0.0.1" in text


def test_mlflow_with_accounts_says_what_it_needs(tmp_path: Path) -> None:
    if shutil.which("mlflow") is None and not (ROOT / ".venv/bin/mlflow").exists():
        pytest.skip("no mlflow command")
    done = _script("mlflow.sh", "--auth", GUIDINO_TUNE_HOME=str(tmp_path))
    assert (done.returncode, "mlflow[auth]" in done.stderr) == (1, True) or (done.returncode, "ADMIN_PASSWORD" in done.stderr) == (2, True)
    assert not (tmp_path / "mlflow-auth.db").exists()


# ---------------------------------------------------------------------------------------- no code from files that others can write

CODE_IN_FILES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle", "pickle5"}
CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "yaml.unsafe_load": "makes objects from YAML",
    "yaml.full_load": "makes objects from YAML",
    "yaml.load_all": "makes objects from YAML",
    "torch.save": "writes a pickle",
    "torch.jit.load": "runs code of a file",
    "torch.hub.load": "runs code of a repository",
    "pandas.read_pickle": "reads a pickle",
    "mlflow.pyfunc.load_model": "reads a pickle",
    "tune.Tuner.restore": "reads a pickle",
    "Tuner.restore": "reads a pickle",
    "shutil.unpack_archive": "writes outside its folder",
}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "yaml.SafeLoader", "yaml.CSafeLoader", "_Loader"}  # the last: checked below


def hazards(source: str) -> list[str]:
    """What in a module would run code from a file, or text as a command, or listen to the network."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"imports {a.name}" for a in node.names if CODE_IN_FILES & set(a.name.split("."))]
        elif isinstance(node, ast.ImportFrom):
            parts = {*(node.module or "").split("."), *(a.name for a in node.names)}
            found += [f"imports {name}" for name in CODE_IN_FILES & parts]
        elif isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            found.append(f"listens on {node.value}")
        elif isinstance(node, ast.Call):
            found += _call(node)
    return found


def _call(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    found = [f"{name} {CALLS[name]}"] if name in CALLS else []
    if name == "torch.load" and given.get("weights_only") != "True":
        found.append("torch.load without weights_only=True")
    if name == "yaml.load" and given.get("Loader") not in SAFE_LOADERS:
        found.append("yaml.load without a safe loader")
    if given.get("allow_pickle", "False") != "False":
        found.append("allow_pickle")
    if given.get("shell", "False") != "False":
        found.append("shell=True")
    if given.get("trust_remote_code", "False") != "False":
        found.append("trust_remote_code")
    if name.endswith("model_class.from_pretrained") and given.get("use_safetensors") != "True":
        found.append("from_pretrained without use_safetensors=True")
    if name.endswith((".extractall", ".extract")) and given.get("filter") not in ("'data'", "tarfile.data_filter"):
        found.append("extracts an archive without a filter")
    if given.get("dashboard_host", "'127.0.0.1'") != "'127.0.0.1'":
        found.append("a dashboard for other machines")
    return found


OWN_EXPORTS = {
    "guidino_tune/exporting/templates/use_hf.py": ["trust_remote_code"],
    "guidino_tune/exporting/templates/use_torchscript.py": ["torch.jit.load runs code of a file"],
    "guidino_tune/exporting/torch_files.py": ["torch.jit.load runs code of a file"],
}
"""What reads an export that the same person has made: a moment ago, or beside the script that reads it. The package reads no other."""


def test_the_package_runs_no_code_from_files() -> None:
    found = {str(p.relative_to(ROOT)): hazards(p.read_text(encoding="utf-8")) for p in (ROOT / "guidino_tune").rglob("*.py")}
    assert len(found) > 80
    assert {path: why for path, why in found.items() if why} == OWN_EXPORTS


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from ray import cloudpickle",
        "from ray.cloudpickle import loads",
        "import joblib as j",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f, Loader=yaml.Loader)",
        "yaml.load(f)",
        "yaml.unsafe_load(f)",
        "eval(text)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "tarfile.open(f).extractall(folder)",
        "AutoModel.from_pretrained(f, trust_remote_code=True)",
        "kind.model_class.from_pretrained(f)",
        "tune.Tuner.restore(path, trainable)",
        "server.bind(('0.0.0.0', 80))",
        "ray.init(dashboard_host='10.0.0.1')",
    ],
)
def test_the_checker_finds_each_hazard(source: str) -> None:
    assert len(hazards(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f, weights_only=True)",
        "model.eval()",
        "yaml.safe_load(f)",
        "yaml.load(f, Loader=yaml.SafeLoader)",
        "subprocess.run(['ls'])",
        "tarfile.open(f).extractall(folder, filter='data')",
    ],
)
def test_the_checker_lets_safe_calls_pass(source: str) -> None:
    assert hazards(source) == []


def test_our_yaml_loader_makes_no_objects(tmp_path: Path) -> None:
    from guidino_tune.config.parsing import read_yaml

    file, mark = tmp_path / "evil.yaml", tmp_path / "was_here"
    file.write_text(f"experiment: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(UserError):
        read_yaml(file)
    assert not mark.exists()


def test_cli_is_the_only_way_to_the_storage_option() -> None:
    """Every command that takes a database refuses passwords; a new one should use the same option."""
    files = {p: p.read_text(encoding="utf-8") for p in (ROOT / "guidino_tune").rglob("*.py")}
    assert [p for p, text in files.items() if '"--storage"' in text] == [Path(cli.__file__)]
    users = {p.stem for p, text in files.items() if "add_storage_option(made)" in text}
    assert users == {command.__name__.rpartition(".")[2] for command in TAKE_A_DATABASE}
