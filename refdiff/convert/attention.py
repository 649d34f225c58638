"""One layer's attention in another wiring; the reasons stand in the package's docstring."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import to_numpy
from refdiff.layers.diff_heads_paper import SUBLN_EPS
from refdiff.layers.rope_frequencies import rope_frequencies
from refdiff.model.config import DiffLlamaConfig

Params = dict[str, Any]
IntArray = NDArray[np.integer[Any]]


def _hf_to_paper(p: Params, old: DiffLlamaConfig, new: DiffLlamaConfig) -> Params:
    paired = _move_heads(p, old, inverse=False)
    paired["v_proj"] = _scaled(paired["v_proj"], _size_for_epsilon(SUBLN_EPS, old.rms_norm_eps))
    dtype = to_numpy(p["o_proj"]["weight"]).dtype
    return {**paired, "subln": {"weight": np.ones(2 * old.head_dim, dtype=dtype)}}


def _paper_to_hf(p: Params, old: DiffLlamaConfig, new: DiffLlamaConfig) -> Params:
    paired = _move_heads(p, old, inverse=True)
    paired["v_proj"] = _scaled(paired["v_proj"], _size_for_epsilon(old.rms_norm_eps, SUBLN_EPS))
    folded = to_numpy(p["o_proj"]["weight"]) * np.tile(to_numpy(p["subln"]["weight"]), old.num_attention_heads // 2)
    paired["o_proj"] = {**p["o_proj"], "weight": folded}
    del paired["subln"]
    return paired


def _none_to_v2(p: Params, old: DiffLlamaConfig, new: DiffLlamaConfig) -> Params:
    H, K, turned = old.num_attention_heads, old.num_key_value_heads, _interleaved(old)
    weight = to_numpy(p["o_proj"]["weight"])
    return {
        **p,
        "q_proj": _rows(p["q_proj"], np.repeat(np.arange(H), 2), turned),
        "k_proj": _rows(p["k_proj"], np.arange(K), turned),
        "o_proj": {**p["o_proj"], "weight": 2 * weight},
        "lambda_proj": {"weight": np.zeros((H, old.hidden_size), dtype=weight.dtype)},
    }


def _v2_to_none(p: Params, old: DiffLlamaConfig, new: DiffLlamaConfig) -> Params:
    if np.any(to_numpy(p["lambda_proj"]["weight"])):
        raise ValueError(
            "there is no exact conversion from wiring 'v2' to 'none' where λ depends on the token: lambda_proj.weight "
            "is not 0, and a Llama's output projection is the same for every token"
        )
    h, K, halves = old.num_attention_heads, old.num_key_value_heads, np.argsort(_interleaved(old))
    tied = new.num_attention_heads == h
    columns = to_numpy(p["o_proj"]["weight"]).reshape(-1, h, 1, old.head_dim)
    share = [0.5] if tied else [1.0, -0.5]  # of the heads that a pair becomes
    weight = (columns * np.asarray(share, dtype=columns.dtype)[:, None]).reshape(old.hidden_size, -1)
    return {
        **{name: value for name, value in p.items() if name != "lambda_proj"},
        "q_proj": _rows(p["q_proj"], np.arange(0, 2 * h, 2 if tied else 1), halves),
        "k_proj": _rows(p["k_proj"], np.arange(K), halves),
        "o_proj": {**p["o_proj"], "weight": weight},
    }


STEPS: dict[tuple[str, str], Callable[[Params, DiffLlamaConfig, DiffLlamaConfig], Params]] = {
    ("hf", "paper"): _hf_to_paper,
    ("paper", "hf"): _paper_to_hf,
    ("none", "v2"): _none_to_v2,
    ("v2", "none"): _v2_to_none,
}


def _move_heads(p: Params, config: DiffLlamaConfig, *, inverse: bool) -> Params:
    """Put heads i and i + n/2 of q, k and v at 2i and 2i + 1, and RoPE's halves at odds and evens; or back."""
    turned, straight = _interleaved(config), np.arange(config.head_dim)
    moved = dict(p)
    for name, heads, dims in (
        ("q_proj", config.num_attention_heads, turned),
        ("k_proj", config.num_key_value_heads, turned),
        ("v_proj", config.num_key_value_heads, straight),
    ):
        order = np.arange(heads).reshape(2, heads // 2).T.reshape(-1)
        moved[name] = _rows(p[name], np.argsort(order), np.argsort(dims)) if inverse else _rows(p[name], order, dims)
    return moved


def _interleaved(config: DiffLlamaConfig) -> IntArray:
    """Where each dimension of an interleaved head stands in one of halves; dimensions that do not turn stay."""
    frequencies, _ = rope_frequencies(config.rope_parameters, config.head_dim, config.max_position_embeddings)
    n = len(frequencies)
    return np.concatenate([np.arange(2 * n).reshape(2, n).T.reshape(-1), np.arange(2 * n, config.head_dim)])


def _rows(linear: Params, heads: IntArray, dims: IntArray) -> Params:
    """Take the rows of the given heads, and in each head the rows of the given dimensions, of weight and bias."""
    rows = (heads[:, None] * len(dims) + dims).reshape(-1)
    return {name: to_numpy(array)[rows] for name, array in linear.items()}


def _scaled(linear: Params, size: float) -> Params:
    return linear if size == 1 else {name: array * array.dtype.type(size) for name, array in linear.items()}


def _size_for_epsilon(target: float, source: float) -> float:
    """The factor that makes a norm with ε = target of scaled values what a norm with ε = source was of the values."""
    if target == source:
        return 1.0
    if min(target, source) == 0:
        raise ValueError(
            f"there is no exact conversion between a norm with ε = {source} and one with ε = {target}: any two others "
            "differ by the size of the values, but 0 by an infinite one. Is rms_norm_eps right?"
        )
    return math.sqrt(target / source)


def tied(p: Params, config: DiffLlamaConfig) -> bool:
    """Say whether the two queries of every pair are one and the same."""
    pairs = (
        to_numpy(array).reshape(config.num_attention_heads, 2, config.head_dim, -1) for array in p["q_proj"].values()
    )
    return all(np.array_equal(pair[:, 0], pair[:, 1]) for pair in pairs)
