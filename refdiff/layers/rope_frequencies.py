"""rope_type and length to (inverse frequencies, scale).

Every type is computed in float64 on the host: at most a few hundred numbers. The names of the parameters are those
of `rope_parameters` in a `config.json`, as transformers writes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Frequencies = tuple[list[float], float]


LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Types of RoPE whose frequencies depend on the length of the text."""


def rope_frequencies(
    parameters: Mapping[str, Any], head_dim: int, max_position_embeddings: int, length: int = 0
) -> Frequencies:
    """Compute how fast each pair of dimensions rotates with position, and the factor of cos and sin.

    Equation:
        θ_i = base^(−2i / d), i = 0 … d/2 − 1  (Su et al. 2021, section 3.2.2), then adapted by `rope_type`:
        default, linear, dynamic, yarn, longrope, llama3 or proportional (see the function of that name below)

    Used as:
        `rope_frequencies(config.rope_parameters, config.head_dim, config.max_position_embeddings, length)`

    Shapes:
        `length` = the largest position + 1 that will be used; only dynamic and longrope depend on it
        -> (list of at most d/2 inverse frequencies in radians per position, scale)

    Raises:
        ValueError: an unknown `rope_type`, a parameter that it needs is missing, or numbers that divide by zero.
            `DiffLlamaConfig` checks the values of the parameters, and that `head_dim` is even.
    """
    kind = parameters.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise ValueError(f"rope_frequencies: rope_type: got {kind!r}, expected one of {', '.join(ROPE_TYPES)}")
    try:
        return ROPE_TYPES[kind](parameters, head_dim, max_position_embeddings, length)
    except KeyError as error:
        raise ValueError(f"rope_frequencies: rope_type {kind!r} needs the parameter {error.args[0]!r}") from error
    except ZeroDivisionError as error:
        raise ValueError(
            f"rope_frequencies: rope_type {kind!r} divides by zero with head_dim {head_dim}, "
            f"max_position_embeddings {max_position_embeddings} and {dict(parameters)}"
        ) from error


def _inverse_powers(base: float, dim: int, denominator: int | None = None) -> list[float]:
    """θ_i = base^(−2i / denominator) for the dim/2 pairs; the denominator is dim unless given."""
    return [base ** (-i / (denominator or dim)) for i in range(0, dim, 2)]


def _rotary_dim(p: Mapping[str, Any], head_dim: int) -> int:
    """Return how many leading dimensions of a head are rotated."""
    return int(head_dim * p.get("partial_rotary_factor", 1.0))


def default(p: Mapping[str, Any], head_dim: int, max_positions: int, length: int) -> Frequencies:
    """θ_i = base^(−2i/d). `partial_rotary_factor` does not count here: DiffLlama in transformers leaves it out."""
    return _inverse_powers(p["rope_theta"], head_dim), 1.0


def linear(p: Mapping[str, Any], head_dim: int, max_positions: int, length: int) -> Frequencies:
    """θ_i / factor: positions squeezed evenly (Chen et al. 2023, position interpolation)."""
    powers = _inverse_powers(p["rope_theta"], _rotary_dim(p, head_dim))
    return [f / p["factor"] for f in powers], 1.0


def dynamic(p: Mapping[str, Any], head_dim: int, max_positions: int, length: int) -> Frequencies:
    """Raise the base with the length once it passes `max_position_embeddings` (dynamic NTK).

    base' = base (1 + factor (L − L₀) / L₀)^(d / (d − 2)), L = max(length, L₀). As published, the bracket is
    factor L / L₀ − (factor − 1), whose terms cancel for a large factor.
    """
    dim, factor = _rotary_dim(p, head_dim), p["factor"]
    ratio = 1 + factor * (max(length, max_positions) - max_positions) / max_positions
    return _inverse_powers(p["rope_theta"] * ratio ** (dim / (dim - 2)), dim), 1.0


def yarn(p: Mapping[str, Any], head_dim: int, max_positions: int, length: int) -> Frequencies:
    """Squeeze slow dimensions, keep fast ones, ramp between (Peng et al. 2023, section 3.2), and sharpen attention.

    θ'_i = r_i θ_i / factor + (1 − r_i) θ_i, with the ramp r_i = (i − low) / (high − low), clipped to 0 … 1.
    The pair that rotates n times within the original length L₀ is index(n) = d log(L₀ / 2πn) / (2 log base).
    low = max(⌊index(beta_fast)⌋, 0) and high = min(⌈index(beta_slow)⌉, d − 1); `truncate: false` rounds neither.
    `factor: null` is max_position_embeddings / L₀.

    The scale is `attention_factor`; without it m(mscale) / m(mscale_all_dim), where both are given and not 0; else
    m(1). m(s) = 0.1 s log(factor) + 1, and 1 for a factor of at most 1.
    """
    dim, base, original = _rotary_dim(p, head_dim), p["rope_theta"], p["original_max_position_embeddings"]
    if dim % 2:
        raise ValueError(
            f"rope_frequencies: got {dim} rotated dimensions, expected an even number with yarn; change head_dim or "
            "partial_rotary_factor"
        )
    factor = p["factor"] if p["factor"] is not None else max_positions / original

    def index(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = index(p.get("beta_fast") or 32), index(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero; transformers widens it by as much
    ramp = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(dim // 2)]
    powers = _inverse_powers(base, dim)
    frequencies = [f / factor * r + f * (1 - r) for f, r in zip(powers, ramp, strict=True)]

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    scale = p.get("attention_factor")
    if scale is None:
        one, all_ = p.get("mscale"), p.get("mscale_all_dim")
        scale = magnitude(one) / magnitude(all_) if one and all_ else magnitude(1.0)
    return frequencies, float(scale)


def longrope(p: Mapping[str, Any], head_dim: int, max_positions: int, length: int) -> Frequencies:
    """Divide each θ_i by a searched factor: one list up to the original length, another beyond (Ding et al. 2024).

    θ_i / short_factor_i where length ≤ L₀, else θ_i / long_factor_i. The scale is `attention_factor`; without it
    √(1 + log f / log L₀), and 1 for f ≤ 1, where f is `factor` or else max_position_embeddings / L₀.
    """
    dim, original = _rotary_dim(p, head_dim), p["original_max_position_embeddings"]
    name = "long_factor" if length > original else "short_factor"
    factors, powers = p[name], _inverse_powers(p["rope_theta"], dim)
    if len(factors) != len(powers):
        raise ValueError(
            f"rope_frequencies: {name}: got {len(factors)} numbers, expected {len(powers)} for {dim} dimensions"
        )
    factor = p.get("factor")
    if factor is None:
        factor = max_positions / original
    scale = p.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return [f / g for f, g in zip(powers, factors, strict=True)], float(scale)


def llama3(p: Mapping[str, Any], head_dim: int, max_positions: int, length: int) -> Frequencies:
    """Divide slow dimensions by `factor`, keep fast ones, blend between, by wavelength (Llama 3.1, Meta 2024).

    With r = L₀ / wavelength, the rotations within the original length: r < low_freq_factor is divided by factor,
    r > high_freq_factor is kept, and between them s = (r − low) / (high − low) blends (1 − s) θ / factor + s θ.
    """
    low: float = p["low_freq_factor"]
    high: float = p["high_freq_factor"]
    factor: float = p["factor"]
    original: float = p["original_max_position_embeddings"]

    def adapt(frequency: float) -> float:
        rotations = original * frequency / (2 * math.pi)
        if rotations < low:
            return frequency / factor
        if rotations > high:
            return frequency
        s = (rotations - low) / (high - low)
        return (1 - s) * frequency / factor + s * frequency

    return [adapt(f) for f in _inverse_powers(p["rope_theta"], _rotary_dim(p, head_dim))], 1.0


def proportional(p: Mapping[str, Any], head_dim: int, max_positions: int, length: int) -> Frequencies:
    """Rotate only the first pairs, at the frequencies of the whole head divided by `factor`.

    base^(−2i/d) / factor for i < ⌊partial_rotary_factor d / 2⌋, and 0 for the other pairs
    """
    rotary_pairs = int(p.get("partial_rotary_factor", 1.0) * head_dim // 2)
    powers = _inverse_powers(p["rope_theta"], 2 * rotary_pairs, head_dim)
    factor = p.get("factor", 1.0)
    return [f / factor for f in powers] + [0.0] * (head_dim // 2 - rotary_pairs), 1.0


ROPE_TYPES: dict[str, Callable[[Mapping[str, Any], int, int, int], Frequencies]] = {
    f.__name__: f for f in (default, linear, dynamic, yarn, longrope, llama3, proportional)
}
