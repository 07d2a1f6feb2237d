"""The command ``completion``: what a shell needs to complete commands, options and names of studies."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guidino_tune.cli import parser, parser_of, run

if TYPE_CHECKING:
    from guidino_tune.workflows.completion import Words

EXAMPLES = """\
  guidino-tune completion bash > ~/.local/share/bash-completion/completions/guidino-tune
  guidino-tune completion zsh > ~/.guidino-tune.zsh    then, behind compinit in ~/.zshrc: source ~/.guidino-tune.zsh
  guidino-tune completion fish > ~/.config/fish/completions/guidino-tune.fish

The script is made from the commands themselves: after an update make it anew."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and prints the script; see ``--help``."""
    made = parser("completion", "Print a script that completes commands, options, choices and names of studies.", EXAMPLES)
    made.add_argument("shell", choices=["bash", "zsh", "fish"])
    return run(_completion, made, argv)


def _completion(options: argparse.Namespace) -> int:
    from guidino_tune.workflows.completion import SHELLS

    sys.stdout.write(SHELLS[options.shell](everything()))
    return 0


def everything() -> dict[str, Words]:
    """What each command takes."""
    from guidino_tune.__main__ import COMMANDS, module_of
    from guidino_tune.workflows.completion import words_of

    mains = {command: importlib.import_module(f"guidino_tune.{module_of(command)}").main for command in COMMANDS}
    return {command: words_of(parser_of(main).arguments, COMMANDS[command]) for command, main in mains.items()}


if __name__ == "__main__":
    sys.exit(main())
