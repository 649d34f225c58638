"""A correct kernel in NumPy that knows nothing of refdiff; every preset, dense, in the type of its inputs."""

import math

import numpy as np

TABLES = {}


def rotate(x, positions, theta, interleaved):
    d = x.shape[-1]
    angles = positions[:, None, :, None] * theta ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : d // 2], x[..., d // 2 :])
    first, second = a * cos - b * sin, b * cos + a * sin
    if not interleaved:
        return np.concatenate([first, second], axis=-1)
    return np.stack([first, second], axis=-1).reshape(x.shape)


def softmax(z):
    top = np.max(z, axis=-1, keepdims=True, initial=-np.inf)
    e = np.exp(z - np.where(np.isfinite(top), top, 0))
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total > 0, total, 1)


def weights_times_values(z, v, tile):
    """softmax(z) @ v, in tiles of keys with a running maximum; at once where a tile is 0."""
    if not tile:
        return softmax(z) @ v
    top = np.full((*z.shape[:-1], 1), -np.inf)
    total, out = np.zeros_like(top), np.zeros((*z.shape[:-1], v.shape[-1]))
    for s in range(0, z.shape[-1], tile):
        part = z[..., s : s + tile]
        higher = np.maximum(top, part.max(axis=-1, keepdims=True))
        safe = np.where(np.isfinite(higher), higher, 0)
        e, kept = np.exp(part - safe), np.where(np.isfinite(top), np.exp(top - safe), 0)
        total, out, top = total * kept + e.sum(-1, keepdims=True), out * kept + e @ v[..., s : s + tile, :], higher
    return out / np.where(total > 0, total, 1)


def kernel(spec, inputs, tile=0, work=np.float64):
    if not {"q", "k", "v"} <= set(inputs) or {"cu_seqlens_q", "bias", "mask"} & set(inputs):
        return NotImplemented
    if spec.gqa != "pair_then_group" or spec.keys != "own" or spec.values == "single" or spec.ratio != 1:
        return NotImplemented
    store = inputs["q"].dtype
    x = {name: a.astype(work) if a.dtype == store or a.dtype == np.float32 else a for name, a in inputs.items()}
    q, k, v = x["q"], x["k"], x["v"]
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    if spec.rope != "none":
        at = np.arange(S, dtype=np.float64)[None]
        q = rotate(q, x.get("q_positions", at[:, S - T :] if S >= T else np.arange(S - T, S)[None]).astype(work),
                   spec.rope_theta, spec.rope == "interleaved")  # fmt: skip
        k = rotate(k, x.get("k_positions", at).astype(work), spec.rope_theta, spec.rope == "interleaved")
    pairs = (
        (lambda y: (y[:, 0::2], y[:, 1::2])) if spec.pairing == "interleaved" else (lambda y: np.split(y, 2, axis=1))
    )
    if spec.values != "wide":
        halves = (v[:, 0::2], v[:, 1::2]) if spec.values == "interleaved" else np.split(v, 2, axis=1)
        v = np.concatenate(halves, axis=-1)
    n = H // K
    v = np.repeat(v, n, axis=1)
    see = np.ones((B, 1, T, S), dtype=bool)
    if spec.causal == "bottom_right":
        see &= np.arange(S) <= np.arange(S - T, S)[:, None]
    if spec.window is not None:
        see &= np.arange(S) > np.arange(S - T, S)[:, None] - spec.window
    if "key_mask" in x:
        see &= inputs["key_mask"][:, None, None, :]
    maps = []
    for qi, ki in zip(pairs(q), pairs(k), strict=True):
        z = qi @ np.swapaxes(np.repeat(ki, n, axis=1), -1, -2) / math.sqrt(d)
        maps.append(weights_times_values(np.where(see, z, -np.inf), v, tile))
    start = 0.8 - 0.6 * math.exp(-0.3 * (spec.layer - (spec.lambda_base == "depth - 1")))
    one, two = (np.exp((x[f"lambda_q{i}"] * x[f"lambda_k{i}"]).sum()) for i in "12")
    heads = maps[0] - (one - two + start) * maps[1]
    normed = heads / np.sqrt(np.mean(heads**2, axis=-1, keepdims=True) + spec.norm_eps)
    return ((1 - start) * normed * x.get("norm_weight", 1)).astype(store)


def tiled(spec, inputs):
    return kernel(spec, inputs, tile=16)


def in_float32(spec, inputs):
    """What the float32 recipe says: products and sums in float32."""
    return kernel(spec, inputs, work=np.float32)


def attention(spec, inputs):
    """Plain attention of grouped heads, which is causal and has no masks."""
    if set(inputs) != {"q", "k", "v"} or spec.window or spec.softcap:
        return NotImplemented
    q, k, v = (inputs[name].astype(np.float64) for name in "qkv")
    T, S, n = q.shape[2], k.shape[2], spec.query_heads // spec.key_heads
    z = q @ np.swapaxes(np.repeat(k, n, axis=1), -1, -2) / math.sqrt(q.shape[-1])
    return (softmax(np.where(np.tri(T, S, S - T, dtype=bool), z, -np.inf)) @ np.repeat(v, n, axis=1)).astype(
        inputs["q"].dtype
    )


def as_many_keys_as_queries(spec, inputs):
    """What an ordinary module serves, of contiguous arrays."""
    if not spec.is_plain or set(inputs) != {"q", "k", "v"} or inputs["q"].shape[2] != inputs["k"].shape[2]:
        return NotImplemented
    if not all(x.flags.c_contiguous for x in inputs.values()):
        return NotImplemented
    return attention(spec, inputs)


def part_of_a_larger_array(spec, inputs):
    """A view that skips numbers and runs backwards."""
    out = attention(spec, inputs)
    if out is NotImplemented:
        return out
    B, H, T, d = out.shape
    larger = np.full((B, 2 * H, T + 3, d + 5), np.nan, out.dtype)
    larger[:, 1::2, 1 : T + 1, 2 : d + 2] = out[:, ::-1]
    return larger[:, ::-2, 1 : T + 1, 2 : d + 2]


def no_numbers_of_an_input(spec, inputs):
    """Where the output has no numbers, a view of the queries: it shares no memory with them."""
    out = attention(spec, inputs)
    return out if out is NotImplemented or out.size else inputs["q"].reshape(out.shape)


def as_modules_return_it(spec, inputs):
    """Contiguous in another order of axes, beside None, with a cache of tables that depends on nothing but sizes."""
    out = kernel(spec, inputs, tile=7)
    if out is NotImplemented:
        return out
    TABLES.setdefault(out.shape, np.zeros(out.shape[2]))
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(out, 1, 2)), 1, 2), None
