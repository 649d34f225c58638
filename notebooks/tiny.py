"""The Differential Transformer (Ye et al. 2024, arXiv 2410.05258) in plain NumPy: token ids in, token ids out.

It reads a DiffLlama checkpoint as Hugging Face stores it (float16, float32 or float64; SiLU; plain RoPE; no biases)
and computes in float64. Axis letters: T tokens, D model size, H query heads, K key/value heads, d head size.
Chapter 1 explains it block by block.
"""

import json
from pathlib import Path

import numpy as np


def load(folder):
    config = json.loads((Path(folder) / "config.json").read_text())
    raw = (Path(folder) / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")  # 8 bytes of length, a JSON header, then the numbers
    weights = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            numbers = np.frombuffer(raw[start + first : start + last], entry["dtype"].replace("F", "float").lower())
            weights[name] = numbers.reshape(entry["shape"]).astype(np.float64)
    return weights, config


def subset(weights, prefix):
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rms_norm(x, eps, weight=1.0):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def swiglu(x, p):
    gate, up = x @ p["gate_proj.weight"].T, x @ p["up_proj.weight"].T
    return (gate / (1 + np.exp(-gate)) * up) @ p["down_proj.weight"].T


def rope(x, base):
    d = x.shape[-1]
    angle = np.arange(x.shape[-2])[:, None] * base ** (-np.arange(0, d, 2) / d)  # position · frequency: (T, d/2)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def attention_map(q, k):
    T, d = q.shape[-2:]
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(d)
    return softmax(np.where(np.tri(T, dtype=bool), scores, -np.inf))  # a token sees itself and those before it


def heads(x, p, config):  # queries, keys and values of all heads: (heads, T, d)
    base, d = config["rope_parameters"]["rope_theta"], config["head_dim"]
    q, k, v = ((x @ p[f"{name}_proj.weight"].T).reshape(len(x), -1, d).swapaxes(0, 1) for name in "qkv")
    k, v = (np.repeat(z, len(q) // len(z), axis=0) for z in (k, v))  # where several heads share a key and a value
    return rope(q, base), rope(k, base), v


def diff_attention(q1, k1, q2, k2, v, lambda_):  # eq. 1
    return (attention_map(q1, k1) - lambda_ * attention_map(q2, k2)) @ v


def strength(p, layer):  # eq. 2: λ and λ_init
    lambda_init = 0.8 - 0.6 * np.exp(-0.3 * layer)
    return np.exp(p["lambda_q1"] @ p["lambda_k1"]) - np.exp(p["lambda_q2"] @ p["lambda_k2"]) + lambda_init, lambda_init


def attention(x, p, layer, config):  # eq. 3
    q, k, v = heads(x, p, config)
    (q1, q2), (k1, k2) = np.split(q, 2), np.split(k, 2)  # heads i and i + H/2 are a pair: (H/2, T, d)
    v = np.concatenate(np.split(v, 2), axis=-1)  # and have one value, twice as long: (H/2, T, 2d)
    lambda_, lambda_init = strength(p, layer)
    out = (1 - lambda_init) * rms_norm(diff_attention(q1, k1, q2, k2, v, lambda_), config["rms_norm_eps"])
    return out.swapaxes(0, 1).reshape(len(x), -1) @ p["o_proj.weight"].T  # the pairs side by side: (T, D)


def model(ids, weights, config):
    eps = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        p = subset(weights, f"model.layers.{layer}.")
        normed = rms_norm(x, eps, p["input_layernorm.weight"])
        x = x + attention(normed, subset(p, "self_attn."), layer, config)  # eq. 4
        x = x + swiglu(rms_norm(x, eps, p["post_attention_layernorm.weight"]), subset(p, "mlp."))  # eq. 5
    x = rms_norm(x, eps, weights["model.norm.weight"])
    return x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T  # logits: (T, vocabulary)


def generate(ids, count, weights, config):
    for _ in range(count):
        ids = [*ids, int(model(ids, weights, config)[-1].argmax())]
    return ids
