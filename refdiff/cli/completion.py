"""`refdiff completion`: a completion script for a shell."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refdiff.cli.parser import Parser

BASH = """\
# refdiff completion bash: put `source <(refdiff completion bash)` into ~/.bashrc
_refdiff() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        words={commands}
    else
        case ${{COMP_WORDS[1]}}:$previous in
{choices}
        esac
        if [[ -z $words && $current == -* ]]; then
            case ${{COMP_WORDS[1]}} in
{options}
            esac
        fi
    fi
    [[ -n $words ]] && COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _refdiff refdiff
"""


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.description = "Print a completion script for a shell."
    parser.examples = """
source <(refdiff completion bash)
refdiff completion fish > ~/.config/fish/completions/refdiff.fish
"""
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    parser.notes = ["zsh reads the script of bash, by bashcompinit, which the script loads."]


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from refdiff.cli.parser import build_parser

    commands = build_parser().commands()
    script = _fish(commands) if args.shell == "fish" else _bash(commands)
    if args.shell == "zsh":
        script = f"autoload -U +X bashcompinit && bashcompinit\n{script}"
    sys.stdout.write(script)
    return 0


def _bash(commands: dict[str, Parser]) -> str:
    options, choices = [], []
    for name, parser in commands.items():
        listed = [a for a in parser.shown_actions() if a.option_strings]
        words = " ".join(option for action in listed for option in action.option_strings)
        options.append(f"                {name}) words={shlex.quote(words)};;")
        if first := _choices_of_first(parser):
            choices.append(f"            {name}:{name}) [[ $current == -* ]] || words={shlex.quote(first)};;")
        for action in listed:
            if action.choices:
                cases = "|".join(f"{name}:{option}" for option in action.option_strings)
                choices.append(f"            {cases}) words={shlex.quote(' '.join(map(str, action.choices)))};;")
    return BASH.format(commands=shlex.quote(" ".join(commands)), options="\n".join(options), choices="\n".join(choices))


def _choices_of_first(parser: Parser) -> str:
    """The words that the first argument of a command may be; "" where it may be any."""
    first = next((action for action in parser.shown_actions() if not action.option_strings), None)
    return " ".join(first.choices or ()) if first is not None else ""


def _fish(commands: dict[str, Parser]) -> str:
    from refdiff.cli.parser import COMMANDS

    lines = ["# refdiff completion fish > ~/.config/fish/completions/refdiff.fish"]
    lines += [
        f"complete -c refdiff -n __fish_use_subcommand -f -a {name} -d {shlex.quote(COMMANDS[name])}"
        for name in commands
    ]
    for name, parser in commands.items():
        for action in parser.shown_actions():
            words = [f"complete -c refdiff -n '__fish_seen_subcommand_from {name}'"]
            if not action.option_strings:
                if action.choices:
                    listed = shlex.quote(" ".join(action.choices))
                    lines.append(" ".join([*words, f"-f -a {listed} -d {shlex.quote(str(action.help))}"]))
                continue
            words += [f"-l {o[2:]}" if o.startswith("--") else f"-s {o[1:]}" for o in action.option_strings]
            if action.choices:
                words.append(f"-x -a {shlex.quote(' '.join(map(str, action.choices)))}")
            elif action.nargs != 0:
                words.append("-r")
            lines.append(" ".join([*words, f"-d {shlex.quote(str(action.help))}"]))
    return "\n".join(lines) + "\n"
