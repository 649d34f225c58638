"""Every way to damage a checkpoint, and what must come of it; everything follows from a seed."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.model.weights.folder import INDEX, SINGLE
from refdiff.model.weights.safetensors_file import BITS
from tests.model.weights.files import Stored, entries, join, pack, random_tensors, split

CONFIG, SECRET = "config.json", "secret.safetensors"
FIELDS: dict[str, Any] = {
    "architectures": ["DiffLlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "dtype": "float32", "eos_token_id": 2, "head_dim": 2, "hidden_act": "silu", "hidden_size": 6,
    "initializer_range": 0.02, "intermediate_size": 5, "lambda_std_dev": 0.1, "max_position_embeddings": 64,
    "model_type": "diffllama", "num_attention_heads": 4, "num_hidden_layers": 1, "num_key_value_heads": 2,
    "pad_token_id": None, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": 7,
}  # fmt: skip
TENSORS = random_tensors()
SOUND = {CONFIG: json.dumps(FIELDS).encode(), SINGLE: pack(TENSORS)}
SHARDED = {CONFIG: SOUND[CONFIG], **split(TENSORS, 3)}
SHARDS = [name for name in SHARDED if name.endswith(".safetensors")]
HEADER, DATA = entries(TENSORS), b"".join(tensor.data for tensor in TENSORS.values())
RAW_HEADER = json.dumps(HEADER).encode()
WEIGHT_MAP: dict[str, str] = json.loads(SHARDED[INDEX])["weight_map"]
BAD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 1.0, 1.5, 1e300, -1e300, 2**31, 2**63, 2**64, 10**30, 10**400, "", "0", "x",
    "x" * 50_000, "\0", "\ud800", "../../etc/passwd", "__import__('os').system('true')", [], [[]], [None], [True],
    [1.0], [-1], [0], [1], [2**63], [10**300], [2**32, 2**32], [2**40, 2**40, 0], [1] * 70, [10**9] * 5000, {},
    {"a": 1}, {"0": 1},
)  # fmt: skip
"""What stands in the place of any value of a JSON file."""
NAMES = (
    "", ".", "../../etc/passwd", "a" * 100_000, "\x1b[2J", "\n\n", "\0", "__class__", "model.", "model..norm.weight",
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
PICKLES = [*(pickle.dumps(Trap(), protocol) for protocol in range(6)), ARCHIVE.getvalue()]
NO_TABLES = (
    b"", b"\0", b"null", b"[]", b"0", b'"x"', b"{", b"}", b'{"a"}', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{}",
    b"import os", b"<!DOCTYPE html>" * 9, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    *PICKLES,
)  # fmt: skip
"""Files that hold no JSON object."""


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Case:
    """A checkpoint: its files, and what must come of reading it.

    `fails`: True = a CheckpointError; False = the weights of `tensors`; None = one of the two. The message of the error
    has `names` in it.
    """

    files: dict[str, bytes | Link]
    fails: bool | None
    names: tuple[str, ...] = ()
    tensors: dict[str, Stored] = field(default_factory=lambda: TENSORS)


def put(folder: Path, files: dict[str, bytes | Link], outside: Path) -> None:
    """Make `folder` hold exactly these files; `{outside}` in a link or an index stands for the path of a folder."""
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        if isinstance(content, Link):
            (folder / name).symlink_to(content.target.format(outside=outside))
        else:
            whole = content.replace(b"{outside}", str(outside).encode()) if name == INDEX else content
            (folder / name).write_bytes(whole)


def single(content: bytes, fails: bool | None = True, *names: str) -> Case:
    """A checkpoint whose one weight file is `content`."""
    return Case({**SOUND, SINGLE: content}, fails, (SINGLE, *names))


def header(changed: Any, fails: bool | None = True, *names: str) -> Case:
    """A sound file under another header."""
    return single(join(changed if isinstance(changed, bytes) else json.dumps(changed).encode(), DATA), fails, *names)


def cut(content: bytes) -> Iterator[bytes]:
    """Cut short after every byte."""
    return (content[:size] for size in range(len(content)))


def flipped(content: bytes, begin: int = 0, end: int | None = None, every: int = 1) -> Iterator[bytes]:
    """One bit changed, of each of these bytes."""
    for bit in range(8 * begin, 8 * (len(content) if end is None else end), every):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def pieces(content: bytes, times: int) -> Iterator[bytes]:
    """Pieces taken out, doubled, moved, or replaced by noise."""
    rng = random.Random(1)
    for _ in range(times):
        begin, place = rng.randrange(len(content)), rng.randrange(len(content))
        end = min(len(content), begin + rng.choice((1, 2, 5, 20, 100)))
        piece = content[begin:end]
        yield content[:begin] + content[end:]
        yield content[:place] + piece + content[place:]
        yield content[:begin] + rng.randbytes(len(piece)) + content[end:]


def values(table: Any, bad: tuple[Any, ...] = BAD) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """A JSON value with one place changed, left out or under another name, and the way to that place."""
    for way in ways(table):
        *above, last = way

        def changed(change: Callable[[Any], Any], above: list[Any] = above) -> Any:
            result = place = copy.copy(table)
            for key in above:  # a copy of what changes alone: there are ten thousand of them
                place[key] = place = copy.copy(place[key])
            change(place)
            return result

        right = table
        for key in way:
            right = right[key]
        for other in bad:
            if (type(other), other) != (type(right), right):
                yield way, changed(lambda place, last=last, other=other: place.__setitem__(last, other))
        yield way, changed(lambda place, last=last: place.__delitem__(last))
        if isinstance(last, str):
            yield way, changed(lambda place, last=last: place.__setitem__(last + "x", place.pop(last)))


def ways(table: Any) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each place."""
    for key in range(len(table)) if isinstance(table, list) else table:
        yield (key,)
        if isinstance(table[key], dict | list):
            yield from ((key, *way) for way in ways(table[key]))


# ---- kinds of damage


def sound() -> Iterator[Case]:
    """Nothing wrong: the tests must be able to tell."""
    yield Case({**SOUND}, False)
    yield Case({**SHARDED}, False)
    yield single(pack(dict(reversed(TENSORS.items()))), False)
    yield single(pack(TENSORS, align=0), False)
    for metadata in ({}, {"format": "pt"}, {"x" * 10_000: "y" * 100_000}):
        yield header({"__metadata__": metadata, **HEADER}, False)


def file_bytes() -> Iterator[Case]:
    """A weight file cut short or too long, with another length of its header, or that never was one."""
    content = SOUND[SINGLE]
    yield from map(single, cut(content))
    yield from (single(content + more[:size]) for size in range(1, 100) for more in (bytes(size), content))
    yield from map(single, flipped(content, end=8))
    length = int.from_bytes(content[:8], "little")
    edges = (2**bits + offset for bits in (7, 8, 15, 16, 24, 31, 32, 53, 63) for offset in (-2, -1, 0, 1))
    for other in {*range(300), *range(length - 40, length + 40), *edges} - {length}:
        yield single(other.to_bytes(8, "little") + content[8:])
    yield from map(single, NO_TABLES)
    yield single(ARCHIVE.getvalue(), True, "is a pickle")
    for name in ("pytorch_model.bin", "model.pt"):
        yield Case({CONFIG: SOUND[CONFIG], name: ARCHIVE.getvalue()}, True, (SINGLE,))
    rng = random.Random(2)
    yield from (single(rng.randbytes(size)) for size in (1, 7, 8, 9, 16, 100, 1000) for _ in range(12))


def header_bits() -> Iterator[Case]:
    """Every bit of the header; what is not noticed must not matter, as in the metadata, which nobody reads."""
    content = SOUND[SINGLE]
    end = 8 + int.from_bytes(content[:8], "little")
    yield from (single(changed, None) for changed in flipped(content, 8, end))


def header_text() -> Iterator[Case]:
    """A header that is no JSON object, nearly one, in another encoding, or has a key twice."""
    yield from (header(changed, None) for changed in pieces(RAW_HEADER, 1500))
    yield from map(header, NO_TABLES)
    text = RAW_HEADER.decode()
    for before, after in (("\ufeff", ""), (" ", ""), ("", "x"), ("", "\0"), ("", "{}")):
        yield header((before + text + after).encode())
    yield from (header(text.encode(encoding)) for encoding in ("utf-16", "utf-16-le", "utf-32"))
    yield from (header((text + after).encode(), False) for after in (" ", "        ", "\t\r\n "))
    for number in ("NaN", "-Infinity", "9" * 5000, "1e999", "0x10", "٣"):
        yield header(text.replace('"shape": [', f'"shape": [{number}, ', 1).encode())
    for name, entry in HEADER.items():
        raw = json.dumps(entry).encode()
        yield header(RAW_HEADER[:-1] + b"," + json.dumps({name: entry}).encode()[1:])
        for key in entry:
            twice = raw[:-1] + f', "{key}": {json.dumps(entry[key])}}}'.encode()
            yield header(RAW_HEADER.replace(raw, twice))
    for bad in (None, 1, [], "x", {"a": 1}, {"a": None}, {"a": {}}, {"format": ["pt"]}):
        yield header({"__metadata__": bad, **HEADER}, True, "__metadata__")


def header_values() -> Iterator[Case]:
    """Each value of the header replaced by everything that it must not be; tensors that overlap or trade places."""
    for way, changed in values(HEADER):
        yield header(changed, True, *way[:1] if len(way) > 1 else ())
    for name, entry in HEADER.items():
        begin, end = entry["data_offsets"]
        for dtype in {*BITS, "f32", "F3 2"} - {"F32"}:
            yield header({**HEADER, name: {**entry, "dtype": dtype}}, True, name)
        for shift in (4, -4, 1, len(DATA), -len(DATA), 2**40, 2**63):
            yield header({**HEADER, name: {**entry, "data_offsets": [begin + shift, end + shift]}})
        for other in HEADER.keys() - {name}:
            yield header({**HEADER, name: {**entry, "data_offsets": HEADER[other]["data_offsets"]}})


def tensors() -> Iterator[Case]:
    """Tensors that are sound in themselves, but of another type, shape or name than the config makes them."""
    for name, tensor in TENSORS.items():
        count = len(tensor.data) // 4
        for dtype in ("I32", "I64", "U8", "BOOL", "F8_E4M3", "C64"):
            other = Stored(dtype, tensor.shape, bytes(count * BITS[dtype] // 8))
            yield single(pack({**TENSORS, name: other}), True, name, dtype)
        for shape in {(count, 1), (1, *tensor.shape), (), (0,), (*tensor.shape, 0), (*tensor.shape[:-1], 99)}:
            other = Stored("F32", shape, bytes(4 * int(np.prod(shape))))
            yield single(pack({**TENSORS, name: other}), True, name, str(tensor.shape))
        for hostile in NAMES:
            yield single(pack({hostile if old == name else old: t for old, t in TENSORS.items()}))
        if name != "lm_head.weight":
            yield single(pack({old: t for old, t in TENSORS.items() if old != name}), True, name)
            base = name.removeprefix("model.")
            yield from (single(pack({**TENSORS, n: tensor}), True, name, n) for n in (base, f"transformer.{base}"))
    yield from (single(pack({**TENSORS, name: TENSORS["model.norm.weight"]})) for name in NAMES)
    yield single(pack({**TENSORS, **{f"extra.{i}": Stored("U8", (0,), b"") for i in range(3000)}}))


def numbers() -> Iterator[Case]:
    """NaN, infinities, the largest and smallest numbers, noise: they load as they are."""
    rng = random.Random(4)
    for name, tensor in TENSORS.items():
        for bits in (0x7FC00000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0x00000001, 0x80000000):
            same = bits.to_bytes(4, "little") * (len(tensor.data) // 4)
            changed = {**TENSORS, name: Stored("F32", tensor.shape, same)}
            yield Case({**SOUND, SINGLE: pack(changed)}, False, tensors=changed)
    for _ in range(60):
        noise = {name: Stored("F32", t.shape, rng.randbytes(len(t.data))) for name, t in TENSORS.items()}
        yield Case({**SOUND, SINGLE: pack(noise)}, False, tensors=noise)


def with_map(weight_map: Any, fails: bool | None, *names: str) -> Case:
    """Sound shards under an index with this `weight_map`."""
    return Case({**SHARDED, INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode()}, fails, names)


def shards() -> Iterator[Case]:
    """Shards missing, exchanged, cut short or a pickle; an index that says otherwise, or is damaged as JSON can be."""
    for name in SHARDS:
        yield Case({k: v for k, v in SHARDED.items() if k != name}, True, (name,))
        others = (SHARDED[other] for other in SHARDS if other != name)
        for content in (*others, *[*cut(SHARDED[name])][::9], SHARDED[name] + b"\0"):
            yield Case({**SHARDED, name: content}, True, (name,))
        yield Case({**SHARDED, name: PICKLES[2]}, True, (name, "pickle"))
    for tensor, place in WEIGHT_MAP.items():
        for other in {*SHARDS, "model-00009-of-00003.safetensors", SINGLE} - {place}:
            yield with_map({**WEIGHT_MAP, tensor: other}, True, other)
    yield from (with_map(changed, True, way[0]) for way, changed in values(WEIGHT_MAP))
    for raw in (*[*cut(SHARDED[INDEX])][::2], *NO_TABLES, b"{}", b'{"weight_map": {}}', b'{"weight_map": []}'):
        yield Case({**SHARDED, INDEX: raw}, True, (INDEX,))
    yield from (Case({**SHARDED, INDEX: raw}, None) for raw in flipped(SHARDED[INDEX], every=9))
    yield with_map({f"t{i}": f"{i}.safetensors" for i in range(20_000)}, True)
    yield with_map({f"t{i}": SHARDS[0] for i in range(20_000)}, True)


OUT_OF_THE_FOLDER = (f"../{SECRET}", f"{{outside}}/{SECRET}", "/dev/zero", "/proc/self/mem", "..", ".")


def ways_out_of_the_folder() -> Iterator[Case]:
    """Names in the index, and links, that lead out of the folder; `../secret.safetensors` is a sound shard."""
    for name in (
        f"../{SECRET}", f"x/../../{SECRET}", f"..\\{SECRET}", f"{{outside}}/{SECRET}", f"file://{{outside}}/{SECRET}",
        f"~/{SECRET}", f"$HOME/{SECRET}", "/proc/self/mem.safetensors", "/dev/zero.safetensors", f"C:\\{SECRET}",
        f"//host/{SECRET}", f"%2e%2e/{SECRET}", f"../{SECRET}\0.safetensors", "\ud800.safetensors",
        f"http://127.0.0.1/{SECRET}", ".safetensors/../x.safetensors", f"../{'../' * 200}{SECRET}",
        "x" * 300 + ".safetensors",
    ):  # fmt: skip
        for names in (WEIGHT_MAP, [t for t, file in WEIGHT_MAP.items() if file == SHARDS[0]], ["lm_head.weight"]):
            yield with_map({**WEIGHT_MAP, **dict.fromkeys(names, name)}, True)
    for files, names in (
        (SHARDED, (SINGLE, INDEX, SHARDS[0])), (SOUND, (CONFIG, "generation_config.json")),
    ):  # fmt: skip
        for name in names:
            for target in (*OUT_OF_THE_FOLDER, name):
                # a link to itself is no file, and nobody needs a generation_config.json
                yield Case({**files, name: Link(target)}, None if target == "generation_config.json" else True, (name,))


def configs() -> Iterator[Case]:
    """config.json damaged, and with fields that are wrong, huge or of another kind."""

    def config(fields: dict[str, Any], fails: bool | None = None) -> Case:
        return Case({**SOUND, CONFIG: json.dumps(fields).encode()}, fails)

    yield from (Case({**SOUND, CONFIG: raw}, True, (CONFIG,)) for raw in (*cut(SOUND[CONFIG]), *NO_TABLES))
    yield from (Case({**SOUND, CONFIG: raw}, None) for raw in flipped(SOUND[CONFIG], every=3))
    yield from (config(changed) for _, changed in values(FIELDS))
    for key in (
        "hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "head_dim",
    ):  # fmt: skip
        for factor in (0, -1, 2, 10, 10**6, 10**18, float("nan"), float("inf")):
            yield config({**FIELDS, key: FIELDS[key] * factor}, True)
    for more in (
        {"auto_map": {"AutoModel": "evil.Model"}}, {"_name_or_path": "/etc"}, {"num_labels": 10**12},
        {"rope_scaling": {"rope_type": "linear", "factor": 1e400}}, {"extra": {"hidden_size": 9}}, {"\ud800": 1},
    ):  # fmt: skip
        yield config({**FIELDS, **more})
    yield Case({SINGLE: SOUND[SINGLE]}, True, (CONFIG,))


KINDS: dict[str, Callable[[], Iterator[Case]]] = {
    kind.__name__: kind
    for kind in (
        sound, file_bytes, header_bits, header_text, header_values, tensors, numbers, shards, ways_out_of_the_folder,
        configs,
    )
}  # fmt: skip
