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
# # Which two heads are a pair?
#
# Equation 1 subtracts one head's map from another's. It does not say *which* two heads. The authors' code and Hugging
# Face's DiffLlama answer differently, and a checkpoint does not say for which answer it was trained. This guide reads
# the bundled model both ways, turns one way into the other, and finds a published file that computes something else. It
# is for the day on which you load a checkpoint and its text is nonsense. The
# [guide on variants](reference/guides/variants.md) lists all conversions.

# %%
# %matplotlib inline
from pathlib import Path

import numpy as np
import sketches
import tiny

import refdiff
from refdiff import bundled, layers, oracle

# %% [markdown]
# ## The picture
#
# Eight query heads share four key heads: *grouped queries*, which save memory (chapter 04). A pair has two queries. In
# the paper and at Hugging Face each of the two has a key of its own; in V2 both read one key.

# %%
sketches.pairing()

# %% [markdown]
# ## The equation and the code
#
# Ye et al. 2024 ([arXiv 2410.05258](https://arxiv.org/abs/2410.05258)):
#
# $$\mathrm{MultiHead}(X) =
# \mathrm{Concat}_i\big((1-\lambda_{init})\,\mathrm{LN}(\mathrm{DiffAttn}_i(X))\big)W^O \tag{eq. 3}$$
#
# What differs is how heads are split into first and second maps: one line. (The value of a pair is made of two values,
# neighbors or halves again. Here `v` holds such pairs from the start; exercise 1 makes them.)


# %%
def neighbors(x):  # the paper: (0, 1), (2, 3), …
    return x[:, 0::2], x[:, 1::2]


def halves(x):  # Hugging Face: (0, H/2), (1, H/2 + 1), …
    return np.split(x, 2, axis=1)


def multi_head(split, q, k, v, lambda_, lambda_init, eps):
    (q1, q2), (k1, k2) = split(q), split(k)
    k1, k2, v = (np.repeat(x, q1.shape[1] // x.shape[1], axis=1) for x in (k1, k2, v))
    out = (1 - lambda_init) * tiny.rms_norm(tiny.diff_attention(q1, k1, q2, k2, v, lambda_), eps)
    return out.swapaxes(1, 2).reshape(*out.shape[:1], out.shape[2], -1)


rng = np.random.default_rng(4)
B, H, T, d = 1, 8, 9, 4
lambda_, lambda_init, eps = 0.6, 0.35, 1e-5
for K in (8, 4, 2):
    q, k = rng.standard_normal((B, H, T, d)), rng.standard_normal((B, K, T, d))
    v = rng.standard_normal((B, K // 2, T, 2 * d))
    by_paper = layers.diff_heads_paper(q, k, v, np.asarray(lambda_), np.ones(2 * d), lambda_init, eps)
    by_hf = layers.diff_heads_hf(q, k, v, np.asarray(lambda_), lambda_init, eps)
    ours = [multi_head(split, q, k, v, lambda_, lambda_init, eps) for split in (neighbors, halves)]
    print(f"{H} queries, {K} keys: neighbors = paper {np.allclose(ours[0], by_paper)}, halves = Hugging Face",
          f"{np.allclose(ours[1], by_hf)}, paper = Hugging Face {np.allclose(by_paper, by_hf)}")  # fmt: skip

# %% [markdown]
# ## Experiment: read a checkpoint the wrong way
#
# The bundled model is in Hugging Face's layout. `refdiff.convert` rewrites it for the paper's code in three steps.
# Each step changes an order. The first reorders the heads in $W_Q$ and $W_K$, the second the heads in $W_V$. The
# third reorders the numbers inside each query and key head, because the paper's RoPE rotates neighbors (in
# [chapter 02](02_where_words_meet.ipynb), halves rotate together).
#
# We do this by hand, to the weights of chapter 01. Our program pairs halves, so we need two orders:
#
# - `interleaved` *converts* weights for the paper's code: the two halves become neighbors.
# - `evens_first` lets our program *read* weights as the paper's code does: neighbors become the two halves.
#
# Converting and then reading must change nothing. Here are the six heads of our model:
#
# | order of the heads | pairs are | which gives | |
# |---|---|---|---|
# | stored: 0 1 2 3 4 5 | halves | (0, 3) (1, 4) (2, 5) | as trained |
# | converted: 0 3 1 4 2 5 | neighbors | (0, 3) (1, 4) (2, 5) | the same |
# | stored: 0 1 2 3 4 5 | neighbors | (0, 1) (2, 3) (4, 5) | wrong |
#
# (That refdiff's own converter agrees with ours is checked at the end. [Its guide](reference/guides/variants.md) says
# which conversions are exact.)
#
# Now we leave out one step of the conversion. The shapes still fit, so no check of shapes fails. What does it cost in
# loss, on an unseen text?

# %%
weights, config = tiny.load(bundled.FOLDER)
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
story = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")[0].strip()
ids = tokenizer([story], return_tensors="np")["input_ids"][0, :256]


def interleaved(n):  # 0, n/2, 1, n/2 + 1, …: halves become neighbors
    return np.arange(n).reshape(2, n // 2).T.ravel()


def evens_first(n):  # 0, 2, …, 1, 3, …: neighbors become halves
    return np.arange(n).reshape(n // 2, 2).T.ravel()


def reorder(weights, order, queries_and_keys=True, values=True, inside=True):
    new, qk = dict(weights), (queries_and_keys, inside)
    for layer in range(6):
        for name, (heads, numbers) in {"q": qk, "k": qk, "v": (values, False)}.items():
            path = f"model.layers.{layer}.self_attn.{name}_proj.weight"
            w = weights[path].reshape(6, 32, 192)  # six heads of 32 numbers
            w = w[order(6)] if heads else w
            new[path] = (w[:, order(32)] if numbers else w).reshape(192, 192)
    return new


print("six heads, converted:", interleaved(6), "  and read:", interleaved(6)[evens_first(6)])
print("numbers inside a head, converted:", interleaved(32)[:6], "…")
paper_pairs = interleaved(6).reshape(3, 2)  # values that belong together, as the converter puts them side by side
wrong_pairs = np.arange(6).reshape(3, 2)  # what the paper's code pairs if they are left as they were
print("pairs of values:", paper_pairs.tolist(), "  without the order of values:", wrong_pairs.tolist())
rows = {"as stored, halves are pairs": sketches.loss_of(tiny, ids, weights, config)}
for name, steps in {
    "converted, neighbors are pairs": (True, True, True),
    "… without the order of queries and keys": (False, True, True),
    "… without the order of values": (True, False, True),
    "… without the order inside a head": (True, True, False),
    "as stored, neighbors are pairs": (False, False, False),
}.items():
    converted = reorder(weights, interleaved, *steps)
    rows[name] = sketches.loss_of(tiny, ids, reorder(converted, evens_first), config)
for name, loss in rows.items():
    print(f"{name:40} loss {loss:.4f}")
guess = np.log(config["vocab_size"])
sketches.loss_bars(rows, guess)

# %% [markdown]
# The converted model equals the original, as it must. Each step that is left out costs much, and *there is no error
# message*. Wrong pairs of queries and keys alone take the loss from 3.05 to 5.58. Wrong pairs of values are worse than
# a uniform guess (7.62): every pair then hands $W^O$ at least one value of another pair.
#
# **You have a checkpoint and do not know its variant?** Measure its loss on any text under both readings, and take the
# lower one. In this model and on this one text of 256 tokens, the wrong reading costs more than 5 nats. Where the
# difference is that large, a page of text is enough; other models and texts were not tried.
#
# So the conversion only changes the order of rows. (Where the norm has a weight or ε differs, it also puts the weight
# into $W^O$ and rescales $W_V$.) The inverse puts the even heads first and the odd ones after them:

# %%
evens_then_odds = [np.concatenate(neighbors(x), axis=1) for x in (q, k)]
reordered = layers.diff_heads_hf(*evens_then_odds, v, np.asarray(lambda_), lambda_init, eps)
print("paper = Hugging Face on reordered heads:", np.allclose(by_paper, reordered, rtol=0, atol=1e-13))

# %% [markdown]
# ## In one table
#
# With $n = H/K$ queries to a key, and heads counted from 0:
#
# | | pair i | its keys | its value | λ | after it |
# |---|---|---|---|---|---|
# | paper | 2i, 2i + 1 | 2j, 2j + 1 for j = ⌊i/n⌋ | both, side by side | one a layer | norm × weight × (1 − λ_init) |
# | Hugging Face | i, i + H/2 | j, j + K/2 for j = ⌊i/n⌋ | both, side by side | one a layer | norm, × (1 − λ_init) |
# | V2 | 2i, 2i + 1 | ⌊2i/n⌋ for both | ⌊2i/n⌋, one of size d | each token and pair | nothing |

# %% [markdown]
# ## Why a norm, and why a factor?
#
# In the first version each pair ends with
#
# $$\mathrm{head}_i = (1-\lambda_{init})\,\mathrm{LN}(\mathrm{DiffAttn}_i(X)) \tag{eq. 3}$$
#
# *Why the norm?* The paper says that differential heads differ more in size than softmax heads. Do they in the bundled
# model? We compare the outputs of its pairs with those of the leading maps alone, on eight tales.
#
# *Why the factor?* In a new model the weights of both maps are nearly even, so the difference is about $1-\lambda$
# times one map. The norm enlarges it to size 1, and its gradients by as much: more in deep layers, where
# $\lambda_{init}$ is larger. The factor $1-\lambda_{init}$ undoes this growth with depth:

# %%
library = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
tales = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")
grows = np.zeros(6, dtype=int)
for tale in tokenizer([tale.strip() for tale in tales])["input_ids"]:
    trace = oracle.trace(library, np.array([tale[:256]]))
    for layer in range(6):
        outputs = [trace[f"model.layers.{layer}.self_attn.{name}"][0]
                   for name in ("attn2" if layer == 3 else "attn1", "diff")]  # fmt: skip
        one, both = map(sketches.size_spread, outputs)
        grows[layer] += both > one
print("tales (of 8) in which heads differ more in size with both maps, by layer:", grows)

depths = (0, 3, 11, 27)
sizes = [[sketches.gradient_sizes(depth, seed) for seed in range(5)] for depth in depths]
sizes = np.mean(sizes, axis=1)
for depth, (bare, norm, both) in zip(depths, sizes, strict=True):
    print(f"gradient of W_Q in layer {depth:2}: bare {bare:.2f}, with norm {norm:.1f}, with both {both:.1f}")
lines = dict(zip(("A₁ − λA₂ alone", "with norm", "with norm and factor"), sizes.T, strict=True))
ticks = (1, 2, 5, 10, 20, 50)
sketches.curves(depths, lines, "layer", "gradient of W_Q, plain head = 1", yscale="log",
                xticks=depths, yticks=ticks, yticklabels=ticks)  # fmt: skip

# %% [markdown]
# With both maps heads differ more in size in four layers of six. With the norm alone, the gradient grows about fourfold
# from layer 0 to layer 27. With the factor it is nearly level, but still about 15 times a plain head's: one map's own
# output, an average of many values, is small, and the factor does not undo that. The paper's appendix G says that the
# gradients are the same "up to constant factors".
#
# ## The file that differs
#
# This part is for readers of the authors' code. Others may continue with the exercises.
#
# The authors published three files for the first version. With fewer keys than queries (grouped queries), each key
# serves $n$ queries. Two of the files first pair the keys and then share them. The third, `multihead_diffattn.py`,
# shares first: it repeats each key $n$ times and then pairs neighbors. After the repetition, the two neighbors are
# copies of one key. We can see it in the names alone:

# %%
K, n = 4, 2
names = np.array([f"k{j}" for j in range(K)])
repeated = np.repeat(names, n)
for i in range(H // 2):
    j = i // n
    own, same = f"q{2 * i}·{names[2 * j]} − λ q{2 * i + 1}·{names[2 * j + 1]}", repeated[2 * i]
    print(f"pair {i}   pair first: {own}   repeat first: q{2 * i}·{same} − λ q{2 * i + 1}·{repeated[2 * i + 1]}")

q, k = rng.standard_normal((B, H, T, d)), rng.standard_normal((B, K, T, d))
v = rng.standard_normal((B, K // 2, T, 2 * d))
pair_first = multi_head(neighbors, q, k, v, lambda_, lambda_init, eps)
repeat_first = multi_head(neighbors, q, np.repeat(k, n, axis=1), np.repeat(v, n, axis=1), lambda_, lambda_init, eps)
apart = np.abs(pair_first - repeat_first).max() / np.abs(pair_first).max()
print(f"largest difference of the outputs: {apart:.2f} of the largest output")

# %% [markdown]
# In the right column both maps of a pair read the *same* key, as in V2. It is still a subtraction, and a model trained
# this way may do well. But it is another function: weights trained with one file give wrong results in the other,
# without an error. With as many keys as queries nothing is repeated and all three files agree, so a test of that case
# finds nothing.
#
# <details>
# <summary>What the tests check</summary>
#
# ```python
# stored, right, *wrong = rows.values()
# assert abs(stored - right) < 1e-9
# assert min(wrong) > stored + 1
# assert wrong[-1] > stored + 5
# assert rows["… without the order of values"] > guess
# assert abs(float(library(ids[None], labels=ids[None]).loss) - stored) < 1e-9
# converted = refdiff.convert.convert(library.config, library.params, "paper")
# paper = refdiff.DiffLlamaForCausalLM(*converted, dtype="float64")
# assert abs(float(paper(ids[None], labels=ids[None]).loss) - stored) < 1e-9
# by_hand = reorder(weights, interleaved)["model.layers.0.self_attn.q_proj.weight"]
# assert np.array_equal(paper.base_params["layers"][0]["self_attn"]["q_proj"]["weight"], by_hand)
# assert np.allclose(by_paper, reordered, rtol=0, atol=1e-13)
# assert (grows >= 7).tolist() == [True, False, True, False, True, True]
# assert sizes[-1, 1] > 3.5 * sizes[0, 1]
# assert (sizes[:, 2] > 14).all()
# assert np.ptp(sizes[:, 2]) < 0.15 * sizes[0, 2]
# assert apart > 0.1
# ```
#
# </details>

# %% [markdown]
# ## Exercises
#
# `exercises.signature("eq3_paper")` prints the shapes. Here refdiff gets a wrong pairing:

# %%
from refdiff import exercises

exercises.check("eq3", lambda *args: multi_head(neighbors, *args))

# %% [markdown]
# **1.** `"value_pairs"`: put Hugging Face's values $v_j$ and $v_{j+K/2}$ side by side.
#
# **2.** `"paper_to_hf"`: put the heads of the paper's order into Hugging Face's.
#
# **3.** `"eq3_paper"`: eq. 3 without $W^O$, where neighbors are pairs.
#
# **4.** `"rms_norm_vjp"`: the backward step of the norm, without a weight. It takes the gradient $g$ of the result and
# returns that of $x$: see what it divides by.
#
# **5.** A checkpoint was trained with the file that repeats first, H = 8 and K = 4. Can `multi_head(neighbors, …)`
# compute the same with *other* weights for K, without repeating at run time?
#
# <details>
# <summary>Answers</summary>
#
# ```python
# def my_rms_norm_vjp(g, x, eps):
#     size = np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
#     return (g - x * (g * x).mean(axis=-1, keepdims=True) / size**2) / size
#
#
# assert exercises.check("rms_norm_vjp", my_rms_norm_vjp)
# assert exercises.check("value_pairs", lambda v: np.concatenate(np.split(v, 2, axis=1), axis=-1))
# assert exercises.check("paper_to_hf", lambda x: np.concatenate([x[:, 0::2], x[:, 1::2]], axis=1))
# assert exercises.check("eq3", lambda *args: multi_head(halves, *args))
# assert exercises.check("eq3_paper", lambda *args: multi_head(neighbors, *args))
# k_8, v_4 = np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)
# assert np.array_equal(multi_head(neighbors, q, k_8, v_4, lambda_, lambda_init, eps), repeat_first)
# ```
#
# 5: No. Pair 0 would need k0 twice and pair 1 would need k1 twice, but `multi_head(neighbors, …)` lets both read (k0,
# k1). So four keys are not enough. Repeat the rows of $W_K$ and $W_V$ once and for all, as the last lines above do,
# and it works with K = 8. That is as many keys as queries, and the memory that grouped queries were to save is spent.
#
# </details>
