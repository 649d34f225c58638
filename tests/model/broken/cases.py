"""A sound checkpoint, and what a broken one is made of and what must come of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refdiff.model.weights.folder import INDEX, SINGLE
from tests.model.weights.files import Stored, entries, join, pack, random_tensors, split

CONFIG = "config.json"
SECRET = "secret.safetensors"
SHARDS = 3

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


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a pickle was run')",)


def put(folder: Path, files: dict[str, bytes | Link], outside: Path) -> None:
    """Make `folder` hold exactly these files; `{outside}` in a link or an index stands for the path of a folder."""
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        # A new file, not new content in the old one: some file systems wait for the disk when a file is emptied.
        path.unlink(missing_ok=True)
        if isinstance(content, Link):
            path.symlink_to(content.target.format(outside=outside))
        else:
            path.write_bytes(content.replace(b"{outside}", str(outside).encode()) if name == INDEX else content)
