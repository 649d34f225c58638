"""Damage to what a header says: types, shapes, places, names; and to the numbers."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from typing import Any

import numpy as np

from refdiff.model.weights.folder import SINGLE
from refdiff.model.weights.safetensors_file import BITS
from tests.model.broken.cases import DATA, HEADER, SOUND, TENSORS, Case, single, with_header
from tests.model.weights.files import Stored, pack

_BAD_VALUES: tuple[Any, ...] = (
    None, True, False, "", "0", "F32", {}, {"0": 1}, [], [[]], [None], [True], ["1"], [1.0], [1.5], [-1], [0], [1],
    [[1]], 0, 1, -1, 1.0, 1e300, 2**31, 2**63, 2**64, 10**300, [2**31], [2**63 - 1], [2**63], [2**64], [10**300],
    [2**32, 2**32], [2**63, 2], [2**40, 2**40, 0], [0, 2**62, 2**62], [1] * 70, [1] * 5000, [10**9] * 5000,
    "x" * 50_000,
)  # fmt: skip


def fields_of_a_tensor() -> Iterator[Case]:
    """Each field of each tensor replaced by everything that it must not be, or left out."""
    for name, entry in HEADER.items():
        for key, right in entry.items():
            for bad in _BAD_VALUES:
                if bad != right or isinstance(bad, bool) != isinstance(right, bool):
                    yield with_header({**HEADER, name: {**entry, key: bad}}, True, name)
            yield with_header({**HEADER, name: {k: v for k, v in entry.items() if k != key}}, True, name)
        for bad in (None, [], "F32", 3, [entry], {}):
            yield with_header({**HEADER, name: bad}, True, name)
        yield with_header({**HEADER, name: {**entry, "more": [1, {"a": None}]}}, None)


def types_and_shapes() -> Iterator[Case]:
    """Every type of the format in the place of every other, and shapes that hold as much or as little."""
    for name, entry in HEADER.items():
        rows = entry["shape"][0]
        for dtype in [*BITS, "f32", "F33", "BF32", "float32", "F3 2", "F32\0"]:
            if dtype != "F32":
                yield with_header({**HEADER, name: {**entry, "dtype": dtype}}, True, name)
        for shape in (
            entry["shape"][::-1], [*entry["shape"], 1], [1, *entry["shape"]], [rows + 1, *entry["shape"][1:]],
            [rows - 1, *entry["shape"][1:]], [-rows, *entry["shape"][1:]], [int(np.prod(entry["shape"]))], [],
            [0, *entry["shape"]], [float(rows), *entry["shape"][1:]],
        ):  # fmt: skip
            if shape != entry["shape"]:
                yield with_header({**HEADER, name: {**entry, "shape": shape}}, True, name)
    # whole tensors that are sound in themselves, but of another type or shape than the config makes them
    for name, tensor in TENSORS.items():
        count = int(np.prod(tensor.shape))
        for dtype, bits in BITS.items():
            if dtype not in ("F32", "F64", "F16", "BF16") and count * bits % 8 == 0:
                other = Stored(dtype, tensor.shape, bytes(count * bits // 8))
                yield single(pack({**TENSORS, name: other}), True, name, dtype)
        for shape in ((count,), (count, 1), (1, *tensor.shape), (), (0,), (*tensor.shape, 0), (*tensor.shape[:-1], 99)):
            if shape != tensor.shape:
                other = Stored("F32", shape, bytes(4 * int(np.prod(shape))))
                yield single(pack({**TENSORS, name: other}), True, name, str(tensor.shape))


def places() -> Iterator[Case]:
    """Tensors that overlap, leave gaps, run backwards, run past the end, swap places, or share one."""
    names = list(HEADER)
    for name, entry in HEADER.items():
        begin, end = entry["data_offsets"]
        for offsets in (
            [begin + 4, end + 4], [begin - 4, end - 4], [begin + 1, end + 1], [begin, end + 4], [begin, end - 4],
            [begin - 4, end], [end, begin], [0, 0], [begin, begin], [len(DATA), len(DATA) + end - begin],
            [0, len(DATA)], [begin + 2**40, end + 2**40], [begin + 2**63, end + 2**63],
            [2**64 - 4, 2**64 + end - begin - 4], [begin - len(DATA), end - len(DATA)], [begin, end, end], [begin],
            [str(begin), str(end)], [float(begin), float(end)], [begin, 10**400],
        ):  # fmt: skip
            if offsets != entry["data_offsets"]:
                yield with_header({**HEADER, name: {**entry, "data_offsets": offsets}})
        for other in names:
            if other != name:
                swapped = {
                    name: {**entry, "data_offsets": HEADER[other]["data_offsets"]},
                    other: {**HEADER[other], "data_offsets": entry["data_offsets"]},
                }
                same_size = end - begin == HEADER[other]["data_offsets"][1] - HEADER[other]["data_offsets"][0]
                if not same_size:
                    yield with_header({**HEADER, **swapped})
                shared = {**entry, "data_offsets": HEADER[other]["data_offsets"]}
                yield with_header({**HEADER, name: shared})


def names() -> Iterator[Case]:
    """Names misspelled, missing, doubled under another prefix, hostile, and too many."""
    rng = random.Random(3)
    hostile = [
        "", ".", "..", "../../etc/passwd", "/etc/passwd", "a" * 100_000, "\x1b[2J", "\n\n", "\0", "__class__",
        "__proto__", "model", "model.", "model..norm.weight", "model.layers", "model.layers.0", "model.layers.-1.w",
        "model.layers.0x.w", "model.layers.99999999999999999999.mlp.up_proj.weight", "ｍodel.norm.weight",
        "model.norm.weight ", "{0.__class__}", "%s%s%s", "model.norm.weight\u202e", "lm_head",
        "layers.00.input_layernorm.weight", "日本語.weight", "norm",
    ]  # fmt: skip
    for name in hostile:
        yield single(pack({**TENSORS, name: TENSORS["model.norm.weight"]}))
    for name in TENSORS:
        head = name == "lm_head.weight"
        rest = {other: tensor for other, tensor in TENSORS.items() if other != name}
        if not head:
            yield single(pack(rest), True, name)
        for other in hostile:
            yield single(renamed(name, other))
        for _ in range(12):
            place = rng.randrange(len(name))
            other = name[:place] + rng.choice(string.ascii_letters + "._0") + name[place + 1 :]
            if other not in TENSORS:
                yield single(renamed(name, other))
        if not head:
            base = name.removeprefix("model.")
            for doubled in (base, f"transformer.{base}"):
                yield single(pack({**TENSORS, doubled: TENSORS[name]}), True, name, doubled)
    yield single(pack({**TENSORS, **{f"extra.{i}": Stored("U8", (0,), b"") for i in range(3000)}}))
    yield single(pack({f"extra.{i}": Stored("U8", (0,), b"") for i in range(3000)}))


def renamed(name: str, other: str) -> bytes:
    """A sound file, but for the name of one tensor."""
    return pack({other if old == name else old: tensor for old, tensor in TENSORS.items()})


def values() -> Iterator[Case]:
    """NaN, infinities, the largest and smallest numbers: they load as they are."""
    rng = random.Random(4)
    special = [
        0x7FC00000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0x00000001, 0x80000000, 0x00800000,
    ]  # fmt: skip
    for name, tensor in TENSORS.items():
        for bits in special:
            for whole in (False, True):
                numbers = np.frombuffer(tensor.data, np.uint32).copy()
                numbers[slice(None) if whole else rng.randrange(numbers.size)] = bits
                changed = {**TENSORS, name: Stored("F32", tensor.shape, numbers.tobytes())}
                yield Case({**SOUND, SINGLE: pack(changed)}, False, tensors=changed)
    for _ in range(60):
        noise = {name: Stored("F32", t.shape, rng.randbytes(len(t.data))) for name, t in TENSORS.items()}
        yield Case({**SOUND, SINGLE: pack(noise)}, False, tensors=noise)
