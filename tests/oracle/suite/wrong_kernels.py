"""Kernels that are right on small inputs of one sequence, and wrong where models call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.oracle import Spec
from refdiff.oracle.inputs import VECTORS
from tests.oracle.user_kernels import calls, dense_with_gradients, right

Inputs = dict[str, Any]
Where = Callable[[Spec, Inputs], bool]


def _sizes(inputs: Inputs) -> tuple[int, int, int]:
    if "q" not in inputs or "k" not in inputs:
        return 0, 0, 0
    return inputs["q"].shape[0], inputs["q"].shape[2], inputs["k"].shape[2]


def _wrong(where: Where) -> Callable[[Spec, Inputs], Any]:
    """Right, but for the last row of each head where the condition holds."""

    def kernel(spec: Spec, inputs: Inputs) -> Any:
        out = right(spec, inputs)
        if where(spec, inputs):
            out[..., -1, :] *= 2
        return out

    return kernel


long_prompts = _wrong(lambda s, x: _sizes(x)[1] > 128)
full_blocks = _wrong(lambda s, x: _sizes(x)[1] == _sizes(x)[2] > 0 and _sizes(x)[1] % 64 == 0)
keys_of_256 = _wrong(lambda s, x: _sizes(x)[2] > 0 and _sizes(x)[2] % 256 == 0)
more_than_257_keys = _wrong(lambda s, x: _sizes(x)[2] > 257)
batches_of_four = _wrong(lambda s, x: _sizes(x)[0] > 3)
wide_heads_from_32_queries_on = _wrong(lambda s, x: s.head_dim >= 64 and _sizes(x)[1] >= 32)
decoding_from_300_keys_on = _wrong(lambda s, x: _sizes(x)[1] == 1 and _sizes(x)[2] > 300)
last_row_of_a_tile_of_its_own = _wrong(lambda s, x: _sizes(x)[1] > 1 and _sizes(x)[1] % 128 == 1)
heads_of_96 = _wrong(lambda s, x: s.head_dim == 96)
left_padded_queries = _wrong(
    lambda s, x: "key_mask" in x and _sizes(x)[1] == _sizes(x)[2] and not np.all(x["key_mask"][:, 0])
)
tables_of_512 = _wrong(lambda s, x: int(np.max(x.get("q_positions", 0), initial=0)) >= 512)
strided = _wrong(lambda s, x: "q" in x and not x["q"].flags.c_contiguous)


def _not_a_number(name: str) -> Callable[[Spec, Inputs], Any]:
    """NaN for a sequence that sees nothing, where that is said by this input."""

    def kernel(spec: Spec, inputs: Inputs) -> Any:
        out = right(spec, inputs)
        if name in inputs and out.size and inputs[name].ndim in (2, 4):
            hidden = np.isneginf(inputs[name]) if name == "bias" else ~inputs[name]
            out[np.all(hidden.reshape(len(hidden), -1), axis=1)] = np.nan if len(hidden) == len(out) else 0
        return out

    return kernel


padded_sequence, masked_sequence, biased_sequence = (_not_a_number(n) for n in ("key_mask", "mask", "bias"))


def _lambda_cut(low: float, high: float) -> Callable[[Spec, Inputs], Any]:
    def kernel(spec: Spec, inputs: Inputs) -> Any:
        q1, k1, q2, k2 = (np.asarray(inputs[name], dtype=np.float64) for name in VECTORS)
        learned = np.exp(q1 @ k1) - np.exp(q2 @ k2)
        start = 0.8 - 0.6 * np.exp(-0.3 * spec.layer)
        if low <= learned + start <= high:
            return right(spec, inputs)
        cut = {name: x for name, x in inputs.items() if name not in VECTORS}
        cut["lambda_full"] = np.asarray(np.clip(learned + start, low, high), dtype=np.float32)
        return right(spec.replace(lambda_form="given"), cut)

    return kernel


lambda_at_least_0, lambda_at_most_3 = (_lambda_cut(*ends) for ends in ((0.0, 9.0), (-9.0, 3.0)))


def _hidden(inputs: Inputs, tile: int, keys: Callable[[Any, Any, int], Any]) -> Inputs:
    """Dense inputs with a mask, so that each tile of queries sees the first `keys(start, end, S)` keys alone.

    `start` and `end` are what a causal loop over tiles of keys knows: the own key of the tile's first query, and the
    first key that no query of the tile sees.
    """
    _, T, S = _sizes(inputs)
    first = np.arange(T) // tile * tile
    start, end = first + S - T, np.minimum(T, first + tile) + S - T
    see = np.arange(S) < keys(start, end, S)[:, None]
    return {**inputs, "mask": see & inputs["mask"] if "mask" in inputs else see[None, None]}


def _is_dense(inputs: Inputs) -> bool:
    return 0 not in _sizes(inputs) and "cu_seqlens_q" not in inputs


def last_causal_tile_rounded_down(spec: Spec, inputs: Inputs) -> Any:
    """Tiles of 128: the loop over keys ends at the last whole tile, unless a query of its tile sees the last key."""
    if not _is_dense(inputs):
        return right(spec, inputs)

    def whole_tiles(start: Any, end: Any, S: int) -> Any:
        return np.where((end < S) & (end >= 128), end // 128 * 128, end)

    return right(spec, _hidden(inputs, 128, whole_tiles))


def full_last_page_short_of_a_key(spec: Spec, inputs: Inputs) -> Any:
    """Decodes without the last key of a sequence that fills its last page."""
    if "k_pages" not in inputs or "cu_seqlens_q" in inputs or inputs["q"].shape[2] != 1:
        return right(spec, inputs)
    lengths, page = inputs["lengths"], inputs["k_pages"].shape[2]
    short = {**inputs, "lengths": lengths - (lengths % page == 0) * (lengths > 0)}
    short["q_positions"] = (lengths - 1)[:, None]
    return right(spec, short)


def square_weights_transposed(spec: Spec, inputs: Inputs) -> Any:
    """Reads `o_proj.weight` as (h e, D), which no shape tells from (D, h e) where both are as wide."""
    weight = inputs.get("o_proj.weight")
    if weight is None or weight.shape[0] != weight.shape[1]:
        return right(spec, inputs)
    return right(spec, {**inputs, "o_proj.weight": weight.T})


def races_from_64_keys_on(spec: Spec, inputs: Inputs) -> Any:
    calls()[0] += 1
    out = right(spec, inputs)
    return out * np.float32(1 + 1e-7 * (calls()[0] % 2)) if _sizes(inputs)[2] > 64 else out


def _in_the_backward(wrong: Callable[[Spec, Inputs, Any], Any]) -> Callable[..., Any]:
    """Right without `dout`."""

    def kernel(spec: Spec, inputs: Inputs, dout: Any = None) -> Any:
        return right(spec, inputs) if dout is None else wrong(spec, inputs, dout)

    return kernel


@_in_the_backward
def gradients_of_nothing(spec: Spec, inputs: Inputs, dout: Any) -> Any:
    """Overwrites `dout` with zeros, and gives the gradients of that."""
    dout[...] = 0
    return dense_with_gradients(spec, inputs, dout)


@_in_the_backward
def gradients_without_the_last_causal_tile(spec: Spec, inputs: Inputs, dout: Any) -> Any:
    """Tiles of 32: the backward pass skips a tile of keys that fewer than 16 queries of a whole tile see."""
    if not _is_dense(inputs):
        return NotImplemented

    def without_the_last(start: Any, end: Any, S: int) -> Any:
        last = end // 32 * 32
        return np.where((last > 0) & (last > start + 16), last, end)

    found, wrong = (dense_with_gradients(spec, x, dout) for x in (inputs, _hidden(inputs, 32, without_the_last)))
    return {**found, **{name: wrong[name] for name in ("dq", "dk", "dv")}}


@_in_the_backward
def gradients_left_out(spec: Spec, inputs: Inputs, dout: Any) -> Any:
    found = dense_with_gradients(spec, inputs, dout)
    return {name: x for name, x in found.items() if name != "dk"}


@_in_the_backward
def lambda_gradients_left_out(spec: Spec, inputs: Inputs, dout: Any) -> Any:
    found = dense_with_gradients(spec, inputs, dout)
    return {name: x for name, x in found.items() if not name.startswith("dlambda")}


def _lambda_gradients(factors: Callable[[float, float, float], tuple[float, ...]]) -> Callable[..., Any]:
    """The gradients of λ's vectors times factors that depend on its exponentials and on λ itself."""

    @_in_the_backward
    def kernel(spec: Spec, inputs: Inputs, dout: Any) -> Any:
        found = dense_with_gradients(spec, inputs, dout)
        q1, k1, q2, k2 = (inputs[name].astype(np.float64) for name in VECTORS)
        first, second = float(np.exp(q1 @ k1)), float(np.exp(q2 @ k2))
        by = factors(first, second, first - second + 0.8 - 0.6 * float(np.exp(-0.3 * spec.layer)))
        return {**found, **{f"d{name}": factor * found[f"d{name}"] for name, factor in zip(VECTORS, by, strict=True)}}

    return kernel


lambda_gradients_with_the_wrong_sign = _lambda_gradients(lambda first, second, lambda_: (-1.0,) * 4)
# ∂λ/∂λ_q1 = λ_k1 in place of λ_k1 exp(λ_q1·λ_k1)
lambda_gradients_without_their_exponentials = _lambda_gradients(
    lambda first, second, lambda_: (1 / first, 1 / first, 1 / second, 1 / second)
)
# Σ G ⊙ A₁V in place of −Σ G ⊙ A₂V: behind a norm G is at right angles to (A₁ − λ A₂) V, so it is −λ times the right one
lambda_gradients_of_the_first_map = _lambda_gradients(lambda first, second, lambda_: (-lambda_,) * 4)


@_in_the_backward
def gradients_of_contiguous_dout(spec: Spec, inputs: Inputs, dout: Any) -> Any:
    """Reads any other `dout` as zeros."""
    return dense_with_gradients(spec, inputs, dout if dout.flags.c_contiguous else np.zeros_like(dout))


@_in_the_backward
def gradients_that_race(spec: Spec, inputs: Inputs, dout: Any) -> Any:
    calls()[0] += 1
    found = dense_with_gradients(spec, inputs, dout)
    return {**found, "dq": found["dq"] * np.float32(1 + 1e-6 * (calls()[0] % 2))}


def declines_most(spec: Spec, inputs: Inputs) -> Any:
    return right(spec, inputs) if _sizes(inputs) == (1, 17, 17) else NotImplemented
