"""Thousands of broken checkpoints, each made from a sound one: what was done to it, and what must come of it.

Everything follows from a seed. A kind of damage is a function that yields cases; `KINDS` lists them.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import string
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.model.weights.folder import INDEX, SINGLE
from refdiff.model.weights.safetensors_file import BITS
from tests.model.weights.files import Stored, entries, join, pack, random_tensors, split

CONFIG = "config.json"
SECRET = "secret.safetensors"
SHARDS = 3

FIELDS: dict[str, Any] = {
    "architectures": ["DiffLlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 2,
    "hidden_act": "silu",
    "hidden_size": 6,
    "initializer_range": 0.02,
    "intermediate_size": 5,
    "lambda_std_dev": 0.1,
    "max_position_embeddings": 64,
    "model_type": "diffllama",
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 7,
}
TENSORS = random_tensors()
SOUND = {CONFIG: json.dumps(FIELDS).encode(), SINGLE: pack(TENSORS)}
SHARDED = {CONFIG: SOUND[CONFIG], **split(TENSORS, SHARDS)}
FIRST_SHARD = next(name for name in SHARDED if name.endswith(".safetensors"))


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Case:
    """A checkpoint: its files, and what must come of loading it.

    `fails`: True = a CheckpointError; False = the weights of `tensors`; None = one of the two. The message of the error
    must have `names` in it.
    """

    files: dict[str, bytes | Link]
    fails: bool | None
    names: tuple[str, ...] = ()
    tensors: dict[str, Stored] = field(default_factory=lambda: TENSORS)


def single(content: bytes, fails: bool | None = True, *names: str) -> Case:
    """A checkpoint whose one weight file is `content`."""
    return Case({**SOUND, SINGLE: content}, fails, (SINGLE, *names))


def with_header(header: Any, fails: bool | None = True, *names: str) -> Case:
    """A sound file under another header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return single(join(raw, DATA), fails, *names)


DATA = b"".join(tensor.data for tensor in TENSORS.values())
HEADER = entries(TENSORS)
RAW_HEADER = json.dumps(HEADER).encode()


def flipped(content: bytes, bit: int) -> bytes:
    """Change one bit."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# ---- the bytes of the weight file


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
        yield single(pickle.dumps(_Trap(), protocol))
        yield single(pickle.dumps({"w": [1.0] * 300}, protocol))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(_Trap(), 2))
    yield single(archive.getvalue(), True, "is a pickle")
    yield single(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", True, "git lfs pull")
    yield single(b"<!DOCTYPE html>" * 9)
    yield single(json.dumps(HEADER).encode())
    for name in ("pytorch_model.bin", "model.pt", "flax_model.msgpack", "tf_model.h5"):
        yield Case({CONFIG: SOUND[CONFIG], name: pickle.dumps(_Trap(), 2)}, True, ("model.safetensors",))
    yield Case({CONFIG: SOUND[CONFIG], "pytorch_model.bin": archive.getvalue()}, True, ("pytorch_model.bin", "pickle"))
    for size in (0, 1, 7, 8, 9, 16, 100, 1000):
        for _ in range(12):
            yield single(rng.randbytes(size))
            length = rng.randrange(size + 1)
            yield single(length.to_bytes(8, "little") + b"{" + rng.randbytes(size))


class _Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a pickle was run')",)


# ---- the contents of the header


def headers_that_are_no_table() -> Iterator[Case]:
    """Other JSON, nearly JSON, too deep, too long, in other encodings."""
    text = RAW_HEADER.decode()
    for other in ("", "[]", "0", "null", '"x"', "true", "{", "}", "{}", '{"a"}', "[" * 50_000, '{"a":' * 50_000):
        yield with_header(other.encode())
    for before, after in (("\ufeff", ""), (" ", ""), ("\n", ""), ("", "x"), ("", "\0"), ("", "{}"), ("", ",")):
        yield with_header((before + text + after).encode())
    for after in (" ", "        ", "\n", "\t\r\n "):
        yield with_header((text + after).encode(), False)
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        yield with_header(text.encode(encoding))
    yield with_header(text.replace('"', "'").encode())
    yield with_header(text.replace("}}", "},}").encode())
    yield with_header(text.replace("0,", "0, /* first */").encode())
    yield with_header(b"\xff" + RAW_HEADER)
    for number in ("NaN", "Infinity", "-Infinity", "9" * 5000, "1e999", "-0", "0x10", "1_0", "٣"):
        for key in ("shape", "data_offsets"):
            yield with_header(text.replace(f'"{key}": [', f'"{key}": [{number}, ', 1).encode())
    for bad in (None, 1, [], "x", {"a": 1}, {"a": None}, {"a": {}}, {"format": ["pt"]}):
        yield with_header({"__metadata__": bad, **HEADER}, True, "__metadata__")
    for good in ({}, {"format": "pt"}, {"": ""}, {"x" * 10_000: "y" * 100_000}):
        yield with_header({"__metadata__": good, **HEADER}, False)


def doubled_keys() -> Iterator[Case]:
    """The same name twice, with the same or with another content."""
    for name, entry in HEADER.items():
        for other in (entry, {**entry, "dtype": "I32"}, {**entry, "data_offsets": [0, 0], "shape": [0]}):
            again = json.dumps({name: other}).encode()
            yield with_header(RAW_HEADER[:-1] + b"," + again[1:])
            yield with_header(again[:-1] + b"," + RAW_HEADER[1:])
        for key in entry:
            doubled = json.dumps(entry).encode()[:-1] + f', "{key}": {json.dumps(entry[key])}}}'.encode()
            yield with_header(RAW_HEADER.replace(json.dumps(entry).encode(), doubled))


_BAD_VALUES: tuple[Any, ...] = (
    None, True, False, "", "0", "F32", {}, {"0": 1}, [], [[]], [None], [True], ["1"], [1.0], [1.5], [-1], [0], [1], [[1]],
    0, 1, -1, 1.0, 1e300, 2**31, 2**63, 2**64, 10**300, [2**31], [2**63 - 1], [2**63], [2**64], [10**300],
    [2**32, 2**32], [2**63, 2], [2**40, 2**40, 0], [0, 2**62, 2**62], [1] * 70, [1] * 5000, [10**9] * 5000, "x" * 50_000,
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
        for shape in (
            (count,),
            (count, 1),
            (1, *tensor.shape),
            (),
            (0,),
            (*tensor.shape, 0),
            tensor.shape[:-1] + (99,),
        ):
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
            [begin - 4, end], [end, begin], [0, 0], [begin, begin], [len(DATA), len(DATA) + end - begin], [0, len(DATA)],
            [begin + 2**40, end + 2**40], [begin + 2**63, end + 2**63], [2**64 - 4, 2**64 + end - begin - 4],
            [begin - len(DATA), end - len(DATA)], [begin, end, end], [begin], [str(begin), str(end)],
            [float(begin), float(end)], [begin, 10**400],
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
        "", ".", "..", "../../etc/passwd", "/etc/passwd", "a" * 100_000, "\x1b[2J", "\n\n", "\0", "__class__", "__proto__",
        "model", "model.", "model..norm.weight", "model.layers", "model.layers.0", "model.layers.-1.w", "model.layers.0x.w",
        "model.layers.99999999999999999999.mlp.up_proj.weight", "ｍodel.norm.weight", "model.norm.weight ", "{0.__class__}",
        "%s%s%s", "model.norm.weight\u202e", "lm_head", "layers.00.input_layernorm.weight", "日本語.weight", "norm",
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


# ---- values


def values() -> Iterator[Case]:
    """NaN, infinities, the largest and smallest numbers: they load as they are."""
    rng = random.Random(4)
    special = [
        0x7FC00000,
        0x7F800000,
        0xFF800000,
        0x7F800001,
        0xFFFFFFFF,
        0x7F7FFFFF,
        0x00000001,
        0x80000000,
        0x00800000,
    ]
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


# ---- shards and their index


def shards() -> Iterator[Case]:
    """Shards missing, exchanged, cut short, doubled; an index that says otherwise."""
    files = [name for name in SHARDED if name.endswith(".safetensors")]
    index = json.loads(SHARDED[INDEX])
    for name in files:
        yield Case({k: v for k, v in SHARDED.items() if k != name}, True, (name,))
        for other in files:
            if other != name:
                yield Case({**SHARDED, name: SHARDED[other]}, True, (name,))
        for size in range(0, len(SHARDED[name]), 9):
            yield Case({**SHARDED, name: SHARDED[name][:size]}, True, (name,))
        yield Case({**SHARDED, name: SHARDED[name] + b"\0"}, True, (name,))
        yield Case({**SHARDED, name: pickle.dumps(_Trap(), 2)}, True, (name, "pickle"))
    for tensor, place in index["weight_map"].items():
        for other in (*files, "model-00009-of-00003.safetensors", SINGLE):
            if other != place:
                yield with_index({**index["weight_map"], tensor: other}, True, other)
        for bad in (None, 1, 1.5, True, [], [place], {}, {place: place}, ""):
            yield with_index({**index["weight_map"], tensor: bad}, True, tensor)
        yield with_index({k: v for k, v in index["weight_map"].items() if k != tensor}, True, tensor)
        yield with_index({**index["weight_map"], tensor + "x": place}, True, tensor + "x")


def with_index(weight_map: Any, fails: bool | None, *names: str) -> Case:
    """Sound shards under an index with this `weight_map`."""
    return Case({**SHARDED, INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode()}, fails, names)


def ways_out_of_the_folder() -> Iterator[Case]:
    """Names in the index, and links, that lead out of the folder; `../secret.safetensors` is a sound shard."""
    weight_map = json.loads(SHARDED[INDEX])["weight_map"]
    for name in (
        f"../{SECRET}", f"./../{SECRET}", f"x/../../{SECRET}", f"..\\{SECRET}", f"{{outside}}/{SECRET}", f"file://{{outside}}/{SECRET}",
        f"~/{SECRET}", f"$HOME/{SECRET}", "/proc/self/mem.safetensors", "/dev/zero.safetensors", f"C:\\{SECRET}", f"//host/{SECRET}",
        f"..//{SECRET}", f"%2e%2e/{SECRET}", f"..%2f{SECRET}", f"../{SECRET}\0.safetensors", "\ud800.safetensors",
        f"http://127.0.0.1/{SECRET}", ".safetensors/../x.safetensors", f"../{'../' * 200}{SECRET}", "x" * 300 + ".safetensors",
    ):  # fmt: skip
        for tensors in (
            list(weight_map),
            [t for t, file in weight_map.items() if file == FIRST_SHARD],
            ["lm_head.weight"],
        ):
            yield with_index({**weight_map, **dict.fromkeys(tensors, name)}, True)
    for name in (SINGLE, INDEX, FIRST_SHARD):
        for target in (
            f"../{SECRET}",
            f"{{outside}}/{SECRET}",
            "/dev/zero",
            "/proc/self/mem",
            "..",
            ".",
            name,
            "nowhere",
            "a\nb",
        ):
            yield Case({**SHARDED, name: Link(target)}, True, (name,))


def index_files() -> Iterator[Case]:
    """The index itself, damaged in every way that JSON can be."""
    content = SHARDED[INDEX]
    for size in range(0, len(content), 2):
        yield Case({**SHARDED, INDEX: content[:size]}, True, (INDEX,))
    rng = random.Random(5)
    for _ in range(900):
        yield Case({**SHARDED, INDEX: flipped(content, rng.randrange(8 * len(content)))}, None)
    for bad in (
        None,
        [],
        1,
        "x",
        {},
        {"weight_map": None},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": "x"},
    ):
        yield Case({**SHARDED, INDEX: json.dumps(bad).encode()}, True, (INDEX,))
    for raw in (
        b"",
        b"\0",
        b"[" * 100_000,
        b'{"weight_map":' * 50_000,
        b"NaN",
        pickle.dumps(_Trap(), 2),
        b"\xff\xfe{}",
        b" " * 100_000,
    ):
        yield Case({**SHARDED, INDEX: raw}, True, (INDEX,))
    many = {f"t{i}": f"{i}.safetensors" for i in range(20_000)}
    yield with_index(many, True)
    yield with_index({f"t{i}": FIRST_SHARD for i in range(20_000)}, True)


# ---- config.json


def config_files() -> Iterator[Case]:
    """config.json cut short, with bits flipped, and with fields that are wrong, huge or of another kind."""
    content = SOUND[CONFIG]
    for size in range(len(content)):
        yield Case({**SOUND, CONFIG: content[:size]}, True, (CONFIG,))
    for bit in range(0, 8 * len(content), 3):
        yield Case({**SOUND, CONFIG: flipped(content, bit)}, None)
    for key in FIELDS:
        for bad in (
            None, True, False, 0, 1, -1, 3, 1.5, 1e300, -1e300, 2**31, 2**63, 10**30, 10**4000, "", "x", "7", "x" * 100_000,
            [], [1], {}, {"a": 1}, [[[]]], "__import__('os').system('true')", "../../etc/passwd", "\0", "\ud800",
        ):  # fmt: skip
            yield with_config({**FIELDS, key: bad})
        yield with_config({k: v for k, v in FIELDS.items() if k != key})
    for key in (
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
    ):
        for factor in (0, -1, 2, 10, 10**6, 10**9, 10**18):
            yield with_config({**FIELDS, key: FIELDS[key] * factor}, True)
        yield with_config({**FIELDS, key: float("nan")}, True)
        yield with_config({**FIELDS, key: float("inf")}, True)
    for more in (
        {"auto_map": {"AutoModel": "evil.Model"}}, {"quantization_config": {"quant_method": "x"}}, {"_name_or_path": "/etc"},
        {"trust_remote_code": True}, {"num_labels": 10**12}, {"id2label": {"0": ["x"]}}, {"label2id": "x"},
        {"rope_scaling": {"type": "x"}}, {"rope_scaling": {"rope_type": "linear", "factor": 1e400}}, {"torch_dtype": "int8"},
        {"rope_theta": "x"}, {"extra": {"hidden_size": 9}}, {"__class__": "x"}, {"": ""}, {"\ud800": 1},
    ):  # fmt: skip
        yield with_config({**FIELDS, **more})
    for raw in (
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        pickle.dumps(_Trap(), 2),
        b"\xff",
        b"import os",
    ):
        yield Case({**SOUND, CONFIG: raw}, None if raw == b"{}" else True, (CONFIG,) if raw != b"{}" else ())
    yield Case({SINGLE: SOUND[SINGLE]}, True, (CONFIG,))


def with_config(fields: dict[str, Any], fails: bool | None = None) -> Case:
    """Sound weights under another config."""
    return Case({**SOUND, CONFIG: json.dumps(fields).encode()}, fails)


def sound() -> Iterator[Case]:
    """Nothing wrong: the tests must be able to tell."""
    yield Case({**SOUND}, False)
    yield Case({**SHARDED}, False)
    yield single(pack(dict(reversed(TENSORS.items()))), False)
    yield single(pack(TENSORS, align=0), False)


KINDS: dict[str, Callable[[], Iterator[Case]]] = {
    kind.__name__: kind
    for kind in (
        sound, truncated, extended, bits_of_the_length, bits_of_the_header, bytes_of_the_header, other_files,
        headers_that_are_no_table, doubled_keys, fields_of_a_tensor, types_and_shapes, places, names, values, shards,
        ways_out_of_the_folder, index_files, config_files,
    )
}  # fmt: skip


def put(folder: Path, files: dict[str, bytes | Link], outside: Path) -> None:
    """Make `folder` hold exactly these files; `{outside}` in a link or an index stands for the path of a folder."""
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        if path.is_symlink():
            path.unlink()
        if isinstance(content, Link):
            path.unlink(missing_ok=True)
            path.symlink_to(content.target.format(outside=outside))
        else:
            if name == INDEX:
                content = content.replace(b"{outside}", str(outside).encode())
            path.write_bytes(content)
