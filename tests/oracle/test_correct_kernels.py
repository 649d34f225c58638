"""Correct kernels built as GPUs, TPUs and CPUs run them, none of which the oracle's own orders are: none may fail.

Each is NumPy in float32 with explicit roundings, judged by the recipe that describes it. Plain ones have a backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Case, Recipe, Spec, budget, cases
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.rounding import round_to, truncate_to, ulp
from refdiff.oracle.truth.attention_operands import attention_mask, head_indices, value_heads

Numpy = np.ndarray[Any, Any]
F32 = np.float32
LOG2_E = math.log2(math.e)
NARROW = ("bfloat16", "float16")


@dataclass(frozen=True)
class Kernel:
    """How a kernel computes.

    tile: keys at a time. order: of the tiles, "first", "last" or "diagonal" (the last, then from the first). parts: of
    the keys, merged by their log-sum-exps. stored_parts: outputs of parts are stored in 16 bits.
    lazy: the maximum is kept until it grows by 8 in base 2.
    scale: of "scores"; "log2" stores q · scale · log₂ e, "root" q and k each times √scale.
    sums: of products, "blas", "halves" (a tree), "cut" (a tensor core that truncates), or "16 bits".
    combine: "stored" outputs of two launches, "registers", or λ "in v" or "in p".
    approximate: exponentials off by 2⁻²², quotients and roots by one or two units in the last place.
    """

    recipe: dict[str, str] = field(default_factory=dict)
    tile: int = 16
    order: str = "first"
    parts: int = 1
    stored_parts: bool = False
    lazy: bool = False
    scale: str = "scores"
    sums: str = "blas"
    combine: str = "registers"
    rounded_denominator: bool = False
    truncated: bool = False
    approximate: bool = False
    iterated_angles: bool = False
    storages: tuple[str, ...] = ("float32", "bfloat16", "float16")


KERNELS = {
    "FlashAttention-2": Kernel(tile=32, order="last", combine="stored"),
    "FlashAttention-3, truncating sums": Kernel(order="diagonal", sums="cut"),
    "FlashAttention-4, lazy rescaling": Kernel(tile=8, lazy=True),
    "split keys": Kernel(tile=4, parts=3, combine="stored"),
    "split keys, parts in 16 bits": Kernel(tile=4, parts=3, stored_parts=True),
    "tree sums": Kernel(sums="halves", combine="stored"),
    "λ V": Kernel(combine="in v"),
    "λ P": Kernel(combine="in p"),
    "denominator of rounded weights": Kernel(rounded_denominator=True),
    "approximate functions": Kernel(approximate=True),
    "approximate tanh": Kernel({"tanh": "approx"}, approximate=True, storages=NARROW),
    "operands in bfloat16": Kernel({"matmul": "bfloat16"}, combine="stored", storages=("float32",)),
    "truncated tf32": Kernel({"matmul": "tf32"}, truncated=True, storages=("float32",)),
    "q · scale · log₂ e stored": Kernel({"scaled_q": "storage"}, scale="log2", storages=NARROW),
    "√scale in q and k": Kernel({"scaled_q": "storage"}, scale="root", combine="stored", storages=NARROW),
    "16-bit accumulators": Kernel({"accumulate": "storage"}, sums="16 bits", storages=NARROW),
    "angles by repeated products": Kernel(iterated_angles=True),
}
SPECS = {
    "hf_diffllama": Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=24, layer=3),
    "diff_v2": Spec.preset("diff_v2", query_heads=8, key_heads=2, head_dim=16),
    "attention": Spec.preset("attention", query_heads=6, key_heads=2, head_dim=24, scale=0.11),
    "softcap": Spec.preset("attention", query_heads=4, key_heads=2, head_dim=16, softcap=15.0),
}


class Run:
    """A kernel at work on tensors of one storage type."""

    def __init__(self, kernel: Kernel, storage: str) -> None:
        self.kernel, self.storage = kernel, storage
        names = {name: storage if type_ == "storage" else type_ for name, type_ in kernel.recipe.items()}
        self.recipe = Recipe(storage, **names)

    def store(self, x: Any) -> Numpy:
        return round_to(np.asarray(x, dtype=F32), self.storage)

    def approximate(self, x: Numpy, units: float) -> Numpy:
        """An error of up to so many 2⁻²³, by the number: equal numbers have equal errors."""
        if not self.kernel.approximate:
            return x
        sign = (np.ascontiguousarray(x).view(np.uint32).reshape(x.shape) * np.uint32(2654435769) >> 8) / 2**23 - 1
        return np.asarray(x * (1 + units * 2.0**-23 * sign), dtype=F32)

    def product(self, a: Numpy, b: Numpy) -> Numpy:
        sums = self.kernel.sums
        if self.kernel.truncated:
            a, b = truncate_to(a, "tf32"), truncate_to(b, "tf32")
        if self.recipe.matmul == "bfloat16":
            a, b = round_to(a, "bfloat16").astype(F32), round_to(b, "bfloat16").astype(F32)
        if sums == "blas":
            return np.asarray(a @ b)
        terms = a[..., None] * b[..., None, :, :]
        if sums == "halves":
            while (n := terms.shape[-2]) > 1:
                rest = terms[..., 2 * (n // 2) :, :]
                terms = np.concatenate([terms[..., 0 : n - 1 : 2, :] + terms[..., 1:n:2, :], rest], axis=-2)
            return np.asarray(terms[..., 0, :])
        total = np.zeros((*terms.shape[:-2], 1, terms.shape[-1]), dtype=F32)
        for i in range(0, terms.shape[-2], 8):
            added = np.concatenate([total, terms[..., i : i + 8, :]], axis=-2)
            if sums == "cut":  # all are aligned to the largest, with two bits more than float32 has
                unit = ulp(np.max(np.abs(added), axis=-2, keepdims=True), "float32") / 4
                total = truncate_to(np.sum(np.trunc(added / unit) * unit, axis=-2, keepdims=True), "float32")
            else:
                total = self.store(np.sum(added, axis=-2, keepdims=True))
        return np.asarray(total[..., 0, :], dtype=F32)

    def exp2(self, x: Numpy) -> Numpy:
        return self.approximate(np.exp2(x), 2.0)

    def divide(self, a: Numpy, b: Numpy) -> Numpy:
        return self.approximate(np.asarray(a / np.where(b == 0, F32(1), b)), 2.0)

    def scores(self, spec: Spec, q: Numpy, k: Numpy, mask: Numpy) -> Numpy:
        """Scores in base 2, −∞ where hidden."""
        scale = 1 / math.sqrt(spec.head_dim) if spec.scale is None else spec.scale
        factor = F32(scale * LOG2_E)
        if self.kernel.scale == "log2":
            q, factor = self.store(q * factor), F32(1)
        elif self.kernel.scale == "root":
            q, k, factor = self.store(q * F32(scale**0.5)), self.store(k * F32(scale**0.5)), F32(LOG2_E)
        z = self.product(q, np.swapaxes(k, -1, -2)) * factor
        if spec.softcap is not None:  # tanh x is 2σ(2x) − 1
            z = 2 / (1 + np.exp2(z * F32(-2 / spec.softcap))) - 1
            units = 2.0**12 if self.recipe.tanh == "approx" else 0.0
            z = F32(spec.softcap * LOG2_E) * self.approximate(z, units)
        return np.where(mask, z, F32(-np.inf))

    def attend(self, z: Numpy, v: Numpy, by: Any = 1) -> tuple[Numpy, Numpy]:
        """A map's output times `by`, and its log-sum-exp in base 2."""
        kernel, S = self.kernel, z.shape[-1]
        parts = [self.online(z[..., keys], v[..., keys, :], by) for keys in _slices(S, -(-S // kernel.parts))]
        outputs = [self.store(out) if kernel.stored_parts else out for out, _ in parts]
        sums = np.stack([lse for _, lse in parts])
        shares = self.exp2(sums - _finite(np.max(sums, axis=0)))
        whole = np.sum(shares, axis=0)
        merged = self.divide(np.sum(shares * np.stack(outputs), axis=0), whole)
        return (outputs[0] if len(parts) == 1 else merged), _finite(np.max(sums, axis=0)) + _log2(whole)

    def online(self, z: Numpy, v: Numpy, by: Any) -> tuple[Numpy, Numpy]:
        kernel, tiles = self.kernel, list(_slices(z.shape[-1], self.kernel.tile))
        if kernel.order != "first":
            tiles = tiles[::-1] if kernel.order == "last" else [*tiles[-1:], *tiles[:-1]]
        largest = np.full((*z.shape[:-1], 1), -np.inf, dtype=F32)
        total, out = np.zeros_like(largest), np.zeros((*z.shape[:-1], v.shape[-1]), dtype=F32)
        for keys in tiles:
            grown = np.maximum(largest, np.max(z[..., keys], axis=-1, keepdims=True))
            if kernel.lazy:
                grown = np.where(grown - largest <= 8, largest, grown)
            raw, fade = self.exp2(z[..., keys] - _finite(grown)), self.exp2(largest - _finite(grown))
            stored = self.store(raw * by)
            total = total * fade + np.sum(stored if kernel.rounded_denominator else raw, axis=-1, keepdims=True)
            out, largest = out * fade + self.product(stored, v[..., keys, :]), grown
        return self.divide(out, total), np.where(total > 0, _finite(largest) + _log2(total), -np.inf).astype(F32)

    def rotated(self, spec: Spec, x: Numpy, positions: Numpy) -> Numpy:
        if spec.rope == "none":
            return x
        n = x.shape[-1] // 2
        angles = positions.astype(F32)[..., None] * (F32(spec.rope_theta) ** (-np.arange(n, dtype=F32) / F32(n)))
        if self.kernel.iterated_angles:  # as ggml: each angle is the one before, times a constant
            factor = F32(spec.rope_theta) ** F32(-1 / n)
            angles = np.cumprod([positions.astype(F32), *[np.full(positions.shape, factor)] * (n - 1)], axis=0)
            angles = np.moveaxis(angles.astype(F32), 0, -1)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = (x[..., 0::2], x[..., 1::2]) if spec.rope == "interleaved" else (x[..., :n], x[..., n:])
        turned = [self.store(a * cos - b * sin), self.store(b * cos + a * sin)]
        joined = np.stack(turned, axis=-1) if spec.rope == "interleaved" else np.stack(turned, axis=-2)
        return joined.reshape(x.shape)

    def forward(self, spec: Spec, inputs: dict[str, Numpy]) -> dict[str, Numpy]:
        x = {name: a if a.dtype.kind in "iub" else a.astype(F32) for name, a in inputs.items()}
        T, S, w = x["q"].shape[2], x["k"].shape[2], head_indices(spec)
        q = self.rotated(spec, x["q"], x.get("q_positions", np.arange(S - T, S)[None]))
        k = self.rotated(spec, x["k"], x.get("k_positions", np.arange(S)[None]))
        v = np.concatenate([x["v"][:, part] for part in value_heads(spec)], axis=-1)[:, w.v]
        mask = np.broadcast_to(attention_mask(spec, inputs), (q.shape[0], spec.heads, T, S))
        z = [self.scores(spec, q[:, a], k[:, b], mask) for a, b in ((w.q1, w.k1), (w.q2, w.k2))]
        if spec.is_plain:
            out, lse = self.attend(z[0], v)
            return {"out": self.store(out), "lse": lse[..., 0] / F32(LOG2_E)}
        lambda_, combine = self.lambda_(spec, x), self.kernel.combine
        first, second = self.attend(z[0], v), self.attend(z[1], v)
        if combine == "stored":
            heads = self.store(self.store(first[0]) - lambda_ * self.store(second[0]))
        elif combine == "in p":
            heads = first[0] - self.attend(z[1], v, lambda_)[0]
        elif combine == "in v" and lambda_.ndim == 0:
            heads = first[0] - self.attend(z[1], self.store(lambda_ * v))[0]
        else:
            heads = first[0] - lambda_ * second[0]
        if spec.norm == "rms":
            start = F32(0.8) - F32(0.6) * np.exp(F32(-0.3) * F32(spec.layer))
            root = np.sqrt(np.mean(heads * heads, axis=-1, keepdims=True) + F32(spec.norm_eps))
            heads = heads * self.approximate(F32(1) / root, 1.0) * (F32(1) - start)
        return {
            "out": self.store(heads),
            **{f"lse{n}": y[1][..., 0] / F32(LOG2_E) for n, y in ((1, first), (2, second))},
        }

    def lambda_(self, spec: Spec, x: dict[str, Numpy]) -> Numpy:
        if spec.lambda_form == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-np.moveaxis(x["lambda_logits"], 1, 2)[..., None])), dtype=F32)
        q1, k1, q2, k2 = (x[name] for name in VECTORS)
        start = F32(0.8) - F32(0.6) * np.exp(F32(-0.3) * F32(spec.layer))
        return np.asarray(np.exp(np.sum(q1 * k1)) - np.exp(np.sum(q2 * k2)) + start, dtype=F32)

    def backward(self, spec: Spec, inputs: dict[str, Numpy], dout: Numpy, saved: dict[str, Numpy]) -> dict[str, Numpy]:
        """Of plain attention without RoPE: weights from the log-sum-exp, dq tile by tile in any order."""
        g, n = dout.astype(F32), spec.query_heads // spec.key_heads
        q, k, v = (np.repeat(inputs[name].astype(F32), m, axis=1) for name, m in (("q", 1), ("k", n), ("v", n)))
        z = self.scores(spec, q, k, attention_mask(spec, inputs))
        p = self.exp2(z - _finite((saved["lse"][..., None] * F32(LOG2_E)).astype(F32)))
        delta = np.sum(g * saved["out"], axis=-1, keepdims=True)
        ds = self.store(p * (self.product(g, np.swapaxes(v, -1, -2)) - delta))
        scale, dq = F32(spec.scale), np.zeros_like(q)
        tiles = list(_slices(k.shape[2], self.kernel.tile))
        for number in np.random.default_rng(0).permutation(len(tiles)):  # atomics
            dq += self.product(ds[..., tiles[number]], k[..., tiles[number], :])
        by_head = {
            "dk": self.product(np.swapaxes(ds, -1, -2), q) * scale,
            "dv": self.product(np.swapaxes(self.store(p), -1, -2), g),
        }
        sums = {name: y.reshape(y.shape[0], -1, n, *y.shape[2:]).sum(axis=2) for name, y in by_head.items()}
        return {"dq": self.store(dq * scale), **{name: self.store(y) for name, y in sums.items()}}


def _finite(x: Numpy) -> Numpy:
    return np.where(np.isneginf(x), F32(0), x)


def _log2(x: Numpy) -> Numpy:
    return np.where(x > 0, np.log2(np.where(x > 0, x, F32(1))), F32(-np.inf))


def _slices(n: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def _dense(profile: str, seed: int, spec: Spec, storage: str) -> list[Case]:
    """The cases without sequences of their own, bias, or lengths of 0."""
    found = [c for c in cases(profile, seed, spec=spec, dtype=storage) if "k" in c.inputs]
    return [
        c for c in found if not {"bias", "cu_seqlens_q"} & set(c.inputs) and c.inputs["q"].size and c.inputs["k"].size
    ]


def _judge(name: str, spec: Spec, storage: str, profile: str, seed: int) -> list[str]:
    """Return the verdicts on all cases of a profile, none of which may be "fail"."""
    statuses = []
    run = Run(KERNELS[name], storage)
    for case in _dense(profile, seed, spec, storage):
        is_served = spec.scale is not None and run.recipe.accumulate == "float32"
        dout = case.dout.astype(np.float64) if is_served else None
        with np.errstate(all="ignore"):
            found = run.forward(spec, case.inputs)
            if dout is not None:
                found |= run.backward(spec, case.inputs, dout, found)
        if run.kernel.rounded_denominator:  # the sums of rounded weights are not those of a softmax
            found = {tensor: y for tensor, y in found.items() if not tensor.startswith("lse")}
        verdict = budget(spec, case.inputs, run.recipe, dout=dout).judge(found)
        assert verdict.status != "fail", f"{name}, {case}: {verdict}"
        statuses.append(verdict.status)
    return statuses


EACH = [(name, storage) for name, kernel in KERNELS.items() for storage in kernel.storages]


@pytest.mark.parametrize(("name", "storage"), EACH)
def test_correct_kernels_pass(name: str, storage: str) -> None:
    presets = ("attention",) if KERNELS[name].recipe else tuple(SPECS)
    _judge(name, SPECS[presets[len(name + storage) % len(presets)]], storage, "natural", 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "storage"), EACH)
@pytest.mark.parametrize("preset", SPECS)
@pytest.mark.parametrize("profile", ["natural", "discriminating", "cancellation", "extreme", "degenerate", "lambda"])
def test_correct_kernels_pass_every_profile(name: str, storage: str, preset: str, profile: str) -> None:
    _judge(name, SPECS[preset], storage, profile, 1)


@pytest.mark.parametrize(
    ("name", "preset", "profile", "storage", "status"),
    [
        ("approximate tanh", "softcap", "natural", "bfloat16", "pass"),
        ("approximate tanh", "softcap", "natural", "float16", "pass"),
        ("q · scale · log₂ e stored", "attention", "extreme", "bfloat16", "pass"),
        ("16-bit accumulators", "attention", "extreme", "float16", "inconclusive"),  # its scores overflow
    ],
)
def test_roundings_of_one_recipe_fail_under_the_default_recipe(
    name: str, preset: str, profile: str, storage: str, status: str
) -> None:
    spec, run = SPECS[preset], Run(KERNELS[name], storage)
    case = _dense(profile, 0, spec, storage)[0]
    with np.errstate(all="ignore"):
        found = run.forward(spec, case.inputs)
    assert budget(spec, case.inputs, run.recipe).judge(found).status == status
    assert budget(spec, case.inputs, storage).judge(found).status == "fail"
