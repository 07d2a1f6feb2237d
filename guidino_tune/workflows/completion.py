"""Scripts with which shells complete the commands, made from the parsers of these: nothing of it is written twice."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from guidino_tune.space.space import shipped

STUDIES = '$(command ls "$home/studies" 2>/dev/null)'
"""For bash and zsh: the names of the studies in the home folder, at the moment of asking."""


@dataclass(slots=True)
class Words:
    """What may follow one command.

    Attributes:
        about: What the command does.
        options: All of them.
        values: By option, what its value may be; empty: a file, or anything.
        first: What may stand without an option; ``STUDIES`` among it for the names of studies.
        helps: What an option does, in a line.
    """

    about: str = ""
    options: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    helps: dict[str, str] = field(default_factory=dict)


def words_of(arguments: Iterable[argparse.Action], about: str = "") -> Words:
    """What a parser with these arguments takes."""
    found = Words(about)
    for action in arguments:
        choices = [str(choice) for choice in action.choices or ()]
        if not action.option_strings:
            known = {"study": [STUDIES], "space": sorted(file.stem for file in shipped().glob("*.yaml"))}
            found.first += choices or known.get(action.dest, [])
            continue
        found.options += action.option_strings
        for option in action.option_strings:
            found.helps[option] = re.sub(r"[^\w .,:;/=()-]", "", (action.help or "").replace("%(default)s", str(action.default)))
            if action.nargs != 0:
                found.values[option] = choices
    return found


def bash(commands: Mapping[str, Words]) -> str:
    """For bash."""
    return f"{_function(commands)}\ncomplete -o default -F _guidino_tune guidino-tune\n"


def zsh(commands: Mapping[str, Words]) -> str:
    """For zsh, which runs what was written for bash."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash(commands)}"


def _function(commands: Mapping[str, Words]) -> str:
    lines = [
        "_guidino_tune() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command="" words="" i',
        '    local home="${GUIDINO_TUNE_HOME:-$HOME/guidino_tune}"',
        "    COMPREPLY=()",
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        '        case "${COMP_WORDS[i]}" in',
        '            --home) home="${COMP_WORDS[i+1]}"; i=$((i + 1)) ;;',
        "            -*) ;;",
        '            *) [ -n "$command" ] || command="${COMP_WORDS[i]}" ;;',
        "        esac",
        "    done",
        '    case "$command $before" in',
        '        *" --home") return ;;',
    ]
    for command, known in commands.items():
        for option, choices in known.values.items():
            # Without choices the shell goes on with the names of files.
            lines.append(f'        "{command} {option}") {f"""words="{" ".join(choices)}" """ if choices else "return "};;')
    lines += ["    esac", '    if [ -z "$words" ]; then', '        case "$command:$word" in']
    lines.append(f'            :*) words="{" ".join([*commands, "--home", "--help", "--version"])}" ;;')
    for command, known in commands.items():
        lines.append(f'            {command}:-*) words="{" ".join(known.options)}" ;;')
        if known.first:
            lines.append(f'            {command}:*) words="{" ".join(known.first)}" ;;')
    lines += ["        esac", "    fi", '    COMPREPLY=($(compgen -W "$words" -- "$word"))', "}"]
    return "\n".join(lines) + "\n"


def fish(commands: Mapping[str, Words]) -> str:
    """For fish, which shows what each word does."""
    studies = (
        "(command ls (string join / (set -q GUIDINO_TUNE_HOME; and echo $GUIDINO_TUNE_HOME; or echo ~/guidino_tune) studies) 2>/dev/null)"
    )
    lines = ["complete -c guidino-tune -n __fish_use_subcommand -l version -s V -d 'print the version'"]
    for command, known in commands.items():
        lines.append(f"complete -c guidino-tune -f -n __fish_use_subcommand -a {command} -d {_quoted(known.about)}")
    for command, known in commands.items():
        when = f"complete -c guidino-tune -n '__fish_seen_subcommand_from {command}'"
        for option in known.options:
            short = f"-s {option[1:]}" if len(option) == 2 else f"-l {option[2:]}"
            value = (
                f" -x -a {_quoted(' '.join(choices))}" if (choices := known.values.get(option)) else " -r" if option in known.values else ""
            )
            lines.append(f"{when} {short}{value} -d {_quoted(known.helps[option][:80])}")
        if known.first:
            lines.append(f"{when} -a {_quoted(' '.join(studies if word == STUDIES else word for word in known.first))}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[Mapping[str, Words]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
