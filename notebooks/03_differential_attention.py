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
# # 03 · Differential attention
#
# **What you will see.** Softmax attention gives a little weight to every token, also to those that do not matter. The
# Differential Transformer computes two attention maps and subtracts one from the other: what both see alike cancels.
# First on made-up scores, where we know what matters; then on real text. And what λ, the strength of the subtraction,
# does.

# %%
# %matplotlib inline
import inspect

import numpy as np

import refdiff
from refdiff import layers, viz
from refdiff.layers.diff_attention import attention_scores

# %% [markdown]
# ## The equation
#
# (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)) with $A_i = \mathrm{softmax}(Q_i
# K_i^\top/\sqrt d)$:
#
# $$\mathrm{DiffAttn}(X) = (A_1 - \lambda A_2)\,V \tag{eq. 1}$$
#
# It is written once in refdiff, in `layers/diff_attention.py`. Besides checks of shapes, these three functions and a
# softmax are the whole of it:

# %%
print(inspect.getsource(attention_scores))
print(inspect.getsource(layers.attention_weights))
print(inspect.getsource(layers.diff_attention))

# %% [markdown]
# ## Where we know what matters
#
# One query, 48 keys. One key, number 30, is the one that the query should find. All other scores are noise. The two
# maps have the *same* noise, as two heads have that look at the same text; only the first map knows the key.

# %%
rng = np.random.default_rng(3)
S, d, needle = 48, 16, 30
query = rng.standard_normal((1, 1, 1, d))
keys_2 = rng.standard_normal((1, 1, S, d))
keys_1 = keys_2 + 0.1 * rng.standard_normal((1, 1, S, d))
keys_1[0, 0, needle] += 0.3 * query[0, 0, 0]  # the first map is told where to look

first = layers.attention_weights(query, keys_1, causal=False)
second = layers.attention_weights(query, keys_2, causal=False)
print("A₁", first.shape, f"sum {first.sum():.3f}, at the needle {first[0, 0, 0, needle]:.3f}")
print("A₂", second.shape, f"sum {second.sum():.3f}, at the needle {second[0, 0, 0, needle]:.3f}")

# %% [markdown]
# How much of the attention goes to the needle? A difference has weights of both signs, so we take each weight by its
# size, and its share of all sizes in the row. `viz.attention_to` does that.

# %%
shares = {
    f"A₁ − {strength} A₂" if strength else "A₁ alone": viz.attention_to(first - strength * second, {"needle": [needle]})
    for strength in (0.0, 0.4, 0.75)
}
viz.plot_attention_to(shares).figure

# %% [markdown]
# The subtraction does not make the needle's weight larger. It makes the rest smaller, because the rest is what the two
# maps have in common. Taken too far it does harm. The first map spends part of its weight on the needle, so it has less
# noise than the second, and beyond some λ (here about 0.75) the noise comes back with a minus sign:

# %%
strengths = np.linspace(0, 2, 9)
for strength in strengths:
    row = first - strength * second
    share = viz.attention_to(row, {"needle": [needle]})["needle"]
    print(f"λ = {strength:.2f}   sum of the row {row.sum():6.2f}   share of the needle {share:.3f}")

# %% [markdown]
# Look at the sums: each softmax row sums to 1, so a row of the difference sums to $1 - \lambda$.
#
# ## What λ is
#
# λ is learned, one number for each layer, in a form that can move freely:
#
# $$\lambda = \exp(\lambda_{q1}\cdot\lambda_{k1}) - \exp(\lambda_{q2}\cdot\lambda_{k2}) + \lambda_{init} \tag{eq. 2}$$
# $$\lambda_{init} = 0.8 - 0.6\,\exp(-0.3\,(l-1)),\quad l = 1, 2, \dots \tag{section 2.1}$$

# %%
print(inspect.getsource(layers.diff_lambda))
print("λ_init of the first six layers:", [round(layers.lambda_init(layer), 3) for layer in range(6)])

# %% [markdown]
# The four vectors begin as small random numbers (standard deviation 0.1). Both exponentials are then near 1 and almost
# cancel, so λ begins near λ_init. (With all four at zero it would be λ_init exactly, and they would never move: the
# gradient of each vector has the other one of its product as a factor.) Training moves λ from there. Here is where it
# went in refdiff's small model. Nothing keeps λ between 0 and 1. Where it is negative, the layer *adds* its two maps;
# where it is above 1, the second map is the stronger one.

# %%
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
text = "There was once a king who had three sons. The eldest son was very proud, and the youngest"
maps = viz.attention_maps(model, text)
viz.plot_lambdas(maps).figure

# %% [markdown]
# ## On real text
#
# We take the layer whose λ is nearest to 1, where the subtraction is at its most complete, and its pair of heads
# whose two maps are most alike: there is the most to cancel. Queries go down, keys across. The colour bar has zero in
# its middle: blue is above, orange below.

# %%
layer = int(np.abs(maps.lambdas - 1).argmin())
overlap = np.minimum(maps.first[layer], maps.second[layer]).sum(axis=-1).mean(axis=-1)
pair = int(overlap.argmax())
strength = maps.lambdas[layer]
weights = maps.difference[layer, pair]
cancelled = 1 - np.abs(weights).sum() / (maps.first[layer, pair] + strength * maps.second[layer, pair]).sum()
negative = np.abs(weights[weights < 0]).sum() / np.abs(weights).sum()
print(f"layer {layer}, pair {pair}: the maps have {overlap[pair]:.0%} of their weight in common")
print(f"λ = {strength:.3f}: of the weight of A₁ and λ A₂ together {cancelled:.0%} cancels")
print(f"of what is left {negative:.0%} is negative")
viz.plot_attention(maps, layer, pair)

# %% [markdown]
# Not the whole of what both maps have is gone from the third, but a part of it: λ A₂ is taken away, and the two maps
# are alike in a part of their weight only, as the numbers above say. Where A₁ has more than λ A₂, the rest of it stays,
# in blue. Where A₁ has little, as on the even ground of A₂, the difference turns negative, in orange. A negative weight
# is nothing strange: the value of that token is taken away from the sum.
#
# How much cancels, over all layers and pairs? Compare the sizes of the weights before and after.

# %%
before = np.abs(maps.first).sum(-1) + np.abs(maps.lambdas[:, None, None, None] * maps.second).sum(-1)
after = np.abs(maps.difference).sum(-1)
for layer_number, share in enumerate((1 - after / before).mean(axis=(1, 2))):
    print(f"layer {layer_number}: λ = {maps.lambdas[layer_number]:6.3f}, {max(share, 0):5.1%} of the weight cancels")

# %% [markdown]
# A layer with a negative λ cancels nothing, as said above.
#
# ## Look for yourself
#
# The same maps, of all layers and pairs: choose one, and move over the tokens. (This is a page in a frame. GitHub, and
# Jupyter before you have run the cell, may leave an empty place here. `refdiff attention "your text" -o page.html`
# writes it as a file.)

# %%
viz.explore(model, text, layer=layer, pair=pair)

# %% [markdown]
# ## After the subtraction
#
# Each head's result is normed and scaled,
#
# $$\mathrm{MultiHead}(X) =
# \mathrm{Concat}_i\big((1-\lambda_{init})\,\mathrm{LN}(\mathrm{DiffAttn}_i(X))\big)W^O \tag{eq. 3}$$
#
# because a row that sums to $1-\lambda$ gives small or large results, as λ happens to be. The norm puts every head
# back to one size.
#
# ## Exercise
#
# Suppose a pair's two maps are equal, $A_1 = A_2$. What is the output of eq. 1? Show that after the norm of eq. 3
# (take ε = 0) λ has no effect at all, as long as λ < 1. Check it with `layers.diff_heads_hf`.
#
# <details>
# <summary>Answer</summary>
#
# $(A - \lambda A)V = (1-\lambda) A V$. RMS norm divides by the size, so the factor $1-\lambda$ cancels:
# $\mathrm{LN}(c\,x) = \mathrm{LN}(x)$ for $c > 0$. Two equal maps are plain attention with a norm, whatever λ is.
#
# ```python
# q, k = (np.repeat(rng.standard_normal((1, 1, 5, 4)), 2, axis=1) for _ in range(2))
# v = rng.standard_normal((1, 1, 5, 8))
# a, b = (layers.diff_heads_hf(q, k, v, np.asarray(x), 0.2, 0.0) for x in (0.1, 0.7))
# np.abs(a - b).max()  # 0 to rounding
# ```
#
# </details>
#
# ## What must hold

# %%
assert shares["A₁ − 0.75 A₂"]["needle"] > 2 * shares["A₁ alone"]["needle"]
rows = maps.difference.sum(axis=-1)
assert np.allclose(rows, 1 - maps.lambdas[:, None, None], rtol=0, atol=1e-10)
values = rng.standard_normal((1, 1, S, d))
assert 0 < cancelled < 1
assert 0 < negative < 1
by_hand = (first - 0.5 * second) @ values
by_layer = layers.diff_attention(query, keys_1, query, keys_2, values, np.asarray(0.5), causal=False)
assert np.allclose(by_hand, by_layer, rtol=0, atol=1e-12)

# %% [questions]
# Q: What does a row of A₁ − λ A₂ sum to, and why?
# A: To 1 − λ: each softmax row sums to 1.
#
# Q: Does the subtraction raise the weight of the token that matters?
# A: No. It lowers what both maps have in common; the share of what only A₁ sees becomes larger.
#
# Q: What does it mean when λ of a layer is negative, and what is λ at the start of training?
# A: Negative: the layer adds the two maps and nothing cancels. At the start λ is near λ_init, which grows with depth
#    from 0.2 towards 0.8: near, because the four vectors are small random numbers (at zero they would never move).
