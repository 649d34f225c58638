"""Mistakes in which heads belong together."""

from __future__ import annotations

from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.oracle.mistakes.catalogue import EDIFICE, HF, MOTIF, UNILM, V2, Mistake, mistake

HEAD_MISTAKES: list[Mistake] = []
FLASH = f"{UNILM}/blob/master/Diff-Transformer/multihead_flashdiff_1.py"
CACHE = "https://github.com/vllm-project/vllm/pull/20702"
EAGER = f"{UNILM}/blob/master/Diff-Transformer/multihead_diffattn.py"


def _evens_then_odds(x: Array) -> Array:
    return namespace(x).concat([x[:, 0::2, ...], x[:, 1::2, ...]], axis=1)


def _halves_in_turn(x: Array) -> Array:
    """The heads such that 2i, 2i + 1 are what i, i + H/2 were."""
    B, H, *rest = x.shape
    xp = namespace(x)
    return xp.reshape(xp.stack([x[:, : H // 2, ...], x[:, H // 2 :, ...]], axis=2), (B, H, *rest))


def _axes_exchanged(out: Array, m: int, n: int, e: int) -> Array:
    """The memory of (B, T, H e), read as (B, m, n, e) and laid out as (B, n, m, e)."""
    xp = namespace(out)
    return xp.reshape(xp.permute_dims(xp.reshape(out, (out.shape[0], m, n, e)), (0, 2, 1, 3)), out.shape)


@mistake(HEAD_MISTAKES, "diff_heads_hf", "pair", "F1", FLASH)
def neighbors_are_a_pair(right: Any, q: Array, k: Array, *rest: Any, **options: Any) -> Any:
    """Heads 2i, 2i + 1 where heads i, i + H/2 are a pair."""
    return right(_evens_then_odds(q), _evens_then_odds(k), *rest, **options)


@mistake(HEAD_MISTAKES, "diff_heads_hf", "pair", "F1", FLASH)
def neighboring_queries_on_halved_keys(right: Any, q: Array, k: Array, *rest: Any, **options: Any) -> Any:
    """Queries 2i, 2i + 1, keys j, j + K/2: one pairing for each."""
    return right(_evens_then_odds(q), k, *rest, **options)


@mistake(HEAD_MISTAKES, "diff_heads_hf", "pair", "F1", FLASH)
def neighboring_keys_on_halved_queries(right: Any, q: Array, k: Array, *rest: Any, **options: Any) -> Any:
    """Keys 2j, 2j + 1, queries i, i + H/2: one pairing for each."""
    return right(q, _evens_then_odds(k), *rest, **options)


@mistake(HEAD_MISTAKES, "diff_heads_paper", "pair", "F1", HF)
def halved_keys_on_neighboring_queries(right: Any, q: Array, k: Array, *rest: Any, **options: Any) -> Any:
    """Keys j, j + K/2, queries 2i, 2i + 1: one pairing for each."""
    return right(q, _halves_in_turn(k), *rest, **options)


@mistake(HEAD_MISTAKES, "diff_heads_paper", "pair", "F1", HF)
def halved_queries_on_neighboring_keys(right: Any, q: Array, k: Array, *rest: Any, **options: Any) -> Any:
    """Queries i, i + H/2, keys 2j, 2j + 1: one pairing for each."""
    return right(_halves_in_turn(q), k, *rest, **options)


@mistake(HEAD_MISTAKES, "diff_heads_paper", "pair", "F1", HF)
def halves_are_a_pair(right: Any, q: Array, k: Array, *rest: Any, **options: Any) -> Any:
    """Heads i, i + H/2 where heads 2i, 2i + 1 are a pair."""
    return right(_halves_in_turn(q), _halves_in_turn(k), *rest, **options)


@mistake(HEAD_MISTAKES, "diff_heads_v2", "pair", "B1", V2)
def v2_halves_are_a_pair(
    right: Any, q: Array, k: Array, v: Array, lambda_: Array, mask: Any = None, bias: Any = None, **options: Any
) -> Any:
    """Heads i, i + h where 2i, 2i + 1 share a key: a difference over two keys and values, which the authors warn of."""
    xp, (B, H, T, d) = namespace(q), q.shape
    twice = [x if x is None or x.ndim < 3 or x.shape[-3] == 1 else xp.repeat(x, 2, axis=-3) for x in (mask, bias)]
    none = xp.zeros((B, H, T, 1), dtype=q.dtype)
    plain = xp.reshape(right(xp.repeat(q, 2, axis=1), k, v, none, *twice, **options), (B, T, H, d))
    by_token = xp.permute_dims(xp.broadcast_to(lambda_, (B, H // 2, T, 1)), (0, 2, 1, 3))
    return xp.reshape(plain[:, :, : H // 2, :] - by_token * plain[:, :, H // 2 :, :], (B, T, H // 2 * d))


@mistake(HEAD_MISTAKES, "diff_heads_paper", "gqa", "F5", EAGER)
def keys_repeated_before_they_pair(right: Any, q: Array, k: Array, v: Array, *rest: Any, **options: Any) -> Any:
    """Each key head repeated for its queries, then paired: both maps of a pair read one key."""
    n = q.shape[1] // k.shape[1]
    xp = namespace(q, k, v)
    return right(q, xp.repeat(k, n, axis=1), xp.repeat(v, n, axis=1), *rest, **options)


@mistake(HEAD_MISTAKES, "diff_attention", "gqa")
def keys_tiled(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, *rest: Any, **options: Any) -> Any:
    """Query head h on key head h mod K, where h // n is meant."""
    n, xp = q1.shape[1] // k1.shape[1], namespace(q1)
    k1, k2, v = (xp.concat([x] * n, axis=1) for x in (k1, k2, v))
    return right(q1, k1, q2, k2, v, *rest, **options)


@mistake(HEAD_MISTAKES, "value_pairs_hf", "vlay", "F6")
def neighboring_values_joined(right: Any, v: Array) -> Any:
    """Values 2j, 2j + 1 joined, where j, j + K/2 are: the output of v_proj read as K/2 heads of 2d."""
    return right(_evens_then_odds(v))


@mistake(HEAD_MISTAKES, "value_pairs_hf", "vlay")
def values_joined_in_the_other_order(right: Any, v: Array) -> Any:
    """[v_{j + K/2} ; v_j]."""
    half = v.shape[1] // 2
    return right(namespace(v).concat([v[:, half:, ...], v[:, :half, ...]], axis=1))


@mistake(HEAD_MISTAKES, "diff_attention", "k1/k2 crossed")
def keys_crossed(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, *rest: Any, **options: Any) -> Any:
    """Q₁ on K₂ and Q₂ on K₁."""
    return right(q1, k2, q2, k1, *rest, **options)


@mistake(HEAD_MISTAKES, "diff_attention", "k1/k2 crossed")
def one_key_for_both(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, *rest: Any, **options: Any) -> Any:
    """K₁ for both maps, as in v2."""
    return right(q1, k1, q2, k1, *rest, **options)


@mistake(HEAD_MISTAKES, "diff_attention", "k1/k2 crossed")
def streams_swapped(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, *rest: Any, **options: Any) -> Any:
    """A₂ − λ A₁."""
    return right(q2, k2, q1, k1, *rest, **options)


@mistake(HEAD_MISTAKES, "diff_heads_hf", "concat", also=("diff_heads_paper", "diff_heads_v2"))
def heads_laid_out_before_tokens(right: Any, *args: Any, **options: Any) -> Any:
    """(B, H, T, e) read as (B, T, H e) without exchanging the axes."""
    out, H = right(*args, **options), args[0].shape[1] // 2
    return _axes_exchanged(out, out.shape[1], H, out.shape[2] // H)


@mistake(HEAD_MISTAKES, "diff_attention", "concat")
def attention_over_heads(
    right: Any, q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array, *rest: Any, **options: Any
) -> Any:
    """Each token's heads attend to each other: (B, T, H, d) given where (B, H, T, d) is meant, without a mask."""
    (B, H, T, _), xp = q1.shape, namespace(q1)
    if k1.shape[2] != T:
        return right(q1, k1, q2, k2, v, lambda_, *rest, **options)
    keys = (xp.repeat(x, H // k1.shape[1], axis=1) for x in (k1, k2, v))
    k1, k2, v = (xp.permute_dims(x, (0, 2, 1, 3)) for x in keys)
    by_token = xp.permute_dims(xp.broadcast_to(lambda_, (B, H, T, 1)), (0, 2, 1, 3))
    q1, q2 = (xp.permute_dims(x, (0, 2, 1, 3)) for x in (q1, q2))
    return xp.permute_dims(right(q1, k1, q2, k2, v, by_token, causal=False), (0, 2, 1, 3))


@mistake(HEAD_MISTAKES, "diff_heads_hf", "concat", also=("diff_heads_paper", "diff_heads_v2"))
def tokens_laid_out_before_heads(right: Any, *args: Any, **options: Any) -> Any:
    """(B, T, H e) read as (B, H, T, e) without exchanging the axes."""
    out, H = right(*args, **options), args[0].shape[1] // 2
    return _axes_exchanged(out, H, out.shape[1], out.shape[2] // H)


@mistake(HEAD_MISTAKES, "diff_heads_v2", "V2-vs-V1", "B3", EDIFICE)
def v2_with_the_norm_of_v1(right: Any, q: Array, *rest: Any, **options: Any) -> Any:
    """A norm of each head after attention, which v2 does without."""
    out, xp = right(q, *rest, **options), namespace(q)
    B, T, width = out.shape
    heads = xp.reshape(out, (B, T, q.shape[1] // 2, -1))
    return xp.reshape(heads / xp.sqrt(xp.mean(heads * heads, axis=-1, keepdims=True) + 1e-5), (B, T, width))


@mistake(HEAD_MISTAKES, "diff_heads_v2", "V2-vs-V1", "B3", EDIFICE)
def v2_with_one_lambda_a_layer(
    right: Any, q: Array, k: Array, v: Array, lambda_: Array, *rest: Any, **options: Any
) -> Any:
    """One λ for all tokens and heads, as in v1."""
    xp = namespace(q, lambda_)
    return right(q, k, v, xp.zeros_like(lambda_) + (xp.mean(lambda_) if lambda_.shape[0] else 0.0), *rest, **options)


@mistake(HEAD_MISTAKES, "diff_heads_v2", "V2-vs-V1")
def v2_lambda_read_by_token(
    right: Any, q: Array, k: Array, v: Array, lambda_: Array, *rest: Any, **options: Any
) -> Any:
    """λ, (B, h, T) in memory, read as (B, T, h)."""
    xp, (B, h, T, _) = namespace(q, lambda_), lambda_.shape
    by_token = xp.permute_dims(xp.reshape(lambda_, (B, T, h, 1)), (0, 2, 1, 3))
    return right(q, k, v, by_token, *rest, **options)


@mistake(HEAD_MISTAKES, "diff_heads_v2", "V2-vs-V1")
def v2_lambda_of_the_head_beside(
    right: Any, q: Array, k: Array, v: Array, lambda_: Array, *rest: Any, **options: Any
) -> Any:
    """λ of query head i mod h, not of the pair i // 2: the first map of head i gets that of head 2i mod h."""
    xp, h = namespace(q, lambda_), q.shape[1] // 2
    others = xp.concat([lambda_[:, 2 * i % h : 2 * i % h + 1, ...] for i in range(h)], axis=1)
    return right(q, k, v, others, *rest, **options)


@mistake(HEAD_MISTAKES, "diff_heads_hf", "path", "B12", MOTIF)
def heads_without_the_difference(
    right: Any, q: Array, k: Array, v: Array, lambda_: Array, *rest: Any, **options: Any
) -> Any:
    """λ computed and not used: the first map alone."""
    return right(q, k, v, 0 * lambda_, *rest, **options)


@mistake(HEAD_MISTAKES, "diff_heads_hf", "cache", "B20", CACHE, ("diff_heads_paper",))
def cached_keys_in_the_other_pairing(right: Any, q: Array, k: Array, *rest: Any, **options: Any) -> Any:
    """Keys in the cache stream by stream, read as if they stood pair by pair; those of this call are right."""
    old = k.shape[2] - q.shape[2]
    cached = _halves_in_turn(k[:, :, : max(old, 0), :])
    return right(q, namespace(k).concat([cached, k[:, :, max(old, 0) :, :]], axis=2), *rest, **options)
