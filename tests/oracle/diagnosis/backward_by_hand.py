"""The gradients of a kernel as an author writes it: one query head after another, without a layer of this package."""

from __future__ import annotations

import math
from collections.abc import Callable, Container

import numpy as np

from refdiff.oracle.cases.fixed import Case, cases
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding import round_to
from refdiff.oracle.spec import Spec

SPEC = Spec.preset("ms_v1", query_heads=8, key_heads=4, head_dim=16, layer=3, rope="none")
"""Pairs of heads 2i and 2i + 1, of which two share a pair of key heads."""
Factor = Callable[[float], float]


def by_hand(
    case: Case, *, product: Factor | None = None, row_sum: Factor | None = None, values: Factor | None = None,
    of_lambda: float = 1.0, heads: Container[int] = (0, 1), row_sums: float = 1.0,
    along: Callable[[np.ndarray], np.ndarray] = np.square,
    saved: Callable[[list[np.ndarray]], list[np.ndarray]] = list,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Output and gradients in the type of the case, of a spec like `SPEC`.

    Args:
        product, row_sum, values: of λ, what stands for −λ before g Vᵀ, before the sum of its row, and in ∂L/∂V.
        of_lambda: what ∂L/∂λ is multiplied by.
        row_sums: what the row sums D of both maps are multiplied by.
        along: of r = 1 / rms, what stands for r² before x mean(g x) in the derivative of the norm.
        saved: of the two log-sum-exps, those from which the backward pass recomputes the maps.
        heads: which of the pairs that share keys are taken into ∂L/∂K and ∂L/∂V, by their number among them.
    """
    x = as_float64(case.spec, case.inputs)
    q, k, v = x["q"], x["k"], x["v"]
    T, S, d, shared = q.shape[2], k.shape[2], q.shape[3], q.shape[1] // k.shape[1]
    start = 0.8 - 0.6 * math.exp(-0.3 * case.spec.layer)
    e1, e2 = (math.exp(x[f"lambda_q{n}"] @ x[f"lambda_k{n}"]) for n in (1, 2))
    lambda_ = e1 - e2 + start
    see = np.tril(np.ones((T, S), dtype=bool), S - T)
    out, dlambda, dweight = [], 0.0, np.zeros(v.shape[-1])
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for i in range(q.shape[1] // 2):
        j = i // shared
        maps, lse = [], []
        for n in (0, 1):
            z = np.where(see, q[:, 2 * i + n] @ k[:, 2 * j + n].swapaxes(1, 2) / math.sqrt(d), -np.inf)
            e = np.exp(z - z.max(axis=-1, keepdims=True))
            maps.append(e / e.sum(axis=-1, keepdims=True))
            lse.append(z.max(axis=-1, keepdims=True) + np.log(e.sum(axis=-1, keepdims=True)))
        head = (maps[0] - lambda_ * maps[1]) @ v[:, j]
        r = 1 / np.sqrt(np.mean(head**2, axis=-1, keepdims=True) + case.spec.norm_eps)
        out.append((1 - start) * r * head * x["norm_weight"])
        g = (1 - start) * np.asarray(case.dout, dtype=np.float64)[:, i]
        dweight += np.sum(g * r * head, axis=(0, 1))
        g = g * x["norm_weight"]
        g = r * (g - along(r) * head * np.mean(g * head, axis=-1, keepdims=True))
        for n, (right_map, exact, other) in enumerate(zip(maps, lse, saved(lse), strict=True)):
            of_row = np.sum(g * (right_map @ v[:, j]), axis=-1, keepdims=True)
            a = right_map * np.exp(exact - other)
            right = 1.0 if n == 0 else -lambda_
            by = [right if n == 0 or factor is None else factor(lambda_) for factor in (product, row_sum, values)]
            dz = a * (by[0] * (g @ v[:, j].swapaxes(1, 2)) - by[1] * row_sums * of_row) / math.sqrt(d)
            dlambda -= n * of_lambda * np.sum(of_row)
            dq[:, 2 * i + n] = dz @ k[:, 2 * j + n]
            if i % shared in heads:
                dk[:, 2 * j + n] += dz.swapaxes(1, 2) @ q[:, 2 * i + n]
                dv[:, j] += by[2] * a.swapaxes(1, 2) @ g
    found = {"out": np.stack(out, axis=1), "dq": dq, "dk": dk, "dv": dv, "dnorm_weight": dweight}
    for n, e in ((1, dlambda * e1), (2, -dlambda * e2)):
        found |= {f"dlambda_q{n}": e * x[f"lambda_k{n}"], f"dlambda_k{n}": e * x[f"lambda_q{n}"]}
    return {name: round_to(y, case.dtype) for name, y in found.items()}


def case_by_hand(dtype: str = "float32", spec: Spec = SPEC) -> Case:
    """One of more keys than queries, so that every query sees some."""
    return cases("discriminating", seed=1, spec=spec, dtype=dtype, batch=1, queries=45, keys=77)[0]
