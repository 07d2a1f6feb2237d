"""``guidino-tune NAME ...`` is ``python -m guidino_tune.NAME ...``."""

from __future__ import annotations

import importlib
import sys

from guidino_tune import __version__, paths
from guidino_tune.errors import nearest

COMMANDS = {
    "search": "search hyper-parameters on Ray; start, continue or extend a study",
    "list": "all studies of the home folder or of a database: who drives them, how far they are",
    "show": "one study: what it searched, its best trials, its failures, and how to go on",
    "report": "one study as one page: what was found, how sure that is, how to repeat it",
    "export": "write the best (or any) trial of a study as a YAML file",
    "reproduce": "train and test the rows of the papers' tables, or a scaling study",
    "reproduce-trial": "train one trial of a study once more, and print the difference per epoch",
    "compare": "retrain a study's best configurations, tell them apart, test the winner",
    "retrain": "train an exported configuration with several seeds and test it once",
    "ensemble": "several trained models as one: the best of a study, or those that are named",
    "evaluate": "score a model on the validation or the sealed test split",
    "export-model": "write a trained model as ONNX, torch, MONAI or Hugging Face files that run without this package",
    "predict": "masks and overlays for a folder of images",
    "serve": "a page on which a model is tried: drop an image, see its mask",
    "record": "record learning curves of random configurations, as a table",
    "simulate": "compare samplers and pruners on recorded curves, in minutes",
    "ui": "look at studies in a browser: MLflow's pages, until Ctrl-C",
    "delete": "delete a study, its checkpoints and its runs in MLflow",
    "track": "show what MLflow lacks of a study, and send it",
    "prepare": "download, check and unpack a data set, or convert backbone weights",
    "doctor": "what is here, and what to do about what is not",
    "completion": "print a script that lets bash, zsh or fish complete all this",
}


def module_of(command: str) -> str:
    """The command's module in the package: Python's names have no dashes."""
    return command.replace("-", "_")


def main() -> int:
    """Finds the command and runs it; exit code 2 for an unknown one."""
    home, argv = _home_before(sys.argv[1:])
    name = argv[0] if argv else "--help"
    if name in ("-V", "--version"):
        print(f"guidino-tune {__version__}")
        return 0
    if name in ("-h", "--help"):
        print("usage: guidino-tune [--home DIR] COMMAND [options]   (guidino-tune COMMAND --help tells more)\n\ncommands:")
        for command, about in COMMANDS.items():
            print(f"  {command:<15} {about}")
        print("\n  -V, --version   print the version\n  --home DIR      as behind the command: where studies, data sets and caches are")
        return 0
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        hint = f"see: {paths.next_command('--help')}" if what == "option" else nearest(name, COMMANDS)
        print(f"error: no {what} {name!r}; {hint}", file=sys.stderr)
        return 2
    code: int = importlib.import_module(f"guidino_tune.{module_of(name)}").main([*home, *argv[1:]])
    return code


def _home_before(argv: list[str]) -> tuple[list[str], list[str]]:
    """``--home DIR`` where it stands before the command, and what follows it."""
    words = 2 if argv[:1] == ["--home"] else 1 if argv and argv[0].startswith("--home=") else 0
    return argv[:words], argv[words:]


if __name__ == "__main__":
    sys.exit(main())
