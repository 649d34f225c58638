"""Damage to the bytes of a weight file, whatever they mean."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Iterator

from refdiff.model.weights.folder import SINGLE
from tests.model.broken.cases import CONFIG, HEADER, RAW_HEADER, SOUND, Case, Trap, flipped, single, with_header


def truncated() -> Iterator[Case]:
    """Cut short after every byte: in the length, the header, the padding, each tensor."""
    content = SOUND[SINGLE]
    for size in range(len(content)):
        yield single(content[:size])


def extended() -> Iterator[Case]:
    """More bytes than the header describes."""
    for size in range(1, 200):
        yield single(SOUND[SINGLE] + bytes(size))
        yield single(SOUND[SINGLE] + SOUND[SINGLE][:size])


def bits_of_the_length() -> Iterator[Case]:
    """Every bit of the length, and lengths around the right one and around the limits of integers."""
    content = SOUND[SINGLE]
    for bit in range(64):
        yield single(flipped(content, bit))
    length = int.from_bytes(content[:8], "little")
    for other in {*range(300), *range(length - 40, length), *range(length + 1, length + 40), *_EDGES}:
        if 0 <= other < 2**64:
            yield single(other.to_bytes(8, "little") + content[8:])


_EDGES = [2**bits + offset for bits in (7, 8, 15, 16, 24, 31, 32, 53, 63, 64) for offset in (-2, -1, 0, 1)]


def bits_of_the_header() -> Iterator[Case]:
    """Every bit of every byte of the header."""
    content = SOUND[SINGLE]
    length = int.from_bytes(content[:8], "little")
    for bit in range(64, 8 * (8 + length)):
        # What is not noticed must not matter, as in the metadata, which nobody reads.
        yield single(flipped(content, bit), None)


def bytes_of_the_header() -> Iterator[Case]:
    """Pieces of the header taken out, doubled, moved, or replaced by noise."""
    rng = random.Random(1)
    for _ in range(1500):
        begin = rng.randrange(len(RAW_HEADER))
        end = min(len(RAW_HEADER), begin + rng.choice((1, 2, 5, 20, 100)))
        piece = RAW_HEADER[begin:end]
        place = rng.randrange(len(RAW_HEADER))
        for changed in (
            RAW_HEADER[:begin] + RAW_HEADER[end:],
            RAW_HEADER[:end] + piece + RAW_HEADER[end:],
            RAW_HEADER[:place] + piece + RAW_HEADER[place:],
            RAW_HEADER[:begin] + rng.randbytes(end - begin) + RAW_HEADER[end:],
        ):
            yield with_header(changed, None)


def other_files() -> Iterator[Case]:
    """Files that never were safetensors: pickles, archives, text, noise."""
    rng = random.Random(2)
    for protocol in range(6):
        yield single(pickle.dumps(Trap(), protocol))
        yield single(pickle.dumps({"w": [1.0] * 300}, protocol))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Trap(), 2))
    yield single(archive.getvalue(), True, "is a pickle")
    yield single(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", True, "git lfs pull")
    yield single(b"<!DOCTYPE html>" * 9)
    yield single(json.dumps(HEADER).encode())
    for name in ("pytorch_model.bin", "model.pt", "flax_model.msgpack", "tf_model.h5"):
        yield Case({CONFIG: SOUND[CONFIG], name: pickle.dumps(Trap(), 2)}, True, ("model.safetensors",))
    yield Case({CONFIG: SOUND[CONFIG], "pytorch_model.bin": archive.getvalue()}, True, ("pytorch_model.bin", "pickle"))
    for size in (0, 1, 7, 8, 9, 16, 100, 1000):
        for _ in range(12):
            yield single(rng.randbytes(size))
            length = rng.randrange(size + 1)
            yield single(length.to_bytes(8, "little") + b"{" + rng.randbytes(size))
