"""Damage to shards and their index, and ways out of the folder."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator
from typing import Any

from refdiff.model.weights.folder import INDEX, SINGLE
from tests.model.broken.cases import FIRST_SHARD, SECRET, SHARDED, Case, Link, Trap, flipped


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
        yield Case({**SHARDED, name: pickle.dumps(Trap(), 2)}, True, (name, "pickle"))
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
        f"../{SECRET}", f"./../{SECRET}", f"x/../../{SECRET}", f"..\\{SECRET}", f"{{outside}}/{SECRET}",
        f"file://{{outside}}/{SECRET}", f"~/{SECRET}", f"$HOME/{SECRET}", "/proc/self/mem.safetensors",
        "/dev/zero.safetensors", f"C:\\{SECRET}", f"//host/{SECRET}", f"..//{SECRET}", f"%2e%2e/{SECRET}",
        f"..%2f{SECRET}", f"../{SECRET}\0.safetensors", "\ud800.safetensors", f"http://127.0.0.1/{SECRET}",
        ".safetensors/../x.safetensors", f"../{'../' * 200}{SECRET}", "x" * 300 + ".safetensors",
    ):  # fmt: skip
        for tensors in (
            list(weight_map),
            [t for t, file in weight_map.items() if file == FIRST_SHARD],
            ["lm_head.weight"],
        ):
            yield with_index({**weight_map, **dict.fromkeys(tensors, name)}, True)
    for name in (SINGLE, INDEX, FIRST_SHARD):
        for target in (
            f"../{SECRET}", f"{{outside}}/{SECRET}", "/dev/zero", "/proc/self/mem", "..", ".", name, "nowhere", "a\nb",
        ):  # fmt: skip
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
        None, [], 1, "x", {}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": "x"},
    ):  # fmt: skip
        yield Case({**SHARDED, INDEX: json.dumps(bad).encode()}, True, (INDEX,))
    for raw in (
        b"", b"\0", b"[" * 100_000, b'{"weight_map":' * 50_000, b"NaN", pickle.dumps(Trap(), 2), b"\xff\xfe{}",
        b" " * 100_000,
    ):  # fmt: skip
        yield Case({**SHARDED, INDEX: raw}, True, (INDEX,))
    many = {f"t{i}": f"{i}.safetensors" for i in range(20_000)}
    yield with_index(many, True)
    yield with_index({f"t{i}": FIRST_SHARD for i in range(20_000)}, True)
