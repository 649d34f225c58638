"""Test vectors in the form that other projects read: GGUF for llama.cpp, and the FlashInfer Trace dataset.

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
FlashInfer Trace: https://github.com/flashinfer-ai/flashinfer-bench/tree/main/docs/flashinfer-trace
The guide `refdiff/oracle/guides/vectors.md` says what the files hold and how to read them.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.cases.fixed import Case
from refdiff.oracle.golden.vector import LIMIT_NAMES, Numpy, Vector
from refdiff.oracle.inputs import AXES, kind_of
from refdiff.oracle.inputs.arrays import safetensors_bytes
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import head_indices, lambda_init, value_heads

GGUF_TYPES = {
    "float32": 0, "float16": 1, "int8": 24, "int16": 25, "int32": 26, "int64": 27, "bfloat16": 30,
}  # fmt: skip
"""Numbers of ggml's types."""
NARROWED = {"bool": np.int8, "float64": np.float32}
"""What arrays are written as that ggml has no type for, or hardly computes with."""
FLASHINFER_FIELDS = {
    "rope": "none", "qk_norm": "none", "gate": "none", "lambda_per_head": False, "norm_over": "head",
    "norm_bias": False, "norm_per_head": False, "masked_rows": "zeros", "padded_queries": "computed",
}  # fmt: skip
"""What the reference of a definition has a form for; fields of a `Spec` that are not here may be anything."""
AXIS_NAMES = {
    "B": "batch", "T": "queries", "S": "keys", "H": "query_heads", "K": "key_heads", "d": "head_dim", "h": "heads",
    "V": "value_heads", "w": "value_dim", "e": "out_dim",
}  # fmt: skip
VARIABLE = ("batch", "queries", "keys")
"""Axes whose sizes a workload says; the others are fields of a `Spec`."""
ALIGNMENT = 32
"""GGUF's default alignment of tensors, in bytes."""


def gguf_files(vectors: Iterable[Vector]) -> Iterator[tuple[str, bytes]]:
    """Yield one GGUF file for each case, with the arrays and limits of the guide, float64 as float32."""
    for vector in vectors:
        values: dict[str, str | float] = {"general.architecture": "refdiff", "general.name": vector.name}
        values |= {f"refdiff.{name}": text for name, text in vector.metadata.items()}
        for tensor, limits in vector.limits.items():
            found = {**dict(zip(LIMIT_NAMES, limits, strict=True)), "nmse": _allowed_nmse(vector, tensor)}
            values |= {f"refdiff.{tensor}.{name}": number for name, number in found.items()}
        arrays = {name: x.astype(NARROWED.get(x.dtype.name, x.dtype)) for name, x in vector.arrays.items()}
        yield f"{vector.name}.gguf", _encode_gguf(values, arrays)


def _allowed_nmse(vector: Vector, tensor: str) -> float:
    """Return the largest normalized squared error, as test-backend-ops has it, within the allowances of all rows."""
    y, allowed = vector.arrays[f"expected.{tensor}"], vector.arrays[f"budget.{tensor}"].ravel().astype(np.float64)
    y = y.reshape(len(allowed), y.size // max(1, len(allowed)))
    judged = np.isfinite(allowed) & np.isfinite(y).all(axis=-1)
    squares = np.square(y[judged]).sum()
    most = y.shape[-1] * np.square(vector.limits[tensor][0] * allowed[judged]).sum()
    return float(most / squares) if squares else 0.0


def _encode_gguf(values: Mapping[str, str | float], arrays: Mapping[str, Numpy]) -> bytes:
    """Encode a GGUF file of version 3: strings and float32 numbers by key, and arrays, the last axis first."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(data := text.encode())) + data

    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % ALIGNMENT)

    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(values))
    for key, value in values.items():
        typed = struct.pack("<I", 8) + string(value) if isinstance(value, str) else struct.pack("<If", 6, value)
        head += string(key) + typed
    body = b""
    for name, x in arrays.items():
        shape = x.shape[::-1] or (1,)
        head += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", GGUF_TYPES[x.dtype.name], len(body))
        body += pad(x.tobytes())
    return pad(head) + body


def flashinfer_trace_files(vectors: Iterable[Vector]) -> Iterator[tuple[str, bytes]]:
    """Yield definitions, workloads and blobs of a FlashInfer Trace dataset.

    Cases of one spec, type and set of inputs have one definition. Its reference is plain PyTorch, in float64. A blob
    has the inputs of a case by their names, and its other arrays by those of the guide.

    Raises:
        ValueError: the reference has no form for the spec of a case.
    """
    workloads: dict[str, str] = {}
    for vector in vectors:
        inputs = {name: x for name, x in vector.inputs.items() if name not in ("q_positions", "k_positions")}
        B, _, T, _ = inputs["q"].shape
        sizes = {"batch": B, "queries": T, "keys": inputs["k"].shape[2]}
        full = (B, vector.case.spec.heads, T, sizes["keys"])
        inputs |= {name: np.broadcast_to(inputs[name], full) for name in ("mask", "bias") if name in inputs}
        if (lambda_ := inputs.get("lambda_full")) is not None:
            inputs["lambda_full"] = np.broadcast_to(lambda_[:, None] if lambda_.ndim == 1 else lambda_, full[:3])
        inputs = {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in inputs.items()}
        definition = _define(vector.case.spec, inputs)
        name, place = definition["name"], f"{definition['op_type']}/{definition['name']}"
        if place not in workloads:
            yield f"definitions/{place}.json", json.dumps(definition, indent=2).encode()
        blob = f"blob/workloads/{place}/{name}_{vector.name}.safetensors"
        others = {of: x for of, x in vector.arrays.items() if not of.startswith("inputs.")}
        yield blob, b"".join(safetensors_bytes({**inputs, **others}, vector.metadata))
        sources = {of: {"type": "safetensors", "path": blob, "tensor_key": of} for of in inputs}
        workload = {"uuid": vector.name, "axes": sizes, "inputs": sources}
        entry = {"definition": name, "workload": workload, "solution": None, "evaluation": None}
        workloads[place] = f"{workloads.get(place, '')}{json.dumps(entry)}\n"
    for place, text in workloads.items():
        yield f"workloads/{place}.jsonl", text.encode()


def _define(spec: Spec, inputs: Mapping[str, Numpy]) -> dict[str, Any]:
    """Return the definition of a spec for inputs of these names, types and numbers of axes."""
    for name, value in FLASHINFER_FIELDS.items():
        if (got := getattr(spec, name)) != value:
            raise ValueError(f"{name}: got {got!r}, expected {value!r}, since flashinfer-trace has no form for others")
    operation = "attention" if spec.is_plain else "diff_attention"
    axes: dict[str, Any] = {}
    for letter, name in AXIS_NAMES.items():
        size = {"type": "var"} if name in VARIABLE else {"type": "const", "value": getattr(spec, name)}
        axes[name] = {**size, "description": f"{letter} in refdiff"}
    tensors: dict[str, Any] = {}
    for name, array in {**inputs, "out": inputs["q"]}.items():
        shape = [AXIS_NAMES[letter] for letter in AXES[name].replace("…", "B h T S").split()]
        tensors[name] = {"shape": shape, "dtype": array.dtype.name, "description": f"{name} in refdiff"}
    fields = json.dumps(spec.to_dict())
    number = zlib.crc32(f"{fields} {tensors}".encode())
    return {
        "name": f"{operation}_h{spec.query_heads}_kv{spec.key_heads}_d{spec.head_dim}_{number:08x}",
        "op_type": operation,
        "description": f"refdiff's spec {fields}",
        "axes": axes,
        "outputs": {"out": tensors.pop("out")},
        "inputs": tensors,
        "reference": _write_reference(spec, list(inputs), inputs["q"].dtype.name),
    }


def _write_reference(spec: Spec, names: list[str], dtype: str) -> str:
    """Write the function of a spec, of inputs of these names, as plain PyTorch in float64."""
    w, init = head_indices(spec), lambda_init(spec, ops_for())
    scale = spec.head_dim**-0.5 if spec.scale is None else spec.scale
    values = ", ".join(f"v[:, {part.tolist()}]" for part in value_heads(spec))
    first, second = (f"attend({q.tolist()}, {k.tolist()})" for q, k in ((w.q1, w.k1), (w.q2, w.k2)))
    lambda_ = {
        "exp": f"(lambda_q1 @ lambda_k1).exp() - (lambda_q2 @ lambda_k2).exp() + {init!r}",
        "sigmoid": "lambda_logits.sigmoid().mT[..., None]",
        "given": "lambda_full[..., None]",
        "none": "",
    }[spec.lambda_form]
    factor = {"1 - lambda_init": repr(1 - init), "lambda_init": repr(init), "1 - lambda": "(1 - lam)"}
    floats = [name for name in names if name not in ("mask", "key_mask")]
    lines: list[tuple[bool, str]] = [
        (True, f"{', '.join(floats)} = (x.double() for x in ({', '.join(floats)}))"),
        (True, "T, S = q.shape[2], k.shape[2]"),
        (True, f"t = torch.arange(T, device=q.device)[:, None]{'' if spec.causal == 'top_left' else ' + S - T'}"),
        (True, "s = torch.arange(S, device=q.device)[None]"),
        (True, f"visible = {'s <= t' if spec.causal != 'none' else 'torch.ones_like(s <= t)'}"),
        (spec.window is not None, f"visible = visible & ((s - t).abs() < {spec.window})"),
        ("key_mask" in names, "visible = visible & key_mask[:, None, None]"),
        ("mask" in names, "visible = visible & mask"),
        (True, f"v = torch.cat(({values},), dim=-1)[:, {w.v.tolist()}]"),
        (True, ""),
        (True, "def attend(query_heads, key_heads):"),
        (True, f"    z = q[:, query_heads] @ k[:, key_heads].mT * {scale!r}"),
        (spec.softcap is not None, f"    z = {spec.softcap!r} * torch.tanh(z / {spec.softcap!r})"),
        ("bias" in names, "    z = z + bias"),
        (True, "    z = z.masked_fill(~visible, -math.inf)"),
        (spec.sinks, "    sink = sinks[query_heads][:, None, None].expand(*z.shape[:3], 1)"),
        (spec.sinks, "    z = torch.cat((z, sink), dim=-1)"),
        (True, "    weights = torch.softmax(z, dim=-1).nan_to_num(0.0)  # zeros for a query that sees no key"),
        (True, "    return weights[..., :S] @ v"),
        (True, ""),
        (spec.is_plain, f"out = {first}"),
        (not spec.is_plain, f"lam = {lambda_}"),
        (not spec.is_plain, f"out = {first} - lam * {second}"),
        (spec.norm == "layer", "out = out - out.mean(-1, keepdim=True)"),
        (spec.norm != "none", f"out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + {spec.norm_eps!r})"),
        (spec.norm_weight, "out = out * norm_weight"),
        (spec.out_scale != "none", f"out = out * {factor.get(spec.out_scale)}"),
        (True, f"return out.to(torch.{dtype})"),
    ]
    body = "".join(f"    {line}".rstrip() + "\n" for wanted, line in lines if wanted)
    return f"import math\n\nimport torch\n\n\ndef run({', '.join(names)}):\n{body}"


def serves(target: str, case: Case) -> bool:
    """Return whether a form has a place for a case: neither has one for empty arrays."""
    dense = target == "llama.cpp" or kind_of(case.inputs) == "dense"
    return dense and all(np.asarray(x).size for x in case.inputs.values())
