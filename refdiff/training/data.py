"""A text file → tokens on disk → packed batches, in a seeded order.

A corpus is a folder with the tokenizer, and with the tokens of the training and the validation part, each as one flat,
memory-mapped file. The separator's token precedes each document and follows the last:

    tokens       ⊣ a b c d e ⊣ f g h ⊣ ...        rows of T = 6 that share one token, so that each is predicted once
    row 0        ⊣ a b c d e
    row 1                  e ⊣ f g h ⊣
    positions              0 0 1 2 3 0            a document starts at 0 and cannot attend to the one before
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refdiff.browser import require
from refdiff.errors import CheckpointError
from refdiff.files import open_file, read_json, write_json
from refdiff.messages import show_value
from refdiff.training.documents import SEPARATOR, beginning, pieces, split_at

if TYPE_CHECKING:
    import tokenizers

SMALLEST_VOCABULARY = 257
"""The 256 bytes and the separator."""

TOKENIZER_BYTES = 2**24
"""The most bytes that a tokenizer is trained on; training may take 100 times as much memory, if no word repeats."""

PARTS = ("train", "validation")
_FILES = {"corpus.json", "tokenizer.json", "tokenizer_config.json", *(f"{part}.bin" for part in PARTS)}
_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.tmp")  # as write_json names a file that it has not finished
_BATCH_CHARACTERS = 2**20  # encoded in one call


class Corpus:
    """The tokens of a text on disk.

    Attributes:
        folder: the folder, which also has tokenizer.json and tokenizer_config.json.
        vocab_size: the number of tokens of the tokenizer.
        separator: the id of the separator.
        num_bytes: the bytes of text of each part.
        source: name, bytes and validation_from_byte of the text file.
        tokens: the memory-mapped ids of each part.

    Raises:
        CheckpointError: a file in the folder is broken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = read_json(folder / "corpus.json")
        try:
            self.vocab_size = _integer("vocab_size", about["vocab_size"], SMALLEST_VOCABULARY, 2**32)
            self.separator = _integer("separator", about["separator"], 0, self.vocab_size - 1)
            self.num_bytes, counts = (
                {part: _integer(f"{name}.{part}", about[name][part], least) for part in PARTS}
                for name, least in (("num_bytes", 1), ("num_tokens", 2))
            )
            self.source: dict[str, Any] = dict(about["source"])
            kind = _dtype(self.vocab_size)
            if about["dtype"] != kind.str:
                raise ValueError(f"dtype: got {show_value(about['dtype'])}, expected {kind.str!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / 'corpus.json'}: not what this version writes: {error}; train from the beginning"
            ) from None
        self.tokens = {part: _mapped(folder, f"{part}.bin", kind, counts[part]) for part in PARTS}

    @classmethod
    def from_text(
        cls, text: Path, folder: Path, *, vocab_size: int, exact: bool = True, validation: float = 0.02,
        progress: Callable[[str], None] = lambda what: None,
    ) -> Corpus:  # fmt: skip
        """Train a byte-level BPE tokenizer on all but the last part of a text, and write the tokens of both parts.

        The text may be larger than memory. The tokenizer is trained on its first 16 MiB (`TOKENIZER_BYTES`).

        Args:
            text: a UTF-8 file; a line `<|endoftext|>` separates two documents.
            folder: the folder to create; after an error it does not exist.
            vocab_size: 257 or more.
            exact: whether a text with fewer tokens to learn is an error; if not, the vocabulary has as many as it has.
            validation: the share at the end of the file that neither the model nor the tokenizer is trained on.
            progress: called with the name of each stage when it starts.

        Raises:
            ValueError: the file is empty, too short or not UTF-8, or has too few different words for the vocabulary.
            OSError: the file cannot be read, or the disk is full.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(f"vocab_size: got {vocab_size}, expected {SMALLEST_VOCABULARY} or more: 256 bytes and one")
        cut, size = split_at(text, validation), text.stat().st_size
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
        staging.mkdir()  # with the permissions of any new folder, which colleagues may need to resume the run
        try:
            progress("training the tokenizer")
            tokenizer = _train_tokenizer(text, cut, vocab_size, exact)
            vocab_size = tokenizer.get_vocab_size()
            _save_tokenizer(tokenizer, staging)
            kind = _dtype(vocab_size)
            counts = {}
            for part, start, stop in (("train", 0, cut), ("validation", cut, size)):
                progress(f"encoding the {part} part")
                counts[part] = _encode(tokenizer, pieces(text, start, stop), staging / f"{part}.bin", kind)
                if not counts[part][1]:
                    raise ValueError(f"the {part} part of the text is empty; take a text of more lines")
            about = {
                "vocab_size": vocab_size,
                "separator": tokenizer.token_to_id(SEPARATOR),
                "dtype": kind.str,
                "num_tokens": {part: counts[part][0] for part in PARTS},
                "num_bytes": {part: counts[part][1] for part in PARTS},
                "source": {"name": text.name, "bytes": size, "validation_from_byte": cut},
            }
            write_json(staging / "corpus.json", about)
            staging.rename(folder)
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            if isinstance(error, OSError) and str(error.filename) != str(text):
                what = f"cannot write the tokens and their tokenizer: {error.strerror or error}"
                raise OSError(error.errno, f"{what}; free some space, then start again", str(folder)) from error
            raise
        return cls(folder)

    def rows(self, part: str, length: int) -> int:
        """Return how many sequences of `length` tokens a part has.

        Raises:
            ValueError: it has none.
        """
        count = (len(self.tokens[part]) - 1) // (length - 1)
        if count < 1:
            which = f"the tokens of the {part} part of the text; take a longer text, or another share for validation"
            raise ValueError(f"length: got {length}, expected at most {len(self.tokens[part])}, {which}")
        return count

    def batch(self, part: str, rows: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids (B, T) of the numbered rows, and the position of each token in its document.

        Raises:
            CheckpointError: an id is not in the vocabulary.
        """
        at = rows[:, None] * (length - 1) + np.arange(length)
        ids = self.tokens[part][at].astype(np.int64)
        if (largest := ids.max()) >= self.vocab_size:
            raise CheckpointError(
                f"{self.folder / f'{part}.bin'}: got token id {largest}, expected 0 to {self.vocab_size - 1}; "
                "train from the beginning"
            )
        index = np.arange(length)
        starts = np.maximum.accumulate(np.where(ids == self.separator, index, 0), axis=1)
        return ids, index - starts


def _dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the type of the tokens on disk."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def _integer(name: str, value: Any, least: int, most: int = 2**53) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}: got {show_value(value)}, expected a whole number from {least:,} to {most:,}")
    return value


def _mapped(folder: Path, name: str, kind: np.dtype[Any], count: int) -> NDArray[Any]:
    path = folder / name
    with open_file(path, folder=folder) as file:
        size = os.fstat(file.fileno()).st_size
        if size != count * kind.itemsize:
            raise CheckpointError(
                f"{path}: has {size:,} bytes, but corpus.json says {count * kind.itemsize:,}: it is not whole, or "
                "another text's; copy it again, or train from the beginning"
            )
        return np.memmap(file, kind, "r", shape=(count,))


def is_corpus(folder: Path, *, whole: bool = True) -> bool:
    """Return whether a folder holds the files of a corpus alone; with `whole=False`, some of them are enough."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    names = {path.name for path in folder.iterdir()}
    return names == _FILES if whole else all(name in _FILES or _PARTIAL.fullmatch(name) for name in names)


def row_order(count: int, seed: int, first: int, number: int) -> NDArray[np.int64]:
    """Return rows `first` to `first + number` of an endless order: every epoch is a new shuffle of all rows."""
    chosen: list[NDArray[np.int64]] = []
    while number > 0:
        epoch, start = divmod(first, count)
        order = _shuffle(count, seed, epoch)[start : start + number]
        chosen.append(order)
        first, number = first + len(order), number - len(order)
    return np.concatenate(chosen)


@functools.lru_cache(1)  # one epoch has many steps
def _shuffle(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _train_tokenizer(text: Path, cut: int, vocab_size: int, exact: bool) -> tokenizers.Tokenizer:
    require("tokenizers", "learning a tokenizer")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(beginning(text, cut, TOKENIZER_BYTES), trainer)
    size = tokenizer.get_vocab_size()
    if size == SMALLEST_VOCABULARY < vocab_size:
        raise ValueError(f"{text}: no text to learn from: the file is empty, or has only a line or two")
    if exact and size < vocab_size:
        raise ValueError(f"vocab_size: got {vocab_size}, expected at most {size}: the text has no more tokens to learn")
    separator = tokenizer.token_to_id(SEPARATOR)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A", special_tokens=[(SEPARATOR, separator)]
    )
    return tokenizer


def _save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    names = {f"{name}_token": SEPARATOR for name in ("bos", "eos")}
    write_json(
        folder / "tokenizer_config.json",
        {**names, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False},
    )


def _encode(
    tokenizer: tokenizers.Tokenizer, text: Iterator[tuple[str, bool]], path: Path, kind: np.dtype[Any]
) -> tuple[int, int]:
    """Write the tokens of all documents; return the number of tokens and the bytes of text."""
    separator = tokenizer.token_to_id(SEPARATOR)
    tokenizer.encode_special_tokens = True  # a separator inside a line is text
    count, num_bytes, begins = 0, 0, True
    try:
        with path.open("wb") as file:
            for batch in _batches(text):
                encoded = tokenizer.encode_batch_fast([piece for piece, _ in batch], add_special_tokens=False)
                for (piece, ends), encoding in zip(batch, encoded, strict=True):
                    ids = np.array([separator] * begins + encoding.ids, kind)
                    file.write(ids.tobytes())
                    count, begins = count + len(ids), ends
                    num_bytes += len(piece.encode())
            file.write(np.array([separator], kind).tobytes())
            file.flush()
            os.fsync(file.fileno())
    finally:
        tokenizer.encode_special_tokens = False
    return count + 1, num_bytes


def _batches(text: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Group pieces into lists of about `_BATCH_CHARACTERS` characters."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for piece in text:
        batch.append(piece)
        size += len(piece[0])
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
