"""Damage to config.json."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from typing import Any

from refdiff.model.weights.folder import SINGLE
from tests.model.broken.cases import CONFIG, FIELDS, SECRET, SOUND, Case, Link, Trap, flipped


def config_files() -> Iterator[Case]:
    """config.json cut short, with bits flipped, and with fields that are wrong, huge or of another kind."""
    content = SOUND[CONFIG]
    for size in range(len(content)):
        yield Case({**SOUND, CONFIG: content[:size]}, True, (CONFIG,))
    for bit in range(0, 8 * len(content), 3):
        yield Case({**SOUND, CONFIG: flipped(content, bit)}, None)
    for key in FIELDS:
        for bad in (
            None, True, False, 0, 1, -1, 3, 1.5, 1e300, -1e300, 2**31, 2**63, 10**30, 10**4000, "", "x", "7",
            "x" * 100_000, [], [1], {}, {"a": 1}, [[[]]], "__import__('os').system('true')", "../../etc/passwd", "\0",
            "\ud800",
        ):  # fmt: skip
            yield with_config({**FIELDS, key: bad})
        yield with_config({k: v for k, v in FIELDS.items() if k != key})
    for key in (
        "hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "head_dim",
    ):  # fmt: skip
        for factor in (0, -1, 2, 10, 10**6, 10**9, 10**18):
            yield with_config({**FIELDS, key: FIELDS[key] * factor}, True)
        yield with_config({**FIELDS, key: float("nan")}, True)
        yield with_config({**FIELDS, key: float("inf")}, True)
    for more in (
        {"auto_map": {"AutoModel": "evil.Model"}}, {"quantization_config": {"quant_method": "x"}},
        {"_name_or_path": "/etc"}, {"trust_remote_code": True}, {"num_labels": 10**12}, {"id2label": {"0": ["x"]}},
        {"label2id": "x"}, {"rope_scaling": {"type": "x"}}, {"rope_scaling": {"rope_type": "linear", "factor": 1e400}},
        {"torch_dtype": "int8"}, {"rope_theta": "x"}, {"extra": {"hidden_size": 9}}, {"__class__": "x"}, {"": ""},
        {"\ud800": 1},
    ):  # fmt: skip
        yield with_config({**FIELDS, **more})
    for raw in (
        b"", b"null", b"[]", b"{}", b"[" * 100_000, b'{"a":' * 50_000, pickle.dumps(Trap(), 2), b"\xff", b"import os",
    ):  # fmt: skip
        yield Case({**SOUND, CONFIG: raw}, None if raw == b"{}" else True, (CONFIG,) if raw != b"{}" else ())
    yield Case({SINGLE: SOUND[SINGLE]}, True, (CONFIG,))
    for name in (CONFIG, "generation_config.json"):
        for target in (f"../{SECRET}", f"{{outside}}/{SECRET}", "/dev/zero", "/proc/self/mem", "..", ".", name):
            # a link to itself is no file, and nobody needs a generation_config.json
            fails = None if target == "generation_config.json" else True
            yield Case({**SOUND, name: Link(target)}, fails, (name,))


def with_config(fields: dict[str, Any], fails: bool | None = None) -> Case:
    """Sound weights under another config."""
    return Case({**SOUND, CONFIG: json.dumps(fields).encode()}, fails)
