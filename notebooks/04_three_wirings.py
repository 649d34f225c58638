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
# # 04 · Three wirings, and a published file that differs
#
# **What you will see.** The equation of differential attention does not say *which* heads form a pair. Three codes
# answer differently: the authors' own, Hugging Face's DiffLlama, and the authors' second version. The first two are
# the same function with the heads in another order. And one file that the authors published computes something else
# as soon as several queries share a key.

# %%
# %matplotlib inline
import inspect

import numpy as np

import refdiff
from refdiff import layers, viz

# %% [markdown]
# ## The table
#
# The paper's equation for many heads (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)) is
#
# $$\mathrm{MultiHead}(X) =
# \mathrm{Concat}_i\big((1-\lambda_{init})\,\mathrm{LN}(\mathrm{DiffAttn}_i(X))\big)W^O \tag{eq. 3}$$
#
# Here is what each code makes of it, as it stands in refdiff's map of equations. H query heads, K key heads, $n =
# H/K$ queries to a key.

# %%
table = layers.__doc__.split("The wirings, side by side")[1]
print("The wirings, side by side" + table)

# %%
print(inspect.getsource(layers.diff_heads_paper))
print(inspect.getsource(layers.diff_heads_hf))

# %% [markdown]
# ## Paper = Hugging Face, in another order of heads
#
# With eight query heads, the paper pairs neighbours, (0, 1), (2, 3), …, and Hugging Face pairs halves, (0, 4), (1,
# 5), …. So we put the paper's even heads first and its odd heads behind them, for queries and for keys. A pair's value
# is the same, and the order of the pairs is the same. The paper's norm has a weight $w$ as well, which Hugging Face's
# has not: it multiplies the output, so in a model it goes into $W^O$. (And where their ε differ, V is rescaled.)

# %%
rng = np.random.default_rng(4)
B, H, T, d = 1, 8, 9, 4
lambda_, start, eps = np.asarray(0.6), 0.35, 1e-5
ones, weight = np.ones(2 * d), np.linspace(0.5, 1.5, 2 * d)  # of the paper's norm

for K in (8, 4, 2):
    q = rng.standard_normal((B, H, T, d))
    k = rng.standard_normal((B, K, T, d))
    v = rng.standard_normal((B, K // 2, T, 2 * d))
    paper = layers.diff_heads_paper(q, k, v, lambda_, weight, start, eps)
    evens_then_odds = [np.concatenate([x[:, 0::2], x[:, 1::2]], axis=1) for x in (q, k)]
    hf = layers.diff_heads_hf(*evens_then_odds, v, lambda_, start, eps) * np.tile(weight, H // 2)
    print(f"H = {H}, K = {K}: output {paper.shape}, equal to rounding: {np.allclose(paper, hf, rtol=0, atol=1e-13)}")

# %% [markdown]
# `refdiff.convert` does this to the weights of a whole checkpoint, and proves it: it computes every attention layer
# in both wirings. (It also reorders the dimensions inside a head, because the paper turns neighbours and Hugging Face
# turns halves by RoPE: notebook 02.)

# %%
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
config, params = refdiff.convert.convert(model.config, model.params, "paper")
converted = refdiff.DiffLlamaForCausalLM(config, params, dtype="float64")
ids = refdiff.Tokenizer.from_pretrained("bundled")(["The king said"], return_tensors="np")["input_ids"]
logits, logits_after = model(ids).logits, converted(ids).logits
print(model.config.wiring, "→", config.wiring)
print("logits equal to 1e-9:", np.allclose(logits, logits_after, rtol=0, atol=1e-9))

# %% [markdown]
# ## The file that differs
#
# With fewer keys than queries (grouped queries, GQA), each key is shared by $n$ queries. The authors' *flash* files
# pair first and share then. Their third file, `multihead_diffattn.py`, called the *eager* file below, shares first: it
# repeats each key head $n$ times, and then pairs neighbours. After the repetition the two of a pair are often copies of
# one head: for an even $n$ in every pair.
#
# We can compute both with the same function. It only gets other keys:

# %%
K, n = 4, 2
q = rng.standard_normal((B, H, T, d))
k = rng.standard_normal((B, K, T, d))
v = rng.standard_normal((B, K // 2, T, 2 * d))

flash = layers.diff_heads_paper(q, k, v, lambda_, ones, start, eps)
eager = layers.diff_heads_paper(q, np.repeat(k, n, axis=1), np.repeat(v, n, axis=1), lambda_, ones, start, eps)

names = np.array([f"k{j}" for j in range(K)])
repeated = np.repeat(names, n)
for pair in range(H // 2):
    j = pair // n
    print(
        f"pair {pair}   flash q{2 * pair}·{names[2 * j]} − λ q{2 * pair + 1}·{names[2 * j + 1]}"
        f"   eager q{2 * pair}·{repeated[2 * pair]} − λ q{2 * pair + 1}·{repeated[2 * pair + 1]}"
    )
print(
    f"largest difference of the outputs: {np.abs(flash - eager).max() / np.abs(flash).max():.2f} of the largest output"
)

# %% [markdown]
# In the eager column both maps of a pair read the *same* key. It is still a subtraction, and a model trained so may
# do well. But it is another function: weights trained with one file give wrong results in the other, without an
# error. Here are the maps of pair 0, first as the flash files have them, then as the eager file does. A₁ is the same.
# A₂ is not.

# %%
tokens = tuple(f"token {t}" for t in range(T))
for second_key in (1, 0):
    first = layers.attention_weights(q[:, :1], k[:, :1])
    second = layers.attention_weights(q[:, 1:2], k[:, second_key : second_key + 1])
    maps = viz.AttentionMaps(tokens, first, second, first - lambda_ * second, lambda_[None], np.array([start]))
    figure = viz.plot_attention(maps, 0, 0)
    figure.suptitle("flash files: q0·k0 and q1·k1" if second_key else "eager file: q0·k0 and q1·k0", color="#777777")
    display(figure)  # noqa: F821  (a notebook has it)

# %% [markdown]
# With as many key heads as query heads ($n = 1$) nothing is repeated, and the three files agree. So tests with as many
# key heads as query heads do not show it.
#
# ## The second version
#
# Differential Transformer V2 (Ye et al. 2026) makes the sharing a principle: the two queries of a pair read one key
# and one value. It has twice as many query heads, a λ for every token and head, $\lambda = \sigma(xW_\lambda)$ (σ is
# the sigmoid, so that λ lies between 0 and 1), and no norm.

# %%
print(inspect.getsource(layers.diff_heads_v2))

# %% [markdown]
# So V2 is a plain Transformer's attention with its heads subtracted in pairs, and we can check that with
# `plain_heads`:

# %%
h = H // 2
key, value = rng.standard_normal((2, B, 2, T, d))
token_lambda = layers.diff_lambda_v2(rng.standard_normal((B, T, 5)), rng.standard_normal((h, 5)))
v2 = layers.diff_heads_v2(q, key, value, token_lambda)
plain = layers.plain_heads(q, key, value).reshape(B, T, H, d)
weighted = token_lambda[..., 0].swapaxes(1, 2)[..., None]
subtracted = (plain[:, :, 0::2] - weighted * plain[:, :, 1::2]).reshape(B, T, h * d)
print("λ by token and head (B, h, T, 1)", token_lambda.shape, "between", round(float(token_lambda.min()), 2), "and",
      round(float(token_lambda.max()), 2))  # fmt: skip
print("V2 is plain attention, subtracted in pairs:", np.allclose(v2, subtracted, rtol=0, atol=1e-13))

# %% [markdown]
# ## Exercise
#
# A checkpoint was trained with the eager file, H = 8 and K = 4. Which keys does each pair read? Could
# `diff_heads_paper` with *other* weights for K compute the same function, without repeating anything at run time?
#
# <details>
# <summary>Answer</summary>
#
# Pair $i$ reads key head $i$, with both its queries (the last column above), and value $i$ // 2. The flash files give
# pair $i$ the key heads $2j$ and $2j+1$ with $j = i$ // 2. Pairs 0 and 1 share those in the flash files, but need the
# different keys 0 and 1 here. So four key heads are not enough; repeat the rows of W_K (and of W_V), and the model
# has K = 8, as many keys as queries:
#
# ```python
# k_8, v_4 = np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)
# np.array_equal(layers.diff_heads_paper(q, k_8, v_4, lambda_, ones, start, eps), eager)  # True
# ```
#
# That is what `eager` above is. It costs the memory that grouped queries were to save.
#
# </details>
#
# ## What must hold

# %%
assert np.allclose(paper, hf, rtol=0, atol=1e-13)
assert np.allclose(logits, logits_after, rtol=0, atol=1e-9)
assert np.abs(flash - eager).max() > 0.1 * np.abs(flash).max()
assert np.allclose(v2, subtracted, rtol=0, atol=1e-13)

# %% [questions]
# Q: How does one turn heads of the paper's wiring into those of Hugging Face's?
# A: Put the even heads first, then the odd ones, for queries and keys; values and pairs stay. The norm's weight goes
#    into W^O, and V is rescaled where ε differs. (For whole checkpoints also the dimensions within a head, because of
#    RoPE.)
#
# Q: What does multihead_diffattn.py do differently, and when does it not matter?
# A: It repeats the key heads before it pairs them, so both maps of a pair often read the same key. With as many keys
#    as queries nothing is repeated, and it agrees with the other files.
#
# Q: What is λ in V2?
# A: The sigmoid of a linear map of the token: a number between 0 and 1 for each token and head.
