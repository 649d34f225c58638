"""The parser of the command line: short and long help, and errors that name the option as typed."""

from __future__ import annotations

import argparse
import importlib
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from refdiff import __version__
from refdiff.cli.terminal import note
from refdiff.messages import did_you_mean

COMMANDS = {
    "generate": "continue a prompt, or chat",
    "inspect": "show what is in a checkpoint",
    "attention": "show which tokens each token attends to",
    "train": "train a small model on a text file",
    "convert": "convert a checkpoint to another attention variant",
    "check": "judge the output of an attention kernel",
    "judge": "judge a kernel's file in a process of its own",
    "golden": "write or check test vectors for kernels in any language",
    "trace": "record every intermediate result, or compare two runs",
    "bench": "measure speed and memory on this machine",
    "help": "show the help of a command",
}
"""Every command, in the order of the help; each is a module of this package."""

COMMANDS_MEANT = {
    "benchmark": "bench", "chat": "generate --chat", "complete": "generate", "compare": "trace --compare",
    "completion": "--help",
    "finetune": "train", "fit": "train", "gen": "generate", "info": "inspect", "plot": "attention",
    "predict": "generate", "run": "generate", "sample": "generate", "show": "inspect", "test": "check",
    "verify": "check", "version": "--version", "visualize": "attention",
}  # fmt: skip
"""What people type for a command elsewhere."""

MODELS_COME_FROM = (
    "; models are folders and repos of the Hugging Face hub, and one is bundled: `refdiff generate -m user/name` "
    "downloads what is missing; there is no server"
)
"""What is said to somebody who looks for a command of a program that keeps and serves models itself."""
FLAGS_MEANT = {
    "--ctx": "--context", "--seq-len": "--context", "--max-seq-len": "--context", "--block-size": "--context",
    "--device": "--backend", "--cuda": "--backend", "--gpu": "--backend", "--cpu": "--backend",
    "--do-sample": "--temperature", "--greedy": "--temperature", "--bs": "--batch-size", "--dim": "--hidden-size",
    "--epochs": "--max-steps", "--iters": "--max-steps", "--num-steps": "--max-steps", "--input": "--file",
    "--max-length": "--max-new-tokens", "--n-predict": "--max-new-tokens", "--num-predict": "--max-new-tokens",
    "--num-threads": "--threads", "--jobs": "--threads", "--out": "--output", "--output-dir": "--output",
    "--precision": "--dtype", "--torch-dtype": "--dtype", "--repeat-penalty": "--repetition-penalty",
    "--stop-strings": "--stop", "--system-prompt": "--system", "--model-path": "--model", "--model-name": "--model",
    "--eval-every": "--evaluate-every", "--eval-steps": "--evaluate-every", "--save-steps": "--save-every",
    "--max-grad-norm": "--grad-clip", "--against-torch": "--against", "--verbose": "--debug",
    "-v": "--version", "-V": "--version",
}  # fmt: skip
"""What people type for an option elsewhere; those that a command does not have are not suggested."""


_Groups = list[tuple[str | None, list[argparse.Action]]]
"""The title and the arguments of each group that a help shows."""


class Parser(argparse.ArgumentParser):
    """A parser with -h for the main options and --help for all; errors are one line.

    Attributes:
        examples: command lines, one a line, which the help shows after the usage.
        brief: options that -h shows; None = all.
        aliases: other spellings of options, which are accepted, and which --help lists at its end.
        notes: paragraphs after the options of --help.
        command: the module that adds the options when they are first needed.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "add_help": False, "formatter_class": _Formatter, **kwargs})
        self.color = False  # of Python 3.14, which would color some lines and not others
        self.examples = ""
        self.brief: Collection[str] | None = None
        self.aliases: dict[str, str] = {}
        self.notes: list[str] = []
        self.command: str | None = None
        self._typed: list[str] = []
        self._positionals.title = "arguments"
        self.add_argument("-h", action=_Print, text=Parser.format_brief, help=argparse.SUPPRESS)
        self.add_argument("--help", action=_Print, text=Parser.format_help, help=argparse.SUPPRESS)

    def load(self) -> Parser:
        """Add the options of a command, whose module is imported when first needed."""
        if self.command is not None:
            command, self.command = self.command, None
            importlib.import_module(f"refdiff.cli.{command}").add_arguments(self)
        return self

    def add_alias(self, action: argparse.Action, *spellings: str) -> None:
        """Accept other spellings of an option."""
        for spelling in spellings:
            self.aliases[spelling] = next(o for o in action.option_strings if o.startswith("--"))
            self._option_string_actions[spelling] = action

    def shown_actions(self) -> list[argparse.Action]:
        """Return the arguments that the help shows."""
        return [action for action in self._actions if action.help != argparse.SUPPRESS]

    def commands(self) -> dict[str, Parser]:
        """Return the parser of every command."""
        parsers = dict(next(a for a in self._actions if isinstance(a, argparse._SubParsersAction)).choices)
        return {name: parser.load() for name, parser in parsers.items()}

    def format_brief(self) -> str:
        """Return the help with the main options, in under 40 lines."""
        self.load()
        groups, hidden = self._shown_groups(), False
        if self.brief is not None:
            main = [
                (t, [a for a in g if not a.option_strings or {*a.option_strings} & {*self.brief}]) for t, g in groups
            ]
            groups, hidden = main, main != groups
        sentence = (self.description or "").partition(". ")[0].rstrip(".") + "."
        text = self._format(sentence, groups, examples=2)
        if hidden or self.notes or self.aliases:
            text += f"\n{self.prog} --help: {'all options and notes' if hidden else 'notes'}\n"
        return text

    def format_help(self) -> str:
        """Return the help: examples, description, all options, notes."""
        self.load()
        spelled = ", ".join(f"{alias} = {option}" for alias, option in self.aliases.items())
        others = [f"Other spellings, also accepted: {spelled}."] if spelled else []
        return self._format(self.description, self._shown_groups(), [*self.notes, *others])

    def _shown_groups(self) -> _Groups:
        """Return the title and the shown arguments of each group; the group of the commands has none."""
        shown = self.shown_actions()
        return [
            (group.title, [a for a in group._group_actions if a in shown and a.nargs != argparse.PARSER])
            for group in self._action_groups
        ]

    def _format(
        self, description: str | None, groups: _Groups, notes: Sequence[str] = (), examples: int | None = None
    ) -> str:
        formatter = self._get_formatter()
        formatter.add_text(description)
        for title, actions in groups:
            if actions:
                formatter.start_section(title)
                formatter.add_arguments(actions)
                formatter.end_section()
        for paragraph in notes:
            formatter.add_text(paragraph)
        lines = [f"  {line.strip()}" for line in self.examples.strip().splitlines()[:examples]]
        parts = [f"usage: {self.format_usage().strip()}", "", "examples:", *lines, "", formatter.format_help()]
        if self._subparsers is not None:
            parts += ["commands:", *(f"  {name:<11} {summary}" for name, summary in COMMANDS.items()), ""]
        return "\n".join(parts)

    def format_usage(self) -> str:
        words = [self.prog, "[OPTIONS]"]
        for action in self._actions:
            if not action.option_strings:
                name = str(action.metavar or action.dest)
                words.append(f"[{name}]" if action.nargs in ("?", "*") else name)
            elif action.required:
                words.append(f"{action.option_strings[0]} {action.metavar}")
        return " ".join(words) + "\n"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Raise an error for unknown arguments of this command; argparse leaves that to the parent parser."""
        self.load()
        self._typed = list(sys.argv[1:] if args is None else args)
        if self._subparsers is None:  # from Python 3.12 on, argparse takes -hello for -h
            options = itertools.takewhile(lambda word: word != "--", self._typed)
            if word := next((word for word in options if re.match(r"-h\w", word)), None):
                self.error(f"-h: ignored explicit argument {word[2:]!r}")
        known, others = super().parse_known_args(args, namespace)
        if others and self._subparsers is None:
            self._fill_arguments(known, others)
        if others:
            self._refuse(others, known)
        return known, others

    def _fill_arguments(self, known: argparse.Namespace, others: list[str]) -> None:
        """Move words after an option to the arguments without a value, which argparse takes for left out before it."""
        before = others.index("--") if "--" in others else len(others)  # words of which one may be an option
        del others[before : before + 1]
        for action in self._actions:
            is_left_out = action.nargs == "?" and getattr(known, action.dest) is action.default
            if is_left_out and not action.option_strings and others and (before < 1 or not _is_option(others[0])):
                try:
                    value = self._get_value(action, others.pop(0))
                    self._check_value(action, value)
                except argparse.ArgumentError as error:
                    self.error(str(error))
                setattr(known, action.dest, value)
                before -= 1

    def _refuse(self, others: list[str], known: argparse.Namespace) -> NoReturn:
        options = [word for word in others if _is_option(word)]
        flags = [word.partition("=")[0] for word in options]
        prompt = next((a.dest for a in self._actions if a.metavar == "PROMPT" and not a.option_strings), None)
        if prompt is not None and not flags and (first := getattr(known, prompt)):
            is_model = first == "bundled" or (Path(first) / "config.json").is_file()
            if len(others) == 1 and is_model and "-m" in self._option_string_actions:
                self.error(f"PROMPT: got 2 words, {first} and {others[0]!r}; did you mean -m {first}?")
            text = " ".join([first, *others]).replace('"', '\\"')
            self.error(f'PROMPT: got {1 + len(others)} words, expected one argument; put quotes around it: "{text}"')
        hints = dict.fromkeys(filter(None, map(self._hint, flags)))
        words = " ".join(options or others)  # a value may have become a PROMPT
        self.error(f"unrecognized arguments: {words}{''.join(hints)}")

    def _hint(self, flag: str) -> str:
        """Return a suggestion for an unknown option."""
        flag = flag.replace("_", "-")
        known = self._option_string_actions
        if "--" in self._typed and flag in self._typed[self._typed.index("--") :]:
            return "; options stand before --" if flag in known else ""
        if FLAGS_MEANT.get(flag, flag) == "--version":
            return "; did you mean refdiff --version?"
        if flag in ("-m", "--model") and any(a.metavar == "MODEL" and not a.option_strings for a in self._actions):
            return f"; MODEL stands alone: {re.sub(r' .OPTIONS.|[][]', '', self.format_usage().strip())}"
        if flag in known:
            return f"; did you mean {flag}?"
        if (meant := FLAGS_MEANT.get(flag)) in known:
            return f"; did you mean {meant}{', which leaves out the prompt' if flag == '--max-length' else ''}?"
        if name := next((n for n, p in build_parser().commands().items() if flag in p._option_string_actions), None):
            return f", an option of refdiff {name}"
        return did_you_mean(flag, known, show=str)

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        """Refuse an empty name, which would be the current folder."""
        if not text and action.type is None and action.choices is None:
            raise argparse.ArgumentError(action, "got nothing, expected a value")
        return super()._get_value(action, text)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            if self._typed[0].startswith("-"):
                self.error(f"{self._typed[0]}: options stand after the command: refdiff COMMAND {self._typed[0]}")
            if value in ("list", "ls", "models", "pull", "download", "serve", "rm", "ps"):
                raise argparse.ArgumentError(action, f"got {value!r}, expected a command{MODELS_COME_FROM}")
            meant = COMMANDS_MEANT.get(value)
            hint = did_you_mean(meant or value, [meant] if meant else choices, show="`refdiff {}`".format)
            if not hint or re.search(r"\s", value):
                text = " ".join(itertools.takewhile(lambda word: not word.startswith("-"), self._typed))
                hint = f'; to continue a text: refdiff generate "{text}"'
            raise argparse.ArgumentError(action, f"got {value!r}, expected a command{hint}")
        hint = did_you_mean(value, choices, show=str)
        raise argparse.ArgumentError(action, f"got {value!r}, expected one of {', '.join(choices)}{hint}")

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        if line.endswith(": expected one argument"):
            line += "; a value that begins with - stands right behind the option, as in --file=-a.txt"
        if needed := line.partition("the following arguments are required: ")[2]:
            line = f"{needed}: got none; for instance: {self.examples.strip().splitlines()[0]}"
        if match := re.match(r"argument (\S+): (.*)", line):
            line = f"{self._typed_spelling(match[1].split('/'))}: {match[2]}"
        if match := re.fullmatch(r"(-\w+): ignored explicit argument '(.*)'", line):
            word = f"{match[1]}{match[2]}"
            line = f"unrecognized arguments: {word}"
            if any(action.metavar == "PROMPT" for action in self._actions):
                line += f'; a PROMPT that begins with "-" stands after --: {self.prog} -- {word}'
        note(f"{self.prog}: error: {line}; see {self.prog} -h")
        self.exit(2)

    def _typed_spelling(self, names: Sequence[str]) -> str:
        """Return the spelling of an option on the command line."""
        action = self._option_string_actions.get(names[0])
        spellings = [*names, *(a for a in self.aliases if self._option_string_actions[a] is action)]
        words = [word.partition("=")[0] for word in self._typed]
        typed = [word for word in words if word in spellings]
        glued = [name for name in spellings if re.fullmatch(r"-\w", name) and any(w.startswith(name) for w in words)]
        return [*typed, *glued, names[-1]][0]


class _Formatter(argparse.HelpFormatter):
    """Formats help in two columns, at most 80 wide; an option's metavar follows its spellings once."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)
        self._width = min(self._width, 79)
        self._action_max_length = 26  # the same columns in every help

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrapper = textwrap.TextWrapper(width, indent, indent, break_on_hyphens=False)
        return "\n".join(wrapper.fill(line.strip()) for line in text.splitlines())

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_help_string(self, action: argparse.Action) -> str:
        """Return the help of an option, with its default last unless the text has it."""
        text, default = action.help or "", action.default
        if not action.option_strings or default is argparse.SUPPRESS or "(default: " in text:
            return text
        if action.nargs == 0:
            default = "off"
        shown = f"{default:g}" if isinstance(default, int | float) else default or "none"
        return f"{text} ({'required' if action.required else f'default: {shown}'})"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, action.dest.upper())}"


class _Print(argparse.Action):
    """Prints a text and exits. argparse's own actions ignore an output that cannot be written."""

    def __init__(self, option_strings: Sequence[str], text: Callable[[Parser], str], **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, 0, default=argparse.SUPPRESS, help=options.get("help"))
        self.text = text

    def __call__(self, parser: Any, *_: object) -> None:
        sys.stdout.write(self.text(parser))
        sys.stdout.flush()
        parser.exit()


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="refdiff", description="The Differential Transformer (DiffLlama) in pure NumPy.")
    parser.examples = """
refdiff generate "Once upon a time"
refdiff inspect kajuma/DiffLlama-0.3B-handcut
"""
    parser.add_argument(
        "--version", action=_Print, text=lambda _: f"refdiff {__version__}\n", help="show the version and exit"
    )
    parser.notes = [
        "`refdiff COMMAND -h` shows the main options of a command, `refdiff COMMAND --help` all of them.",
        "A file that a command writes replaces the one that was there, and only when it is complete. A folder that it "
        "writes must be new or empty; bench and golden also take an earlier one of their own, and train with --resume.",
        "Exit status: 0 done; 1 run-time failure; 2 wrong usage, or an input that is missing or broken; 130 after "
        "Ctrl-C; 141 when the reader of the output has closed it; 143 after SIGTERM. In check, golden, judge and "
        "trace, 1 means not passed, and 2 any error. In inspect, 1 means that the checkpoint has problems; in bench, "
        "that a row failed.",
        "Environment: REFDIFF_MODEL is the default model of generate, inspect and attention; OMP_NUM_THREADS the "
        "default of --threads; HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are those of huggingface_hub.",
        'Completion by the Tab key: pip install argcomplete, and add eval "$(register-python-argcomplete refdiff)" to '
        "~/.bashrc or ~/.zshrc.",
    ]
    commands: Any = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary).command = name
    return parser
