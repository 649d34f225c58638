"""`refdiff help`: the help of all commands, or of one."""

from __future__ import annotations

import argparse
import sys

from refdiff.cli.parser import COMMANDS, Parser, build_parser


def add_arguments(parser: Parser) -> None:
    parser.description = "Show the help of a command, or the list of all commands."
    parser.examples = "refdiff help\nrefdiff help generate"
    parser.add_argument(
        "about", nargs="?", metavar="COMMAND", choices=tuple(COMMANDS), help="a command (default: the list)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the help."""
    parser = build_parser()
    sys.stdout.write((parser.commands()[args.about] if args.about else parser).format_help())
    return 0
