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
# # 03 · Why subtract two attention maps?
#
# A softmax never gives exactly zero. A token that needs one word of a long text still takes a little from all the
# others, and these crumbs add up to noise. The Differential Transformer computes *two* maps and subtracts one from the
# other, as a noise-cancelling headphone subtracts the sound of the room. **When does that remove noise, and is it what
# a trained model does?**
#
# First on made-up scores, where we know what matters; then on real text, where the answer is a surprise. Allow 30
# minutes; you need chapter 0.

# %%
# %matplotlib inline
import inspect
from pathlib import Path

import numpy as np
import sketches
import tiny

import refdiff
from refdiff import layers, oracle, viz

# %% [markdown]
# ## The picture and the equation
#
# Two heads form a pair. Each computes a map of its own; both share one value.

# %%
sketches.head_pair()

# %% [markdown]
# With $A_i = \mathrm{softmax}(Q_i K_i^\top/\sqrt d)$ (Ye et al. 2024,
# [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)):
#
# $$\mathrm{DiffAttn}(X) = (A_1 - \lambda A_2)\,V \tag{eq. 1}$$

# %%
print(inspect.getsource(tiny.attention_map))
print(inspect.getsource(tiny.diff_attention))

# %% [markdown]
# Each row of a softmax sums to 1, so a row of the difference sums to $1 - \lambda$.
#
# ## Where the idea works
#
# One query, 48 keys. It should find key 30. We *build* the two maps so that the idea must work: the second gets the
# same random scores as the first, up to a tenth, and only the first knows the needle.

# %%
rng = np.random.default_rng(3)
S, d, needle = 48, 16, 30
query = rng.standard_normal(d)
keys_2 = rng.standard_normal((S, d))
keys_1 = keys_2 + 0.1 * rng.standard_normal((S, d))
keys_1[needle] += 0.3 * query  # the first map is told where to look
first, second = (tiny.softmax(keys @ query / np.sqrt(d)) for keys in (keys_1, keys_2))

rows = {}
for name, row in (("A₁", first), ("A₂", second), ("A₁ − 0.75 A₂", first - 0.75 * second)):
    share = abs(row[needle]) / np.abs(row).sum()
    rows[f"{name}: the needle's weight is {row[needle]:.2f}, {share:.0%} of Σ|weight|"] = row
    print(list(rows)[-1])
sketches.bars(rows, needle)

# %% [markdown]
# Look at both numbers. The needle's own weight *falls*: subtraction gives nothing to anyone. What grows is its share,
# because all other weights shrink more. The norm that follows (below) makes up for the smaller sum.
#
# How far should one go? Beyond some λ the noise comes back with a minus sign:

# %%
shares = {}
for strength in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0):
    row = first - strength * second
    shares[strength] = abs(row[needle]) / np.abs(row).sum()
    print(f"λ = {strength:.2f}   the row sums to {row.sum():5.2f}   share of the needle {shares[strength]:.2f}")

# %% [markdown]
# ## When is noise shared?
#
# We gave both maps the same noise. That was the whole trick, so let us turn it into a knob. Let the two maps have noise
# of one strength σ and correlation ρ. Then the difference has noise of variance
#
# $$\mathrm{Var}(n_1 - \lambda n_2) = (1 + \lambda^2 - 2\rho\lambda)\,\sigma^2 .$$
#
# For ρ = 1 and λ = 1 it is zero. For ρ = 0 *every* λ makes it larger. Move the sliders: how far can ρ fall before the
# subtraction stops helping the needle? (GitHub shows an empty place here. The table below has numbers.)

# %%
sketches.Slider()


# %%
def noise_after(rho, strength, count=200_000):
    n1, other = np.random.default_rng(5).standard_normal((2, count))
    n2 = rho * n1 + np.sqrt(1 - rho**2) * other
    return (n1 - strength * n2).var()


for rho in (0.0, 0.25, 0.5, 0.9, 1.0):
    measured = [noise_after(rho, strength) for strength in (0.25, 0.5, 1.0)]
    print(f"ρ = {rho:4.2f}   noise at λ = 0.25, 0.5, 1:", "   ".join(f"{noise:.2f}" for noise in measured))

# %% [markdown]
# The best λ for cancelling noise is λ = ρ. So here is the question that a trained model can answer: are the two maps of
# a pair correlated, and is λ near that correlation?
#
# ## What λ is
#
# λ is learned, one number for each layer:
#
# $$\lambda = \exp(\lambda_{q1}\cdot\lambda_{k1}) - \exp(\lambda_{q2}\cdot\lambda_{k2}) + \lambda_{init} \tag{eq. 2}$$
# $$\lambda_{init} = 0.8 - 0.6\,\exp(-0.3\,(l-1)),\quad l = 1, 2, \dots \tag{section 2.1}$$
#
# Why not simply a number? The paper reparameterizes λ "to synchronize the learning dynamics": the dot products and
# exponentials are those of attention itself. Why exp − exp? One exponential is always positive and could move λ to one
# side only. A difference of two can move it to either side, and starts near zero, since both exponentials start near 1:

# %%
vectors = 0.1 * np.random.default_rng(0).standard_normal((10_000, 4, 32))  # as a layer with d = 32 starts
one, two = (np.exp((vectors[:, i] * vectors[:, i + 1]).sum(axis=-1)) for i in (0, 2))
print(f"each exponential {one.mean():.2f} ± {one.std():.2f}")
print(f"their difference {(one - two).mean():.2f} ± {(one - two).std():.2f}")

# %% [markdown]
# So each layer starts near its λ_init. Where did training take it? Here is the bundled model, trained on fairy tales.

# %%
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", kernels="reference")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
texts = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")
ids = [tokenizer([text.strip()], return_tensors="np")["input_ids"][0][:256] for text in texts]
maps = [viz.attention_maps(model, list(map(int, row))) for row in ids]
lambdas = maps[0].lambdas
print("λ_init", [round(layers.lambda_init(layer), 2) for layer in range(6)])
print("λ     ", [round(float(x), 2) for x in lambdas])
viz.plot_lambdas(lambdas).figure

# %% [markdown]
# Nothing keeps λ between 0 and 1. Two layers have a negative λ: they *add* their maps. One layer has λ = 1.56.
#
# ## Is a pattern shared? A measurement on real text
#
# We take the openings of eight tales, written for this notebook, which the model has not seen, and compare the two maps
# of each pair, row by row: the correlation of $A_1$ and $A_2$ over the tokens that a query sees. For comparison we also
# correlate maps that do *not* belong together: $A_1$ of one pair with $A_2$ of another pair of the same layer.


# %%
def correlation(a, b, start=32):
    """Mean over the queries from `start` on of the correlation of two maps' rows."""
    found = []
    for t in range(start, a.shape[-1]):
        x, y = (m[..., t, : t + 1] - m[..., t, : t + 1].mean(axis=-1, keepdims=True) for m in (a, b))
        found.append((x * y).sum(axis=-1) / np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1)))
    return np.mean(found, axis=0)


own, others, variances = [], [], []
for m in maps:
    by_pairs = np.array([[correlation(m.first[:, i], m.second[:, j]) for j in range(3)] for i in range(3)])
    same = np.eye(3, dtype=bool)
    own.append(by_pairs[same].mean(axis=0))
    others.append(by_pairs[~same].mean(axis=0))
    seen = np.tri(m.first.shape[-1], dtype=bool)[32:]
    variances.append([x[:, :, 32:].var(axis=-1, where=seen).mean(axis=(1, 2)) for x in (m.first, m.difference)])
own, others = np.mean(own, axis=0), np.mean(others, axis=0)
kept = 1 + lambdas**2 - 2 * own * lambdas
ratio = np.divide(*np.mean(variances, axis=0)[::-1])
print("layer      λ   ρ in a pair   ρ across pairs   1 + λ² − 2ρλ   variance ratio")
for layer, row in enumerate(np.transpose([lambdas, own, others, kept, ratio])):
    print("{:5} {:6.2f} {:13.2f} {:16.2f} {:15.2f} {:16.2f}".format(layer, *row))
sketches.noise_left(own, lambdas)

# %% [markdown]
# **Not one layer lies in the blue region.** The maps of a pair are weakly correlated at best, and λ is far from ρ. If
# their pattern were noise, the subtraction would *increase* it in every layer. The formula takes the two maps to vary
# equally; the last column does without that, and compares the variance of the difference with that of $A_1$ directly.
# To two digits it is never below 1 either. In layers 2, 3 and 4, which subtract most, the two maps of a pair are even
# *less* alike than maps that do not belong together.
#
# ## What has training found instead?
#
# A correlation looks at the pattern of a row and ignores its level. So let us ask how *broad* the maps are: over how
# many tokens does a row spread its weight? The exponential of its entropy counts them: 1 for a row that sees one token,
# $n$ for an even row over $n$ tokens.


# %%
def breadth(a, start=32):
    logs = np.log(np.where(a > 0, a, 1))
    return np.exp(-(a * logs).sum(axis=-1))[..., start:].mean(axis=(-1, -2))


first_breadth, second_breadth = (
    np.mean([breadth(getattr(m, name)) for m in maps], axis=0) for name in ("first", "second")
)
for layer in range(6):
    print(
        f"layer {layer}: λ = {lambdas[layer]:5.2f}   A₁ spreads over {first_breadth[layer]:4.1f} tokens, "
        f"A₂ over {second_breadth[layer]:4.1f}"
    )

# %% [markdown]
# There it is: **one map is sharp, the other broad.** The sharp one selects tokens; the broad one is a background.
# What layers 0, 2 and 4 subtract is this background. So the crumbs that a softmax must leave everywhere can be removed
# after all, but not because two noisy maps agree: one of the two has become a map of the background.
#
# Layers 1 and 5 have λ < 0 and *add* the broad map: they read one or a few tokens together with an average of the text.
# And layer 3, with λ = 1.56? There $A_1$ is the broad one. The roles are exchanged, and that is exactly what λ > 1
# means.
#
# ## λ below 0 and above 1
#
# **λ > 1 is the same as exchanging the maps.** $A_1 - \lambda A_2 = -\lambda\,(A_2 - \frac{1}{\lambda}A_1)$. The norm
# of eq. 3 removes the positive factor λ, and the matrix $W^O$ can absorb the sign. So layer 3 with λ = 1.56 is an
# ordinary layer in which $A_2$ leads and $A_1$ is subtracted, with strength 1/1.56 = 0.64.
#
# **λ < 0 is one map that is a mixture.** $A_1 + |\lambda| A_2$ has positive weights only; after the norm it acts like a
# weighted mean of two softmaxes.

# %%
q, k = rng.standard_normal((2, 1, 2, 7, 4))
v = rng.standard_normal((1, 1, 7, 8))
strong = layers.diff_heads_hf(q, k, v, np.asarray(1.56), 0.2, 0.0)
exchanged = layers.diff_heads_hf(q[:, ::-1], k[:, ::-1], v, np.asarray(1 / 1.56), 0.2, 0.0)
print(f"1/1.56 = {1 / 1.56:.2f}; λ = 1.56 equals the exchanged pair at 1/1.56 with the sign turned:",
      np.allclose(strong, -exchanged))  # fmt: skip

# %% [markdown]
# ## See it
#
# In the layer whose λ is nearest to 1, we take the pair whose two maps have most weight in common.

# %%
text = "There was once a king who had three sons. The eldest son was very proud, and the youngest"
shown = viz.attention_maps(model, text)
layer, pair = shown.most_cancelling()
both = (shown.first + shown.lambdas[layer] * shown.second)[layer, pair].sum()
cancelled = 1 - np.abs(shown.difference[layer, pair]).sum() / both
negative = shown.difference[layer, pair]
print(f"layer {layer}, pair {pair}: {cancelled:.0%} of the weight cancels, "
      f"{np.abs(negative[negative < 0]).sum() / np.abs(negative).sum():.0%} of what is left is negative")  # fmt: skip
viz.plot_attention(shown, layer, pair)

# %% [markdown]
# Blue is above zero, orange below; queries go down, keys across. $A_1$ is sharp and $A_2$ broad. Where both have
# weight, the third has less. Where only the second has some, the third is orange: the value of that token is taken away
# from the sum.
#
# The same maps to explore, for all layers and pairs: choose one and move over the tokens. (This is a page in a frame.
# GitHub shows an empty place here. `refdiff attention "your text" -o page.html` writes it as a file.)

# %%
viz.explore(model, text, layer=layer, pair=pair)

# %% [markdown]
# ## After the subtraction: a norm and a factor
#
# $$\mathrm{head}_i = (1-\lambda_{init})\,\mathrm{LN}(\mathrm{DiffAttn}_i(X)) \tag{eq. 3}$$
#
# The paper gives two reasons. *The norm, for each head by itself:* differential heads differ more in their statistics
# than softmax heads, since a row may sum to anything and may be sparse or dense. The norm brings them to one size
# before $W^O$ mixes them. *The factor $1-\lambda_{init}$:* it is fixed, and meant to keep gradients at the size that
# they have in a Transformer, so that hyperparameters carry over. Notebook 08 measures that second claim. Here is the
# first, on real text: the size (root mean square) of each head's result before the norm, and after norm and factor.

# %%
trace = oracle.trace(model, ids[0][None])  # every intermediate result of a run (notebook 07)
before = np.array([np.sqrt((trace[f"model.layers.{i}.self_attn.diff"] ** 2).mean(axis=(0, 2, 3))) for i in range(6)])
after = np.array([np.sqrt((trace[f"model.layers.{i}.self_attn.scaled"] ** 2).mean()) for i in range(6)])
print(f"before the norm: from {before.min():.2f} to {before.max():.2f}")
print("after both:     ", after.round(2))
print("1 − λ_init:     ", [round(1 - layers.lambda_init(i), 2) for i in range(6)])
lines = {f"pair {i}, before the norm": before[:, i] for i in range(3)} | {"all pairs, × (1 − λ_init)": after}
sketches.curves(range(6), lines, "layer", "size of a head's result", ylim=(0, None))

# %% [markdown]
# ## What we learned
#
# - Subtracting a second map removes what both maps share. The needle's weight falls, and its share grows.
# - It reduces noise that both maps share with correlation ρ only if $0 < \lambda < 2\rho$.
# - In this small model no layer is in that region. Training has made one map of a pair sharp and the other broad: four
#   layers subtract the broad map, two add it.
# - λ > 1 means that the second map leads; λ < 0 means that a layer adds.
# - The norm makes heads of different sizes equal; $1 - \lambda_{init}$ sets their common size.
#
# All this is one model of 2.9 million parameters. Notebook 09 asks whether differential attention *looks* at less noise
# than plain attention when both are trained for one task.

# %%
assert shares[0.75] > 2 * shares[0.0]
assert first[needle] > (first - 0.75 * second)[needle]
assert (kept > 1).all()
assert (own < others)[[2, 3, 4]].all()
assert (ratio.round(2) >= 1).all()
assert ((first_breadth < second_breadth) == (lambdas < 1)).all()
assert np.allclose(strong, -exchanged)
assert np.allclose(shown.difference.sum(axis=-1), 1 - shown.lambdas[:, None, None], rtol=0, atol=1e-10)

# %% [markdown]
# ## Exercises
#
# `from refdiff import exercises`, then for each: `exercises.check("softmax", my_softmax)`.
#
# **1.** `"softmax"`: over the last axis. Some scores are near 1000.
#
# **2.** `"attention_weights"`: one causal map. The queries are the last T of S tokens.
#
# **3.** `"eq1"`: differential attention.
#
# **4.** `"lambda_init"` and `"eq2"`: λ. The layer counts from 0.
#
# **5.** Suppose $A_1 = A_2$. Show that after the norm of eq. 3 (ε = 0), λ < 1 has no effect at all.
#
# <details>
# <summary>Answers</summary>
#
# ```python
# from refdiff import exercises
#
#
# def my_weights(q, k):
#     T, S = q.shape[-2], k.shape[-2]
#     scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
#     return tiny.softmax(np.where(np.tri(T, S, S - T, dtype=bool), scores, -np.inf))
#
#
# def my_eq1(q1, k1, q2, k2, v, lambda_):
#     return (my_weights(q1, k1) - lambda_ * my_weights(q2, k2)) @ v
#
#
# assert exercises.check("softmax", tiny.softmax)
# assert exercises.check("attention_weights", my_weights)
# assert exercises.check("eq1", my_eq1)
# assert exercises.check("lambda_init", lambda layer: 0.8 - 0.6 * np.exp(-0.3 * layer))
# assert exercises.check("eq2", lambda q1, k1, q2, k2, start: np.exp(q1 @ k1) - np.exp(q2 @ k2) + start)
# ```
#
# 5: $(A - \lambda A)V = (1-\lambda)AV$, and RMSNorm removes a positive factor: $\mathrm{LN}(c\,x) = \mathrm{LN}(x)$.
# Two equal maps are plain attention with a norm.
#
# </details>
#
# ## Questions
#
# <details>
# <summary>What does a row of A₁ − λ A₂ sum to, and why?</summary>
#
# To 1 − λ: each softmax row sums to 1.
#
# </details>
# <details>
# <summary>Does the subtraction raise the weight of the token that matters?</summary>
#
# No. It lowers what both maps have in common; the *share* of what only $A_1$ sees becomes larger.
#
# </details>
# <details>
# <summary>What does it mean when λ of a layer is negative, and what is λ at the start of training?</summary>
#
# Negative: the layer adds the two maps and nothing cancels. At the start λ is near λ_init, which grows with depth from
# 0.2 towards 0.8. It is not exactly λ_init, because the four vectors are small random numbers; at zero they would never
# move.
#
# </details>
