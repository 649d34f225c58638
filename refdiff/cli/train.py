"""`refdiff train`: train a small model on a text file."""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.cli.flags import Number, UsageError, add_backend, add_common, add_dtype, add_threads, utf8_text
from refdiff.cli.loading import limit_threads
from refdiff.cli.output_files import check_folder
from refdiff.cli.parser import Parser
from refdiff.cli.process import handle_signals
from refdiff.cli.terminal import minutely, note, progress_bar, write_text
from refdiff.errors import CheckpointError
from refdiff.messages import printable
from refdiff.model.variants import VARIANTS, current_name

if TYPE_CHECKING:
    from refdiff.model.config import DiffLlamaConfig
    from refdiff.training.settings import Settings
    from refdiff.training.train import Trainer

_COUNT, _POSITIVE = Number(int, 1), Number(float, 0, above=True)
_NOW_AND_THEN = Number(int, 0, off="0 = only at the end")
MODEL_SIZES: dict[str, tuple[tuple[str, ...], Number, str, int | float | str]] = {
    "vocab_size": (("--vocab-size",), Number(int, 257), "tokens of the vocabulary", 2048),
    "hidden_size": (("--hidden-size",), _COUNT, "width of the hidden states", 192),
    "num_hidden_layers": (("--layers", "--num-hidden-layers"), _COUNT, "layers", 6),
    "num_attention_heads": (("--heads", "--num-attention-heads"), _COUNT, "query heads", 6),
    "num_key_value_heads": (("--kv-heads", "--num-key-value-heads"), _COUNT, "key/value heads", "query heads"),
    "head_dim": (("--head-dim",), _COUNT, "width of a head", "hidden size / heads"),
    "intermediate_size": (("--intermediate-size", "--inner-size"), _COUNT, "width of the MLP", "8/3 hidden size"),
}
"""Fields of the config: option and other spellings, limits, help, default."""

SETTINGS: dict[str, tuple[tuple[str, ...], Number, str, int | float | str]] = {
    "max_steps": (("--max-steps", "--steps"), _COUNT, "number of steps", 1000),
    "batch_size": (("--batch-size", "--batch"), _COUNT, "sequences in a step", 16),
    "context": (("--context",), Number(int, 2), "tokens in a sequence", 256),
    "accumulate": (("--accumulate", "--gradient-accumulation-steps"), _COUNT, "micro-batches in a step", 1),
    "learning_rate": (("--learning-rate", "--lr", "--rate"), _POSITIVE, "peak learning rate", 1e-3),
    "warmup_steps": (("--warmup-steps", "--warmup"), Number(int, 0, off="0 = off"), "linear warm-up, 0 = off", 50),
    "weight_decay": (("--weight-decay", "--decay"), Number(float, 0, off="0 = off"), "decay of matrices, 0 = off", 0.1),
    "grad_clip": (("--grad-clip", "--clip"), _POSITIVE, "largest gradient norm", 1.0),
    "seed": (("--seed", "-s"), Number(int, 0), "seed of weights, order and samples", 0),
    "evaluate_every": (("--evaluate-every",), _NOW_AND_THEN, "steps between validations", 200),
    "save_every": (("--save-every",), _NOW_AND_THEN, "steps between checkpoints", 200),
    "sample_every": (("--sample-every",), _NOW_AND_THEN, "steps between samples", 200),
}
"""Fields of `refdiff.training.settings.Settings`: option and other spellings, limits, help, default."""
_FOLLOWS = {"num_key_value_heads": "num_attention_heads", "head_dim": "num_attention_heads"}
"""Fields that are computed from another one where they are not given."""
SHOWN = ("--lr",)
"""Other spellings that the help shows beside the option."""


class _Noted(argparse.Action):
    """Stores a value, and in `given` the option that was typed; a default is not in `given`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = {**namespace.given, self.dest: option}


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Train a small DiffLlama, or a plain Llama to compare it with, on a UTF-8 text. Checkpoints are model folders, "
        "OUTPUT/step-…, which every command takes; OUTPUT/log.jsonl has a line per step. Ctrl-C saves a checkpoint. "
        "A resumed run ends with the weights of one that never stopped. The folder of the last checkpoint goes to "
        "standard output."
    )
    parser.examples = """
refdiff train tales.txt -o run --max-steps 2000
refdiff train -o run --resume
"""
    parser.brief = ("-o", "--resume", "--config", "--variant", "--vocab-size", "--hidden-size", "--layers", "--heads")
    parser.brief += ("--max-steps", "--batch-size", "--context", "--learning-rate", "--save-every", "--keep")
    parser.brief += ("--prompt",)
    parser.set_defaults(given={}, restarted=False)

    def add(group: Any, field: str, spellings: tuple[str, ...], limits: Number, text: str, default: Any) -> None:
        shown = [s for s in spellings if s == spellings[0] or s in SHOWN]
        if group is model:  # None tells `_config` that nothing was given
            text, default = f"{text} (default: {default})", None
        own: dict[str, Any] = {"dest": field, "type": limits, "default": default, "help": text}
        action = group.add_argument(*shown, action=_Noted, metavar="N", **own)
        parser.add_alias(action, *(s for s in spellings if s not in shown))

    parser.add_argument("text", nargs="?", metavar="TEXT", help="a UTF-8 file")
    parser.add_argument("-o", "--output", metavar="OUTPUT", required=True, help="folder, new or empty, or a run")
    parser.add_argument("--resume", action="store_true", help="resume OUTPUT's last checkpoint")
    share: dict[str, Any] = {"type": Number(float, 0, 0.5, above=True), "default": 0.02, "metavar": "SHARE"}
    parser.add_argument("--validation", action=_Noted, help="share of the text held out", **share)
    model = parser.add_argument_group("model")
    model.add_argument("--config", action=_Noted, metavar="FILE", help="a config.json to start from")
    names: dict[str, Any] = {"type": current_name, "choices": [*VARIANTS], "metavar": "VARIANT"}
    text = f"{', '.join(VARIANTS)} (default: hf)"
    parser.add_alias(model.add_argument("--variant", action=_Noted, help=text, **names), "--wiring")
    for field, entry in MODEL_SIZES.items():
        add(model, field, *entry)
    course = parser.add_argument_group("training")
    for name, text, *choices in (
        ("optimizer", "adamw or muon", "adamw", "muon"),
        ("schedule", "cosine or constant learning rate", "cosine", "constant"),
    ):
        given: dict[str, Any] = {"choices": choices, "default": choices[0]}
        course.add_argument(f"--{name}", action=_Noted, metavar="NAME", help=text, **given)
    for field, entry in SETTINGS.items():
        add(course, field, *entry)
    course.add_argument("--keep", type=_COUNT, default=2, metavar="N", help="number of last checkpoints to keep")
    prompt: dict[str, Any] = {"type": utf8_text, "default": "", "metavar": "TEXT"}
    course.add_argument("--prompt", action=_Noted, help="start of the samples", **prompt)
    machine = parser.add_argument_group("machine")
    add_backend(machine)
    add_dtype(machine, ("float32", "float64"), "float32 or float64", action=_Noted)
    add_threads(machine, action=_Noted)
    add_common(machine, offline=False)
    parser.notes = [
        "TEXT may be larger than memory; <|endoftext|> on a line of its own separates documents. The tokenizer learns "
        "from its first 16 MB. A text of a few kilobytes is enough: it needs --context tokens. "
        "Where the tokenizer learns fewer than 2048 tokens from it, the default of --vocab-size is that number.",
        "--resume keeps the run's text, model and settings, which may be typed again; --max-steps, --learning-rate, "
        "--warmup-steps, --grad-clip, --prompt, --keep and --…-every may change. Without --threads it uses as many as "
        "before; another number rounds differently.",
        "--keep 2 keeps the last two checkpoints and deletes older ones. --…-every 0 means at the end only. "
        "--validation 0.05 measures the loss on the last 5 % of the text, which are not trained on. With --optimizer "
        "muon, Muon trains the layers' matrices and AdamW the rest. --config takes a config.json, or a model: a "
        "folder, bundled or a hub repo. Options override it. --plot needs matplotlib.",
    ]


def run(args: argparse.Namespace) -> int:
    """Train, or resume a run, and print the folder of the last checkpoint."""
    from refdiff import arrays
    from refdiff.training.checkpoint import locked, note_command, noted_command

    arrays.backend(args.backend)  # before a folder is made for nothing
    out = Path(args.output)
    if args.resume and (command := noted_command(out)):
        args = _started_again(args, command)
    with ExitStack() as stack:
        with _name_options_in_errors(args):
            made = None if args.resume else _config_and_settings(args, out)
            if made is not None or out.is_dir():
                stack.enter_context(locked(out))
            if made is not None:
                note_command(out, [str(Path(args.text).absolute()), *_typed(args)])
            trainer = _resume(args, out) if made is None else _start(args, out, *made)
        trainer.keep = args.keep
        with _remove_corpus_on_failure(out), _stop_request() as stop:
            folder = _train(trainer, stop, quiet=args.quiet)
    write_text(f"{folder}\n")
    if trainer.step < trainer.settings.max_steps:
        note(f"refdiff train: stopped at step {trainer.step}; refdiff train -o {out} --resume continues there")
        raise KeyboardInterrupt
    return 0


def _typed(args: argparse.Namespace) -> list[str]:
    """Return the options that were typed and that decide the weights."""
    return [f"{option}{'=' * option.startswith('--')}{getattr(args, name)}" for name, option in args.given.items()]


def _started_again(args: argparse.Namespace, command: list[str]) -> argparse.Namespace:
    """Return the arguments that start a run again which was killed before its first checkpoint."""
    from refdiff.cli.parser import build_parser

    note(f"refdiff train: {args.output}: the run was killed before its first checkpoint; it starts again")
    options = [*command[1:], *_typed(args), f"--output={args.output}"]
    again = build_parser().parse_args(["train", args.text or command[0], *options])
    others = {name: getattr(args, name) for name in ("keep", "backend", "quiet", "debug")}
    return argparse.Namespace(**{**vars(again), **others, "restarted": True})


@contextmanager
def _name_options_in_errors(args: argparse.Namespace) -> Iterator[None]:
    """Replace each field that an error names by the option that was typed."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        said = str(error)
        for field, (spellings, *_) in (MODEL_SIZES | SETTINGS).items():
            leading = args.given.get(_FOLLOWS.get(field, "")) if args.config is None else None
            of = "" if args.config is None or field not in MODEL_SIZES else f" (of {args.config})"
            typed = args.given.get(field) or leading or spellings[0] + of
            said = re.sub(rf"(?<![\w-]){field}(?=: got | -?\d)", typed, said)
        raise (CheckpointError if isinstance(error, CheckpointError) else UsageError)(said) from error


@contextmanager
def _remove_corpus_on_failure(out: Path) -> Iterator[None]:
    """Delete the corpus of a run that fails before its first checkpoint, so that it can be started anew."""
    from refdiff.checkpoint_files import checkpoints

    try:
        yield
    except BaseException:
        if not checkpoints(out):
            shutil.rmtree(out / "corpus", ignore_errors=True)
        raise


@contextmanager
def _stop_request() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed; a second Ctrl-C stops at once."""
    asked: list[bool] = []

    def ask(*_: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        start = b"\r\x1b[K" if os.isatty(2) else b"\n"  # in place of the bar
        os.write(2, start + b"refdiff train: saving a checkpoint after this step; Ctrl-C again stops without\n")

    with handle_signals(ask, "SIGINT"):
        yield lambda: bool(asked)


def _train(trainer: Trainer, stop: Callable[[], bool], *, quiet: bool) -> Path:
    limit_threads(trainer.threads)
    if trainer.step == (last := trainer.settings.max_steps):
        note(f"refdiff train: the run is at step {last} of {last} already; raise --max-steps to continue it")
    elif not quiet:
        model, corpus = trainer.model, trainer.corpus
        train, held_out = (f"{len(corpus.tokens[part]):,}" for part in ("train", "validation"))
        tokens = f"{train} tokens to train on, {held_out} held out"
        note(f"{model.num_parameters():,} parameters; {tokens}; step {trainer.step} of {last}")
    try:
        return _run_with_progress(trainer, stop, quiet=quiet)
    except KeyboardInterrupt:
        from refdiff.checkpoint_files import checkpoints

        saved = checkpoints(trainer.out)
        then = f"--resume continues at step {saved[-1][0]}" if saved else "nothing was written"
        note(f"refdiff train: stopped at step {trainer.step}; {then}")
        raise


def _resume(args: argparse.Namespace, out: Path) -> Trainer:
    """Resume a run with the options that may change; others must have their old values."""
    from refdiff.training import checkpoint
    from refdiff.training.settings import CHANGEABLE
    from refdiff.training.train import Trainer

    checkpoint.recover(out)
    changes = {name: getattr(args, name) for name in args.given if name in CHANGEABLE}
    fixed = [name for name in args.given if name not in (*CHANGEABLE, "threads")]
    if (args.text is not None or fixed) and (others := _differing_options(args, out, fixed)):
        raise UsageError(f"--resume: keeps the run's own text, model and settings; leave out {', '.join(others)}")
    threads = args.threads if "threads" in args.given else None
    return Trainer._resume(out, changes, threads, args.backend, None)  # `run` has locked the folder


def _config_and_settings(args: argparse.Namespace, out: Path) -> tuple[DiffLlamaConfig, Settings]:
    """Check the text and the options before any file is created."""
    from refdiff.training.settings import Settings

    if args.text is None:
        piped = "" if sys.stdin.isatty() else "; standard input is not read"
        raise UsageError(f"TEXT: got none, expected a UTF-8 file; or continue a run with --resume{piped}")
    text = Path(args.text)
    if not text.is_file():
        raise UsageError(f"TEXT {args.text}: {_no_file(args.text, text)}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {out}: got a file, expected the folder of the run; name another")
    check_folder("-o", out)
    config = _config(args)
    settings = Settings(**{name: getattr(args, name) for name in (*SETTINGS, "optimizer", "schedule", "prompt")})
    return config, settings


def _no_file(name: str, text: Path) -> str:
    if name == "-":
        return "got standard input, expected a UTF-8 file, which is read twice"
    if "://" in name:
        return "got a URL, expected a UTF-8 file; download it first"
    if not text.exists():
        return "no such file"
    kind = "a folder" if text.is_dir() else "a device or a pipe, which cannot be read twice"
    return f"got {kind}, expected a UTF-8 file"


def _start(args: argparse.Namespace, out: Path, config: DiffLlamaConfig, settings: Settings) -> Trainer:
    from refdiff.checkpoint_files import checkpoints
    from refdiff.training.data import Corpus
    from refdiff.training.train import Trainer

    if checkpoints(out):
        raise UsageError(f"-o {out}: has a run already; continue it with --resume, or name another folder")
    if args.restarted:
        (out / "log.jsonl").unlink(missing_ok=True)
    for folder in _leftovers(out, Path(args.text)):
        shutil.rmtree(folder, ignore_errors=True)
    corpus = Corpus.from_text(
        Path(args.text),
        out / "corpus",
        vocab_size=config.vocab_size,
        exact=args.vocab_size is not None or args.config is not None,
        validation=args.validation,
        progress=(lambda what: None) if args.quiet else note,
    )
    config.vocab_size = corpus.vocab_size
    config.bos_token_id = config.eos_token_id = corpus.separator
    with _remove_corpus_on_failure(out):
        return Trainer.start(
            out, config, corpus, settings, dtype=args.dtype, threads=args.threads or None, backend=args.backend
        )


def _config(args: argparse.Namespace) -> DiffLlamaConfig:
    """Return the config: that of the file, or small sizes that fit together, overridden by the options."""
    from refdiff.model.config import DiffLlamaConfig

    given = {name: x for name in (*MODEL_SIZES, "variant") if (x := getattr(args, name)) is not None}
    fields = _small_sizes(args, given) if args.config is None else _fields_of_file(args)
    return DiffLlamaConfig(**{**fields, **given, "pad_token_id": None, "dtype": args.dtype})


def _fields_of_file(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of --config, for the positions of --context and without the variant that --variant replaces."""
    from refdiff.model.config import DiffLlamaConfig

    if args.config.endswith(".json") and not Path(args.config).is_file():  # not the name of a hub repo
        raise UsageError(f"--config {args.config}: no such file")
    try:
        fields = DiffLlamaConfig.from_pretrained(args.config).to_dict()
    except CheckpointError as error:
        raise CheckpointError(f"--config {error}") from error
    if args.context > (most := fields["max_position_embeddings"]):
        if (kind := fields["rope_parameters"]["rope_type"]) != "default":
            raise ValueError(
                f"--context: got {args.context}, expected at most {most}, the max_position_embeddings of "
                f"{args.config}, on which its rope_type {kind!r} depends; change it there, or shorten the context"
            )
        fields["max_position_embeddings"] = args.context
    if args.variant is not None:
        del fields["model_type"]
    return fields


def _small_sizes(args: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """Return the given sizes, and for the others small ones that fit."""
    fields = {name: default for name, (_, _, _, default) in MODEL_SIZES.items() if isinstance(default, int)} | given
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if "head_dim" not in given and width % (multiple := heads * (2 - heads % 2)):
        typed = ", ".join(filter(None, map(args.given.get, ("hidden_size", "num_attention_heads"))))
        raise UsageError(
            f"{typed}: got a width of {width} and {heads} heads, expected a multiple of {multiple} for the width; "
            "change it or --heads, or add --head-dim"
        )
    fields.setdefault("num_key_value_heads", heads)
    fields.setdefault("head_dim", max(width // heads, 1))
    fields.setdefault("intermediate_size", max(round(width * 8 / 3 / 8), 1) * 8)
    return {**fields, "tie_word_embeddings": True, "max_position_embeddings": args.context}


def _run_with_progress(trainer: Trainer, stop: Callable[[], bool], *, quiet: bool) -> Path:
    """Train with a progress bar on a terminal, and a line for each validation and sample."""
    steps, first = trainer.settings.max_steps, trainer.step
    started, due = time.monotonic(), minutely()
    with progress_bar(quiet=quiet or first == steps, total=steps, initial=first, unit="step") as bar:

        def report(record: dict[str, Any]) -> None:
            speed = f"loss {record['loss']:.3f}, {record['tokens_per_second']:.0f} tok/s"
            bar.set_postfix_str(speed, refresh=False)
            bar.update()
            lines = _lines(record)
            if bar.disable and due() and not lines:
                left = (time.monotonic() - started) / (record["step"] - first) * (steps - record["step"])
                lines = [f"step {record['step']} of {steps}: {speed}, {math.ceil(left / 60)} min left"]
            for line in [] if quiet else lines:
                bar.write(line, file=sys.stderr)

        return trainer._run(report, stop)  # the folder is locked


def _lines(record: dict[str, Any]) -> list[str]:
    """Return the lines of a record beyond its loss."""
    lines = []
    if "validation" in record:
        lines.append(
            f"step {record['step']}: loss {record['loss']:.4f}, validation {record['validation']:.4f} "
            f"({record['bits_per_byte']:.4f} bits per byte), {record['tokens_per_second']:.0f} tok/s"
        )
    if "sample" in record:
        text = printable(" ".join(record["sample"].split()))
        lines += textwrap.wrap(f"sample: {text}", 79, initial_indent="  ", subsequent_indent="    ")
    return lines


def _differing_options(args: argparse.Namespace, out: Path, names: list[str]) -> list[str]:
    """Return the typed options that differ from the run's."""
    from refdiff.model.config import DiffLlamaConfig
    from refdiff.training import checkpoint
    from refdiff.training.data import Corpus
    from refdiff.training.documents import split_at
    from refdiff.training.settings import current_names

    folder, about = checkpoint.latest(out)
    config, source = DiffLlamaConfig.from_pretrained(folder), Corpus(out / "corpus").source
    run = {**vars(config), **current_names(about.get("settings", {})), "variant": config.variant}
    others = []
    if args.text is not None:
        text = Path(args.text)
        if not text.is_file() or text.stat().st_size != source.get("bytes"):
            others.append("TEXT")
        elif split_at(text, args.validation) == source.get("validation_from_byte"):
            run["validation"] = args.validation
    return others + [args.given[name] for name in names if getattr(args, name) != run.get(name)]


def _leftovers(out: Path, text: Path) -> list[Path]:
    """Return the leftovers of a run without a checkpoint; raise `UsageError` for files that are not a run's."""
    from refdiff.training import checkpoint
    from refdiff.training.data import is_corpus

    corpus, log, above = out / "corpus", out / "log.jsonl", text.resolve().parents
    if corpus.resolve() in above:
        raise UsageError(
            f"TEXT {text}: lies in {corpus}, where the run's tokens go; move it, or name another folder with -o"
        )
    if log.is_file() and _is_log(log):
        raise UsageError(
            f"-o {out}: {log} is of a run without checkpoints; delete it to train anew, or name another folder"
        )
    for path in (corpus, log):
        if path.is_symlink() or (path.exists() and not (path is corpus and is_corpus(corpus))):
            raise UsageError(f"-o {out}: {path} exists and is not a run's; move it, or name another folder")
    halves = [path for path in out.glob(".corpus-*") if is_corpus(path, whole=False) and path.resolve() not in above]
    others = sorted(path.name for path in out.iterdir() if path.name != checkpoint.LOCK)
    if others and not (corpus.exists() or halves):
        raise UsageError(f"-o {out}: got a folder with {others[0]} in it, expected a new or empty one, or a run's")
    return [corpus, *halves]


def _is_log(path: Path) -> bool:
    from refdiff.training.checkpoint import read_log

    try:
        return bool(read_log(path))
    except ValueError:
        return False
