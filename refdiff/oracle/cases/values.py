"""The numbers of a problem, from a seed: what each profile makes large, small, alike or extreme."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refdiff.arrays import bfloat16
from refdiff.backends import ops_for
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.inputs import QK_WEIGHTS, VECTORS, shapes
from refdiff.oracle.inputs.sequences import Inputs, sequences, slots
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.resolve import resolve_spec
from refdiff.oracle.truth.attention_operands import (
    angles,
    attention_mask,
    head_indices,
    lambda_init,
    preparation,
    rotate,
    stages,
)

Numpy = np.ndarray[Any, Any]
STORAGE = ("float32", "bfloat16", "float16")
ALIASES = {"identify": "discriminating", "whisper": "tiny_values", "cancel": "cancellation"}
"""Former names of profiles, still accepted."""
LAMBDAS = (-0.4, 0.1, 3.4)
"""Of the profile lambda: a kernel may cut λ off at 0, at 0.3 or at 3."""
BORDER = 64
"""Keys s with s mod 64 = 63 or 0 are looked at: every tile of 16, 32 or 64 keys ends there, and one of 128 at half."""
FAR = 300.0
"""By how much one row of five is raised: exp of what it is above most keys is no number of float32."""
VALUES = ("natural", "discriminating", "cancellation", "tiny_values", "extreme", "degenerate", "tiles", "lambda")
"""The profiles that differ in their numbers; `layout` and `serving` differ in structure and have natural ones."""


def draw(spec: Spec | str, structure: Structure, values: str, seed: int, dtype: str = "float32") -> Inputs:
    """Return inputs of a spec, or of a preset with small dimensions, rounded to a storage dtype.

    Equation:
        discriminating: λ between 0.35 and 0.85 and not near λ_init, its exponentials and the scores of order 1, weights
        of either sign
        cancellation: λ between 0.9 and 1.1, the second query and key of most pairs close to the first
        tiny_values: as discriminating, the values 2e-3 times as large
        extreme: scores up to some thousands, some keys equal, one of them far above the others; of the last query
            beyond float16 before they are scaled
        degenerate: zeros, equal keys, values all one
        tiles: as discriminating, each query aimed at one key, most of them beside a border of tiles
        lambda: as discriminating, λ below 0, near 0 or above 3, in turn of seeds
        natural: normal numbers

    Raises:
        ValueError: a profile or dtype that is none.
    """
    values = ALIASES.get(values, values)
    for name, value, known in (("values", values, VALUES), ("dtype", dtype, STORAGE)):
        if value not in known:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
    spec = resolve_spec(spec)
    rng = np.random.default_rng([seed, VALUES.index(values)])
    n, tables = structure.lengths(spec), structure.tables(rng)
    kind: Inputs = {"x": tables} if structure.hidden is not None else {}  # type: ignore[dict-item]
    names = shapes(spec, kind)
    made = {name: _of(name, [n[a] for a in letters.split()], rng, values) for name, letters in names.items()
            if name not in (*VECTORS, "lambda_full")}  # fmt: skip
    if structure.hidden is not None and n["R"] and structure.packed is None:
        made["x_past"] = rng.normal(size=(n["B"], n["R"], n["D"]))
    made |= _lambda(spec, values, rng, LAMBDAS[seed % 3] if values == "lambda" else None)
    if "q" in made:
        _maps(spec, made, rng, values)
    if structure.pages is not None:
        _into_pages(spec, structure, made, tables, rng)
    if structure.hidden is None:
        tables |= structure.masks(spec)
        if structure.bias:
            made["bias"] = 2.0 * rng.normal(size=(1, n["h"], n["T"], n["S"]))
        if values == "tiles":
            made["q"] = aim_at_tiles(spec, {**made, **tables})
    if "key_mask" in tables and "k" in made:  # padding holds large numbers, which must not be seen
        hidden = ~tables["key_mask"][:, None, :, None]
        made |= {name: np.where(hidden, 30.0 * made[name], made[name]) for name in ("k", "v")}
    return {**{name: stored(x, dtype) for name, x in made.items()}, **tables}


def stored(x: Numpy, dtype: str) -> Numpy:
    """Round to a storage dtype, once."""
    kind = bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    return round_to(np.asarray(x, dtype=np.float64), dtype).astype(kind)


def _of(name: str, shape: list[int], rng: np.random.Generator, values: str) -> Numpy:
    x = rng.normal(size=shape)
    if name.endswith("_proj.weight"):
        return x * (1.3 / math.sqrt(max(1, shape[-1])))
    if name == "lambda_logits":
        return x + 3.0 if values == "cancellation" else {"lambda": 4.0}.get(values, 1.2) * x
    if name == "sinks":
        return 1.0 + 1.5 * x
    if name == "norm_bias":
        return 0.3 * x
    if name == "norm_weight" or name in QK_WEIGHTS:
        return np.where(rng.random(shape) < 0.25, -1.0, 1.0) * rng.uniform(0.4, 1.6, shape)
    if name == "v":
        return {"tiny_values": 2e-3, "degenerate": 0.0}.get(values, 1.0) * x + (1.0 if values == "degenerate" else 0.0)
    return x


def _lambda(spec: Spec, values: str, rng: np.random.Generator, wanted: float | None) -> Inputs:
    """The λ vectors, such that λ is where the profile wants it; or λ itself."""
    start = lambda_init(spec, ops_for())
    away = 0.25 if start < 0.55 else -0.25
    target = float(rng.uniform(0.92, 1.08) if values == "cancellation" else min(max(start + away, 0.4), 0.8))
    target = (target if wanted is None else wanted) + float(rng.uniform(-0.04, 0.04))
    if spec.lambda_form == "given":
        return {"lambda_full": np.asarray(target)}
    if spec.lambda_form in ("sigmoid", "none"):
        return {}
    if spec.lambda_per_head:
        of_heads = [_vectors(spec, start, target + 0.15 * float(rng.uniform(-1, 1)), rng, wanted)
                    for _ in range(spec.heads)]  # fmt: skip
        return {name: np.stack([x[name] for x in of_heads]) for name in VECTORS}
    return _vectors(spec, start, target, rng, wanted)


def _vectors(spec: Spec, start: float, target: float, rng: np.random.Generator, wanted: float | None) -> Inputs:
    """Four vectors: e₁ − e₂ = λ − λ_init, both of order 1 and apart from 1, so that no other formula gives the same."""
    second = float(rng.uniform(0.5, 0.75))
    if (first := second + target - start) < 0.15:
        first, second = (0.15, 0.15 + start - target) if wanted is not None else (0.15, second)
    made: Inputs = {}
    for name, dot in (("1", math.log(first)), ("2", math.log(second))):
        a, b = _normal(rng, (spec.head_dim,)), _normal(rng, (spec.head_dim,))
        b = b + a * float((dot - np.sum(a * b)) / np.sum(a * a))
        made |= {f"lambda_q{name}": a, f"lambda_k{name}": b}
    return {name: made[name] for name in VECTORS}


def _maps(spec: Spec, made: Inputs, rng: np.random.Generator, values: str) -> None:
    """Make q and k what the profile wants of the two maps of each pair."""
    q, k, w = made["q"], made["k"], head_indices(spec)
    if values in ("discriminating", "tiny_values", "lambda"):
        made["q"] = 1.3 * q
    elif values == "cancellation":
        # where several signals share a noise, it is like the last of them
        q[:, w.q2] = q[:, w.q1] + 0.02 * _normal(rng, q.shape)[:, w.q2]
        k[:, w.k2] = k[:, w.k1] + 0.02 * _normal(rng, k.shape)[:, w.k2]
        q[:, w.q2, ::7] = q[:, w.q1, ::7]
    elif values == "extreme":
        rows, keys = q.shape[2], k.shape[2]
        made["q"] = q * rng.choice([1.0, 12.0, 150.0], size=(1, 1, rows, 1))
        made["k"] = k * rng.choice([1.0, 8.0], size=(1, 1, keys, 1))
        if keys > 2:
            made["k"][:, :, 2] = made["k"][:, :, 1]  # an exact tie without RoPE, near one with it
            made["k"][:, :, 0] *= 4.0
            _overflow_unscaled(made)
    elif values == "degenerate":
        made["k"] = np.broadcast_to(k[:, :, :1], k.shape).copy()
        made["q"] = np.where(rng.random((1, 1, q.shape[2], 1)) < 0.5, 0.0, q)


def _overflow_unscaled(made: Inputs) -> None:
    """Lengthen the last query of each head, such that its largest products q·k overflow float16 before they are scaled.

    The cosine of two vectors is usually 1/√d, with RoPE too, and three times that for some of the keys: there |q·k| is
    3 · 65,504, which divided by √d is in the type's range again for d of 8 or more.
    """
    q, k = made["q"][:, :, -1:], made["k"]
    longest = np.max(np.sqrt(np.sum(k**2, axis=-1)))
    length = np.sqrt(np.sum(q**2, axis=-1, keepdims=True)) * longest
    made["q"][:, :, -1:] = q * (3 * 65_504 * math.sqrt(q.shape[-1]) / (3 * length))


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Numpy:
    return np.asarray(rng.normal(size=shape))


def _into_pages(spec: Spec, structure: Structure, made: Inputs, tables: Inputs, rng: np.random.Generator) -> None:
    """Put keys and values into pages; every slot that is nobody's is NaN."""
    table, lengths, p = tables["block_table"], tables["lengths"], structure.page
    count = sum(-(-int(length) // p) for length in lengths) + 2
    for name, pages, heads, width in (
        ("k", "k_pages", spec.key_heads, spec.head_dim),
        ("v", "v_pages", spec.value_heads, spec.value_dim),
    ):
        del made[name]
        made[pages] = np.full((count, heads, p, width), math.nan)
        for row, length in zip(table, lengths, strict=True):
            page, slot = slots(made[pages], row, int(length))
            made[pages][page, :, slot] = _of(name, [int(length), heads, width], rng, "natural")


def aim_at_tiles(spec: Spec, inputs: Inputs) -> Numpy:
    """Return q turned so that each row of each map has a large score, from the noise that q is and the keys.

    A fused kernel goes through the keys in tiles of 16 to 128. Each query is turned towards one key, the first or the
    last that it sees or one beside a border, on which most rows then have most of their weight. So the row's largest
    score comes in an early tile in one row and in a late one in the next, and at different keys in the two maps: what a
    kernel loses, counts twice or forgets to rescale there shows.

    Equation:
        R q' = q / 2 + g √d k̂_s / ‖k_s‖, R being RoPE: the score of key s is larger by g = 1 + log S, or by 300

    Shapes:
        core inputs, float64 -> (B, H, T, d)
    """
    aimed = np.array(inputs["q"])
    for part in sequences(inputs):
        if 0 not in part.inputs["q"].shape and 0 not in part.inputs["k"].shape:
            aimed[part.batch, :, part.queries] = _aimed(spec, part.inputs)
    return aimed


def tile_boundary_keys(see: Numpy) -> Numpy:
    """The keys that a query may be aimed at: the first and the last that it sees, and those beside borders.

    Shapes:
        (S,) boolean -> indices; none where it sees nothing
    """
    keys = np.flatnonzero(see)
    beside = keys[np.isin(keys % BORDER, (BORDER - 1, 0))]
    return np.unique(np.concatenate([keys[:1], beside, keys[-1:]]))


def _aimed(spec: Spec, inputs: Inputs) -> Numpy:
    """Dense inputs' queries."""
    q, k, ops, w = inputs["q"], inputs["k"], ops_for(), head_indices(spec)
    turns = angles(spec, inputs, ops)
    q, k = (stages(spec, {**inputs, "q": q, "k": k}, name, turns, ops)[-1] for name in "qk")
    B, H, T, d = q.shape
    scale = 1 / math.sqrt(d) if spec.scale is None else spec.scale
    key_of = np.zeros(H, dtype=np.int64)
    key_of[w.q1], key_of[w.q2] = w.k1, w.k2
    see = np.broadcast_to(attention_mask(spec, inputs), (B, spec.heads, T, k.shape[2]))[:, 0]
    aimed = 0.5 * q
    for b, t in np.ndindex(B, T):
        at = tile_boundary_keys(see[b, t])
        for head in range(H if len(at) else 0):
            n = 5 * b + t + 3 * head
            key = k[b, key_of[head], at[n % len(at)]]
            gain = FAR if n % 5 == 4 else 1 + math.log(k.shape[2])
            aimed[b, head, t] += gain / scale * key / np.sum(key * key)
    for step in reversed(preparation(spec)):
        if step == "norm":  # of any length, and so it is the direction alone that counts
            aimed = aimed / inputs.get("q_norm_weight", 1.0)
        else:
            cos, sin = turns["q"]
            aimed = rotate(spec, aimed, cos, -sin, ops)
    return aimed
