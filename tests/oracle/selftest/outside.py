"""Outputs that have no name: correct kernels with more noise than their recipe has, and mistakes outside the catalogue.

No name of the catalogue may be the only answer to any of them; `tests.oracle.selftest.names` asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from refdiff.oracle import Case, Recipe, budget, cases
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.rounding import round_to
from tests.oracle.diagnosis.outputs import by_weights, rounded

PRESETS = ("hf_diffllama", "diff_v2", "ms_v1", "timm", "gda", "attention")
PROFILES = ("natural", "discriminating", "cancellation", "tiny_values", "extreme")
TYPES = ("float32", "bfloat16", "float16")
Numpy = np.ndarray[Any, Any]
Random = np.random.Generator


def softmax(z: Numpy) -> Numpy:
    """Return the weights of scores, 0 for a query that sees no key."""
    top = np.max(z, axis=-1, keepdims=True, initial=-1e300)
    return normalized(np.exp(z - top))


def normalized(e: Numpy) -> Numpy:
    """Return weights that sum to one."""
    total = np.sum(e, axis=-1, keepdims=True)
    return e / np.where(total == 0, 1.0, total)


def _distance(z: Numpy) -> Numpy:
    T, S = z.shape[-2:]
    return np.abs(np.arange(S)[None] - np.arange(S - T, S)[:, None])


def _by_head(rng: Random, z: Numpy, low: float, high: float) -> Numpy:
    return rng.uniform(low, high, (1, z.shape[1], 1, 1))


def _later_key_doubled(rng: Random, z: Numpy) -> Numpy:
    n = int(rng.integers(1, z.shape[-1]))
    return softmax(z + np.log(3.0) * (np.arange(z.shape[-1]) % (n + 1) == n))


MAPS: tuple[Callable[[Random, Numpy], Numpy], ...] = (
    lambda rng, z: softmax(z * _by_head(rng, z, 0.6, 1.6)),
    lambda rng, z: softmax(z - _by_head(rng, z, 0.05, 0.3) * _distance(z)),
    lambda rng, z: normalized(np.maximum(np.where(np.isfinite(z), z, 0.0), 0.0) ** 2),
    lambda rng, z: softmax(np.where(z >= np.sort(z, axis=-1)[..., -3:-2], z, -np.inf)),
    lambda rng, z: softmax(z) * (rng.random(z.shape) > rng.uniform(0.05, 0.3)),
    lambda rng, z: softmax(z + rng.uniform(0.1, 0.5) * rng.normal(size=z.shape[-2:])),
    lambda rng, z: (1 - (b := rng.uniform(0.05, 0.3))) * softmax(z) + b * normalized(np.isfinite(z) * 1.0),
    lambda rng, z: normalized(np.where(np.isfinite(z), 1 / (1 + np.exp(-np.clip(z, -50, 50))), 0.0)),
    lambda rng, z: normalized(np.where(np.isfinite(z), 1 + (x := np.clip(z, -9, 9)) + x**2 / rng.uniform(2, 4), 0.0)),
    lambda rng, z: softmax(np.where(np.isfinite(z), z + rng.uniform(0.2, 0.6) * np.sin(3 * np.clip(z, -99, 99)), z)),
    _later_key_doubled,
)
"""Weights from the scores of a map, which are −∞ where a query sees no key."""
ENDS: tuple[Callable[[Random, Numpy], Numpy], ...] = (
    lambda rng, y: y + rng.uniform(0.1, 0.5) * np.roll(y, 1, axis=1),
    lambda rng, y: np.roll(y, int(rng.integers(1, 4)), axis=-1),
    lambda rng, y: y + rng.uniform(0.2, 0.6) * np.roll(y, 1, axis=2),
    lambda rng, y: y * (0.5 + np.arange(y.shape[2])[:, None] / y.shape[2]),
    lambda rng, y: y * np.where(np.arange(y.shape[-1]) % 2, 1.0, -rng.uniform(0.5, 1.5)),
    lambda rng, y: y / (1 + np.exp(-1.7 * y)),
    lambda rng, y: y @ np.linalg.qr(rng.normal(size=(y.shape[-1],) * 2))[0],
    lambda rng, y: np.sort(y, axis=-1),
)
"""Wrong outputs from the right one."""
NOISES: tuple[Callable[[Random, Numpy, Numpy], Numpy], ...] = (
    lambda rng, y, E: y + rng.uniform(2, 30) * E[..., None] * rng.normal(size=y.shape),
    lambda rng, y, E: y + rng.uniform(5, 50) * (E * (rng.random(E.shape) < 0.1))[..., None] * rng.normal(size=y.shape),
    lambda rng, y, E: y + rng.uniform(2, 20) * E[..., None] * rng.choice([-1.0, 1.0], y.shape),
    lambda rng, y, E: y * (1 + rng.uniform(0.001, 0.1) * rng.normal(size=(*y.shape[:3], 1))),
    lambda rng, y, E: y + rng.uniform(20, 200) * E[..., None] * (rng.random(y.shape) < 0.01),
)  # fmt: skip
"""Outputs with noise from the right one and E_r."""


def outputs(noisy: int, mistakes: int, seed: int = 0) -> Iterator[tuple[str, Case, Numpy]]:
    """Yield (what it is, the case, the output) for so many of both, with each preset, profile and type in turn."""
    rng, places = np.random.default_rng(seed), [*product(PROFILES, TYPES, PRESETS)]
    for n in range(noisy + mistakes):
        profile, dtype, preset = places[7 * n % len(places)]
        case = cases(profile, int(rng.integers(1000)), spec=small_spec(preset), dtype=dtype, batch=1, queries=20)[0]
        right = rounded(case.spec, case.inputs, dtype, order=n % 3)["out"]
        if n < noisy:
            rows = budget(case.spec, case.inputs, Recipe.of(dtype)).rows["out"]
            kind = n % len(NOISES)
            what, out = f"noise {kind}", NOISES[kind](rng, right, rows)
        elif (kind := n % (len(MAPS) + len(ENDS))) < len(MAPS):
            state = int(rng.integers(2**31))  # both maps have the same mistake
            out = by_weights(
                case.spec,
                case.inputs,
                lambda *z: [MAPS[kind](np.random.default_rng(state), x) for x in z],  # noqa: B023
            )
            what = f"map {kind}"
        else:
            what, out = f"end {kind - len(MAPS)}", ENDS[kind - len(MAPS)](rng, right)
        yield f"{what} of {case.name} {preset}", case, round_to(out, dtype)
