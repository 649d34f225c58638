"""Checkpoints made by hand, byte by byte, so that what reads and writes them is not what made them."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import refdiff

ARRAY_TYPES: dict[str, Any] = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class Stored(NamedTuple):
    """One tensor as a file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def tiny_config(**fields: Any) -> refdiff.DiffLlamaConfig:
    """One layer, four heads, hardly any numbers; no two sizes equal where they can differ."""
    sizes = {
        "vocab_size": 7, "hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 2, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return refdiff.DiffLlamaConfig(**{**sizes, **fields})


# (name, shape) for tiny_config(), spelled out: Hugging Face's names, in the order of its state_dict
BACKBONE = (
    ("embed_tokens.weight", (7, 6)), ("layers.0.self_attn.lambda_q1", (2,)), ("layers.0.self_attn.lambda_k1", (2,)),
    ("layers.0.self_attn.lambda_q2", (2,)), ("layers.0.self_attn.lambda_k2", (2,)),
    ("layers.0.self_attn.q_proj.weight", (8, 6)), ("layers.0.self_attn.k_proj.weight", (4, 6)),
    ("layers.0.self_attn.v_proj.weight", (4, 6)), ("layers.0.self_attn.o_proj.weight", (6, 8)),
    ("layers.0.mlp.gate_proj.weight", (5, 6)), ("layers.0.mlp.up_proj.weight", (5, 6)),
    ("layers.0.mlp.down_proj.weight", (6, 5)), ("layers.0.input_layernorm.weight", (6,)),
    ("layers.0.post_attention_layernorm.weight", (6,)), ("norm.weight", (6,)),
)  # fmt: skip
HEADS: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
    "DiffLlamaModel": (),
    "DiffLlamaForCausalLM": (("lm_head.weight", (7, 6)),),
    "DiffLlamaForSequenceClassification": (("score.weight", (2, 6)),),
    "DiffLlamaForTokenClassification": (("score.weight", (2, 6)), ("score.bias", (2,))),
    "DiffLlamaForQuestionAnswering": (("qa_outputs.weight", (2, 6)), ("qa_outputs.bias", (2,))),
}
PREFIXES = {"DiffLlamaModel": "", "DiffLlamaForQuestionAnswering": "transformer."}


def shapes_of(architecture: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of `tiny_config()`, untied."""
    prefix = PREFIXES.get(architecture, "model.")
    return {**{prefix + name: shape for name, shape in BACKBONE}, **dict(HEADS[architecture])}


def random_tensors(architecture: str = "DiffLlamaForCausalLM", dtype: str = "F32", seed: int = 0) -> dict[str, Stored]:
    """Draw every parameter of a class."""
    rng = np.random.default_rng(seed)
    return {name: stored(rng.standard_normal(shape), dtype) for name, shape in shapes_of(architecture).items()}


def stored(values: NDArray[Any], dtype: str = "F32") -> Stored:
    """Round an array to a type of the format."""
    return Stored(dtype, values.shape, values.astype(np.float32).astype(ARRAY_TYPES[dtype]).tobytes())


def array(tensor: Stored) -> NDArray[Any]:
    """Return a stored tensor as float64."""
    return np.frombuffer(tensor.data, ARRAY_TYPES[tensor.dtype]).reshape(tensor.shape).astype(np.float64)


def entries(tensors: dict[str, Stored]) -> dict[str, dict[str, Any]]:
    """Describe tensors that follow each other, as the header does."""
    result, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + len(tensor.data)
        result[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    return result


def join(header: bytes, data: bytes) -> bytes:
    """Put a file together from its header and its data."""
    return len(header).to_bytes(8, "little") + header + data


def pack(tensors: dict[str, Stored], *, align: int = 8) -> bytes:
    """Make a safetensors file; with `align` 0, data may start off its natural boundary."""
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries(tensors)}).encode()
    if align:
        header += b" " * (-len(header) % align)
    return join(header, b"".join(tensor.data for tensor in tensors.values()))


def split(tensors: dict[str, Stored], count: int) -> dict[str, bytes]:
    """Make `count` shards and their index."""
    names, size = list(tensors), math.ceil(len(tensors) / count)
    files, weight_map = {}, {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in names[i * size : (i + 1) * size]}
        files[file] = pack(part)
        weight_map |= dict.fromkeys(part, file)
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


LAYOUTS: dict[str, int | str] = {"single": "5GB", "two shards": 900, "four shards": 400}


def layout_changes(*quick: tuple[str, str, str]) -> list[Any]:
    """Every layout saved over every other and over none, with another config and the same; all but `quick` are slow."""
    return [
        pytest.param(*names, marks=[] if names in quick else [pytest.mark.slow])
        for names in itertools.product(["none", *LAYOUTS], LAYOUTS, ["same config", "other config"])
    ]
