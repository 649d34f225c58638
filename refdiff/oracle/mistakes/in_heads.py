"""Mistakes in how heads are paired, grouped and laid out."""

from __future__ import annotations

from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.layers import value_pairs_hf
from refdiff.oracle.mistakes.catalogue import EDIFICE, HF, MOTIF, UNILM, Call, Mistake, normed

EAGER = f"{UNILM}/blob/master/Diff-Transformer/multihead_diffattn.py"


def _evens_then_odds(x: Array) -> Array:
    return namespace(x).concat([x[:, 0::2, ...], x[:, 1::2, ...]], axis=1)


def _interleave_halves(x: Array) -> Array:
    """Move heads i, i + H/2 to 2i, 2i + 1."""
    B, H, *rest = x.shape
    xp = namespace(x)
    return xp.reshape(xp.stack([x[:, : H // 2, ...], x[:, H // 2 :, ...]], axis=2), (B, H, *rest))


def _exchange_axes(call: Call, *, heads_first: bool) -> Any:
    """Return the output (B, T, H e) with heads before tokens in memory (`heads_first`), or read as if it were so."""
    out, xp, H = call(), namespace(call.q), call.q.shape[1] // 2
    B, T, width = out.shape
    m, n = (T, H) if heads_first else (H, T)
    return xp.reshape(xp.permute_dims(xp.reshape(out, (B, m, n, width // H)), (0, 2, 1, 3)), out.shape)


def _v2_half_split_pairs(call: Call) -> Any:
    xp, (B, H, T, d) = namespace(call.q), call.q.shape
    mask, bias = (
        x if x is None or x.ndim < 3 or x.shape[-3] == 1 else xp.repeat(x, 2, axis=-3) for x in (call.mask, call.bias)
    )
    none = xp.zeros((B, H, T, 1), dtype=call.q.dtype)
    plain = xp.reshape(call(q=xp.repeat(call.q, 2, axis=1), lambda_=none, mask=mask, bias=bias), (B, T, H, d))
    by_token = xp.permute_dims(xp.broadcast_to(call.lambda_, (B, H // 2, T, 1)), (0, 2, 1, 3))
    return xp.reshape(plain[:, :, : H // 2, :] - by_token * plain[:, :, H // 2 :, :], (B, T, H // 2 * d))


def _keys_repeated_before_pairing(call: Call) -> Any:
    n, xp = call.q.shape[1] // call.k.shape[1], namespace(call.q)
    return call(k=xp.repeat(call.k, n, axis=1), v=xp.repeat(call.v, n, axis=1))


def _keys_tiled_before_pairing(call: Call) -> Any:
    xp, d, n = namespace(call.q), call.q.shape[-1], call.q.shape[1] // call.k.shape[1]
    heads = xp.concat([call.v[..., :d], call.v[..., d:]], axis=1)  # the inverse of value_pairs_hf
    return call(k=xp.concat([call.k] * n, axis=1), v=value_pairs_hf(xp.concat([heads] * n, axis=1)))


def _tiled(call: Call, *names: str) -> Any:
    """Tile some of k1, k2 and v, and repeat the others."""
    n, xp = call.q1.shape[1] // call.k1.shape[1], namespace(call.q1)
    given = {name: call.given[name] for name in ("k1", "k2", "v")}
    tiled = {
        name: xp.concat([x] * n, axis=1) if name in names else xp.repeat(x, n, axis=1) for name, x in given.items()
    }
    return call(**tiled)


def _attention_over_heads(call: Call) -> Any:
    (B, H, T, _), xp = call.q1.shape, namespace(call.q1)
    if call.k1.shape[2] != T:
        return call()

    def by_token(x: Array) -> Array:
        return xp.permute_dims(xp.repeat(x, H // x.shape[1], axis=1), (0, 2, 1, 3))

    lambda_ = by_token(xp.broadcast_to(call.lambda_, (B, H, T, 1)))
    given = {name: by_token(call.given[name]) for name in ("q1", "k1", "q2", "k2", "v")}
    return xp.permute_dims(call(**given, lambda_=lambda_, mask=None, bias=None, causal=False), (0, 2, 1, 3))


def _v2_with_v1_norm(call: Call) -> Any:
    out, xp = call(), namespace(call.q)
    B, T, width = out.shape
    heads = xp.reshape(out, (B, T, call.q.shape[1] // 2, -1))
    return xp.reshape(normed(heads, 1e-5), (B, T, width))


def _v2_one_lambda_per_layer(call: Call) -> Any:
    x, xp = call.lambda_, namespace(call.lambda_)
    return call(lambda_=xp.zeros_like(x) + (xp.mean(x) if x.shape[0] else 0.0))


def _v2_lambda_read_as_tokens_first(call: Call) -> Any:
    xp, (B, h, T, _) = namespace(call.lambda_), call.lambda_.shape
    return call(lambda_=xp.permute_dims(xp.reshape(call.lambda_, (B, T, h, 1)), (0, 2, 1, 3)))


def _v2_lambda_by_query_head(call: Call) -> Any:
    x, h = call.lambda_, call.q.shape[1] // 2
    return call(lambda_=namespace(x).concat([x[:, 2 * i % h : 2 * i % h + 1, ...] for i in range(h)], axis=1))


def _cached_keys_in_other_pairing(call: Call) -> Any:
    old = max(call.k.shape[2] - call.q.shape[2], 0)
    cached = _interleave_halves(call.k[:, :, :old, :])
    return call(k=namespace(call.k).concat([cached, call.k[:, :, old:, :]], axis=2))


HEAD_MISTAKES: tuple[Mistake, ...] = (
    Mistake("interleaved_pairs", "Heads 2i, 2i + 1 paired in place of i, i + H/2.", "diff_heads_hf", "pair",
            lambda call: call(q=_evens_then_odds(call.q), k=_evens_then_odds(call.k)), "F1"),
    Mistake("interleaved_queries_only",
            "Query heads paired 2i, 2i + 1, where i, i + H/2 is meant; key heads j, j + K/2.", "diff_heads_hf", "pair",
            lambda call: call(q=_evens_then_odds(call.q)), "F1"),
    Mistake("interleaved_keys_only",
            "Key heads paired 2j, 2j + 1, where j, j + K/2 is meant; query heads i, i + H/2.", "diff_heads_hf", "pair",
            lambda call: call(k=_evens_then_odds(call.k)), "F1"),
    Mistake("half_split_keys_only",
            "Key heads paired j, j + K/2, where 2j, 2j + 1 is meant; query heads 2i, 2i + 1.", "diff_heads_paper",
            "pair", lambda call: call(k=_interleave_halves(call.k)), "F1", HF),
    Mistake("half_split_queries_only",
            "Query heads paired i, i + H/2, where 2i, 2i + 1 is meant; key heads 2j, 2j + 1.", "diff_heads_paper",
            "pair", lambda call: call(q=_interleave_halves(call.q)), "F1", HF),
    Mistake("half_split_pairs", "Heads i, i + H/2 paired in place of 2i, 2i + 1.", "diff_heads_paper", "pair",
            lambda call: call(q=_interleave_halves(call.q), k=_interleave_halves(call.k)), "F1", HF),
    Mistake("v2_half_split_pairs", "Heads i, i + h paired in place of 2i, 2i + 1, which share a key: the two maps "
            "have different keys and values. The authors warn of it.", "diff_heads_v2", "pair", _v2_half_split_pairs,
            "B1"),
    Mistake("keys_repeated_before_pairing",
            "Each key head repeated for its queries, then paired: both maps of a pair read one key.",
            "diff_heads_paper", "gqa", _keys_repeated_before_pairing, "F5", EAGER),
    Mistake("keys_tiled", "Head i on key head i mod k of each map, in place of i // n.", "diff_attention", "gqa",
            lambda call: _tiled(call, "k1", "k2", "v")),
    Mistake("values_tiled", "Head i on value head i mod k, in place of i // n, and on its own key heads.",
            "diff_attention", "gqa", lambda call: _tiled(call, "v")),
    Mistake("keys_tiled_before_pairing",
            "Query head i on key and value head i mod K, in place of i // (H / K): tiled, then paired.",
            "diff_heads_hf", "gqa", _keys_tiled_before_pairing),
    Mistake("interleaved_value_heads",
            "Value heads 2j, 2j + 1 joined in place of j, j + K/2: the output of v_proj read as K/2 heads of 2d.",
            "value_pairs_hf", "value layout", lambda call: call(v=_evens_then_odds(call.v)), "F6", ""),
    Mistake("value_halves_swapped", "Value heads joined in the other order: [v_{j + K/2} ; v_j].",
            "value_pairs_hf", "value layout",
            lambda call: call(v=namespace(call.v).roll(call.v, call.v.shape[1] // 2, axis=1))),
    Mistake("value_heads_duplicated", "Each value head joined with itself: [v_j ; v_j].", "value_pairs_hf",
            "value layout",
            lambda call: namespace(call.v).concat([call.v[:, : call.v.shape[1] // 2, ...]] * 2, axis=-1)),
    Mistake("keys_swapped", "Q₁ on K₂ and Q₂ on K₁.", "diff_attention", "maps",
            lambda call: call(k1=call.k2, k2=call.k1)),
    Mistake("first_key_for_both_maps", "K₁ for both maps, as in v2.", "diff_attention", "maps",
            lambda call: call(k2=call.k1)),
    Mistake("maps_swapped", "The two maps exchanged: A₂ − λ A₁.", "diff_attention", "maps",
            lambda call: call(q1=call.q2, k1=call.k2, q2=call.q1, k2=call.k1)),
    Mistake("output_read_as_tokens_first", "The output (B, H, T, e) read as (B, T, H e) without exchanging the axes.",
            "diff_heads_hf", "output layout", lambda call: _exchange_axes(call, heads_first=True),
            also=("diff_heads_paper", "diff_heads_v2")),
    Mistake("attention_over_heads",
            "Each token's heads attend to each other, without a mask: (B, T, H, d) passed as (B, H, T, d).",
            "diff_attention", "output layout", _attention_over_heads),
    Mistake("output_read_as_heads_first", "The output (B, T, H e) read as (B, H, T, e) without exchanging the axes.",
            "diff_heads_hf", "output layout", lambda call: _exchange_axes(call, heads_first=False),
            also=("diff_heads_paper", "diff_heads_v2")),
    Mistake("v2_with_v1_norm", "A norm of each head after attention, which v2 does without.", "diff_heads_v2",
            "v1 or v2", _v2_with_v1_norm, "B3", EDIFICE),
    Mistake("v2_one_lambda_per_layer", "One λ for all tokens and heads, their mean, in place of one each.",
            "diff_heads_v2", "v1 or v2", _v2_one_lambda_per_layer, "B3", EDIFICE),
    Mistake("v2_lambda_read_as_tokens_first", "λ, (B, h, T) in memory, read as (B, T, h).", "diff_heads_v2", "v1 or v2",
            _v2_lambda_read_as_tokens_first),
    Mistake("v2_lambda_by_query_head", "λ indexed by query head modulo h: pair i gets λ of pair 2i mod h.",
            "diff_heads_v2", "v1 or v2", _v2_lambda_by_query_head),
    Mistake("first_map_only", "λ computed and not used: the first map alone.", "diff_heads_hf", "difference",
            lambda call: call(lambda_=0 * call.lambda_), "B12", MOTIF),
    Mistake("cached_keys_in_other_pairing",
            "Cached keys stored branch by branch, but read pair by pair; the keys of this call are read correctly.",
            "diff_heads_hf", "cache", _cached_keys_in_other_pairing, "B20", also=("diff_heads_paper",)),
)  # fmt: skip
