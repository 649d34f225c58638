"""The command line: `refdiff <command>`; each command is one module, with `add_arguments(parser)` and `run(args)`."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from refdiff import bundled
from refdiff.cli.flags import UsageError
from refdiff.cli.parser import build_parser
from refdiff.cli.process import discard_output, exit_on_signals, open_streams, silence_panics, warnings_in_one_line
from refdiff.cli.terminal import format_error, name_flags, note
from refdiff.errors import CheckpointError
from refdiff.messages import did_you_mean

EXIT_RUN_TIME, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
EXIT_CLOSED_PIPE = 141  # 128 + SIGPIPE, as the shell reports any other program that wrote into a closed pipe
VERDICTS = ("check", "golden", "judge", "trace")
"""Commands whose exit status 1 is an answer, as that of diff and grep: any error of theirs is 2."""
_INPUTS = (UsageError, CheckpointError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0 done; 1 run-time failure, or a verdict of "not passed"; 2 wrong usage, or an input that is missing or broken;
    130 after Ctrl-C; 141 when the reader of the output has closed it; 143 after SIGTERM.
    """
    open_streams()
    with exit_on_signals():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    args = argparse.Namespace(command=None)
    try:
        return _run_command(argv, args)
    except BrokenPipeError:
        discard_output()
        return EXIT_CLOSED_PIPE
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        if isinstance(error, KeyboardInterrupt):
            discard_output()
            note("refdiff: interrupted")
            return EXIT_INTERRUPTED
        if getattr(args, "debug", False):
            raise
        _print_error(error, args)
        return EXIT_USAGE if isinstance(error, _INPUTS) else _failure(args.command)


def _run_command(argv: Sequence[str] | None, args: argparse.Namespace) -> int:
    """Parse the arguments into `args`, and return the exit status of their command."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may follow what was typed
        import argcomplete

        parser.commands()
        argcomplete.autocomplete(parser)
    parser.parse_args(argv, args)
    if args.command is None:
        sys.stdout.write(parser.format_brief())
        sys.stdout.flush()
        return 0
    with warnings_in_one_line(), silence_panics():
        status: int = importlib.import_module(f"refdiff.cli.{args.command}").run(args)
        sys.stdout.flush()
        return status


def _failure(command: str | None) -> int:
    """Return the exit status of a command that fails."""
    return EXIT_USAGE if command in VERDICTS else EXIT_RUN_TIME


def _print_error(error: BaseException, args: argparse.Namespace) -> None:
    """Print an error, with the command, the stream that could not be written, and where the model was named."""
    message = name_flags(format_error(error))
    is_written = discard_output()  # true of a long text too, which Python does not keep after the error
    if isinstance(error, OSError) and error.errno and not error.filename and not is_written:
        message = f"standard output: {message}"
    elif isinstance(error, OSError) and not error.filename and error.errno == errno.ENOSPC:
        message = f"standard output or a temporary file: {message}"
    if "no such folder" in message:
        from refdiff.files import expand_home

        named = getattr(args, "model", None) or getattr(args, "of", None) or ""
        message += did_you_mean(named, _models_beside(expand_home(named)), show=str)
    model = os.environ.get("REFDIFF_MODEL")
    if model and getattr(args, "model", None) == model and message.startswith((f"{model}: ", f"{Path(model)}: ")):
        message += "; the model is that of REFDIFF_MODEL"
    command = f"refdiff {args.command}" if args.command else "refdiff"
    note(f"{command}: error: {message}")


def _models_beside(folder: Path) -> list[str]:
    """Return the names that may have been meant by a folder that is not there."""
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    return [bundled.NAME, *(str(path) for path in beside if path.is_dir())]
