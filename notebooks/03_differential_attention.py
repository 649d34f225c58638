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
# # 03 · Why subtract two maps?
#
# **The question: when does subtracting a second attention map remove noise, and is that what a trained model does with
# it?**
#
# We begin with one real row. Our trained model reads "In a city by the sea there lived a queen who", and the last
# word looks back. These are its weights in one pair of layer 4:

# %%
# %matplotlib inline
from pathlib import Path

import numpy as np
import sketches
import tiny
from experiments import favorite, retrieval_table

import refdiff
from refdiff import oracle, viz

# %%
load = refdiff.DiffLlamaForCausalLM.from_pretrained
model = load("bundled", dtype="float64", kernels="reference")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
text = "In a city by the sea there lived a queen who"
ids = tokenizer([text], return_tensors="np")["input_ids"]
words = [tokenizer.decode([i]) for i in ids[0]]
queen = words.index(" queen")

layer, pair = 4, 0
seen = viz.attention_maps(model, ids[0].tolist())
lambda_ = seen.lambdas[layer]
first, second = seen.first[layer, pair, -1], seen.second[layer, pair, -1]
difference = first - lambda_ * second
row_shares = [abs(row[queen]) / np.abs(row).sum() for row in (first, difference)]
print(f"λ = {lambda_:.2f}; share of “queen” in all |weight|: {row_shares[0]:.0%} in A₁, "
      f"{row_shares[1]:.0%} in A₁ − λ A₂")  # fmt: skip
shown = {"A₁": first, "λ A₂": lambda_ * second, "A₁ − λ A₂": difference}
sketches.token_bars(words, shown, [queen])

# %% [markdown]
# $A_1$ is sharp: nearly half of its weight is on "queen". $A_2$ is broad. The difference keeps the peak and has a tail
# of negative weights. They count by their size, so "queen" has *less* of all |weight| after the subtraction.
#
# But a layer does not hand on weights. It hands on the sum of the values, $o = \sum_j w_j v_j$. Token $j$ makes up the
# part $(w_j v_j \cdot o) / (o \cdot o)$ of it, and the parts of all tokens sum to 1:

# %%
trace = oracle.trace(model, ids)  # every intermediate result of a run
values = trace[f"model.layers.{layer}.self_attn.values"][0, pair]
row_parts = [favorite.parts(row, values)[queen] for row in (first, difference)]
print(f"part of “queen” in the output: {row_parts[0]:.0%} by A₁, {row_parts[1]:.0%} by A₁ − λ A₂")
sketches.sums({"A₁": first, "A₁ − λ A₂": difference}, values, queen, "queen")

# %% [markdown]
# **Weight by weight, "queen" loses: from 44 % to 37 %. In what the weights add up to, "queen" gains: from 53 % to
# 81 %.** The picture shows both sums to scale. By $A_1$ alone, the other tokens add up to nearly half of the output.
# $A_2$ times λ has nearly the same sum of other tokens, so the subtraction takes most of it away.
#
# The gain of "queen" is large, and its direction is typical. In the three layers that subtract strongly, the
# *favorite*, the token with the most weight, makes up about half of the output before the subtraction, and two thirds
# after it. So the idea works here, but not token by token. This is one model with 2.9 million parameters; large ones
# may differ.
#
# Allow 30 minutes. You need chapter 01.
#
# ## Where the idea must work
#
# The second map is meant to work like noise-canceling headphones. With
# $A_i = \mathrm{softmax}(Q_i K_i^\top/\sqrt d)$ (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)),
#
# $$\mathrm{DiffAttn}(X) = (A_1 - \lambda A_2)\,V \tag{eq. 1}$$
#
# We build a case in which it must work: one query, 48 keys, and one key that matters, the *needle* at 30. Both maps get
# nearly the same random keys, but only the first knows the needle.

# %%
S, key_size, needle = 48, 16, 30
query, noise, other_noise = sketches.article_draw(S, key_size)
keys_1, keys_2 = noise.copy(), 0.99 * noise + np.sqrt(1 - 0.99**2) * other_noise
keys_1[needle] += 0.6 * query  # the first map is told where to look
scores = np.array([keys_1, keys_2]) @ query / np.sqrt(key_size)
first, second = tiny.softmax(scores)

rows = {}
difference = first - 0.75 * second
for name, row in (("A₁", first), ("A₂", second), ("A₁ − 0.75 A₂", difference)):
    share = abs(row[needle]) / np.abs(row).sum()
    rows[f"{name}: weight {row[needle]:.2f}, {share:.0%} of Σ|weight|"] = row
    print(f"{name}: the needle's weight is {row[needle]:.2f}, {share:.0%} of Σ|weight|")
sketches.bars(rows, needle)

# %% [markdown]
# The needle's weight does not grow; it falls a little. Everything else shrinks more, so its *share* of all |weight|
# grows from 21 % to 59 %. A norm follows, so only proportions matter.
#
# **How large should λ be?** Say $A_1$ gives the needle $p$ and the noise $1 - p$, and $A_2$ gives them $q$ and $1 - q$.
# If the noise has the same shape in both maps, the difference gives the needle the share
#
# $$\frac{|p-\lambda q|}{|p-\lambda q| + |(1-p) - \lambda(1-q)|}.$$
#
# It is 1 where the noise vanishes:
#
# $$1-p = \lambda(1-q) \quad\Rightarrow\quad \lambda^* = \frac{1-p}{1-q} \approx 1-p.$$
#
# Beyond $\lambda^*$ the noise grows again, with negative sign. The gain is gone where needle and noise are back in
# their old proportion:
#
# $$\begin{aligned}\frac{p-\lambda q}{\lambda(1-q)-(1-p)} &= \frac{p}{1-p} \\
# \Rightarrow\quad \lambda &= \frac{2p(1-p)}{p+q-2pq} \approx 2(1-p).\end{aligned}$$
#
# **The rule: set λ to the first map's share of noise; at about twice that, the gain is gone.** The ring marks where a
# curve is back at its start:

# %%
lambdas_tried = np.linspace(0, 2, 2001)
shares, rules = {}, {}
for name, told in (("needle in much noise", 0.0), ("needle found already", 0.9)):
    more = scores.copy()
    more[0, needle] += told * query @ query / np.sqrt(key_size)
    one, two = tiny.softmax(more)
    rest = np.abs(one - lambdas_tried[:, None] * two)
    shares[name] = rest[:, needle] / rest.sum(axis=-1)
    p, q = one[needle], two[needle]
    rules[name] = (1 - p) / (1 - q), 2 * p * (1 - p) / (p + q - 2 * p * q)
    best = lambdas_tried[shares[name].argmax()]
    last = lambdas_tried[shares[name] > p].max()
    print(f"{name}: share {p:.2f} → {shares[name].max():.2f}")
    print(f"  best λ {best:.2f} (rule {rules[name][0]:.2f}), "
          f"gain up to λ = {last:.2f} (rule {rules[name][1]:.2f})")  # fmt: skip
sketches.share_by_strength(lambdas_tried, shares, rules)

# %% [markdown]
# A needle that the first map has found already has little to gain and much to lose. From λ = 0.19 on, the second map
# adds more noise than it removes.
#
# ## If the noise is not shared
#
# **ρ** measures how much is shared. For one query, it is the correlation, over the keys, of the scores that the two
# maps give before the softmax: 1 means the same scores, 0 unrelated ones. Here is the needle's share at each ρ, as a
# mean of 2,000 random draws. For comparison, a *flat* second map gives every key the same.

# %%
n1, n2 = np.random.default_rng(0).standard_normal((2, 2000, S))
correlations = np.linspace(0, 1, 11)


def needle_share(told, lambda_, rho):
    one = tiny.softmax(n1 + told * (np.arange(S) == needle))
    two = np.full(S, 1 / S)
    if rho is not None:
        two = tiny.softmax(rho * n1 + np.sqrt(1 - rho**2) * n2)
    row = np.abs(one - lambda_ * two)
    return (row[:, needle] / row.sum(axis=-1)).mean()


panels = {}
for kind, told in (("weak", 2.5), ("strong", 6.0)):
    alone = needle_share(told, 0.0, 0.0)
    lines = panels[f"{kind} needle"] = {"A₁ alone": np.full(11, alone)}
    for lambda_ in (0.25, 0.5, 0.75):
        found = np.array([needle_share(told, lambda_, rho) for rho in correlations])
        gains, flat = correlations[found > alone], needle_share(told, lambda_, None)
        helps = f"gains from ρ = {gains[0]:.1f} on" if len(gains) else "loses at every ρ"
        print(f"{kind} needle, λ = {lambda_:.2f}: {alone:.2f} alone, {flat:.2f} flat, "
              f"{found[-1]:.2f} at ρ = 1, {helps}")  # fmt: skip
        lines[f"A₁ − {lambda_:g} A₂"] = found
sketches.gain_by_correlation(correlations, panels, (0.24, 0.40))

# %% [markdown]
# **Large gains need shared noise**: they lie near ρ = 1. A flat map helps a weak needle a little, because it takes
# something off every key. A strong needle loses by it. The gray band shows where layers 1 to 5 of the trained model
# are, as we will measure below. They are far from ρ = 1.
#
# ## How training changed λ
#
# Each layer learns its λ from four vectors:
#
# $$\lambda = e^{\lambda_{q1}\cdot\lambda_{k1}} - e^{\lambda_{q2}\cdot\lambda_{k2}} + \lambda_{init} \tag{eq. 2}$$
#
# $$\lambda_{init} = 0.8 - 0.6\,e^{-0.3\,l}\quad\text{in layer } l$$
#
# They start as small random numbers, so both exponentials start near 1, and λ near $\lambda_{init}$. Training can move
# it either way, without a bound:

# %%
lambdas, lambda_init = seen.lambdas, 0.8 - 0.6 * np.exp(-0.3 * np.arange(6))
print("λ_init", lambda_init.round(2))
print("λ     ", lambdas.round(2))
sketches.strengths_by_layer(lambdas)

# %% [markdown]
# **λ above 1 (layer 3) swaps the roles.** $A_1 - \lambda A_2 = -\lambda(A_2 - A_1/\lambda)$. The norm that follows
# removes the factor λ, and $W^O$ can reverse the sign. So $A_2$ leads, and $A_1$ is subtracted with a strength of
# 1/1.56 = 0.64. We call the map with the larger factor the *leading* map.
#
# **λ below 0 (layers 1 and 5) adds.** Nothing cancels there: the pair is a weighted sum of two softmaxes.
#
# ## Do the two maps share their noise?
#
# We measure ρ on the openings of eight tales that the model has never seen. The logarithm of a softmax is its scores up
# to a constant, which a correlation ignores:


# %%
texts = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")
tales = tokenizer([text.strip() for text in texts])["input_ids"]
maps = [viz.attention_maps(model, tale[:256]) for tale in tales]


def rho(a, b):
    """The correlation of the scores of two maps, a mean over the queries from 32 on."""
    rows = ((np.log(a[t, : t + 1]), np.log(b[t, : t + 1])) for t in range(32, len(a)))
    return np.mean([np.corrcoef(one, two)[0, 1] for one, two in rows])


def rho_of_pairs(m, layer):  # A₁ of each pair with A₂ of each pair: (3, 3)
    return [[rho(a, b) for b in m.second[layer]] for a in m.first[layer]]


by_pairs = np.array([[rho_of_pairs(m, layer) for layer in range(6)] for m in maps])
same = np.eye(3, dtype=bool)
in_pairs, across = by_pairs[..., same], by_pairs[..., ~same]  # (tale, layer, …)
own, others = in_pairs.mean(axis=-1), across.mean(axis=-1)
less = [retrieval_table.mean_and_interval(x) for x in (own - others).T]
for layer, (mean, half) in enumerate(less):
    what = "adds     " if lambdas[layer] < 0 else "subtracts"
    print(f"layer {layer} {what} mean ρ {own[:, layer].mean():5.2f}, of different pairs "
          f"{others[:, layer].mean():5.2f}: {mean:+.3f} ± {half:.3f}")  # fmt: skip
print(f"largest mean ρ of a layer: {own.mean(axis=0).max():.2f}")
sketches.correlation_dots(in_pairs.mean(axis=0), across.mean(axis=0), lambdas)

# %% [markdown]
# No layer's mean is above 0.40. In the layers that subtract, partners are even a little *less* alike than maps that do
# not belong together. ± is a 95 % confidence interval over the tales.
#
# ## Does the favorite gain?
#
# Is the row of "queen" typical? For each query, take the favorite of the leading map. What share of Σ|weight|
# does it have before and after the other map is subtracted? And what share *would* it have, by the formula above, if
# the noise had the same shape in both maps?


# %%
def share_if_shared(p, q, strength):
    token, noise = np.abs(p - strength * q), np.abs((1 - p) - strength * (1 - q))
    return token / (token + noise)


table = []
for m in maps:
    leading, other, strength = sketches.leading_maps(m)  # swapped where λ > 1
    top = leading.argmax(axis=-1)[..., None]
    p, q = (np.take_along_axis(a, top, -1) for a in (leading, other))
    after = np.abs(leading - strength * other)
    after = np.take_along_axis(after, top, -1) / after.sum(axis=-1, keepdims=True)
    shared = share_if_shared(p, q, strength)
    table.append([x.mean(axis=(1, 2, 3)) for x in (p, shared, after, after < p, shared < p)])
alone, if_shared, measured, falls, too_much = np.mean(table, axis=0)
rows_in = [f"layer {i}: {x:.0%}" for i, x in enumerate(falls)]
print("rows in which the share falls:", ", ".join(rows_in))
print(f"rows of layer 0 in which λ is above the rule's limit: {100 * too_much[0]:.0f} %")


def subtracting(x):
    return {f"layer {i}": float(x[i]) for i in (0, 2, 3, 4)}


series = {
    "leading map alone": subtracting(alone),
    "if noise were shared": subtracting(if_shared),
    "measured": subtracting(measured),
}
sketches.group_bars(series, "the favorite's share of Σ|weight|")

# %% [markdown]
# **The share of Σ|weight| falls in every layer that subtracts, in more than nine rows out of ten.** In layers 2, 3 and
# 4, λ is not too large: if the noise had the same shape in both maps, this λ would *raise* the share. In layer 0, λ is
# too large in 69 % of the rows. The favorite stands in for the token that matters, which nobody knows here.
#
# And what part of the output does it make up?

# %%
(part_alone, part_after, rises), alike, common, reach = favorite.measure(model, maps, tales)
print("part of the output, leading map alone:", part_alone.round(2))
print("part of the output, after subtraction:", part_after.round(2))
rows_in = [f"layer {i}: {x:.0%}" for i, x in enumerate(rises)]
print("rows in which it rises:", ", ".join(rows_in))
series = {
    "leading map alone": subtracting(part_alone),
    "after the subtraction": subtracting(part_after),
}
sketches.group_bars(series, "the favorite's part of the output")

# %% [markdown]
# **In layers 2, 3 and 4, the part rises from about a half to about two thirds, in more than eight rows out of ten.** In
# layer 0, where λ is 0.19, nothing changes. Layers 1 and 5 add, and there the part falls. How can a subtraction work if
# the maps share so little?
#
# ## What did training find?
#
# Over how many tokens does a row spread its weight? The exponential of its entropy counts them: 1 for a row that sees
# one token, $n$ for an even row over $n$ tokens.

# %%
spread_1 = np.mean([sketches.breadth(m.first) for m in maps], axis=0)  # (layer, pair)
spread_2 = np.mean([sketches.breadth(m.second) for m in maps], axis=0)
leading_sharp = (spread_1 < spread_2) == (lambdas < 1)[:, None]
other_spread = np.where(lambdas[:, None] > 1, spread_1, spread_2)
print(f"the leading map is sharper in {leading_sharp.sum()} of {leading_sharp.size} pairs")
print(f"tokens that the other map spreads over: {other_spread.min():.0f} to "
      f"{other_spread.max():.0f} tokens; an even one: {np.arange(33, 257).mean():.0f}")  # fmt: skip
sketches.breadths(np.stack([spread_1, spread_2]), lambdas)

# %% [markdown]
# **The leading map is the sharper one in 17 of 18 pairs.** The other spreads over some 20 to 90 tokens. It is no copy
# of the leading map's noise. But the values of a layer may have much in common. Then a sum over many tokens points the
# same way whichever tokens they are. So we ask three things. How long is the average value, compared with a typical
# one? In a text of 256 tokens, unrelated values would give about 1/√256 = 0.06. What does a map's *noise*, the sum of
# all tokens but the favorite, have in common with it? And how far does the noise reach along it, before the subtraction
# and after?

# %%
print("length of the average value, in typical lengths:", common.round(2))
names = "noise of both maps", "leading map's noise, average", "other map's noise, average"
print("cosine, by layer")
for name, cosines in zip(names, alike, strict=True):
    print(f"{name:30}", cosines.round(2))
print("noise along the average, in its lengths")
print(f"{'leading map alone':30}", reach[0].round(2))
print(f"{'after the subtraction':30}", reach[1].round(2))
series = {"leading map alone": subtracting(reach[0]), "after the subtraction": subtracting(reach[1])}
sketches.group_bars(series, "noise along the average value, in its lengths")

# %% [markdown]
# **The subtraction removes the average.** In layers 2 and 3 the noise reaches 0.56 and 0.58 of the average value's
# length before the subtraction, and 0.02 and −0.02 after it. In layer 4 it overshoots, to −0.18. In these layers the
# average is more than half as long as a value, and the noise of both maps points roughly its way, with cosines of 0.83
# to 0.91. That is the noise that the two maps share: not token by token, but in what they add up to. A broad map takes
# it away without knowing which tokens are noise. Layers 1 and 5 do the opposite and double it.
#
# ## Does the model need it?
#
# We remove one map from layers of the trained model and measure the loss on the eight tales.


# %%
def text_losses(changed):
    """The loss of each tale, where some layers get another λ."""
    with sketches.strengths(model, changed):
        rows = [np.array([tale[:256]]) for tale in tales]
        return np.array([float(model(row, labels=row).loss) for row in rows])


as_it_is, costs = text_losses({}), {}
print(f"loss as it is: {as_it_is.mean():.3f} nats per token; it rises, if we remove")
only_2 = 1e6  # a λ that leaves A₂ alone
for name, changed in {
    "subtracted A₂ of layer 0": {0: 0},
    "subtracted A₂ of layer 2": {2: 0},
    "subtracted A₁ of layer 3": {3: only_2},
    "subtracted A₂ of layer 4": {4: 0},
    "subtracted maps of all four": {0: 0, 2: 0, 3: only_2, 4: 0},
    "added A₂ of layer 1": {1: 0},
    "added A₂ of layer 5": {5: 0},
    "added maps of both": {1: 0, 5: 0},
    "leading A₂ of layer 3": {3: 0},
    "A₂ of every layer": dict.fromkeys(range(6), 0),
}.items():
    extra = text_losses(changed) - as_it_is
    mean, half = costs[name] = retrieval_table.mean_and_interval(extra)
    print(f"  the {name:28} by {mean:+.3f} ± {half:.3f}")

# %% [markdown]
# For a single subtracted map each interval contains 0; a cost of up to 0.02 is not ruled out. All four together cost
# 0.059 ± 0.042, and the two added maps 0.057 ± 0.019. Without the map that leads layer 3, the loss
# rises by 0.353 ± 0.059. But this model was *trained* with all of them. Chapter 05 compares it with a plain twin.
#
# ## What follows the difference
#
# $$\mathrm{head}_i = (1-\lambda_{init})\,\mathrm{LN}(\mathrm{DiffAttn}_i(X)) \tag{eq. 3}$$
#
# The norm gives every pair the same size. In a new model it enlarges outputs, and their gradients with them; the factor
# undoes what grows with depth. The gradients of $W_Q$ stay about 15 times a plain head's. [The guide on
# pairs](guide_pairs_of_heads.ipynb) tells why.

# %%
for depth in (0, 3, 11, 27):
    sizes = [sketches.gradient_sizes(depth, seed) for seed in range(5)]
    bare, norm, both = np.mean(sizes, axis=0)
    print(f"layer {depth:2}: bare {bare:.2f}, with norm {norm:.1f}, with both {both:.1f}")

# %% [markdown]
# ## See for yourself
#
# Here is one pair on another sentence. Below it are all maps of the model, where pages may run scripts: choose a layer
# and a pair, and move over the tokens. `refdiff attention "your text" -o page.html` makes such a page of your text.

# %%
sentence = "There was once a king who had three sons. The eldest was proud, and the youngest"
seen = viz.attention_maps(model, sentence)
layer, pair = seen.most_cancelling()
sketches.on_card(viz.plot_attention(seen, layer, pair))

# %%
viz.explore(model, sentence, layer=layer, pair=pair)

# %% [markdown]
# ## The answer
#
# **Subtraction removes noise that both maps share, if the first map has much of it; in our trained model a broad map
# takes the average value away from a sharp one, and removing the subtracted maps costs little.**
#
# <details>
# <summary>What the tests check</summary>
#
# ```python
# assert [round(float(100 * x)) for x in (*row_shares, *row_parts)] == [44, 37, 53, 81]
# noisy, found = shares.values()
# assert noisy.max() > 2 * noisy[0]
# assert found.max() < found[0] + 0.1
# for (best, last), curve in zip(rules.values(), shares.values(), strict=True):
#     assert abs(best - lambdas_tried[curve.argmax()]) < 0.03
#     assert abs(last - lambdas_tried[curve > curve[0]].max()) < 0.01
# assert first[needle] > (first - 0.75 * second)[needle]
# assert own.mean(axis=0).max() < 0.405
# assert own.mean(axis=0)[1:].min() > 0.235
# assert all(less[i][0] < -less[i][1] for i in (0, 2, 3, 4))
# assert falls.min() > 0.9
# assert (if_shared[2:5] > alone[2:5] + 0.1).all()
# assert if_shared[0] < alone[0]
# assert (0.45 < part_alone[2:5]).all() and (part_alone[2:5] < 0.55).all()
# assert (0.6 < part_after[2:5]).all() and (part_after[2:5] < 0.75).all()
# assert rises[2:5].min() > 0.8
# assert (part_after[[1, 5]] < part_alone[[1, 5]]).all()
# assert alike[:, 1:5].min() > 0.7
# assert reach[0, 2:5].min() > 0.5 > 0.2 > np.abs(reach[1, 2:5]).max()
# assert (reach[1, [1, 5]] > 2 * reach[0, [1, 5]]).all()
# assert np.argwhere(~leading_sharp).tolist() == [[3, 2]]
# single = [mean_half for name, mean_half in costs.items() if name.startswith("subtracted A")]
# assert len(single) == 4
# assert all(abs(mean) < half for mean, half in single)
# several = ("subtracted maps of all four", "added A₂ of layer 1", "added A₂ of layer 5")
# assert all(costs[name][0] > costs[name][1] for name in several)
# assert 14 < both < 16
# ```
#
# </details>
#
# ## Exercises
#
# `from refdiff import exercises`, then `exercises.check("eq1", my_eq1)`, and so on.
#
# **1.** `"eq1"`: differential attention. The queries are the last T of S tokens.
#
# **2.** `"lambda_init"` and **3.** `"eq2"`: λ.
#
# **4.** `"eq3"`: all heads, without $W^O$. Heads $i$ and $i + H/2$ are a pair.
#
# **5.** Suppose $A_1 = A_2$. Show that after the norm (ε = 0), any λ < 1 has no effect.
#
# <details>
# <summary>Answers</summary>
#
# ```python
# from refdiff import exercises
#
#
# def my_map(q, k):
#     T, S = q.shape[-2], k.shape[-2]
#     scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
#     return tiny.softmax(np.where(np.tri(T, S, S - T, dtype=bool), scores, -np.inf))
#
#
# def my_eq1(q1, k1, q2, k2, v, lambda_):
#     return (my_map(q1, k1) - lambda_ * my_map(q2, k2)) @ v
#
#
# def my_eq3(q, k, v, lambda_, start, eps):
#     (q1, q2), (k1, k2) = np.split(q, 2, axis=1), np.split(k, 2, axis=1)
#     k1, k2, v = (np.repeat(x, q1.shape[1] // x.shape[1], axis=1) for x in (k1, k2, v))
#     out = (1 - start) * tiny.rms_norm(my_eq1(q1, k1, q2, k2, v, lambda_), eps)
#     return out.swapaxes(1, 2).reshape(out.shape[0], out.shape[2], -1)
#
#
# assert exercises.check("eq1", my_eq1)
# assert exercises.check("lambda_init", lambda layer: 0.8 - 0.6 * np.exp(-0.3 * layer))
# assert exercises.check("eq2", lambda q1, k1, q2, k2, start: np.exp(q1 @ k1) - np.exp(q2 @ k2) + start)
# assert exercises.check("eq3", my_eq3)
# ```
#
# 5: $(A - \lambda A)V = (1-\lambda)AV$, and the norm removes a positive factor. What is left is plain attention with a
# norm.
#
# </details>
#
# Next: [04 · How a model writes, and why it can be fast](04_writing.ipynb)
