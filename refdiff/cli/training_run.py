"""The folder of a training run: what an earlier run left in it, and the options that are not those of its run."""

from __future__ import annotations

import argparse
from pathlib import Path

from refdiff.cli.flags import UsageError


def differing_options(args: argparse.Namespace, out: Path, names: list[str]) -> list[str]:
    """The options that say of a run what it is not, or what it does not tell."""
    from refdiff.model.config import DiffLlamaConfig
    from refdiff.training import checkpoint
    from refdiff.training.data import Corpus
    from refdiff.training.documents import split_at

    folder, about = checkpoint.latest(out)
    config, source = DiffLlamaConfig.from_pretrained(folder), Corpus(out / "corpus").source
    run = {**vars(config), **about.get("settings", {}), "wiring": config.wiring}
    others = []
    if args.text is not None:
        text = Path(args.text)
        if not text.is_file() or text.stat().st_size != source.get("bytes"):
            others.append("TEXT")
        elif split_at(text, args.validation) == source.get("validation_from_byte"):
            run["validation"] = args.validation
    return others + [args.given[name] for name in names if getattr(args, name) != run.get(name)]


def leftovers(out: Path, text: Path) -> list[Path]:
    """Find what a run that ended before its first checkpoint left behind; what is not a run's is not written over."""
    from refdiff.training import lock
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
    others = sorted(path.name for path in out.iterdir() if path.name != lock.NAME)
    if others and not (corpus.exists() or halves):
        raise UsageError(f"-o {out}: got a folder with {others[0]} in it, expected a new or empty one, or a run's")
    return [corpus, *halves]


def _is_log(path: Path) -> bool:
    from refdiff.training.checkpoint import read_log

    try:
        return bool(read_log(path))
    except ValueError:
        return False
