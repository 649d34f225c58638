"""The whole command line: every command, and the flags of the smaller ones."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from refdiff.cli.attention_flags import add_attention
from refdiff.cli.bench_flags import add_bench
from refdiff.cli.check_flags import add_check
from refdiff.cli.flags import add_common
from refdiff.cli.generate_flags import add_generate
from refdiff.cli.golden_flags import add_golden
from refdiff.cli.trace_flags import add_trace
from refdiff.cli.train_flags import add_train


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help opens with examples."""

    def __init__(self, *, examples: str, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})
        self._examples = examples

    def format_help(self) -> str:
        return f"{self._examples.strip()}\n\n{super().format_help()}"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what no flag of this command takes; argparse itself would leave that to the parser of all commands."""
        known, others = super().parse_known_args(args, namespace)
        if others:
            flags = [word.partition("=")[0] for word in others if word.startswith("-")]
            near = [n for flag in flags for n in difflib.get_close_matches(flag, self._option_string_actions, n=1)]
            hint = f" (did you mean {', '.join(near)}?)" if near else ""
            self.error(f"unrecognized arguments: {' '.join(others)}{hint}")
        return known, others

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {line}; see {self.prog} --help\n")


class _Version(argparse.Action):
    """Print the version; read only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from refdiff import __version__

        sys.stdout.write(f"refdiff {__version__}\n")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    examples = """
examples:
  refdiff generate -m kajuma/DiffLlama-0.3B-handcut "The capital of France is"
  refdiff inspect path/to/checkpoint
"""
    parser = _Parser(
        prog="refdiff",
        examples=examples,
        description="The Differential Transformer (DiffLlama) in pure NumPy.",
        epilog="`refdiff COMMAND --help` has each command's flags. Exit status: 0 done, 1 failed, 2 wrong usage (of "
        "check, golden and trace: 1 a verdict that is no pass, 2 trouble of any kind), 130 after Ctrl-C, 141 when the "
        "reader of the output has gone.",
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    add_generate(commands)
    _add_inspect(commands)
    add_attention(commands)
    add_trace(commands)
    add_golden(commands)
    _add_convert(commands)
    add_train(commands)
    add_check(commands)
    add_bench(commands)
    return parser


def _add_inspect(commands: Any) -> None:
    examples = """
examples:
  refdiff inspect path/to/checkpoint
  refdiff inspect --json kajuma/DiffLlama-0.3B-handcut
"""
    parser = commands.add_parser(
        "inspect",
        examples=examples,
        help="what is in a checkpoint",
        description="Show a checkpoint's config, parameters, files, λ by layer and the memory that it will need, "
        "without loading its weights.",
    )
    parser.add_argument("model", metavar="PATH_OR_REPO", help="a folder, or a hub repo id")
    parser.add_argument("--json", action="store_true", help="print one JSON object (default: off)")
    add_common(parser)


def _add_convert(commands: Any) -> None:
    examples = """
examples:
  refdiff convert kajuma/DiffLlama-0.3B-handcut path/to/new --to paper
  refdiff convert path/to/llama path/to/new --to v2
"""
    parser = commands.add_parser(
        "convert",
        examples=examples,
        help="the same function in another wiring",
        description="Rearrange a checkpoint's weights for another wiring of its heads, write them, and print how far "
        "the two are apart on random inputs. hf and paper go into each other, none (a Llama) into v2, and v2 into none "
        "where its λ depends on nothing. The rest has no exact answer and is refused. Weights in 16 bits are rounded "
        "again where they are multiplied; the second line printed says by how much that moves a layer, and more than "
        "rounding explains is an error.",
    )
    parser.add_argument("model", metavar="PATH_OR_REPO", help="a folder, or a hub repo id")
    parser.add_argument("output", metavar="OUTPUT", help="the folder to write, which must be new or empty")
    parser.add_argument(
        "--to",
        choices=("hf", "paper", "v2", "none"),
        required=True,
        help="hf = transformers' DiffLlama, paper = unilm's multihead_flashdiff_1.py, v2 = DIFF V2 (unilm's "
        "multihead_flashdiffv2.py), none = a Llama; what is written after self_attn. has the names of that module: "
        "out_proj in paper, o_proj in the others (required)",
    )
    parser.add_argument(
        "--eager",
        action="store_true",
        help="the weights were trained with unilm's multihead_diffattn.py, which pairs other keys where there are "
        "fewer keys than queries (default: off)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "float64", "float16", "bfloat16"),
        default="auto",
        help="the type to write; what is multiplied is rounded to it (default: auto = as stored)",
    )
    add_common(parser)
