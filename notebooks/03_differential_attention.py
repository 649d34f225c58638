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
from refdiff.training import retrieval_table

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
# because all other weights shrink more. The share is what counts, since a norm follows (below) that makes up for the
# smaller sum.
#
# How far should one go? Beyond some λ the noise comes back with a minus sign. And what if $A_1$ finds the needle
# already? In the last row of the table we tell it more firmly where to look:

# %%
strengths = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
print("λ                    ", "".join(f"{strength:7.2f}" for strength in strengths))
shares = {}
for name, told in (("needle hardly found", 0.3), ("needle found already", 0.8)):
    scores = np.array([keys_1 @ query, keys_2 @ query]) / np.sqrt(d)
    scores[0, needle] += (told - 0.3) * query @ query / np.sqrt(d)
    one, two = tiny.softmax(scores)
    shares[name] = [abs(row[needle]) / np.abs(row).sum() for row in (one - x * two for x in strengths)]
    print(f"{name:21}", "".join(f"{share:7.2f}" for share in shares[name]))

# %% [markdown]
# **Subtraction helps a needle that the first map hardly finds, and can hurt one that it has found.** In the last row
# $A_1$ gives next to nothing to the other keys. There $-\lambda A_2$ does not cancel noise: it *is* the noise.
#
# ## When is noise shared?
#
# We gave both maps nearly the same scores. That was the whole trick, so let us turn it into a knob: the correlation ρ
# of the scores of the two maps. Move the sliders: how far can ρ fall before the subtraction stops helping the needle?
# (GitHub shows an empty place here. The picture below it does without sliders.)

# %%
sketches.Slider()

# %% [markdown]
# One drawing proves little, so here is the mean of 2,000, for a needle that $A_1$ hardly finds (weak) and one that it
# finds already (strong).

# %%
n1, n2 = np.random.default_rng(0).standard_normal((2, 2000, S))
correlations = np.linspace(0, 1, 11)


def needle_share(told, strength, rho):
    one = tiny.softmax(n1 + told * (np.arange(S) == needle))
    two = tiny.softmax(rho * n1 + np.sqrt(1 - rho**2) * n2)  # the same scores to the part ρ
    row = np.abs(one - strength * two)
    return (row[:, needle] / row.sum(axis=-1)).mean()


lines = {}
for kind, told in (("weak", 2.5), ("strong", 6.0)):
    alone = needle_share(told, 0.0, 0.0)
    lines[f"{kind} needle, A₁ alone"] = np.full(11, alone)
    for strength in (0.25, 0.5, 0.75):
        found = np.array([needle_share(told, strength, rho) for rho in correlations])
        helps = f"gains from ρ = {correlations[found > alone][0]:.1f} on" if found.max() > alone else "loses at every ρ"
        print(f"{kind:6} needle, λ = {strength:.2f}: {helps}; {alone:.2f} alone, {found[-1]:.2f} at ρ = 1")
        if strength == 0.5:
            lines[f"{kind} needle, A₁ − A₂/2"] = found
sketches.curves(correlations, lines, "correlation ρ of the scores", "share of the needle", ylim=(0, 1))

# %% [markdown]
# So the idea needs two things: **noise that both maps share, and a first map that is drowned in it.** Without the
# first the gain is small. (It is not zero at ρ = 0: all softmaxes share a positive weight on every key.) Without the
# second there is none, but for a small λ and a large ρ. Now ask a trained model: are the scores of a pair correlated?
# And does the token that matters most gain?
#
# ## What λ is
#
# λ is learned, one number for each layer:
#
# $$\lambda = \exp(\lambda_{q1}\cdot\lambda_{k1}) - \exp(\lambda_{q2}\cdot\lambda_{k2}) + \lambda_{init} \tag{eq. 2}$$
# $$\lambda_{init} = 0.8 - 0.6\,\exp(-0.3\,(l-1)),\quad l = 1, 2, \dots \tag{section 2.1}$$
#
# (The paper counts layers from 1. The code and this page count from 0: layer 0 has $l = 1$.)
#
# Why not simply a number? The paper reparameterizes λ "to synchronize the learning dynamics": the dot products and
# exponentials are those of attention itself. Why exp − exp? The paper does not say; here is what it does. A difference
# of two exponentials starts near zero, since both start near 1, and can move λ to either side without a bound. (One
# exponential minus 1 would start there too, but could never take λ below λ_init − 1.)

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
# ## Is the noise shared? A measurement on real text
#
# We take the openings of eight tales, written for this notebook, which the model has not seen, and correlate the scores
# of the two maps of each pair, query by query. (The logarithm of a softmax is its scores up to a constant, which a
# correlation ignores.) For comparison: maps that do *not* belong together, $A_1$ of one pair and $A_2$ of another pair
# of the same layer.


# %%
def correlation(a, b, start=32):
    """Mean over the queries from `start` on of the correlation of two maps' scores."""
    seen = np.tri(a.shape[-1], dtype=bool)[start:]
    x, y = (np.log(np.where(seen, m[..., start:, :], 1)) for m in (a, b))
    x, y = (np.where(seen, z - z.sum(axis=-1, keepdims=True) / seen.sum(axis=-1, keepdims=True), 0) for z in (x, y))
    return ((x * y).sum(axis=-1) / np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))).mean(axis=-1)


same = np.eye(3, dtype=bool)
by_pairs = [[[correlation(m.first[:, i], m.second[:, j]) for j in range(3)] for i in range(3)] for m in maps]
own, others = (np.mean(by_pairs, axis=0)[chosen].mean(axis=0) for chosen in (same, ~same))
for layer in range(6):
    print(f"layer {layer}: λ {lambdas[layer]:5.2f}   ρ in a pair {own[layer]:5.2f}   across pairs {others[layer]:5.2f}")

# %% [markdown]
# The two maps of a pair share little: no ρ is above 0.40. In layers 0, 2, 3 and 4, where λ > 0, they are even *less*
# alike than maps that do not belong together. Our made-up needle gained much only at a ρ near 1.
#
# ## Does the strongest token gain?
#
# Call the map that has the larger factor the *leading* one: $A_1$, or $A_2$ in layer 3, whose λ is above 1. (There
# $A_1 - \lambda A_2 = -\lambda(A_2 - \frac1\lambda A_1)$, and the norm removes λ.) For each query we take the token to
# which the leading map gives most, and its share of Σ|weight|, before and after the second map is subtracted.

# %%
table = []
for m in maps:
    leads = np.where((lambdas > 1)[:, None, None, None], m.second, m.first)[:, :, 32:]
    after = m.difference[:, :, 32:] / np.where(lambdas > 1, -lambdas, 1)[:, None, None, None]
    size, top = np.abs(after).sum(axis=-1), leads.argmax(axis=-1)[..., None]
    one, two = np.take_along_axis(leads, top, -1)[..., 0], np.abs(np.take_along_axis(after, top, -1))[..., 0] / size
    minus = np.maximum(-after, 0).sum(axis=-1) / size
    table.append([x.mean(axis=(1, 2)) for x in (one, two, two < one, 1 - one, size * (1 - two), minus)])
table = np.mean(table, axis=0)
print("                share of the top token  rows where   weight on all others  negative share")
print("layer      λ        before  after        it falls       before  after         of Σ|weight|")
for layer, (one, two, falls, rest, rest_after, minus) in enumerate(table.T):
    print(f"{layer:5} {lambdas[layer]:6.2f} {one:13.2f} {two:6.2f} {falls:15.0%}", end="")
    print(f"{rest:13.2f} {rest_after:6.2f} {minus:19.0%}")
lines = {"leading map alone": table[0], "with the second map": table[1]}
sketches.curves(range(6), lines, "layer", "share of the top token", ylim=(0, 1))

# %% [markdown]
# **It falls, in every layer and in more than nine rows of ten.** What stands on all other tokens does not shrink but
# grows. Layers 0, 2, 3 and 4 do not *clean* a map: they push many small weights below zero, and in sum more |weight|
# stands beside the top token than before. For this model the headphone is the wrong picture.
#
# ## What has training found instead?
#
# Over how many tokens does a row spread its weight? The exponential of its entropy counts them: 1 for a row that sees
# one token, $n$ for an even row over $n$ tokens. Here for each of the three pairs of a layer:


# %%
def breadth(a, start=32):
    logs = np.log(np.where(a > 0, a, 1))
    return np.exp(-(a * logs).sum(axis=-1))[..., start:].mean(axis=-1)


first_breadth, second_breadth = (
    np.mean([breadth(getattr(m, name)) for m in maps], axis=0) for name in ("first", "second")
)
for layer in range(6):
    one, two = ("  ".join(f"{x:4.1f}" for x in b[layer]) for b in (first_breadth, second_breadth))
    print(f"layer {layer}: λ = {lambdas[layer]:5.2f}   A₁ spreads over {one} tokens   A₂ over {two}")
leading_sharp = (first_breadth < second_breadth) == (lambdas < 1)[:, None]
print(f"the leading map is the sharper one in {leading_sharp.sum()} of {leading_sharp.size} pairs")

# %% [markdown]
# **The leading map is the sharper one**, in all pairs but one (pair 2 of layer 3). The other spreads over some 20 to 90
# tokens. It is not a copy of the noise in the first, but more like an average over many tokens.
#
# What is it good for? Take it out and see. We set λ to 0, layer by layer. (Layer 3 gets λ = 10⁶ instead, which leaves
# $A_2$ alone, since the norm removes the size.) The change of the loss is in nats per token, with a 95 % confidence
# interval over the eight tales.


# %%
def text_losses(strengths):
    """The loss of each tale, where some layers get another λ."""
    with sketches.strengths(model, strengths):
        return np.array([float(model(row[None], labels=row[None]).loss) for row in ids])


as_it_is, removed = text_losses({}), {}
print(f"as it is: loss {as_it_is.mean():.3f}")
leading_alone = {layer: 1e6 if lambdas[layer] > 1 else 0 for layer in range(6)}
for changed in ((0,), (2,), (3,), (4,), (0, 2, 3, 4), (1,), (5,), (1, 5)):
    differences = text_losses({layer: leading_alone[layer] for layer in changed}) - as_it_is
    mean, half = removed[changed] = retrieval_table.mean_and_interval(differences)
    what = "subtract" if lambdas[changed[0]] > 0 else "add"
    print(f"layers that {what:8}: {changed!s:14} {mean:+.3f} ± {half:.3f}")
wrong_map = retrieval_table.mean_and_interval(text_losses({3: 0}) - as_it_is)
print(f"layer 3 with λ = 0, A₁ alone:        {wrong_map[0]:+.3f} ± {wrong_map[1]:.3f}")

# %% [markdown]
# A second map that is *subtracted* can be taken out of any one layer, and no change of the loss shows: each interval
# contains 0. Out of all four layers at once it costs 0.06. A second map that is *added* is missed, in layer 1 as in
# layer 5. So the second maps do carry something, but one subtraction more or less hardly matters to this model. (It was
# trained with them. Notebook 08 has a plain twin, trained without.)
#
# Then why did the model get so much worse when chapter 0 set every λ to 0? The last line has most of the answer: in
# layer 3 that takes away the map that leads.
#
# ## λ below 0 and above 1
#
# **λ > 1 is the same as exchanging the maps.** The norm of eq. 3 removes the positive factor in
# $-\lambda\,(A_2 - \frac{1}{\lambda}A_1)$, and the matrix $W^O$ can absorb the sign. So layer 3 with λ = 1.56 is an
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
seen_difference = shown.difference[layer, pair]
minus = np.maximum(-seen_difference, 0).sum() / np.abs(seen_difference).sum()
print(f"layer {layer}, pair {pair}: {minus:.0%} of Σ|weight| is negative")
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
# than softmax heads. The norm brings them to one size before $W^O$ mixes them. *The factor $1-\lambda_{init}$:* it is
# fixed, and meant to keep gradients at the size that they have in a Transformer, so that hyperparameters carry over.
# Notebook 08 measures that second claim. The first can be measured here: how much does the size (root mean square) of a
# head's result vary over heads and tokens, for the leading map alone, which is a softmax head, and for the difference?

# %%
trace = oracle.trace(model, ids[0][None])  # every intermediate result of a run (notebook 07)
spread = {}
for layer, strength in enumerate(lambdas):
    at = f"model.layers.{layer}.self_attn."
    names = ("attn2" if strength > 1 else "attn1", "diff")
    sizes = [np.sqrt((trace[at + name] ** 2).mean(axis=-1)) for name in names]
    spread[layer] = [size.std() / size.mean() for size in sizes]
    final = np.sqrt((trace[at + "scaled"] ** 2).mean())
    print(f"layer {layer}: sizes vary by {spread[layer][0]:.0%} with one map, {spread[layer][1]:.0%} with both; "
          f"after the norm and × {1 - layers.lambda_init(layer):.2f} the size is {final:.2f}")  # fmt: skip
lines = dict(zip(("leading map alone", "with the second map"), np.transpose(list(spread.values())), strict=True))
sketches.curves(range(6), lines, "layer", "spread of sizes / mean size", ylim=(0, None))

# %% [markdown]
# In layers 2, 3 and 4, which subtract most, the sizes vary one and a half to two times as much with both maps: there
# the paper's reason holds. In the other layers there is little difference. The last number is $1-\lambda_{init}$
# itself: a norm leaves size 1, and the factor scales it.
#
# ## What we learned
#
# - Subtracting a second map removes what both maps share. The needle's weight falls. Its share grows if the first map
#   hardly found it and the noise is shared; a needle that was found already loses, unless λ is small.
# - In this small model the scores of a pair share little, and the top token's share *falls* in every layer. Training
#   has made the leading map sharp and the other broad: four layers subtract the broad map, two add it.
# - Any one of the four subtractions can be taken out without a visible loss; the two additions cannot.
# - λ > 1 means that the second map leads; λ < 0 means that a layer adds.
# - Where much is subtracted, heads differ more in size. The norm makes them equal, and $1 - \lambda_{init}$ sets their
#   common size.
#
# All this is one model of 2.9 million parameters; large ones may do otherwise. Notebook 09 asks whether differential
# attention *looks* at less noise than plain attention when both are trained for one task.

# %%
hardly, found = shares.values()
assert max(hardly) > 2 * hardly[0]
assert max(found) == found[0]
assert first[needle] > (first - 0.75 * second)[needle]
assert own.max() < 0.405
assert (own < others)[[0, 2, 3, 4]].all()
assert (table[1] < table[0]).all()
assert table[2].min() > 0.9
assert (table[4] > table[3]).all()
assert np.argwhere(~leading_sharp).tolist() == [[3, 2]]
assert all(abs(removed[layer,][0]) < removed[layer,][1] for layer in (0, 2, 3, 4))
assert wrong_map[0] > 0.2
assert all(removed[changed][0] > removed[changed][1] for changed in ((0, 2, 3, 4), (1,), (5,)))
assert all(1.5 <= round(spread[layer][1] / spread[layer][0], 1) <= 2.1 for layer in (2, 3, 4))
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
# No. It lowers what both maps have in common. The *share* of what only $A_1$ sees becomes larger if there was much in
# common, and smaller if $A_1$ had found it already.
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
