"""The benchmarks' arithmetic and printing, and that every one of them still starts."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
BENCHMARKS = [file for file in sorted(FOLDER.glob("*.py")) if "__main__" in file.read_text(encoding="utf-8")]


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import measuring

    return measuring


def test_both_ways_take_turns_and_the_warmup_does_not_count(measuring: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []

    def taking(name: str, seconds: list[float]) -> None:
        calls.append(name)
        now[0] += seconds.pop(0)

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    ours, other = [9.0, 1.0, 2.0], [8.0, 4.0, 5.0]
    found = measuring.interleaved(lambda: taking("ours", ours), lambda: taking("other", other), rounds=2)
    assert calls == ["ours", "other"] * 3
    assert found == ([1.0, 2.0], [4.0, 5.0])
    assert measuring.ratios(*found) == [0.25, 0.4]
    with pytest.raises(ValueError, match="nothing"):
        measuring.interleaved(lambda: None, lambda: None, rounds=0)


@pytest.mark.parametrize(("aim", "met", "verdict"), [(0.3, True, "at most 0.3 | met"), (0.2, False, "missed"), (None, True, "no aim | -")])
def test_one_line_and_one_file(
    measuring: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], aim: float | None, met: bool, verdict: str
) -> None:
    assert measuring.report("inference unet", "a / b", [0.5, 0.25, 0.1], aim=aim, note="the same masks", output=tmp_path) is met
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert line.startswith("inference unet | a / b | 0.25 (0.1 to 0.5) over 3 rounds | ")
    assert verdict in line
    assert line.endswith("| the same masks\n")
    written = json.loads((tmp_path / "inference-unet.json").read_text())
    assert (written["median"], written["spread"], written["ratios"]) == (0.25, [0.1, 0.5], [0.5, 0.25, 0.1])
    assert written["machine"] == measuring.machine()
    assert written["date"][:2] == "20"


def test_the_table_holds_all_results_by_machine(measuring: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, machine in (("one", "here"), ("two", "there"), ("three", "here")):
        monkeypatch.setattr(measuring, "machine", lambda machine=machine: machine)
        measuring.report(name, f"{name} / plain", [2.0], output=tmp_path)
    lines = measuring.table(tmp_path).splitlines()
    here, there = (next(i for i, line in enumerate(lines) if line.startswith(f"{name} (")) for name in ("here", "there"))
    rows = [i for i, line in enumerate(lines) if "/ plain" in line]
    assert [lines[i].split(" | ")[0] for i in rows] == ["| one", "| three", "| two"]
    assert here < rows[0] < rows[1] < there < rows[2]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert measuring.main(["--output", str(tmp_path)]) == 0


def test_images_are_where_they_are_said_to_be(
    measuring: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GUIDINO_TUNE_DATA", raising=False)
    with pytest.raises(SystemExit) as stopped:
        measuring.kvasir_root(measuring.parser("").parse_args([]))
    assert stopped.value.code == 2
    assert "--data" in capsys.readouterr().err
    (tmp_path / "kvasir-352").mkdir()
    monkeypatch.setenv("GUIDINO_TUNE_DATA", str(tmp_path))
    assert measuring.kvasir_root(measuring.parser("").parse_args([])) == str(tmp_path / "kvasir-352")
    assert measuring.kvasir_root(measuring.parser("").parse_args(["--data", str(tmp_path)])) == str(tmp_path)


def test_related_tasks_agree_by_the_correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from warm_start import Task

    def rates(number: int, correlation: float) -> list[float]:
        return [rate for seed in range(100) for _, rate, _ in Task(seed, number, correlation).networks.values()]

    aim = rates(0, 1.0)
    assert np.allclose(rates(1, 1.0), aim)
    assert np.allclose(rates(2, -1.0), [-3.8 - 2.9 - rate for rate in aim])
    # Of normal variables that correlate by r, the uniform ones do by 6/pi arcsin(r/2) (Pearson 1907); 900 of them by 0.02 more or less.
    assert np.corrcoef(rates(1, 0.8), aim)[0, 1] == pytest.approx(6 / np.pi * np.arcsin(0.4), abs=0.06)
    assert np.corrcoef(rates(1, 0.0), aim)[0, 1] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_every_benchmark_explains_itself(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [file.name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(file), run_name="__main__")
    assert not stopped.value.code
    assert "usage:" in capsys.readouterr().out


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    here = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=here)


def test_the_script_for_a_gpu_runs_to_its_end_without_one(tmp_path: Path) -> None:
    """Each part that a CPU can take; a comparison that fails, or a part that raises, would be its exit code."""
    command: list[str | Path] = [
        sys.executable,
        FOLDER / "gpu.py",
        "--device",
        "cpu",
        "--segmenters",
        "segguidino",
        "--image-size",
        "32",
        "--images",
        "8",
    ]
    command += ["--seconds", "0.01", "--output", tmp_path, "--parts", "parity,backbone,epochs,resume,memory,collective,batches"]
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["part"] for row in rows] == ["parity", "backbone", "epochs", "resume", "memory", "collective", "batches"]
    assert [row["part"] for row in rows if row["good"]] == ["parity", "resume", "collective"]
    assert all(row["value"] > 0 for row in rows if row["part"] in ("backbone", "epochs", "batches"))


def test_without_a_gpu_the_script_says_so() -> None:
    done = run([sys.executable, FOLDER / "gpu.py"])
    assert (done.returncode, "torch finds no GPU here" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ({"1 eager": 100.0, "2 eager": 180.0, "4 eager": 150.0, "1 cuda-graphs": 170.0}, "trials_per_gpu=2 training.compile=none"),
        ({"1 eager": 100.0, "2 eager": 180.0, "4 eager": 150.0, "1 cuda-graphs": 240.0}, "trials_per_gpu=1 training.compile=cuda-graphs"),
        ({"1 eager": 100.0, "2 eager": 104.0, "4 eager": 99.0}, "trials_per_gpu=1 training.compile=none"),  # not worth the memory
        ({"1 eager": 100.0, "4 eager": 300.0}, "trials_per_gpu=4 training.compile=none"),  # the others failed
    ],
)
def test_what_is_fastest_on_a_gpu_is_told_as_settings(rates: dict[str, float], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from gpu_packing import advice

    assert advice(rates).endswith(told)
