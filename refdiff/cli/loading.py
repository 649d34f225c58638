"""Load the model, tokenizer and prompt of a command, with progress on a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from refdiff import bundled
from refdiff.checkpoint_files import CONFIG_FILES, TOKENIZER_FILES, WEIGHT_FILES, last_checkpoint
from refdiff.cli.flags import MAX_PROMPT, UsageError
from refdiff.cli.terminal import note, one_line, waiting
from refdiff.files import expand_home

_NO_PROMPT = (
    'PROMPT: got none, expected one; give it in quotes, "Once upon a time", with -f FILE or a pipe, or use --chat'
)


def load(args: argparse.Namespace, *, head: bool = True) -> tuple[Any, Any]:
    """Return (model, tokenizer) of `-m`, after downloading a hub repo; without `head`, the backbone of any checkpoint.

    Raises:
        UsageError: it is not there, or is not a checkpoint of a language model.
        CheckpointError: it is broken.
        RuntimeError: the backend does not work.
    """
    import refdiff
    from refdiff import arrays

    limit_threads(args.threads)
    arrays.backend(args.backend)  # before a download that would be for nothing
    folder = fetch(args.model, args)
    if head:
        refuse_other_heads(args.model, folder)
    tokenizer = refdiff.Tokenizer.from_pretrained(folder)
    with waiting("loading the model", quiet=args.quiet):
        model = (refdiff.DiffLlamaForCausalLM if head else refdiff.DiffLlamaModel).from_pretrained(
            folder,
            dtype=args.dtype,
            backend=args.backend,
            weights=args.weights,
            threads=args.threads or None,
            mmap=not args.no_mmap,
        )
    return model, tokenizer


def limit_threads(count: int | None) -> None:
    """Limit the threads of BLAS to --threads; 0 and None are no limit."""
    if count:
        from threadpoolctl import threadpool_limits

        threadpool_limits(count)


def fetch(name: str, args: argparse.Namespace, also: Sequence[str] = ()) -> Path:
    """Return the folder of a checkpoint, after downloading its files and those of `also` from the hub."""
    from refdiff import hub
    from refdiff.model.config import DiffLlamaConfig

    checkpoint, files = find_checkpoint(name, quiet=args.quiet), (*CONFIG_FILES, *WEIGHT_FILES, *TOKENIZER_FILES, *also)
    with waiting(f"asking the hub for {checkpoint}", quiet=args.quiet) as answered:
        return hub.snapshot(
            checkpoint,
            files=files,
            local_files_only=args.offline,
            progress=not args.quiet,
            answered=answered,
            check=DiffLlamaConfig.from_pretrained,
        )


def named_folder(name: str) -> Path | None:
    """Return the folder that a model's name means; None for the bundled model and a hub repo."""
    folder = expand_home(name)
    return folder if name != bundled.NAME and folder.is_dir() else None


def find_checkpoint(name: str, *, quiet: bool = False) -> str:
    """Return the last checkpoint of a training run's folder, and print which; return any other name unchanged."""
    folder = named_folder(name)
    if folder is None or (folder / "config.json").exists():
        return name

    if (last := last_checkpoint(folder)) != folder:
        if not quiet:
            note(f"refdiff: {name}: a training run; using its last checkpoint, {last.name}")
        return str(last)
    holds = "it is empty" if not any(folder.iterdir()) else "it has no config.json"
    raise UsageError(f"{name}: not a checkpoint: {holds}; name the folder of a model, or a run of refdiff train")


def refuse_other_heads(name: str, folder: Path) -> None:
    """Raise `UsageError` for a checkpoint without a language model's head; the message has its class."""
    from refdiff.model.config import DiffLlamaConfig
    from refdiff.model.weights import architecture_of

    architecture = architecture_of(DiffLlamaConfig.from_pretrained(folder))
    if architecture not in ("DiffLlamaModel", "DiffLlamaForCausalLM"):
        raise UsageError(
            f"{name}: a {architecture}, which has no language model's head; load it in Python, with "
            f"refdiff.{architecture}"
        )


def check_prompt(args: argparse.Namespace, others: Mapping[str, Any] | None = None) -> None:
    """Raise `UsageError` for several prompts, or for none on a terminal; `others` are options that give prompts too."""
    prompts = {"PROMPT": args.prompt, "-p": args.prompt_flag, "-f": args.file, **(others or {})}
    named = [name for name, value in prompts.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)}: got {len(named)} prompts, expected one; leave one out")
    if not named and sys.stdin.isatty():
        raise UsageError(_NO_PROMPT)


def read_prompt(args: argparse.Namespace) -> str:
    """Return the text of the prompt, without one newline at the end of a file or a pipe.

    Standard input that is not a terminal is the prompt where none is typed, and is appended to one that is;
    a shell's loop over a file loses its lines to that, so it is said.
    """
    typed = args.prompt_flag if args.prompt_flag is not None else args.prompt
    if args.file not in (None, "-"):
        with open_input("-f", args.file) as file:
            return _text(file, f"-f {args.file}")
    if typed not in (None, "-"):
        piped = "" if sys.stdin.isatty() else _piped()
        if piped:
            note("refdiff: standard input is appended to the prompt; < /dev/null leaves it out")
        return f"{typed}\n{piped}" if piped else str(typed)
    if sys.stdin.isatty():
        note("refdiff: reading the prompt from the terminal; end it with Ctrl-D")
    piped = _piped()
    if not piped and args.file is None and typed is None:
        raise UsageError(_NO_PROMPT)
    return piped


def open_input(flag: str, name: str) -> BinaryIO:
    """Open a file that an option names; raise `UsageError` if it cannot be read."""
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise UsageError(f"{flag} {one_line(error)}") from None


def _piped() -> str:
    try:
        return _text(sys.stdin.buffer, "standard input")
    except OSError:  # a background job may not read the terminal
        return ""


def _text(file: BinaryIO, name: str) -> str:
    raw = file.read(MAX_PROMPT + 1)
    if len(raw) > MAX_PROMPT:
        raise UsageError(f"{name}: longer than {MAX_PROMPT:,} bytes, the most that a prompt may have; shorten it")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}; convert it, for instance with iconv") from None
    return text.removesuffix("\n").removesuffix("\r")
