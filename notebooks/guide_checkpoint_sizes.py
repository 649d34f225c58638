# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What the hub's checkpoints need
#
# You have a laptop with 6 GB of free memory, which it reads at 50 GB a second. **Can it run `DiffLlama-0.3B-handcut`,
# on how long a text, and how fast at most?** You can know that before you download anything: dimensions are enough. We
# count parameters, bytes and seconds, and answer the question at the end. **No checkpoint of the hub is downloaded or
# run here.**
#
# Two appear. The dimensions of `DiffLlama-0.3B-handcut` are those of its `config.json`. Those of `DiffLlama-1B` are
# **assumed**: its file was not read. TinyLlama's dimensions with a vocabulary of 102,400 give about the number of
# parameters that the hub states.

# %%
# %matplotlib inline
import math

import numpy as np
import sketches

import refdiff
from refdiff.bench.sizes import HANDCUT, ONE_B
from refdiff.model.weights.names import count_parameters, parameter_shapes

# %% [markdown]
# ## How many parameters
#
# A config decides the shape of every weight. refdiff computes the shapes with `parameter_shapes` before it opens a
# file, to check the file against them.
#
# Here are both, and the small model that refdiff brings: D numbers for each token, F inside the feed-forward network, H
# query heads, K key heads, V tokens in the vocabulary. In spite of its name `DiffLlama-0.3B-handcut` has more than a
# billion parameters.

# %%
configs = {
    "handcut": refdiff.DiffLlamaConfig(**HANDCUT),
    "1B, assumed": refdiff.DiffLlamaConfig(**ONE_B),
    "bundled": refdiff.DiffLlamaForCausalLM.from_pretrained("bundled").config,
}
shapes = {name: parameter_shapes(config, "DiffLlamaForCausalLM") for name, config in configs.items()}
parameters = {name: count_parameters(of.values()) for name, of in shapes.items()}
for name, config in configs.items():
    print(
        f"{name:11} {config.num_hidden_layers:2} layers, D = {config.hidden_size}, F = {config.intermediate_size}, "
        f"H = {config.num_attention_heads}, K = {config.num_key_value_heads}, V = {config.vocab_size:,}: "
        f"{parameters[name]:,} parameters"
    )

# %% [markdown]
# The paper (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258), section 2.1) takes
# $h = d_{model}/2d$ heads, half as many as a Transformer, each with two queries and two keys. So a differential model
# has the parameters of a plain one, but for the λ vectors. Here is a model like `handcut` without the difference, a
# Llama:

# %%
llama = parameter_shapes(refdiff.DiffLlamaConfig(**HANDCUT, variant="plain"), "DiffLlamaForCausalLM")
extra = parameters["handcut"] - count_parameters(llama.values())
print(f"a Llama of that size has {extra:,} parameters fewer: 4 vectors of {HANDCUT['head_dim']} in each layer")

# %% [markdown]
# Where the parameters are:

# %%
parts = {"embeddings, output": ("embed_tokens", "lm_head"), "attention": ("self_attn",), "feed-forward": ("mlp",)}
shares = {}
for name, of in shapes.items():
    sizes = {
        part: sum(math.prod(s) for w, s in of.items() if any(key in w for key in keys)) for part, keys in parts.items()
    }
    shares[name] = {part: size / parameters[name] for part, size in sizes.items()}
sketches.stacked(shares, "share of the parameters")

# %% [markdown]
# Most parameters are in the feed-forward layers: 0.55 to 0.65 of them. Attention, the part that this project is about,
# has 0.14 and 0.15 in the two large models. In the small one, where W_K and W_V are as large as W_Q, it has 0.31.

# %% [markdown]
# ## How much memory
#
# **Weights.** float32 takes 4 bytes a number, bfloat16 takes 2. A float32 file is mapped: its pages count as the
# process's memory when they are read, and the system may drop them again. A bfloat16 file becomes float32 in memory,
# unless `--weights stored` (in Python `weights="stored"`) keeps it in 16 bits.
#
# **Keys and values.** Each layer keeps, for each token, K keys and K values of d numbers:
# $2 \cdot \mathrm{layers} \cdot K \cdot d \cdot 4$ bytes a token.

# %%
gigabyte = 10**9
print(f"{'':11} {'float32':>10} {'bfloat16':>10} {'K and V of a token':>20} {'of 4096 tokens':>15}")
cache = {}
for name, config in configs.items():
    cache[name] = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    print(
        f"{name:11} {4 * parameters[name] / gigabyte:7.3f} GB {2 * parameters[name] / gigabyte:7.3f} GB "
        f"{cache[name]:14,} bytes {4096 * cache[name] / gigabyte:12.3f} GB"
    )

# %% [markdown]
# `handcut` is stored as float32, so its weights take the 4.943 GB of the first column. The 1B model is stored as
# bfloat16. With the assumed dimensions it takes 2.777 GB with `--weights stored`, and 5.554 GB without. The rest of
# the process comes on top. ([Measured](reference/guides/testing.md#full-size), with random weights in these
# dimensions.)
#
# ## How much time
#
# To make one token, every weight is read from memory once. (Of the embedding table only the rows that are needed,
# unless the same table gives the scores, too.) A processor computes faster than it reads, so the bytes decide:
#
# $$\text{seconds a token} \ge \frac{\text{bytes of weights} + \text{bytes of keys and values}}{\text{bytes a second}}$$
#
# Here are the bounds for a memory of 10, 50 and 200 GB a second. The text is short, and its keys and values are left
# out. (The file of `handcut` is float32; its second row is for a copy of it that is kept in bfloat16.)

# %%
print(f"{'':28} {'10 GB/s':>9} {'50 GB/s':>9} {'200 GB/s':>9}   tokens a second at most")
for name, halved in (("handcut", "bfloat16 copy"), ("1B, assumed", "bfloat16, stored")):
    read = parameters[name]
    if not configs[name].tie_word_embeddings:
        read -= math.prod(shapes[name]["model.embed_tokens.weight"])
    for dtype, width in (("float32", 4), (halved, 2)):
        rates = [speed * gigabyte / (width * read) for speed in (10, 50, 200)]
        print(f"{name:11} {dtype:16} " + " ".join(f"{rate:9.1f}" for rate in rates))

# %% [markdown]
# These are bounds, not measurements. `refdiff bench` measures how near refdiff comes to them on your machine.
# [Performance](reference/guides/performance.md) has such a run, with random weights in `handcut`'s dimensions.
#
# A token of the prompt costs less than a generated one. The prompt's tokens go through together, and each weight is
# read once for all of them.
#
# ## The answer
#
# 6 GB, 50 GB a second, and `handcut` in float32, the default. What the weights leave is for keys and values:

# %%
free, speed = 6 * gigabyte, 50 * gigabyte
lengths = np.array([0, configs["handcut"].max_position_embeddings], dtype=np.int64)
room, lines = {}, {}
for dtype, width in (("float32", 4), ("bfloat16", 2)):
    held = width * parameters["handcut"]
    room[dtype] = (free - held) // cache["handcut"]
    lines[f"with weights in {dtype}"] = (held + lengths * cache["handcut"]) / gigabyte
    print(f"weights in {dtype:8} {held / gigabyte:.2f} GB, room for {room[dtype]:,} tokens; at most "
          f"{speed / held:.1f} tokens a second at first, {speed / free:.1f} with the memory full")  # fmt: skip
lines["keys and values alone"] = lengths * cache["handcut"] / gigabyte
sketches.memory(lengths, lines, free / gigabyte, list(room.values()))

# %% [markdown]
# **Yes, just.** The weights and a text of 16,100 tokens fill the 6 GB, and the rest of the process needs some of it,
# too. The full length of 131,072 tokens does not fit. It writes at most 10.1 tokens a second while the text is short.
#
# A copy of the weights in bfloat16 leaves room for 53,800 tokens. It doubles the bound for a short text, to 20.2 tokens
# a second. With the memory full the bound is 8.3 in both, since as many bytes are read. How near refdiff comes to these
# bounds is not measured on this page.
#
# ## The commands
#
# ```sh
# refdiff inspect kajuma/DiffLlama-0.3B-handcut        # config, parameters, λ, memory; reads headers and λ vectors
# refdiff generate -m kajuma/DiffLlama-0.3B-handcut "The capital of France is"
# refdiff attention -m kajuma/DiffLlama-0.3B-handcut "The capital of France is" -o page.html
# ```
#
# The first run of `generate` downloads the checkpoint; later ones find it on disk. In Python:
#
# ```python
# model = refdiff.DiffLlamaForCausalLM.from_pretrained("kajuma/DiffLlama-0.3B-handcut")
# tokenizer = refdiff.Tokenizer.from_pretrained("kajuma/DiffLlama-0.3B-handcut")
# ```
#
# ## If it does not fit
#
# - Keep 16-bit weights in 16 bits: `--weights stored`.
# - Shorten the text: keys and values grow with it, weights do not.
# - Look before you load: `refdiff inspect` says what weights and cache will take, and reads no matrix.
#
# ## Exercise
#
# How long may a text be until `handcut`'s keys and values take as much memory as its weights? How long would it be if
# every query head had its own key head (K = 32)?
#
# <details>
# <summary>Answer</summary>
#
# Weights: 4 bytes · 1.2358 · 10⁹ = 4.943 GB. A token: 2 · 16 · 8 · 64 · 4 = 65,536 bytes. That is about 75,400 tokens,
# more than half of its 131,072 positions. With K = 32 a token takes four times as much, and the memory holds about
# 18,900 tokens. (This leaves aside that W_K and W_V are larger then, too.)
#
# ```python
# tokens = 4 * parameters["handcut"] // cache["handcut"]
# print(f"{tokens:,} of {configs['handcut'].max_position_embeddings:,}; with K = 32: {tokens // 4:,}")
# assert (round(tokens, -2), round(tokens // 4, -2)) == (75_400, 18_900)
# assert tokens > configs["handcut"].max_position_embeddings / 2
# ```
#
# </details>
#
# ## What must hold

# %%
assert parameters["handcut"] == 1_235_818_496
assert extra == 4 * HANDCUT["head_dim"] * HANDCUT["num_hidden_layers"]
assert parameters["bundled"] == refdiff.DiffLlamaForCausalLM.from_pretrained("bundled").num_parameters()
assert [round(share["feed-forward"], 2) for share in shares.values()] == [0.65, 0.55, 0.56]
assert [round(share["attention"], 2) for share in shares.values()] == [0.14, 0.15, 0.31]
assert [round(tokens, -2) for tokens in room.values()] == [16_100, 53_800]
assert [round(2 * n * parameters["1B, assumed"] / gigabyte, 3) for n in (1, 2)] == [2.777, 5.554]
