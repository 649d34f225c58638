"""The command line: `refdiff <command>`; each command's module is imported when the command is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from refdiff.cli.flags import UsageError, in_flags
from refdiff.cli.options import build_parser
from refdiff.cli.terminal import discard_output, interrupted, note, one_line, text_is_utf8, warnings_in_one_line

EXIT_RUN_TIME, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
VERDICTS = ("check", "golden", "trace")
"""Commands whose exit status 1 is an answer, as that of diff and grep: whatever goes wrong there is 2."""
EXIT_CLOSED_PIPE = 141  # 128 + SIGPIPE, as the shell reports any other program that wrote into a closed pipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 run time, 2 usage, 130 after Ctrl-C, 141 for a closed pipe.

    Of a command that gives a verdict, 1 is the verdict and 2 is trouble of any kind.
    """
    args = build_parser().parse_args(argv)
    text_is_utf8()
    try:
        with warnings_in_one_line():
            status: int = importlib.import_module(f"refdiff.cli.{args.command}").run(args)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        interrupted()
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return EXIT_CLOSED_PIPE
    except UsageError as error:
        if args.debug:
            raise
        note(f"refdiff {args.command}: error: {one_line(error)}")
        return EXIT_USAGE
    except Exception as error:
        if args.debug:
            raise
        note(f"refdiff {args.command}: error: {in_flags(one_line(error))}")
        discard_output()
        return EXIT_USAGE if args.command in VERDICTS else EXIT_RUN_TIME
