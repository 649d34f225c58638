"""Weight files and indices damaged at every place: each is refused by one message that names the file.

tests/fuzz damages whole folders at random, and watches what is opened, how long it takes, and what is printed.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff import CheckpointError
from refdiff.model.weights import flatten, load
from refdiff.model.weights.folder import INDEX, SINGLE
from refdiff.model.weights.safetensors_file import BITS
from tests.model.weights.files import Stored, entries, join, pack, random_tensors, split, tiny_config

Damaged = tuple[dict[str, bytes], str]
"""The files of a checkpoint, and what the message names."""

TENSORS = random_tensors()
SOUND = pack(TENSORS)
HEADER, DATA = entries(TENSORS), b"".join(tensor.data for tensor in TENSORS.values())
SHARDED = split(TENSORS, 3)
SHARDS = [name for name in SHARDED if name != INDEX]
WEIGHT_MAP: dict[str, str] = json.loads(SHARDED[INDEX])["weight_map"]
SECRET = "secret.safetensors"
BAD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 1.0, 1e300, 2**31, 2**63, 2**64, 10**400, "", "0", "x" * 50_000, "\0", "\ud800",
    "../../etc/passwd", [], [[]], [None], [True], [1.0], [-1], [0], [2**63], [10**300], [2**40, 2**40, 0], [1] * 70,
    [10**9] * 5000, {}, {"a": 1}, {"0": 1},
)  # fmt: skip
"""What stands in the place of any value of a JSON file."""
NAMES = (
    "", ".", "../../etc/passwd", "a" * 100_000, "\x1b[2J", "\n\n", "\0", "model.", "model..norm.weight",
    "model.layers.-1.w", "model.layers.99999999999999999999.mlp.up_proj.weight", "model.norm.weight ", "%s%s%s",
    "model.norm.weight\u202e", "lm_head", "layers.00.input_layernorm.weight", "日本語.weight",
)  # fmt: skip


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a pickle was run')",)


ARCHIVE = io.BytesIO()
with zipfile.ZipFile(ARCHIVE, "w") as file:
    file.writestr("archive/data.pkl", pickle.dumps(Trap(), 2))
NO_TABLES = (
    b"", b"\0", b"null", b"[]", b"0", b'"x"', b"{", b"}", b'{"a"}', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{}",
    b"<!DOCTYPE html>" * 9, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    *(pickle.dumps(Trap(), protocol) for protocol in range(6)), ARCHIVE.getvalue(),
)  # fmt: skip
"""Files that hold no JSON object."""


def header(changed: Any) -> bytes:
    """A sound file under another header."""
    return join(changed if isinstance(changed, bytes) else json.dumps(changed).encode(), DATA)


def places(table: Any) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value of nested JSON."""
    for key in range(len(table)) if isinstance(table, list) else table:
        yield (key,)
        if isinstance(table[key], dict | list):
            yield from ((key, *way) for way in places(table[key]))


def changed(table: Any) -> Iterator[tuple[Any, Any]]:
    """The first key of each place in nested JSON, and all with that place changed or left out."""
    for *above, last in places(table):

        def edited(edit: Callable[[Any], Any], above: list[Any] = above) -> Any:
            whole = place = copy.deepcopy(table)
            for key in above:
                place = place[key]
            edit(place)
            return whole

        for bad in BAD:
            other = edited(lambda place, last=last, bad=bad: place.__setitem__(last, bad))
            if json.dumps(other) != json.dumps(table):
                yield [*above, last][0], other
        yield [*above, last][0], edited(lambda place, last=last: place.__delitem__(last))


# ---- kinds of damage


def file_bytes() -> Iterator[Damaged]:
    """Cut short or too long, with another length of its header, or what never was a weight file."""
    length = int.from_bytes(SOUND[:8], "little")
    edges = (2**bits + offset for bits in (7, 8, 15, 16, 24, 31, 32, 53, 63) for offset in (-2, -1, 0, 1))
    lengths = {*range(300), *range(length - 40, length + 40), *edges, *(length ^ 1 << bit for bit in range(64))}
    yield from (({SINGLE: SOUND[:size]}, SINGLE) for size in range(len(SOUND)))
    yield from (({SINGLE: SOUND + more[:size]}, SINGLE) for size in range(1, 100) for more in (bytes(size), SOUND))
    yield from (({SINGLE: other.to_bytes(8, "little") + SOUND[8:]}, SINGLE) for other in lengths - {length})
    yield from (({SINGLE: content}, SINGLE) for content in NO_TABLES)
    yield {"pytorch_model.bin": ARCHIVE.getvalue()}, SINGLE


def headers() -> Iterator[Damaged]:
    """No JSON object, or with values that must not be; tensors that overlap or trade places."""
    text = json.dumps(HEADER)
    yield from (({SINGLE: header(content)}, SINGLE) for content in NO_TABLES)
    for before, after in (("\ufeff", ""), (" ", ""), ("", "x"), ("", "\0"), ("", "{}")):
        yield {SINGLE: header((before + text + after).encode())}, SINGLE
    yield from (({SINGLE: header(text.encode(encoding))}, SINGLE) for encoding in ("utf-16", "utf-16-le", "utf-32"))
    for number in ("NaN", "-Infinity", "9" * 5000, "1e999", "0x10", "٣"):
        yield {SINGLE: header(text.replace('"shape": [', f'"shape": [{number}, ', 1).encode())}, SINGLE
    for bad in (None, 1, [], "x", {"a": 1}, {"a": None}, {"a": {}}, {"format": ["pt"]}):
        yield {SINGLE: header({"__metadata__": bad, **HEADER})}, "__metadata__"
    yield from (({SINGLE: header(other)}, SINGLE) for _, other in changed(HEADER))
    for name, entry in HEADER.items():
        begin, end = entry["data_offsets"]
        yield {SINGLE: header(f"{text[:-1]}, {json.dumps({name: entry})[1:]}".encode())}, "stands twice in one object"
        for dtype in {*BITS, "f32", "F3 2"} - {"F32"}:
            yield {SINGLE: header({**HEADER, name: {**entry, "dtype": dtype}})}, name
        for shift in (4, -4, 1, len(DATA), -len(DATA), 2**40, 2**63):
            yield {SINGLE: header({**HEADER, name: {**entry, "data_offsets": [begin + shift, end + shift]}})}, SINGLE
        for other in HEADER.keys() - {name}:
            offsets = HEADER[other]["data_offsets"]
            yield {SINGLE: header({**HEADER, name: {**entry, "data_offsets": offsets}})}, SINGLE


def tensors() -> Iterator[Damaged]:
    """Sound in themselves, but of another type, shape or name than the config makes them."""
    for name, tensor in TENSORS.items():
        count = len(tensor.data) // 4
        for dtype in ("I32", "I64", "U8", "BOOL", "F8_E4M3", "C64"):
            other = Stored(dtype, tensor.shape, bytes(count * BITS[dtype] // 8))
            yield {SINGLE: pack({**TENSORS, name: other})}, f"{name}' in '{SINGLE}': dtype is {dtype}"
        for shape in {(count, 1), (1, *tensor.shape), (), (0,), (*tensor.shape, 0), (*tensor.shape[:-1], 99)}:
            other = Stored("F32", shape, bytes(4 * int(np.prod(shape))))
            yield {SINGLE: pack({**TENSORS, name: other})}, str(tensor.shape)
        for hostile in NAMES:
            yield {SINGLE: pack({hostile if old == name else old: t for old, t in TENSORS.items()})}, SINGLE
        if name != "lm_head.weight":
            yield {SINGLE: pack({old: t for old, t in TENSORS.items() if old != name})}, name
            base = name.removeprefix("model.")
            yield from (({SINGLE: pack({**TENSORS, n: tensor})}, n) for n in (base, f"transformer.{base}"))
    yield {SINGLE: pack({**TENSORS, **{f"extra.{i}": Stored("U8", (0,), b"") for i in range(3000)}})}, "extra.0"


def with_map(weight_map: Any) -> dict[str, bytes]:
    """Sound shards under an index with this `weight_map`."""
    return {**SHARDED, INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode()}


def shards() -> Iterator[Damaged]:
    """Missing, exchanged, cut short or a pickle; an index that says otherwise, or leads out of the folder."""
    for name in SHARDS:
        yield {k: v for k, v in SHARDED.items() if k != name}, name
        others = [SHARDED[other] for other in SHARDS if other != name]
        cut = (SHARDED[name][:size] for size in range(0, len(SHARDED[name]), 9))
        for content in (*others, *cut, SHARDED[name] + b"\0", *NO_TABLES):
            yield {**SHARDED, name: content}, name
    yield from ((with_map(other), tensor) for tensor, other in changed(WEIGHT_MAP))
    for raw in (*(SHARDED[INDEX][:size] for size in range(0, len(SHARDED[INDEX]), 2)), *NO_TABLES, b"{}"):
        yield {**SHARDED, INDEX: raw}, INDEX
    yield with_map({f"t{i}": f"{i}.safetensors" for i in range(20_000)}), INDEX
    yield with_map({f"t{i}": SHARDS[0] for i in range(20_000)}), INDEX
    for place in (
        f"../{SECRET}", f"x/../../{SECRET}", f"..\\{SECRET}", f"file:///{SECRET}", f"~/{SECRET}", f"$HOME/{SECRET}",
        "/proc/self/mem.safetensors", f"C:\\{SECRET}", f"//host/{SECRET}", f"%2e%2e/{SECRET}", ".safetensors/../x",
        f"../{SECRET}\0.safetensors", "\ud800.safetensors", f"../{'../' * 200}{SECRET}", "x" * 300 + ".safetensors",
        "model-00009-of-00003.safetensors", SINGLE, SHARDS[1],
    ):  # fmt: skip
        for names in (WEIGHT_MAP, [t for t, file in WEIGHT_MAP.items() if file == SHARDS[0]], ["lm_head.weight"]):
            yield with_map({**WEIGHT_MAP, **dict.fromkeys(names, place)}), ""


@pytest.mark.parametrize(
    ("kind", "every"),
    [
        pytest.param(kind, every, id=f"{kind.__name__}, {every}", marks=[pytest.mark.slow] if every == 1 else [])
        for kind in (file_bytes, headers, tensors, shards)
        for every in (50, 1)
    ],
)
def test_what_is_damaged_is_refused(kind: Callable[[], Iterator[Damaged]], every: int, tmp_path: Path) -> None:
    (tmp_path / SECRET).write_bytes(pack(random_tensors(seed=99)))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for number, (files, named) in enumerate(itertools.islice(kind(), 0, None, every)):
        for path in folder.iterdir():
            path.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load(folder, tiny_config(), "DiffLlamaForCausalLM")
        message = str(caught.value)
        assert message.startswith(str(folder)), number * every
        assert named in message or repr(named)[1:40] in message, (number * every, message)
        assert len(message) < 6000


@pytest.mark.parametrize(
    "files",
    [
        {SINGLE: SOUND},
        SHARDED,
        {SINGLE: pack(dict(reversed(TENSORS.items())))},
        {SINGLE: pack(TENSORS, align=0)},
        *({SINGLE: header({"__metadata__": more, **HEADER})} for more in ({}, {"x" * 10_000: "y" * 100_000})),
        *({SINGLE: header(json.dumps(HEADER).encode() + after)} for after in (b" ", b"        ", b"\t\r\n ")),
    ],
    ids=range(9),
)
def test_what_is_not_damaged_is_read(files: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, values in flatten(load(tmp_path, tiny_config(), "DiffLlamaForCausalLM")).items():
        assert values.tobytes() == TENSORS[name].data
