"""`refdiff train`: a small model from a text file."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.cli.flags import UsageError
from refdiff.cli.pictures import check_file, write_picture
from refdiff.cli.terminal import note, one_line, size
from refdiff.cli.train_flags import SETTINGS, SIZES

if TYPE_CHECKING:
    from refdiff.model.config import DiffLlamaConfig
    from refdiff.training.settings import Settings
    from refdiff.training.train import Trainer


def run(args: argparse.Namespace) -> int:
    """Train, or go on training; prints the folder of the last checkpoint.

    Raises:
        UsageError: no text, flags that do not fit together, or a folder that has a run in it already.
        ImportError: --plot without matplotlib.
        ValueError: the text has too little in it.
        TrainingError: the loss is not finite.
        RuntimeError: the backend does not work, or another process trains in the folder.
        OSError: something cannot be read or written.
    """
    from refdiff import arrays
    from refdiff.training.lock import held

    arrays.backend(args.backend)  # before a folder is made for nothing
    plot = None if args.plot is None else Path(args.plot)
    if plot is not None:
        check_file("--plot", plot)
    out = Path(args.output)
    begin = _resumption(args) if args.resume else _beginning(args)
    with held(out) if out.is_dir() or not args.resume else nullcontext():
        trainer = begin(out)
        folder = _trained(trainer, plot, quiet=args.quiet)
    sys.stdout.write(f"{folder}\n")
    return 0


def _trained(trainer: Trainer, plot: Path | None, *, quiet: bool) -> Path:
    if trainer.threads:
        from threadpoolctl import threadpool_limits

        threadpool_limits(trainer.threads)
    if not quiet:
        model, corpus = trainer.model, trainer.corpus
        counts = ", ".join(f"{len(tokens):,} tokens for {part}" for part, tokens in corpus.tokens.items())
        note(f"{model.num_parameters():,} parameters; {counts}; step {trainer.step} of {trainer.settings.steps}")
    try:
        return _watched(trainer, plot, quiet=quiet)
    except KeyboardInterrupt:
        note(f"refdiff train: stopped at step {trainer.step}; --resume goes on from the last checkpoint")
        raise


def _resumption(args: argparse.Namespace) -> Callable[[Path], Trainer]:
    """Check the flags of --resume, and return how to go on in a folder."""
    from refdiff.training.settings import CHANGEABLE
    from refdiff.training.train import Trainer

    fixed = [flag for name, flag in args.given.items() if name not in (*CHANGEABLE, "threads")]
    if args.text is not None or fixed:
        others = ", ".join(fixed if args.text is None else ["TEXT", *fixed])
        raise UsageError(f"--resume goes on with the run's own text, model and course: leave {others} out")
    given = {name: getattr(args, name) for name in args.given}
    threads = given.pop("threads", None)
    return lambda out: Trainer.resume(out, changes=given, threads=threads, backend=args.backend)


def _beginning(args: argparse.Namespace) -> Callable[[Path], Trainer]:
    """Check the text and the flags, and return how to begin in a folder."""
    if args.text is None:
        raise UsageError("no text: name a UTF-8 file, or go on with --resume")
    text, out = Path(args.text), Path(args.output)
    if not text.is_file():
        raise UsageError(f"{text}: {_no_file(text)}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, but -o names the folder of the run: name another")
    try:
        config, settings = _config(args), _settings(args)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if args.backend == "numpy":
        _check_memory(config, settings, args.dtype, args.threads or None)
    return lambda out: _started(args, text, out, config, settings)


def _no_file(text: Path) -> str:
    if not text.exists():
        return "no such file"
    kind = "a folder" if text.is_dir() else "no file on a disk, and is read more than once"
    return f"this is {kind}: name a UTF-8 file"


def _check_memory(config: DiffLlamaConfig, settings: Settings, dtype: str, threads: int | None) -> None:
    from refdiff.training.memory import available, needed

    stays, passes = needed(config, settings, dtype, threads)
    there = available()
    if there is None:
        from refdiff.bench.machine import memory

        there = memory()
    if there is not None and stays + passes > there:
        raise UsageError(
            f"training would take {size(stays + passes)} of memory or more, but {size(there)} are free: {size(stays)} "
            "for weights, gradients and optimizer (--vocab-size, --hidden-size, --inner-size and --layers make that "
            f"less) and {size(passes)} for the tokens of a step (--batch and --context, or --accumulate)"
        )


def _started(args: argparse.Namespace, text: Path, out: Path, config: DiffLlamaConfig, settings: Settings) -> Trainer:
    from refdiff.training import checkpoint
    from refdiff.training.data import Corpus
    from refdiff.training.train import Trainer

    if checkpoint.checkpoints(out):
        raise UsageError(f"{out} has a run in it already: go on with --resume, or name another folder")
    for folder in _left(out, text):
        shutil.rmtree(folder, ignore_errors=True)
    corpus = Corpus.from_text(
        text,
        out / "corpus",
        vocab_size=config.vocab_size,
        validation=args.validation,
        progress=(lambda what: None) if args.quiet else note,
    )
    config.bos_token_id = config.eos_token_id = corpus.separator
    return Trainer.start(
        out, config, corpus, settings, dtype=args.dtype, threads=args.threads or None, backend=args.backend
    )


def _left(out: Path, text: Path) -> list[Path]:
    """Find what a run that ended before its first checkpoint left behind; what is not a run's is not written over."""
    from refdiff.training.data import is_corpus

    corpus, log, above = out / "corpus", out / "log.jsonl", text.resolve().parents
    if corpus.resolve() in above:
        raise UsageError(f"{text} is in {corpus}, where the run's tokens go: move the text, or name another folder")
    for path in (corpus, log):
        if path.is_symlink() or (path.exists() and not (path is corpus and is_corpus(corpus))):
            raise UsageError(f"{path} is there already, and not a run's: move it, or name another folder")
    halves = [path for path in out.glob(".corpus-*") if is_corpus(path, whole=False) and path.resolve() not in above]
    return [corpus, *halves]


def _settings(args: argparse.Namespace) -> Settings:
    from refdiff.training.settings import Settings

    names = (*SETTINGS, "optimizer", "schedule", "prompt")
    return Settings(**{name: getattr(args, name) for name in names})


def _config(args: argparse.Namespace) -> DiffLlamaConfig:
    """Put the config together: the file, or small sizes that fit together, and the flags over it."""
    from refdiff.model.config import DiffLlamaConfig

    given: dict[str, Any] = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    if args.config is not None:
        fields = DiffLlamaConfig.from_pretrained(args.config).to_dict()
        if args.context > (most := fields["max_position_embeddings"]):
            if (kind := fields["rope_parameters"]["rope_type"]) != "default":
                raise ValueError(
                    f"--context is {args.context}, but {args.config} has max_position_embeddings {most}, on which its "
                    f"rope_type {kind!r} depends: change it there, or take a shorter context"
                )
            fields["max_position_embeddings"] = args.context
        if args.wiring is not None:
            del fields["model_type"]
    else:
        fields = {name: default for name, (_, _, _, default) in SIZES.items() if isinstance(default, int)} | given
        width, heads = fields["hidden_size"], fields["num_attention_heads"]
        fields.setdefault("num_key_value_heads", heads)
        fields.setdefault("head_dim", max(width // heads, 1))
        fields.setdefault("intermediate_size", max(round(width * 8 / 3 / 8), 1) * 8)
        fields |= {"tie_word_embeddings": True, "max_position_embeddings": args.context}
    wiring = {} if args.wiring is None else {"wiring": args.wiring}
    return DiffLlamaConfig(**{**fields, **given, **wiring, "pad_token_id": None, "dtype": args.dtype})


def _watched(trainer: Trainer, plot: Path | None, *, quiet: bool) -> Path:
    """Run with a bar where somebody watches, and lines for what comes now and then."""
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty()
    with tqdm(total=trainer.settings.steps, initial=trainer.step, unit="step", file=sys.stderr, disable=hidden) as bar:

        def report(record: dict[str, Any]) -> None:
            bar.set_postfix_str(f"loss {record['loss']:.3f}, {record['tokens_per_second']:.0f} tok/s", refresh=False)
            bar.update()
            if not quiet:
                for line in _lines(record):
                    bar.write(line, file=sys.stderr)
            if plot is not None and "validation" in record:
                _draw(trainer.out, plot)

        if plot is not None and trainer.step == trainer.settings.steps:  # no record will come
            _draw(trainer.out, plot)
        return trainer.run(report)


def _draw(out: Path, plot: Path) -> None:
    """Draw what the log has by now; a picture that cannot be drawn or written is no reason to stop."""
    from refdiff.viz import plot_training

    try:
        write_picture(plot_training(out), plot)
    except (OSError, ValueError) as error:
        note(f"refdiff: warning: no picture: {one_line(error)}")


def _lines(record: dict[str, Any]) -> list[str]:
    """What a record says beyond its loss."""
    lines = []
    if "validation" in record:
        lines.append(
            f"step {record['step']}: loss {record['loss']:.4f}, validation {record['validation']:.4f} "
            f"({record['bits_per_byte']:.4f} bits per byte), {record['tokens_per_second']:.0f} tok/s"
        )
    if "sample" in record:
        lines.append(f"step {record['step']}: {record['sample']!r}")
    return lines
