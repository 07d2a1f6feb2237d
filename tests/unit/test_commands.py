"""A user's mistake on the command line: exit code 2, one clear message on standard error, no traceback, nothing written."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from guidino_tune import __main__, __version__, cli, paths, search
from guidino_tune.__main__ import COMMANDS
from guidino_tune.errors import UserError


def fails(command: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command in this process, checks that it fails as it should, and returns its message."""
    try:
        code = importlib.import_module(f"guidino_tune.{__main__.module_of(command)}").main(argv)
    except SystemExit as stop:  # argparse
        code = stop.code
    shown = capsys.readouterr()
    assert code == 2, shown
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert shown.err.count("error: ") == 1
    return shown.err


# ---------------------------------------------------------------------------------------------------------------- guidino-tune


def test_unknown_command_suggests_the_nearest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["guidino-tune", "serach", "demo"])
    assert __main__.main() == 2
    shown = capsys.readouterr()
    assert shown.err == "error: no command 'serach'; did you mean 'search'?\n"
    assert shown.out == ""


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_the_list_of_commands(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["guidino-tune", *argv])
    assert __main__.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split()[:1] == [command] for line in lines) for command in COMMANDS)


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["guidino-tune", option])
    assert __main__.main() == 0
    assert capsys.readouterr().out == f"guidino-tune {__version__}\n"


def test_a_command_gets_the_rest_of_the_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["guidino-tune", "search", "kvasr"])
    assert __main__.main() == 2
    assert "did you mean 'kvasir'" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_line_is_told_in_two_lines(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    what, see = fails(command, ["--no-such-option", "--hme", "x"], capsys).splitlines()
    assert what.startswith("error: ")
    assert see == f"  -> see: {paths.next_command(f'{command} --help')}"


def test_a_misspelt_option_is_told_with_the_nearest_and_without_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    shown = fails("search", ["demo", "--trails", "3", "postgresql://me:sesame@host/db"], capsys)
    assert "--trails" in shown
    assert "did you mean '--trials'?" in shown
    assert "sesame" not in shown


@pytest.mark.parametrize("before", [["--home", "{}"], ["--home={}"]])
def test_the_home_may_stand_before_the_command(
    before: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUIDINO_TUNE_HOME", "/nowhere")
    monkeypatch.setattr(paths, "_named_home", [])
    monkeypatch.setattr(sys, "argv", ["guidino-tune", *(word.format(tmp_path / "other") for word in before), "list"])
    assert __main__.main() == 0
    assert capsys.readouterr().out == f"no studies in {tmp_path / 'other' / 'studies'}; a search makes one\n"


@pytest.mark.parametrize("install", ["here", "on the path", "elsewhere", "without script"])
def test_a_printed_command_works_when_copied(install: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is run by a shell, and what it finds is the program of this Python."""
    binaries = tmp_path / "a b" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "guidino-tune")[: 1 if install == "without script" else 2]:
        (binaries / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (binaries / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))
    monkeypatch.setattr(paths, "_named_home", ["my home"])
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}" if install == "on the path" else os.environ["PATH"])
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path if install == "here" else tmp_path / "x")
    command = paths.next_command("export demo --output best.yaml")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=10)
    words = "export demo --output best.yaml --home my home\n"
    assert done.stdout == (f"python -m guidino_tune {words}" if install == "without script" else f"guidino-tune {words}")
    assert command.startswith({"on the path": "guidino-tune ", "here": "'a b/bin/guidino-tune' "}.get(install, f"'{binaries}/"))


def test_commands_are_written_in_one_way() -> None:
    """In what the program prints; ``ray job submit`` runs where only the working folder is sure to be."""
    for file in sorted(Path(cli.__file__).parent.rglob("*.py")):
        shown = [line for line in file.read_text(encoding="utf-8").splitlines() if re.search(r"python -m guidino_tune\.", line)]
        assert [line for line in shown if "ray job" not in line and "``" not in line] == [], file


# ---------------------------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["kvasr"], ["no search space 'kvasr'", "did you mean 'kvasir'", "  -> "]),
        (["no_such.yaml"], ["no_such.yaml: no such file", "  -> "]),
        (["demo", "--set", "training.epoch=3"], ["training.epoch=3", "'training.epochs'"]),
        (["demo", "--set", "nonsense"], ["nonsense", "no '='"]),
        (["demo", "--set", "training.epochs=many"], ["'training.epochs'", "'many'"]),
        (["demo", "--set", "segmenter.kind=unett"], ["did you mean 'unet'"]),
        (["demo", "--set", "study.name=a b"], ["'name' = 'a b'"]),
        (["demo", "--name", "../up"], ["'name' = '../up'"]),
        (["demo", "--time-budget", "soon"], ["--time-budget", "'soon' is no duration such as 90s, 30m or 2h"]),
        (["demo", "--time-budget", "-5m"], ["--time-budget"]),
        (["demo", "--trials", "0"], ["--trials", "'0' is no whole number from 1"]),
        (["demo", "--trials", "many"], ["--trials", "'many' is no whole number from 1"]),
        (["demo", "--sampler", "grid"], ["guide.lora.alpha: a grid needs choices, whole numbers or a step"]),
        (["demo", "--sampler", "lots"], ["'sampler' = 'lots'", "module:name"]),
        (["demo", "--seed", "x"], ["--seed", "'x'"]),
        ([], ["space"]),
    ],
)
def test_search_mistakes(argv: list[str], expected: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = fails("search", [*argv, "--dry-run"], capsys)
    assert all(part in shown for part in expected), shown
    assert not home.exists()


def test_a_broken_space_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("experiment: {data: {kind: demo}}\nspace:\n  training.lr: {type: float, low: 1\n")
    assert f"{file}: is no valid YAML, line" in fails("search", [str(file), "--dry-run"], capsys)
    file.write_text("experiment: {data: {kind: demo}}\nspce: {}\n")
    assert "'space'" in fails("search", [str(file), "--dry-run"], capsys)


def test_a_mistake_in_the_space_is_told_before_anything_else(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("experiment: {data: {kind: kvasir, root: /no/such/folder}}\nspace:\n  trainning.lr: {type: float, low: 0.1, high: 1}\n")
    shown = fails("search", [str(file), "--trials", "3", "--dry-run"], capsys)
    assert "space.trainning.lr" in shown
    assert "did you mean 'training.lr'" in shown
    assert not home.exists()


def test_missing_data_root(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "kvasir",
        "--dry-run",
        "--data-root",
        str(tmp_path / "nowhere"),
        "--set",
        "guide.backbone=tiny",
        "--set",
        "guide.weights=random",
    ]
    shown = fails("search", argv, capsys)
    assert str(tmp_path / "nowhere") in shown
    assert "  -> " in shown
    assert not home.exists()


def test_missing_backbone_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = fails(
        "search", ["demo", "--dry-run", "--set", f"guide.backbone={tmp_path / 'dinov3'}", "--set", "guide.weights=pretrained"], capsys
    )
    assert str(tmp_path / "dinov3") in shown


def test_options_are_paths_of_the_experiment_and_the_study() -> None:
    from guidino_tune.space.parameters import has_path
    from guidino_tune.space.space import load_space

    space = load_space("demo").to_dict()
    known = {**space["experiment"], "study": space["study"], "resources": space["resources"]}
    assert all(has_path(known, path) for path in search.OPTIONS.values())


# --------------------------------------------------------------------------------------------------------------- other commands


@pytest.mark.parametrize(
    ("command", "argv", "expected"),
    [
        ("prepare", ["kvasr"], ["'kvasr'", "kvasir"]),
        ("prepare", [], ["kind"]),
        ("retrain", ["no_such.yaml"], ["no_such.yaml: no such file", "  -> "]),
        ("retrain", ["no_such.yaml", "--seeds", "0"], ["--seeds", "no whole number from 1"]),
        ("evaluate", ["no_such_model", "--split", "test"], ["--split test", "--reason"]),
        ("evaluate", ["no_such_model"], ["no_such_model"]),
        ("evaluate", ["no_such_model", "--split", "train"], ["--split", "'train'"]),
        ("evaluate", ["no_such_model", "--inference", "whole"], ["--inference", "'whole'", "sliding"]),
        ("evaluate", ["no_such_model", "--inference", "sliding", "--resolution", "training"], ["resolution: 'training'"]),
        ("evaluate", ["no_such_model", "--hd95", "mine"], ["--hd95", "'mine'", "reference"]),
        ("predict", ["no_such_model", "no_such_images", "--output", "out", "--largest-component", "validation"], ["'validation'"]),
        ("predict", ["no_such_model", "no_such_images", "--output", "out"], ["no_such_"]),
        ("predict", ["no_such_model", "no_such_images"], ["--output"]),
        ("export", ["no_such_study"], ["no_such_study"]),
        ("export", ["kvasir", "--trial", "first"], ["--trial", "'first'"]),
    ],
)
def test_mistakes_of_other_commands(
    command: str, argv: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = fails(command, argv, capsys)
    assert all(part in shown for part in expected), shown
    assert list(tmp_path.iterdir()) == []


def test_retrain_takes_paths_of_the_experiment_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "best.yaml"
    file.write_text("experiment: {data: {kind: demo}}\n")
    assert "paths of the experiment only" in fails("retrain", [str(file), "--set", "study.trials=3"], capsys)
    assert "'training.epochs'" in fails("retrain", [str(file), "--set", "training.epoch=3"], capsys)
    file.write_text("experiment: {data: {kind: demo}, los: {}}\n")
    assert "'loss'" in fails("retrain", [str(file)], capsys)


@pytest.mark.parametrize(("given", "expected"), [(["0.5", "--workers", "2"], "share a GPU (NCCL)"), (["1.5"], "no whole number of GPUs")])
def test_retrain_refuses_parts_of_a_gpu_that_cannot_be(
    given: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "best.yaml"
    file.write_text("experiment: {data: {kind: demo}}\n")
    assert expected in fails("retrain", [str(file), "--gpus-per-worker", *given], capsys)


# ------------------------------------------------------------------------------------------------------------------ shared parts


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90.0), ("90s", 90.0), ("30m", 1800.0), ("2h", 7200.0), ("1.5d", 129600.0), ("0.5", 0.5), ("1e3", 1000.0)],
)
def test_durations(text: str, expected: float) -> None:
    assert cli.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "h", "0", "-1h", "nan", "inf", "1w", "2 hours", "1h30m"])
def test_no_durations(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no duration"):
        cli.seconds(text)


@pytest.mark.parametrize("text", ["", "0", "-3", "2.5", "1e3", "many"])
def test_no_positive_numbers(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no whole number"):
        cli.positive(text)
    assert cli.positive("12") == 12


@pytest.mark.parametrize(
    ("raised", "code", "shown"),
    [
        (UserError("is empty", where="f.yaml", todo="fill it"), 2, "error: f.yaml: is empty\n  -> fill it\n"),
        (UserError("is empty"), 2, "error: is empty\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(raised: BaseException, code: int, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: argparse.Namespace) -> int:
        raise raised

    assert cli.run(command, cli.parser("x", "about", ""), []) == code
    assert capsys.readouterr().err == shown


def test_a_bug_is_not_hidden() -> None:
    def command(_: argparse.Namespace) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(command, cli.parser("x", "about", ""), [])


def test_home_option(tmp_path: Path) -> None:
    from guidino_tune import paths

    seen: list[Path] = []

    def command(_: argparse.Namespace) -> int:
        seen.append(paths.home())
        return 0

    assert cli.run(command, cli.parser("x", "about", ""), ["--home", str(tmp_path / "h")]) == 0
    assert seen == [tmp_path / "h"]
