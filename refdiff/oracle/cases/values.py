"""Draw the numbers of a case from a seed, with the distribution of its profile."""

from __future__ import annotations

import math

import numpy as np

from refdiff.arrays import bfloat16
from refdiff.backends import ops_for
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.inputs import QK_WEIGHTS, VECTORS, shapes
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.sequences import Inputs, Numpy, sequences, slots
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import (
    angles,
    attention_mask,
    head_indices,
    lambda_init,
    preparation_stages,
    preparation_steps,
    rotate,
)

STORAGE = ("float32", "bfloat16", "float16")
LAMBDAS = (-0.4, 0.1, 3.4)
"""λ of the profile lambda, one per seed: a wrong kernel may clip λ at 0, 0.3 or 3."""
TILE_BORDER = 64
"""Queries are aimed at keys s with s mod 64 = 63 or 0, where every tile of 16, 32 or 64 keys ends, and half of 128."""
FAR_GAIN = 300.0
"""The gain g of one row in five (`aim_at_tiles`): its exponential overflows float32."""
VALUES = ("natural", "discriminating", "cancellation", "tiny_values", "extreme", "degenerate", "tiles", "lambda")
"""Distributions of numbers. The other profiles differ in structure only (`fixed.PROFILES` has their distribution)."""


def draw(spec: Spec | str, structure: Structure, values: str, seed: int, dtype: str = "float32") -> Inputs:
    """Draw inputs of a spec, or of a preset with small dimensions, rounded to a storage dtype.

    Equation:
        natural: normally distributed; norm weights of either sign; λ between 0.36 and 0.84, not near λ_init, or within
            0.15 of such a value for each head
        discriminating: as natural, with queries 1.3 times as large
        cancellation: λ between 0.88 and 1.12; the second query and key of most pairs close to the first
        tiny_values: as discriminating, with values 2e-3 times as large
        extreme: scores up to some thousands, two equal keys, one large key; unscaled scores of the last query overflow
            float16
        degenerate: some queries zero, all keys equal, all values 1
        tiles: as natural, with each query aimed at one key, mostly next to a tile border
        lambda: as discriminating, with λ below 0, near 0 or above 3, depending on the seed

    Raises:
        ValueError: `values` or `dtype` is unknown.
    """
    for name, value, known in (("values", values, VALUES), ("dtype", dtype, STORAGE)):
        if value not in known:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
    spec = resolve_spec(spec)
    rng = np.random.default_rng([seed, VALUES.index(values)])
    n, tables = structure.lengths(spec), structure.tables(rng)
    layer: Inputs = {"x": tables} if structure.hidden is not None else {}  # type: ignore[dict-item]
    names = shapes(spec, layer)
    made = {name: _draw_array(name, [n[a] for a in letters.split()], rng, values) for name, letters in names.items()
            if name not in (*VECTORS, "lambda_full")}  # fmt: skip
    if structure.hidden is not None and n["R"] and structure.packed is None:
        made["x_past"] = rng.normal(size=(n["B"], n["R"], n["D"]))
    made |= _draw_lambda(spec, values, rng, LAMBDAS[seed % 3] if values == "lambda" else None)
    if "q" in made:
        _shape_maps(spec, made, rng, values)
    if structure.pages is not None:
        _fill_pages(spec, structure, made, tables, rng)
    if structure.hidden is None:
        tables |= structure.masks(spec)
        if structure.bias:
            made["bias"] = 2.0 * rng.normal(size=(1, n["h"], n["T"], n["S"]))
        if values == "tiles":
            made["q"] = aim_at_tiles(spec, {**made, **tables})
    if "key_mask" in tables and "k" in made:  # large numbers at padding reveal a kernel that attends to it
        hidden = ~tables["key_mask"][:, None, :, None]
        made |= {name: np.where(hidden, 30.0 * made[name], made[name]) for name in ("k", "v")}
    return {**{name: round_to_storage(x, dtype) for name, x in made.items()}, **tables}


def round_to_storage(x: Numpy, dtype: str) -> Numpy:
    """Round to a storage dtype, once."""
    kind = bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    return round_to(np.asarray(x, dtype=np.float64), dtype).astype(kind)


def _draw_array(name: str, shape: list[int], rng: np.random.Generator, values: str) -> Numpy:
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


def _draw_lambda(spec: Spec, values: str, rng: np.random.Generator, wanted: float | None) -> Inputs:
    """Draw the λ vectors, or λ itself if it is an input, with λ near `wanted` or in the range of the profile."""
    start = lambda_init(spec, ops_for())
    offset = 0.25 if start < 0.55 else -0.25
    target = float(rng.uniform(0.92, 1.08) if values == "cancellation" else min(max(start + offset, 0.4), 0.8))
    target = (target if wanted is None else wanted) + float(rng.uniform(-0.04, 0.04))
    if spec.lambda_form == "given":
        return {"lambda_full": np.asarray(target)}
    if spec.lambda_form in ("sigmoid", "none"):
        return {}
    if spec.lambda_per_head:
        heads = [_lambda_vectors(spec, start, target + 0.15 * float(rng.uniform(-1, 1)), rng, wanted)
                 for _ in range(spec.heads)]  # fmt: skip
        return {name: np.stack([x[name] for x in heads]) for name in VECTORS}
    return _lambda_vectors(spec, start, target, rng, wanted)


def _lambda_vectors(spec: Spec, start: float, target: float, rng: np.random.Generator, wanted: float | None) -> Inputs:
    """Draw the four vectors so that exp(q₁·k₁) − exp(q₂·k₂) = λ − λ_init.

    Both exponentials are of order 1, but not near 1: a wrong formula for λ then gives another number.
    """
    second = float(rng.uniform(0.5, 0.75))
    if (first := second + target - start) < 0.15:
        first, second = (0.15, 0.15 + start - target) if wanted is not None else (0.15, second)
    made: Inputs = {}
    for name, dot in (("1", math.log(first)), ("2", math.log(second))):
        a, b = _normal(rng, (spec.head_dim,)), _normal(rng, (spec.head_dim,))
        b = b + a * float((dot - np.sum(a * b)) / np.sum(a * a))
        made |= {f"lambda_q{name}": a, f"lambda_k{name}": b}
    return {name: made[name] for name in VECTORS}


def _shape_maps(spec: Spec, made: Inputs, rng: np.random.Generator, values: str) -> None:
    """Change q and k in place to the distribution of the profile."""
    q, k, w = made["q"], made["k"], head_indices(spec)
    if values in ("discriminating", "tiny_values", "lambda"):
        made["q"] = 1.3 * q
    elif values == "cancellation":
        # if several signal maps share a noise map, the noise is close to the last of them
        q[:, w.q2] = q[:, w.q1] + 0.02 * _normal(rng, q.shape)[:, w.q2]
        k[:, w.k2] = k[:, w.k1] + 0.02 * _normal(rng, k.shape)[:, w.k2]
        q[:, w.q2, ::7] = q[:, w.q1, ::7]
    elif values == "extreme":
        rows, keys = q.shape[2], k.shape[2]
        made["q"] = q * rng.choice([1.0, 12.0, 150.0], size=(1, 1, rows, 1))
        made["k"] = k * rng.choice([1.0, 8.0], size=(1, 1, keys, 1))
        if keys > 2:
            made["k"][:, :, 2] = made["k"][:, :, 1]  # an exact tie without RoPE, nearly one with it
            made["k"][:, :, 0] *= 4.0
            _overflow_unscaled(made)
    elif values == "degenerate":
        made["k"] = np.broadcast_to(k[:, :, :1], k.shape).copy()
        made["q"] = np.where(rng.random((1, 1, q.shape[2], 1)) < 0.5, 0.0, q)


def _overflow_unscaled(made: Inputs) -> None:
    """Lengthen the last query of each head in place, so that its largest products q·k overflow float16 unscaled.

    Equation:
        |cos(q, k)| is usually about 1/√d, with RoPE too, and up to 3/√d for some keys. For those |q·k| is set to
        3 · 65,504, which is finite in float16 after the division by √d, for d ≥ 9.
    """
    q, k = made["q"][:, :, -1:], made["k"]
    longest = np.max(np.sqrt(np.sum(k**2, axis=-1)))
    length = np.sqrt(np.sum(q**2, axis=-1, keepdims=True)) * longest
    made["q"][:, :, -1:] = q * (3 * 65_504 * math.sqrt(q.shape[-1]) / (3 * length))


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Numpy:
    return np.asarray(rng.normal(size=shape))


def _fill_pages(spec: Spec, structure: Structure, made: Inputs, tables: Inputs, rng: np.random.Generator) -> None:
    """Replace k and v by pages with new numbers; every unused slot is NaN."""
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
            made[pages][page, :, slot] = _draw_array(name, [int(length), heads, width], rng, "natural")


def aim_at_tiles(spec: Spec, inputs: Inputs) -> Numpy:
    """Return q with each query aimed at one key, so that the row attends mostly to that key.

    A fused kernel processes the keys in tiles of 16 to 128. The key is the first or the last visible one, or one next
    to a tile border. The largest score of a row then comes in an early tile for one row and in a late one for the next,
    and at different keys in the two maps. This reveals keys that are lost or counted twice, and missing rescaling.

    Equation:
        R q' = R q / 2 + (g / scale) R k_s / ‖k_s‖², R being RoPE: this adds g, 1 + log S or 300, to the score of key s

    Shapes:
        core inputs, float64 -> (B, H, T, d)
    """
    aimed = np.array(inputs["q"])
    for part in sequences(inputs):
        if 0 not in part.inputs["q"].shape and 0 not in part.inputs["k"].shape:
            aimed[part.batch, :, part.queries] = _aim_dense(spec, part.inputs)
    return aimed


def tile_boundary_keys(visible: Numpy) -> Numpy:
    """Return the keys that a query may be aimed at: its first and last visible key, and those next to tile borders.

    Shapes:
        (S,) boolean -> indices; none if no key is visible
    """
    keys = np.flatnonzero(visible)
    borders = keys[np.isin(keys % TILE_BORDER, (TILE_BORDER - 1, 0))]
    return np.unique(np.concatenate([keys[:1], borders, keys[-1:]]))


def _aim_dense(spec: Spec, inputs: Inputs) -> Numpy:
    """Aim the queries of one dense batch: rotate q and k, add the keys, rotate q back."""
    ops, w = ops_for(), head_indices(spec)
    cos_sin = angles(spec, inputs, ops)
    q, k = (preparation_stages(spec, inputs, name, cos_sin, ops)[-1] for name in "qk")
    B, H, T, d = q.shape
    scale = 1 / math.sqrt(d) if spec.scale is None else spec.scale
    key_of = np.zeros(H, dtype=np.int64)
    key_of[w.q1], key_of[w.q2] = w.k1, w.k2
    visible = np.broadcast_to(attention_mask(spec, inputs), (B, spec.heads, T, k.shape[2]))[:, 0]
    aimed = 0.5 * q
    for b, t in np.ndindex(B, T):
        at = tile_boundary_keys(visible[b, t])
        for head in range(H if len(at) else 0):
            n = 5 * b + t + 3 * head
            key = k[b, key_of[head], at[n % len(at)]]
            gain = FAR_GAIN if n % 5 == 4 else 1 + math.log(k.shape[2])
            aimed[b, head, t] += gain / scale * key / np.sum(key * key)
    for step in reversed(preparation_steps(spec)):
        if step == "norm":  # it undoes any scale of q, so that dividing by the weight is enough
            aimed = aimed / inputs.get("q_norm_weight", 1.0)
        else:
            cos, sin = cos_sin["q"]
            aimed = rotate(spec, aimed, cos, -sin, ops)
    return aimed
