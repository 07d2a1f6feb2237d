"""``guidino-tune NAME ...`` is ``python -m guidino_tune.NAME ...``."""

from __future__ import annotations

import importlib
import sys

from guidino_tune import __version__
from guidino_tune.errors import nearest

COMMANDS = {
    "search": "search hyper-parameters on Ray; start, continue or extend a study",
    "list": "all studies of the home folder or of a database: who drives them, how far they are",
    "show": "one study: what it searched, its best trials, its failures, and how to go on",
    "export": "write the best (or any) trial of a study as a YAML file",
    "reproduce": "train and test the rows of the papers' tables, or a scaling study",
    "reproduce-trial": "train one trial of a study once more, and print the difference per epoch",
    "compare": "retrain a study's best configurations, tell them apart, test the winner",
    "retrain": "train an exported configuration with several seeds and test it once",
    "evaluate": "score a model on the validation or the sealed test split",
    "export-model": "write a trained model as ONNX, torch, MONAI or Hugging Face files that run without this package",
    "predict": "masks and overlays for a folder of images",
    "record": "record learning curves of random configurations, as a table",
    "simulate": "compare samplers and pruners on recorded curves, in minutes",
    "track": "show what MLflow lacks of a study, and send it",
    "prepare": "download, check and unpack a data set, or convert backbone weights",
    "doctor": "what is here, and what to do about what is not",
}


def module_of(command: str) -> str:
    """The command's module in the package: Python's names have no dashes."""
    return command.replace("-", "_")


def main() -> int:
    """Finds the command and runs it; exit code 2 for an unknown one."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name == "--version":
        print(f"guidino-tune {__version__}")
        return 0
    if name in ("-h", "--help"):
        print("usage: guidino-tune COMMAND [options]   (guidino-tune COMMAND --help tells more)\n\ncommands:")
        for command, about in COMMANDS.items():
            print(f"  {command:<15} {about}")
        return 0
    if name not in COMMANDS:
        print(f"error: no command {name!r}; {nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    code: int = importlib.import_module(f"guidino_tune.{module_of(name)}").main(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())
