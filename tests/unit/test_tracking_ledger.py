"""The ledger survives torn lines, and its content is the sum of its lines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guidino_tune.tracking import ledger as module
from guidino_tune.tracking.client import as_key, as_text, redacted, tracking_uri, ui_command
from guidino_tune.tracking.ledger import Ledger
from guidino_tune.tracking.snapshots import flatten
from guidino_tune.tracking.uploads import ContentHashes, picture_step


def test_ledger_is_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new" / "ledger.jsonl")
    ledger.note("7", run_id="abc", params=True)
    ledger.note("7", epoch=1, files={"a": "1"})
    ledger.note("7", epoch=2, files={"b": "2"}, tags={"t": "x"})
    ledger.note("8", run_id="def")
    ledger.forget("8")
    again = Ledger(ledger.path)
    assert again.sent("7") == ledger.sent("7")
    assert (again.sent("7").epoch, again.sent("7").files, again.sent("7").run_id) == (2, {"a": "1", "b": "2"}, "abc")
    assert again.sent("8").run_id == ""
    again.forget()
    assert Ledger(ledger.path).sent("7").run_id == ""


@given(cut=st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_any_cut_costs_at_most_the_last_line(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger = Ledger(path)
    for epoch in range(8):
        ledger.note("0", epoch=epoch)
    text = path.read_text()
    path.write_text(text[: max(0, len(text) - cut)])
    # A line is whole if its closing brace is there, with or without the newline.
    left = path.read_text().count("}") - 1
    torn = Ledger(path)
    assert torn.sent("0").epoch == left
    torn.note("0", epoch=99)
    assert Ledger(path).sent("0").epoch == 99


def test_long_ledger_is_compacted_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_ABOVE", 20)
    ledger = Ledger(tmp_path / "l.jsonl")
    for epoch in range(30):
        ledger.note("0", epoch=epoch, files={str(epoch): "x"})
    again = Ledger(ledger.path)
    assert again.sent("0") == ledger.sent("0")
    assert len(ledger.path.read_text().splitlines()) == 1
    assert Ledger(ledger.path).sent("0") == ledger.sent("0")


def test_unwritable_ledger_goes_on_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = Ledger(tmp_path / "file" / "ledger.jsonl")
    ledger.note("0", epoch=3)
    assert ledger.sent("0").epoch == 3
    assert ledger.error is not None


def test_foreign_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text('[1]\n"x"\nnull\n{"other": 1}\n{"run": "0", "epoch": 4, "newer_key": 1}\n\xff\n')
    assert Ledger(path).sent("0").epoch == 4


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("case3_epoch0010", ("case3", 10)),
        ("val-cju1 0007", ("val-cju1", 7)),
        ("overview", ("overview", 0)),
        ("epoch_0002", ("picture", 2)),
        ("0002", ("picture", 2)),
    ],
)
def test_picture_step(stem: str, expected: tuple[str, int]) -> None:
    assert picture_step(stem) == expected


def test_texts() -> None:
    assert [as_text(v) for v in (None, True, 1e-05, "x", 3)] == ["null", "true", "1e-05", "x", "3"]
    assert len(as_text("x" * 10_000)) < 6000
    assert as_key("val/dice@0.5 [é]") == "val/dice_0.5 ___"
    assert flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None}) == {"a.b.c": 1, "a.d": "[1, 2]", "e": None}


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(Path("a b/m.db")) == f"sqlite:///{tmp_path}/a b/m.db"
    assert ui_command(f"sqlite:///{tmp_path}/a b/m.db").endswith(f"ui --backend-store-uri 'sqlite:///{tmp_path}/a b/m.db' --port 5000")
    assert "secret" not in ui_command("postgresql://me:secret@host/db") + ui_command("https://me:sec@ret@host") + redacted(
        "http://:secret@h"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri(Path("x.db")) == ui_command("http://host:5000") == "http://host:5000"


def test_hash_follows_content(tmp_path: Path) -> None:
    hashes, file = ContentHashes(), tmp_path / "f"
    file.write_text("one")
    first = hashes.of(file)
    file.write_text("other")
    assert hashes.of(file) != first
    file.write_text("one")
    assert ContentHashes().of(file) == first


def test_import_is_light() -> None:
    heavy = ["mlflow", "torch", "ray", "PIL", "optuna"]
    code = f"import sys, json, guidino_tune.tracking; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


def test_a_full_disk_is_survived_and_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l.jsonl"
    ledger = Ledger(path)
    path.symlink_to("/dev/full")  # takes no byte: "no space left on device"
    ledger.note("0", epoch=1)
    ledger.note("1", run_id="abc")
    assert (ledger.sent("0").epoch, ledger.sent("1").run_id) == (1, "abc")
    assert "No space left" in str(ledger.error)
    monkeypatch.setattr(module, "RETRY", 0.0)
    path.unlink()
    ledger.note("0", epoch=2)
    assert ledger.error is None
    assert (Ledger(path).sent("0").epoch, Ledger(path).sent("1").run_id) == (2, "abc")
