"""The scripts of ``completion``: bash runs its own here; all of them know what every parser takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from guidino_tune.__main__ import COMMANDS
from guidino_tune.completion import everything, main

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_guidino_tune
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as file:
            patch.setattr("sys.stdout", file)
            assert main([shell]) == 0
    return folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sea"], ["search"]),
        (["--v"], ["--version"]),
        (["search", "kva"], ["kvasir"]),
        (["search", "--exec"], ["--executor"]),
        (["search", "kvasir", "--executor", ""], ["auto", "actor", "train"]),
        (["show", "ol"], ["old"]),
        (["--home", "{home}", "delete", "mi"], ["mine"]),
        (["show", "--format", "j"], ["json"]),
        (["retrain", "be"], [""]),  # names of files are bash's own
        (["prepare", "--home", ""], [""]),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for home, study in (("one", "old"), ("two", "mine")):
        (tmp_path / home / "studies" / study).mkdir(parents=True)
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "one"))
    given = [word.format(home=tmp_path / "two") for word in words]
    command = ["bash", "-c", ASK, "-", str(scripts / "bash"), "guidino-tune", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")


def test_all_shells_know_every_command_and_option(scripts: Path) -> None:
    known = everything()
    assert known.keys() == COMMANDS.keys()
    for shell in ("bash", "zsh", "fish"):
        text = (scripts / shell).read_text()
        for command, words in known.items():
            assert command in text
            assert all((option if shell != "fish" else option.lstrip("-")) in text for option in words.options)
    assert "bashcompinit" in (scripts / "zsh").read_text()
