"""A kernel that computes the scalars of its spec in float32, as CUDA, C and JAX do, is correct at every depth."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff import layers
from refdiff.oracle import Case, Recipe, Spec, budget, cases
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.rounding import FORMATS
from refdiff.oracle.rounding.evaluation_order import lambda_init_error

SINGLE = np.float32


def float32_kernel(spec: Spec, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """DiffLlama's attention, all of it in float32, by the layers; λ_init by the formula, in float32 too."""
    x = {name: a.astype(SINGLE) for name, a in inputs.items()}
    start = SINGLE(0.8) - SINGLE(0.6) * np.exp(SINGLE(-0.3) * SINGLE(spec.layer))
    T, S = x["q"].shape[2], x["k"].shape[2]
    frequencies = layers.rope_frequencies({"rope_type": "default", "rope_theta": spec.rope_theta}, spec.head_dim, 1)
    q, k = (
        layers.rope(x[name], *layers.rope_cos_sin(at[None], *frequencies, SINGLE))
        for name, at in (("q", np.arange(S - T, S)), ("k", np.arange(S)))
    )
    lambda_ = layers.diff_lambda(*(x[name] for name in VECTORS), start)
    values = layers.value_pairs_hf(x["v"])
    flat = layers.diff_heads_hf(q, k, values, lambda_, start, SINGLE(spec.norm_eps), causal=True)
    return np.moveaxis(flat.reshape(*flat.shape[:2], spec.heads, spec.out_dim), 1, 2)


def _cases(spec: Spec, profile: str) -> list[Case]:
    found = cases(profile, 3, spec=spec)
    return [
        c for c in found if set(c.inputs) == {"q", "k", "v", *VECTORS} and 0 < c.structure.queries <= c.structure.keys
    ]


@pytest.mark.parametrize("layer", [0, 1, 2, 5, 8, 16, 24, 31, 40])
@pytest.mark.parametrize("profile", ["natural", "discriminating", "degenerate"])
def test_scalars_in_float32(profile: str, layer: int) -> None:
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=layer)
    found = [c for c in _cases(spec, profile) if c.structure.batch]
    assert found
    for case in found:
        verdict = budget(spec, case.inputs, "float32").judge(float32_kernel(spec, case.inputs))
        assert verdict, f"{case}: {verdict}"


@pytest.mark.parametrize("layer", [0, 3, 31])
def test_a_scale_that_is_off_by_more_is_refused(layer: int) -> None:
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=layer)
    for case in _cases(spec, "natural"):
        out = float32_kernel(spec, case.inputs).astype(np.float64)
        verdict = budget(spec, case.inputs, "float32").judge(out * (1 + 1e-5))
        assert "slope" in {s.name for s in verdict.tensors["out"].statistics if not s.holds}


def test_the_bound_of_lambda_init_in_float32() -> None:
    """Every layer, and exponentials that are a unit in the last place off, stay within it."""
    for layer in range(100):
        exact = 0.8 - 0.6 * np.exp(-0.3 * layer)
        power = np.exp(SINGLE(-0.3) * SINGLE(layer))
        for near in (power, np.nextafter(power, SINGLE(0)), np.nextafter(power, SINGLE(1))):
            found = SINGLE(0.8) - SINGLE(0.6) * near
            assert abs(float(found) - exact) <= lambda_init_error(exact), layer
    assert lambda_init_error(0.8) < 1.1 * FORMATS["float32"].u


@pytest.mark.parametrize("product", [-9e4, 9e4])
def test_float16_products_that_leave_the_range_before_another_scale(product: float) -> None:
    """An eager kernel adds −65504 to what is hidden: where a row sees ±∞ alone, nothing can be said of it."""
    spec = Spec.preset("attention", query_heads=1, key_heads=1, head_dim=40, scale=0.1)
    q, k = np.zeros((2, 1, 1, 2, 40), np.float16)
    q[0, 0, :, 0], k[0, 0, 0, 0] = 300, product / 300
    v = np.stack([np.full(40, 2.0), np.full(40, -2.0)])[None, None].astype(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        z = (q @ k.swapaxes(-1, -2)) * np.float16(0.1) + np.triu(np.full((2, 2), -65504, np.float16), 1)
        p = np.exp((z - z.max(axis=-1, keepdims=True)).astype(np.float32))
        out = (p / p.sum(axis=-1, keepdims=True)).astype(np.float16) @ v
    assert not np.allclose(out[0, 0, 0], 2.0), "the first query sees the first key alone"
    verdict = budget(spec, {"q": q, "k": k, "v": v}, Recipe.eager("float16")).judge(out)
    assert verdict.status == "inconclusive", str(verdict)
