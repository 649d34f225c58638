"""The bugs: the thread, what was wrong, the sizes at which it happened, and the stages of the kernel that it replaces.

Sizes follow the thread where it states them, with fewer heads, tokens or sequences where a replay would take seconds;
elsewhere they are small ones of ours. Where a thread states a symptom alone, the cause is our reading. A name that no
catalogue has yet is what a complete diagnosis would say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refdiff.oracle import Spec
from refdiff.oracle.rounding import round_to
from tests.oracle.public_bugs.kernels import (
    Edits,
    Inputs,
    Numpy,
    differential,
    gather,
    merge,
    plain,
    rotate,
    softmax,
    split,
    visible,
)

LOG2_E = np.float32(math.log2(math.e))


@dataclass(frozen=True)
class Bug:
    """A bug of a public kernel.

    thread, what: where it was reported, as owner/name/issues/number, and what was wrong.
    heads: query heads, key heads and the head size; of `hf_diffllama` those of both maps.
    edit: the stages that are wrong. names: the names that a diagnosis may give; none if it has no name.
    tokens: batch, queries and keys. fields: fields of the spec. prepare: makes the inputs special.
    backward: whether the kernel returns gradients, too.
    """

    thread: str
    what: str
    heads: tuple[int, int, int]
    tokens: tuple[int, int, int]
    edit: Edits
    names: tuple[str, ...] = ()
    recipe: str = "float32"
    fields: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Inputs, np.random.Generator], Inputs] = lambda x, rng: x
    backward: bool = False

    @property
    def link(self) -> str:
        """The address of the thread."""
        return f"https://github.com/{self.thread}"

    @property
    def spec(self) -> Spec:
        """What the kernel was meant to compute."""
        H, K, d = self.heads
        preset = {"preset": "attention", "query_heads": H, "key_heads": K, "head_dim": d}
        return Spec.of(preset | self.fields)

    def inputs(self) -> tuple[Inputs, Numpy | None]:
        """Draw the inputs and, if gradients are judged, that of the output."""
        rng, spec, (B, T, S) = np.random.default_rng(7), self.spec, self.tokens
        shapes = {
            "q": (B, spec.query_heads, T, spec.head_dim),
            "k": (B, spec.key_heads, S, spec.head_dim),
            "v": (B, spec.value_heads, S, spec.value_dim),
        }
        x = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        if spec.sinks:
            x["sinks"] = rng.normal(size=spec.query_heads) + 2
        if not spec.is_plain:
            x |= {name: 0.3 * rng.normal(size=spec.head_dim) for name in VECTORS}
        x = {name: self._stored(y) for name, y in self.prepare(x, rng).items()}
        dout = rng.normal(size=(B, spec.heads, T, spec.out_dim)) if self.backward else None
        return x, None if dout is None else self._stored(dout)

    def _stored(self, y: Numpy) -> Numpy:
        return round_to(y, self.recipe).astype(np.float32) if y.dtype.kind == "f" else y

    def run(self, x: Inputs, dout: Numpy | None, *, mistaken: bool) -> Inputs:
        """Return what the kernel computes, with the bug or without it."""
        kernel = plain if self.spec.is_plain else differential
        return kernel(self.spec, x, dout, storage=self.recipe, **(self.edit if mistaken else {}))


VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def shown(change: Callable[[Numpy, Numpy, Numpy], Numpy]) -> Edits:
    """Change which keys are visible, from (visible, query positions, key positions)."""

    def wrong(spec: Spec, x: Inputs, T: int, S: int) -> Numpy:
        t, s = np.arange(T)[:, None] + (S - T), np.arange(S)[None, :]
        return np.broadcast_to(change(visible(spec, x, T, S), t, s), (1, 1, T, S))

    return {"visible": wrong}


def top_left(seen: Numpy, t: Numpy, s: Numpy) -> Numpy:
    """Align the causal mask with the first query and key."""
    return s <= t - (s.shape[1] - t.shape[0])


def windowed(size: int) -> Edits:
    """A causal window of another size."""
    return shown(lambda seen, t, s: (s <= t) & (s > t - size))


def extra_keys(tile: int, score: float = 0.0) -> Edits:
    """Fill the last tile with keys of value 0 and this score."""

    def attend(z: Numpy, seen: Numpy, sink: Numpy | None, v: Numpy) -> tuple[Numpy, Numpy]:
        n = -z.shape[-1] % tile
        wide = [(0, 0)] * 3
        z = np.pad(z, [*wide, (0, n)], constant_values=score)
        seen = np.pad(np.broadcast_to(seen, (*seen.shape[:3], z.shape[-1] - n)), [*wide, (0, n)], constant_values=True)
        return softmax(z, seen, sink, np.pad(v, [(0, 0), (0, 0), (0, n), (0, 0)]))

    return {"attend": attend}


def merged(change: Callable[[list[tuple[Numpy, Numpy]]], list[tuple[Numpy, Numpy]]], sizes: int = 64) -> Edits:
    """Split the keys, and change the splits' results before they are merged."""
    return {"attend": lambda z, seen, sink, v: merge(change(split(z, seen, sink, v, sizes=sizes)))}


def with_bias(slopes: Callable[[int], Numpy]) -> Callable[[Inputs, np.random.Generator], Inputs]:
    """Give the inputs a bias that grows with the distance, by the slope of each head."""

    def prepare(x: Inputs, rng: np.random.Generator) -> Inputs:
        H, T, S = x["q"].shape[1], x["q"].shape[2], x["k"].shape[2]
        away = np.arange(S)[None, :] - np.arange(T)[:, None] - (S - T)
        return x | {"bias": slopes(H)[None, :, None, None] * np.minimum(away, 0)[None, None]}

    return prepare


def alibi(H: int) -> Numpy:
    """Return the slopes of ALiBi as its authors' code has them."""
    power = 2 ** int(math.log2(H))
    first = 2.0 ** (-8 / power * np.arange(1, power + 1))
    return np.concatenate([first, 2.0 ** (-4 / power * np.arange(1, 2 * (H - power), 2))])


def rescore(change: Callable[[Numpy, Numpy], Numpy]) -> Edits:
    """Compute the biased scores otherwise, from (scores, bias)."""
    return {"score": lambda z, spec, x, cap: change(z, x["bias"])}


def other_slopes(slopes: Callable[[int], Numpy]) -> Edits:
    """Multiply the bias by other slopes."""

    def wrong(z: Numpy, bias: Numpy) -> Numpy:
        H = z.shape[1]
        return z + bias * (slopes(H) / alibi(H)).astype(np.float32)[None, :, None, None]

    return rescore(wrong)


def random_bias(x: Inputs, rng: np.random.Generator) -> Inputs:
    """Add a bias for each pair of tokens."""
    return x | {"bias": rng.normal(size=(1, x["q"].shape[1], x["q"].shape[2], x["k"].shape[2]))}


def masked(mask: Callable[[int, int], Numpy]) -> Callable[[Inputs, np.random.Generator], Inputs]:
    """Give the inputs a mask, from the numbers of queries and keys."""
    return lambda x, rng: x | {"mask": mask(x["q"].shape[2], x["k"].shape[2])[None, None]}


def padded(keep: int, rows: slice = slice(None)) -> Callable[[Inputs, np.random.Generator], Inputs]:
    """Mask all keys but the first `keep` of some sequences."""

    def prepare(x: Inputs, rng: np.random.Generator) -> Inputs:
        mask = np.ones((x["k"].shape[0], x["k"].shape[2]), dtype=bool)
        mask[rows, keep:] = False
        return x | {"key_mask": mask}

    return prepare


def paged(size: int, *lengths: int) -> Callable[[Inputs, np.random.Generator], Inputs]:
    """Put the keys into pages of this size in random order; the table's rows have as many as the longest needs."""

    def prepare(x: Inputs, rng: np.random.Generator) -> Inputs:
        N, n = len(lengths), -(-max(lengths) // size)
        K, d = x["k"].shape[1], x["k"].shape[-1]
        pages = {f"{name}_pages": rng.normal(size=(N * n, K, size, d)) for name in "kv"}
        table = rng.permutation(N * n).reshape(N, n).astype(np.int64)
        return {"q": x["q"], "block_table": table, "lengths": np.array(lengths), **pages}

    return prepare


def lost_page_ends(tile: int) -> Edits:
    """See only the whole tiles of a page."""

    def wrong(spec: Spec, x: Inputs, T: int, S: int) -> Numpy:
        size = x["k_pages"].shape[2]
        return visible(spec, x, T, S) & (np.arange(S) % size < size // tile * tile)

    return {"visible": wrong}


def scaled_keys(k: float, v: float) -> Edits:
    """Leave out the factors by which keys and values were divided."""
    return {
        "scale": lambda z, spec, d: z * np.float32(d**-0.5 / k),
        "finish": lambda out, x: out / np.float32(v),
    }


def swap_heads_and_tokens(x: Numpy) -> Numpy:
    """Read (B, T, H, d) in memory as if it were (B, H, T, d)."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape)


def max_from_zero(tile: int) -> Edits:
    """Start the maximum of a row whose last tile is hidden at 0."""

    def attend(z: Numpy, seen: Numpy, sink: Numpy | None, v: Numpy) -> tuple[Numpy, Numpy]:
        hidden = ~np.any(seen[..., (z.shape[-1] - 1) // tile * tile :], axis=-1, keepdims=True)
        z = np.where(seen, z, -np.inf)
        top = np.max(z, axis=-1, keepdims=True)
        top = np.where(hidden, np.maximum(top, 0), top)
        p = np.exp(z - top)
        total = np.sum(p, axis=-1, keepdims=True)
        return p @ v / np.where(total == 0, np.float32(1), total), np.log(total) + top

    return {"attend": attend}


def opposite(x: Inputs, rng: np.random.Generator) -> Inputs:
    """Give all queries a large part, and all keys the opposite one: every score is far below 0."""
    part = np.zeros(x["q"].shape[-1])
    part[0] = 40.0
    return x | {"q": x["q"] + part, "k": x["k"] - part}


def floor_of_max(floor: float) -> Edits:
    """Start the maximum of all rows at a finite number."""

    def attend(z: Numpy, seen: Numpy, sink: Numpy | None, v: Numpy) -> tuple[Numpy, Numpy]:
        z = np.where(seen, z, -np.inf)
        top = np.maximum(np.max(z, axis=-1, keepdims=True), np.float32(floor))
        p = np.exp(z - top)
        total = np.sum(p, axis=-1, keepdims=True)
        return p @ v / np.where(total == 0, np.float32(1), total), np.log(total) + top

    return {"attend": attend}


def far_below(x: Inputs, rng: np.random.Generator) -> Inputs:
    """Make all scores of head 0 as low as massive activations do: about −61,000 at head size 128, with sizes kept."""
    q, k = x["q"], x["k"]
    q[:, 0, :, 0], k[:, 0, :, 0] = 448.0, -1540.0
    return x | {"q": q, "k": k}


def after_softmax(z: Numpy, seen: Numpy, sink: Numpy | None, v: Numpy) -> tuple[Numpy, Numpy]:
    """Hide keys after the softmax."""
    p = np.exp(z - np.max(z, axis=-1, keepdims=True))
    p = p / np.sum(p, axis=-1, keepdims=True)
    return np.where(seen, p, np.float32(0)) @ v, np.zeros_like(z[..., :1])


def rows_without_keys(value: float) -> Edits:
    """Return the mean of all values (0) or NaN for a query that sees no key."""

    def attend(z: Numpy, seen: Numpy, sink: Numpy | None, v: Numpy) -> tuple[Numpy, Numpy]:
        out, lse = softmax(z, seen, sink, v)
        instead = np.mean(v, axis=-2, keepdims=True) if value == 0 else np.float32(np.nan)
        return np.where(np.any(seen, axis=-1, keepdims=True), out, instead), lse

    return {"attend": attend}


def hidden_tiles_nan(tile: int) -> Edits:
    """Return NaN for a query whose first tile of keys is hidden, since −∞ − (−∞) is NaN."""

    def attend(z: Numpy, seen: Numpy, sink: Numpy | None, v: Numpy) -> tuple[Numpy, Numpy]:
        out, lse = softmax(z, seen, sink, v)
        return np.where(np.any(seen[..., :tile], axis=-1, keepdims=True), out, np.float32(np.nan)), lse

    return {"attend": attend}


def twice_rotated(spec: Spec, x: Numpy, positions: Numpy) -> Numpy:
    """Rotate the cached keys, all but the last, again."""
    once = rotate(spec, x, positions)
    return np.concatenate([rotate(spec, once, positions)[:, :, :-1], once[:, :, -1:]], axis=2)


def extra_sink(z: Numpy, seen: Numpy, sink: Numpy | None, v: Numpy) -> tuple[Numpy, Numpy]:
    """Count the sink in each of two splits."""
    half = z.shape[-1] // 2
    return merge([softmax(z[..., p], seen[..., p], sink, v[:, :, p]) for p in (slice(0, half), slice(half, None))])


def own_splits(out: Numpy, lse: Numpy, operands: tuple[Any, ...], *, sizes: int = 64) -> tuple[Numpy, Numpy]:
    """Take the log-sum-exp of each key's own split for that of all keys."""
    z, seen, sink, v = operands
    parts = split(z, seen, sink, v, sizes=sizes)
    width = [min(sizes, z.shape[-1] - s) for s in range(0, z.shape[-1], sizes)]
    return out, np.concatenate([np.repeat(part[1], w, axis=-1) for part, w in zip(parts, width, strict=True)], axis=-1)


NO_MASK: dict[str, Any] = {"causal": "none"}
TWO, TWO_GROUPS = (2, 2, 64), (4, 2, 64)

BUGS: tuple[Bug, ...] = (
    # Softcap, scale and bias
    Bug("Dao-AILab/flash-attention/pull/2402", "Softcap as (z/c) tanh(z/c), where c tanh(z/c) is meant.",
        (1, 1, 128), (1, 48, 48), {"cap": lambda z, c: z / c * np.tanh(z / c)},
        ("softcap_z_over_c_times_tanh",), "bfloat16", {"softcap": 15.0}),
    Bug("Dao-AILab/flash-attention/pull/2544", "The backward pass of packed sequences has no derivative of softcap.",
        (1, 1, 128), (1, 32, 54), {"dscore": lambda z, c: 1.0}, ("gradient_without_softcap",), "bfloat16",
        {"softcap": 15.0}, lambda x, rng: x | {"q": 4 * x["q"]}, True),
    Bug("ggml-org/llama.cpp/pull/29034", "Keys that fill the last tile get −∞ before softcap, which makes it −c.",
        TWO, (1, 8, 65), extra_keys(64, -2.0), (), "float32", {"softcap": 2.0, **NO_MASK}),
    Bug("microsoft/onnxruntime/pull/28370", "Bias added after softcap, where it belongs before: here the reverse.",
        TWO, (1, 32, 32), {"score": lambda z, spec, x, cap: cap(z + x["bias"], spec.softcap)},
        ("softcap_after_bias",), "float16", {"softcap": 2.0}, random_bias),
    Bug("SKaiNET-developers/SKaiNET/pull/880", "The default scale 0 is taken as it is: all scores are 0.",
        (2, 2, 16), (1, 12, 12), {"scale": lambda z, spec, d: 0 * z}, ("all_scores_zero",)),
    Bug("BobMcDear/attorch/issues/14", "The scale of the scores is 0.5 for every head size.",
        (2, 2, 32), (1, 48, 48), {"scale": lambda z, spec, d: np.float32(0.5) * z}, ("wrong_scale",)),
    Bug("bytedance-iaas/sglang/pull/485", "The scale is that of the padded head size, 128 for 80.",
        (2, 2, 80), (1, 48, 48), {"scale": lambda z, spec, d: np.float32(128**-0.5) * z}, ("wrong_scale",),
        "bfloat16", NO_MASK),
    Bug("tenstorrent/tt-metal/pull/42891", "The additive mask is multiplied by the scale of the scores.",
        TWO, (1, 32, 32), rescore(lambda z, bias: z + bias * np.float32(0.125)), ("bias_scaled",), "bfloat16",
        NO_MASK, random_bias),
    Bug("meta-pytorch/segment-anything-fast/pull/71", "2^z with scores times log₂ e, but a bias without that factor.",
        TWO, (1, 49, 49), rescore(lambda z, bias: z + bias / LOG2_E), ("bias_in_base_2",), "bfloat16",
        NO_MASK, random_bias),
    Bug("ml-explore/mlx/pull/3071", "ALiBi's slopes of 12 heads as one geometric sequence.",
        (12, 12, 16), (1, 24, 24), other_slopes(lambda H: 2.0 ** (-8 / H * np.arange(1, H + 1))), (), "float32", {},
        with_bias(alibi)),
    Bug("paiml/aprender/pull/2143", "ALiBi's slopes begin at 1: the exponent lacks one step.",
        (8, 8, 16), (1, 24, 24), other_slopes(lambda H: 2.0 ** (-8 / H * np.arange(H))), (), "float32", {},
        with_bias(alibi)),
    # Causal masks
    Bug("NVIDIA/cutlass/issues/2336", "The causal mask is aligned with the first key, for 3 queries and 128 keys.",
        (1, 1, 128), (1, 3, 128), shown(top_left), ("causal_mask_top_left",), "float16"),
    Bug("onnx/onnx/pull/8068", "With a cache, the causal mask is aligned with the first key.",
        TWO, (1, 4, 12), shown(top_left), ("causal_mask_top_left",)),
    Bug("pytorch/xla/pull/8978", "The flag for the causal mask chooses the full one.",
        TWO, (1, 64, 64), shown(lambda seen, t, s: s >= 0), ("no_causal_mask",), "bfloat16"),
    Bug("NVIDIA/TransformerEngine/issues/629", "A window (−1, 0) makes cross-attention causal.",
        TWO, (1, 24, 40), shown(lambda seen, t, s: s <= t), ("extra_causal_mask",), "bfloat16", NO_MASK),
    Bug("openvinotoolkit/openvino/pull/37653", "An encoder's causal=0 is not read: the mask is causal.",
        TWO_GROUPS, (1, 32, 32), shown(lambda seen, t, s: s <= t), ("extra_causal_mask",), "float32", NO_MASK),
    Bug("lucidrains/memory-compressed-attention/issues/2", "The mask is applied after the softmax.",
        TWO, (1, 32, 32), {"attend": after_softmax}, ("mask_after_softmax",)),
    Bug("sgl-project/sglang/pull/39593", "A custom mask is cut off at the end of the causal tile of the query.",
        TWO_GROUPS, (1, 96, 96), shown(lambda seen, t, s: seen & (s < (t // 32 + 1) * 32)), (), "float16", NO_MASK,
        masked(lambda T, S: np.arange(S)[None, :] < (np.arange(T)[:, None] // 48 + 1) * 48)),
    # Windows
    Bug("huggingface/transformers/issues/39408", "The window has one key too many: its own is not counted.",
        TWO, (1, 96, 96), windowed(33), ("window_one_too_long",), "bfloat16", {"window": 32}),
    Bug("ml-explore/mlx-lm/pull/390", "The window's mask has one key too many, 129 for 128.",
        (2, 1, 64), (1, 192, 192), windowed(129), ("window_one_too_long",), "bfloat16", {"window": 128}),
    Bug("zml/zml/pull/763", "The window is passed to a kernel that excludes the own key from its size.",
        TWO_GROUPS, (1, 64, 64), windowed(17), ("window_one_too_long",), "bfloat16", {"window": 16}),
    Bug("NVIDIA/TransformerEngine/issues/1197", "cuDNN's window excludes its first key: one key too few.",
        TWO, (1, 192, 192), windowed(64), ("window_one_too_short",), "float16", {"window": 65}),
    Bug("huggingface/transformers/pull/26792", "Mistral's window is off by one diagonal: one key too many.",
        (2, 2, 16), (1, 5, 5), windowed(4), ("window_one_too_long",), "float32", {"window": 3}),
    Bug("sgl-project/sglang/pull/32087", "Decoding loses the oldest key of the window.",
        (4, 2, 256), (1, 1, 96), windowed(64), ("window_one_too_short",), "bfloat16", {"window": 65}),
    Bug("huggingface/transformers/pull/41228", "The window's diagonal has the wrong sign: it lifts the causal mask.",
        TWO, (1, 32, 32), shown(lambda seen, t, s: (s <= t) | (s > t + 8)), (), "bfloat16", {"window": 8}),
    Bug("jax-ml/jax/pull/39576", "A window to the left alone, without causal mask, sees the whole future.",
        TWO, (1, 64, 64), shown(lambda seen, t, s: s > t - 9), (), "bfloat16", NO_MASK,
        masked(lambda T, S: np.tri(T, S, dtype=bool) & ~np.tri(T, S, -9, dtype=bool))),
    Bug("huggingface/transformers/pull/47162", "The window to the right sees 3 frames in place of 4.",
        TWO, (1, 40, 40), shown(lambda seen, t, s: seen & (s < t + 4)), (), "float32", NO_MASK,
        masked(lambda T, S: np.tri(T, S, 4, dtype=bool) & ~np.tri(T, S, -16, dtype=bool))),
    # Tiles and padding
    Bug("jax-ml/jax/issues/27224", "192 keys in tiles of 128: the keys past the end count with score 0.",
        (2, 2, 16), (1, 192, 192), extra_keys(128), (), "bfloat16", NO_MASK),
    Bug("flashinfer-ai/flashinfer/pull/5090", "Keys past the end of the last block of 64 count with score 0.",
        (2, 2, 128), (1, 40, 100), extra_keys(64), (), "bfloat16", NO_MASK),
    Bug("pytorch/pytorch/issues/159247", "FlexAttention of 64 keys in blocks of 128: the rest of the block counts.",
        (1, 1, 16), (1, 1, 64), extra_keys(128), ("extra_keys_of_score_0",), "bfloat16", NO_MASK),
    Bug("vllm-project/vllm-ascend/issues/15503", "The mask is ignored from key 512 on.",
        (4, 4, 64), (1, 1, 1024), shown(lambda seen, t, s: seen | (s >= 512)), ("no_padding_mask",), "bfloat16",
        NO_MASK, padded(600)),
    Bug("Dao-AILab/flash-attention/issues/2082", "The maximum of a row starts at 0 after a hidden tile: it underflows.",
        (7, 1, 64), (1, 44, 224), max_from_zero(64), ("maximum_starts_at_0",), "bfloat16", {}, opposite),
    Bug("flashinfer-ai/flashinfer/issues/4267", "The maximum starts at −50,000: a row of lower scores is 0.",
        (2, 1, 128), (1, 4, 40), floor_of_max(-5e4), (), "float32", {}, far_below),
    Bug("ggml-org/llama.cpp/pull/6438", "A tile that is hidden whole gives NaN: −∞ − (−∞).",
        (2, 2, 64), (1, 48, 48), hidden_tiles_nan(16), (), "float16", {"window": 16}),
    Bug("NVIDIA/apex/issues/1390", "A query that sees no key gets the mean of all values.",
        TWO, (2, 16, 16), rows_without_keys(0), ("finite_mask_value",), "float16", NO_MASK, padded(0, slice(0, 1))),
    Bug("robertknight/rten/pull/1321", "A query that sees no key gets NaN.",
        TWO, (2, 16, 16), rows_without_keys(math.nan), ("masked_rows_nan",), "float32", NO_MASK,
        padded(0, slice(0, 1))),
    # Heads and layout
    Bug("onnx/onnx/pull/7274", "Key heads are tiled (0, 1, 0, 1), where each is repeated (0, 0, 1, 1).",
        (4, 2, 16), (1, 24, 24), {"group": lambda x, n: np.concatenate([x] * n, axis=1)}, ("key_heads_tiled",)),
    Bug("apple/axlearn/pull/842", "Key heads are broadcast before the groups: 0, 1, 0, 1 for 4 heads over 2.",
        (4, 2, 64), (1, 5, 5), {"group": lambda x, n: np.concatenate([x] * n, axis=1)}, ("key_heads_tiled",),
        "bfloat16"),
    Bug("pytorch/pytorch/issues/181133", "MPS reads permuted q, k and v as if they were contiguous.",
        (3, 3, 64), (4, 3, 3), {"load": lambda x: tuple(swap_heads_and_tokens(x[n]) for n in "qkv")},
        ("qkv_read_as_tokens_first",), "float32", NO_MASK),
    Bug("flagos-ai/FlagGems/issues/5896", "A transposed view of v is read as if it were contiguous.",
        (4, 4, 64), (1, 24, 24), {"load": lambda x: (x["q"], x["k"], swap_heads_and_tokens(x["v"]))},
        ("values_read_as_tokens_first",), "float16"),
    # Positions
    Bug("NeuraLegion/shainet/pull/110", "Keys in the cache are rotated, and rotated again when they are read.",
        TWO_GROUPS, (1, 1, 24), {"rotate_keys": twice_rotated}, ("rope_twice_on_cached_keys",), "float32",
        {"rope": "halves"}),
    Bug("vllm-project/vllm/pull/941", "GPT-J's RoPE in pairs of halves, where its pairs are neighbors.",
        TWO, (1, 24, 24), {"rotate_keys": lambda spec, x, at: rotate(spec.replace(rope="halves"), x, at)},
        (), "float32", {"rope": "interleaved"}),
    # Sinks
    Bug("modular/modular/issues/6198", "The learned sinks are left out of the denominator.",
        (8, 1, 64), (1, 16, 16), {"sink": lambda sinks, shape: None}, ("no_sinks",), "bfloat16", {"sinks": True}),
    Bug("modular/modular/pull/6591", "Each query has the sink of another head: the row's number modulo the heads.",
        (4, 2, 64), (1, 15, 15),
        {"sink": lambda sinks, shape: sinks[np.arange(shape[1] * shape[2]).reshape(1, *shape[1:3], 1) % shape[1]]},
        (), "bfloat16", {"sinks": True}),
    Bug("ROCm/rocm-libraries/pull/12229", "Split keys count the sink in two splits.",
        TWO_GROUPS, (1, 8, 64), {"attend": extra_sink}, ("sinks_counted_2_times",), "bfloat16", {"sinks": True}),
    # Splits, pages and caches
    Bug("sgl-project/sglang/pull/35045", "Splits are merged with e^lse, but their log-sum-exps are to base 2.",
        (2, 2, 64), (1, 16, 192), merged(lambda parts: [(o, lse * LOG2_E) for o, lse in parts]),
        ("splits_of_64_merged_in_another_base",), "bfloat16"),
    Bug("Dao-AILab/flash-attention/pull/2388", "The splits' log-sum-exps are written to the places of other heads.",
        TWO_GROUPS, (1, 4, 192), merged(lambda parts: [(o, np.roll(lse, 1, axis=1)) for o, lse in parts]), (),
        "bfloat16"),
    Bug("flashinfer-ai/flashinfer/issues/4051", "Merging two splits without visible keys gives NaN.",
        TWO, (2, 8, 128), {"attend": rows_without_keys(math.nan)["attend"]}, ("masked_rows_nan",), "float16", NO_MASK,
        padded(0, slice(1, 2))),
    Bug("tile-ai/TileOPs/pull/1787", "Pages of 192 in tiles of 128: the last 64 keys of each page are lost.",
        (2, 1, 64), (1, 1, 1), lost_page_ends(128), (), "float16", {}, paged(192, 384)),
    Bug("hw-native-sys/simpler/pull/72", "The last page counts whole, also where it is not filled.",
        (4, 2, 64), (2, 1, 1),
        {"visible": lambda spec, x, T, S: np.arange(S) < -(-x["lengths"][:, None, None, None] // 16) * 16},
        ("last_page_not_masked",), "float32", {}, paged(16, 41, 35)),
    Bug("golang-design/accel/issues/10", "The page table is not read: pages are taken in their order in memory.",
        (4, 2, 64), (2, 1, 1),
        {"load": lambda x: (x["q"], *(gather(x[f"{n}_pages"], np.arange(x["block_table"].size).reshape(
            x["block_table"].shape)) for n in "kv"))},
        ("pages_in_memory_order",), "float32", {}, paged(16, 64, 48)),
    Bug("flashinfer-ai/flashinfer/issues/4979", "The scales of fp8 keys and values are ignored, 0.25 and 0.5.",
        TWO_GROUPS, (1, 24, 24), scaled_keys(0.25, 0.5), (), "bfloat16"),
    Bug("flashinfer-ai/flashinfer/issues/1023", "The scales of fp8 keys and values are lost on the way, both 0.0109.",
        TWO_GROUPS, (1, 24, 24), scaled_keys(0.01092529296875, 0.01092529296875), (), "bfloat16"),
    # Backward passes
    Bug("triton-lang/triton/issues/7216", "The backward pass does not apply the causal mask.",
        TWO, (1, 128, 128), {"dvisible": lambda seen, spec: np.ones_like(seen)}, ("lse_used_without_mask",),
        "float16", {}, backward=True),
    Bug("triton-lang/triton/issues/4541", "The backward pass is causal, whatever the forward pass is.",
        TWO, (1, 128, 128), {"dvisible": lambda seen, spec: seen & np.tri(*seen.shape[-2:], dtype=bool)},
        ("backward_causal",), "float16", NO_MASK, backward=True),
    Bug("xlite-dev/ffpa-attn/pull/300", "The backward pass aligns the causal mask with the first key.",
        TWO_GROUPS, (1, 24, 56), {"dvisible": lambda seen, spec: np.broadcast_to(
            np.tri(*seen.shape[-2:], dtype=bool), seen.shape)},
        ("backward_mask_top_left",), "bfloat16", {}, backward=True),
    Bug("XunhaoLai/native-sparse-attention-triton/issues/27",
        "dq is computed from as many channels of v and dout as q has, fewer than v has.",
        (2, 2, 32), (1, 40, 40), {"dp": lambda dout, v, spec: dout[..., :32] @ v[..., :32].swapaxes(-1, -2)}, (),
        "float16", {"v_head_dim": 64}, backward=True),
    Bug("Dao-AILab/flash-attention/issues/355", "The gradient of the output is read as if it were contiguous.",
        (4, 1, 64), (2, 32, 32), {"read_dout": swap_heads_and_tokens}, ("dout_read_as_tokens_first",), "float16", {},
        backward=True),
    Bug("SHI-Labs/NATTEN/pull/299", "The backward pass of merged attention uses each split's own log-sum-exp.",
        TWO, (1, 32, 128), {"saved": own_splits}, (), "float16", NO_MASK, backward=True),
    Bug("jax-ml/jax/pull/40140", "The terms of the sinks' gradients are rounded to bfloat16 before they are added.",
        (2, 2, 64), (1, 512, 64),
        {"dsink": lambda terms, storage: round_to(terms.astype(np.float32), "bfloat16").sum(axis=(0, 2, 3))}, (),
        "float32", {"sinks": True, **NO_MASK}, backward=True),
    # Differential attention
    Bug("Jaykef/ai-algorithms/issues/1", "λ without exponentials: not re-parameterized.",
        (4, 4, 32), (1, 24, 24), {"exponential": lambda x: x}, ("no_exponentials",), "float32",
        {"preset": "hf_diffllama", "rope": "none", "layer": 2}),
    Bug("Jaykef/ai-algorithms/issues/1", "No norm of each head after the difference.",
        (4, 4, 32), (1, 24, 24), {"norm": lambda x, eps: x}, ("no_norm_after_attention", "no_norm"), "float32",
        {"preset": "hf_diffllama", "rope": "none", "layer": 2}),
)  # fmt: skip
