"""The prompt of a command: an argument, a flag, a file, or standard input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refdiff.cli.flags import UsageError


def add_prompt(group: Any) -> None:
    """Add PROMPT, -p and -f."""
    group.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the prompt; - reads standard input (default: none, one is needed)"
    )
    group.add_argument(
        "-p", "--prompt", dest="prompt_flag", metavar="PROMPT", help="the same, as a flag (default: none)"
    )
    group.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="read the prompt from a UTF-8 file; one newline at its end is dropped (default: none)",
    )


def check_prompt(args: argparse.Namespace, others: Mapping[str, Any] | None = None) -> None:
    """Refuse no prompt, and more than one; `others` are flags of this command that give prompts too.

    Raises:
        UsageError: names them.
    """
    given = {"PROMPT": args.prompt, "-p": args.prompt_flag, "-f": args.file, **(others or {})}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} each give the prompt; use one of them")
    if not named:
        raise UsageError("no prompt: give it as an argument, with -p TEXT, with -f FILE, or - for standard input")


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt's text, from where the flags say; one newline at the end of a file or of standard input is dropped."""
    if args.prompt_flag is not None:
        return str(args.prompt_flag)
    if args.prompt not in (None, "-"):
        return str(args.prompt)
    name = "standard input" if args.prompt == "-" or args.file == "-" else args.file
    raw = sys.stdin.buffer.read() if name == "standard input" else Path(args.file).read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}; convert it, for instance with iconv") from None
    return text.removesuffix("\n").removesuffix("\r")
