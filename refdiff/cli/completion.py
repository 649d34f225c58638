"""`refdiff completion`: a completion script for a shell."""

from __future__ import annotations

import argparse
import shlex
import sys

from refdiff import bundled
from refdiff.cli.flags import MODEL
from refdiff.cli.parser import COMMANDS, Parser, build_parser
from refdiff.cli.spec import PRESETS, PROFILES

BASH = """\
# refdiff completion bash: put `source <(refdiff completion bash)` into ~/.bashrc
_refdiff() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words= files= file=
    COMPREPLY=()
    if [[ $current == "=" ]]; then
        current=
    elif [[ $previous == "=" ]]; then  # bash takes --dtype=float32 for three words
        previous=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    if (( COMP_CWORD == 1 )); then
        words={commands}
        [[ $current == -* ]] && words='-h --help --version'
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
    if [[ -n $files ]]; then
        while IFS= read -r file; do COMPREPLY+=("$file"); done < <(compgen -f -- "$current")
    fi
}}
complete -o filenames -o default -F _refdiff refdiff
"""


def add_arguments(parser: Parser) -> None:
    parser.description = "Print a completion script for a shell."
    parser.examples = """
source <(refdiff completion bash)
refdiff completion fish > ~/.config/fish/completions/refdiff.fish
"""
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    parser.notes = ["zsh reads the script of bash, by bashcompinit, which the script loads."]


def run(args: argparse.Namespace) -> int:
    """Print the script."""
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
        words = " ".join(["-h", "--help", *(option for action in listed for option in action.option_strings)])
        options.append(f"                {name}) words={shlex.quote(words)};;")
        first = next((action for action in parser.shown_actions() if not action.option_strings), None)
        if first is not None and (found := _bash_words(first)):
            choices.append(f"            {name}:{name}) [[ $current == -* ]] || {found};;")
        for action in listed:
            if found := _bash_words(action):
                cases = "|".join(f"{name}:{option}" for option in action.option_strings)
                choices.append(f"            {cases}) {found};;")
    return BASH.format(commands=shlex.quote(" ".join(commands)), options="\n".join(options), choices="\n".join(choices))


def _known(action: argparse.Action) -> tuple[list[str], bool]:
    """Return the completions of an argument, and whether it may also be a file or folder."""
    if action.metavar == MODEL and not action.choices:
        return [bundled.NAME], True
    if action.dest == "spec":
        return list(PRESETS), True
    if action.dest == "profile":
        return list(PROFILES), False
    return [str(choice) for choice in action.choices or ()], False


def _bash_words(action: argparse.Action) -> str:
    """Return the bash code that sets `words` and `files`, or "" without completions."""
    words, files = _known(action)
    return f"words={shlex.quote(' '.join(words))}{' files=1' if files else ''}" if words else ""


def _fish(commands: dict[str, Parser]) -> str:
    lines = ["# refdiff completion fish > ~/.config/fish/completions/refdiff.fish"]
    lines += [
        f"complete -c refdiff -n __fish_use_subcommand -f -a {name} -d {shlex.quote(COMMANDS[name])}"
        for name in commands
    ]
    for name, parser in commands.items():
        for action in parser.shown_actions():
            words = [f"complete -c refdiff -n '__fish_seen_subcommand_from {name}'"]
            known, files = _known(action)
            listed = shlex.quote(" ".join(known))
            if not action.option_strings:
                if not known:
                    continue
                words.append(f"-a {listed}" if files else f"-f -a {listed}")
            words += [f"-l {o[2:]}" if o.startswith("--") else f"-s {o[1:]}" for o in action.option_strings]
            if action.option_strings and known:
                words.append(f"{'-r' if files else '-x'} -a {listed}")
            elif action.option_strings and action.nargs != 0:
                words.append("-r")
            lines.append(" ".join([*words, f"-d {shlex.quote(str(action.help))}"]))
    return "\n".join(lines) + "\n"
