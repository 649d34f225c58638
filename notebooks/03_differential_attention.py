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
# **The question: when does subtracting a second attention map remove noise, and is that what a trained model does
# with it?**
#
# In chapter 01, each pair of heads made two maps, $A_1$ and $A_2$, and used $A_1 - \lambda A_2$. We begin with one
# row of such maps. Our trained model reads "In a city by the sea there lived a queen who", and the last word looks
# back. These are its weights in one pair of layer 4:

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
# Load the model and read the text (skip on a first reading)
load = refdiff.DiffLlamaForCausalLM.from_pretrained
model = load("bundled", dtype="float64", kernels="reference")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
text = "In a city by the sea there lived a queen who"
ids = tokenizer([text], return_tensors="np")["input_ids"]
words = [tokenizer.decode([i]) for i in ids[0]]
queen = words.index(" queen")
seen = viz.attention_maps(model, ids[0].tolist())

# %%
layer, pair = 4, 0
lambda_ = seen.lambdas[layer]
first, second = seen.first[layer, pair, -1], seen.second[layer, pair, -1]
difference = first - lambda_ * second
row_shares = [abs(row[queen]) / np.abs(row).sum() for row in (first, difference)]
print(f"λ = {lambda_:.2f}; share of “queen” in all |weight|: {row_shares[0]:.0%} in A₁, "
      f"{row_shares[1]:.0%} in A₁ − λ A₂")  # fmt: skip
shown = {"A₁": first, "λ A₂": lambda_ * second, "A₁ − λ A₂": difference}
sketches.token_bars(words, shown, [queen])

# %% [markdown]
# $A_1$ is sharp: nearly half of its weight is on "queen". $A_2$ is broad. The difference keeps the peak but has many
# negative weights. We count each weight by its size, |weight|, and write Σ|weight| for the sum of a row's sizes. Of
# this sum, "queen" has *less* after the subtraction.
#
# But a layer does not pass on weights. It passes on the weighted sum of the values, $o = \sum_j w_j v_j$, with the
# weight $w_j$ and the value $v_j$ of token $j$. The *part* of $o$ that token $j$ makes up is $(w_j v_j \cdot o) / (o
# \cdot o)$: how far $w_j v_j$ reaches along $o$. The parts of all tokens sum to 1:

# %%
trace = oracle.trace(model, ids)  # every intermediate result of a run
values = trace[f"model.layers.{layer}.self_attn.values"][0, pair]
row_parts = [favorite.parts(row, values)[queen] for row in (first, difference)]
print(f"part of “queen” in the output: {row_parts[0]:.0%} by A₁, {row_parts[1]:.0%} by A₁ − λ A₂")
sketches.sums({"A₁": first, "A₁ − λ A₂": difference}, values, queen, "queen")

# %% [markdown]
# **Of the weights, "queen" has 44 % before the subtraction and 37 % after it. Of the output, it makes up 53 % before
# and 81 % after.** The picture shows both sums to scale. By $A_1$ alone, the other tokens add up to nearly half of
# the output. By $\lambda A_2$ they add up to nearly the same vector, so the subtraction removes most of it.
#
# This gain is unusually large, but its direction is typical. Call the token with the most weight the *favorite*. In
# the three layers that subtract strongly, it makes up about half of the output before the subtraction and two thirds
# after it. So the idea works here, but not token by token. This is one model with 2.9 million parameters; large ones
# may differ.
#
# Allow 30 minutes. You need chapter 01.
#
# ## Where the idea must work
#
# The second map is meant to work like noise-canceling headphones. Each map is a softmax of scores, $A_i =
# \mathrm{softmax}(Q_i K_i^\top/\sqrt d)$, where a query and a key have $d$ numbers each (Ye et al. 2024, [arXiv
# 2410.05258](https://arxiv.org/abs/2410.05258)):
#
# $$\mathrm{DiffAttn}(X) = (A_1 - \lambda A_2)\,V \tag{eq. 1}$$
#
# We build a case in which it must work: one query and 48 keys, of which only number 30 matters, the *needle*. Both
# maps get nearly the same random keys, but only the first is told where the needle is.

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
# The needle's weight does not grow; it falls a little. Everything else shrinks more, so the needle's *share* of
# Σ|weight| grows from 21 % to 59 %. A norm follows, which gives every output the same size, so only proportions
# matter.
#
# **How large should λ be?** Say the needle has the weight $a_1$ in $A_1$ and $a_2$ in $A_2$. The noise has the rest,
# $1 - a_1$ and $1 - a_2$. If the noise has the same shape in both maps, the difference gives the needle the share
#
# $$\frac{|a_1-\lambda a_2|}{|a_1-\lambda a_2| + |(1-a_1) - \lambda(1-a_2)|}.$$
#
# It is 1 where the noise vanishes. For a small $a_2$ this is near $1 - a_1$:
#
# $$1-a_1 = \lambda(1-a_2) \quad\Rightarrow\quad \lambda^* = \frac{1-a_1}{1-a_2} \approx 1-a_1.$$
#
# Beyond $\lambda^*$ the noise grows again, with negative sign. The gain is gone where needle and noise are back in
# their old proportion:
#
# $$\begin{aligned}\frac{a_1-\lambda a_2}{\lambda(1-a_2)-(1-a_1)} &= \frac{a_1}{1-a_1} \\
# \Rightarrow\quad \lambda &= \frac{2a_1(1-a_1)}{a_1+a_2-2a_1 a_2} \approx 2(1-a_1).\end{aligned}$$
#
# **The rule: set λ to the first map's share of noise; at about twice that, the gain is gone.** A ring marks that
# point:

# %%
# Try 2,001 strengths on two needles (skip on a first reading)
lambdas_tried = np.linspace(0, 2, 2001)
shares, rules = {}, {}
for name, told in (("needle in much noise", 0.0), ("needle found already", 0.9)):
    more = scores.copy()
    more[0, needle] += told * query @ query / np.sqrt(key_size)
    one, two = tiny.softmax(more)
    rest = np.abs(one - lambdas_tried[:, None] * two)
    shares[name] = rest[:, needle] / rest.sum(axis=-1)
    a1, a2 = one[needle], two[needle]
    rules[name] = (1 - a1) / (1 - a2), 2 * a1 * (1 - a1) / (a1 + a2 - 2 * a1 * a2)
    best = lambdas_tried[shares[name].argmax()]
    last = lambdas_tried[shares[name] > a1].max()
    print(f"{name}: share {a1:.2f} → {shares[name].max():.2f}")
    print(f"  best λ {best:.2f} (rule {rules[name][0]:.2f}), "
          f"gain up to λ = {last:.2f} (rule {rules[name][1]:.2f})")  # fmt: skip
sketches.share_by_strength(lambdas_tried, shares, rules)

# %% [markdown]
# A needle that the first map has already found has little to gain and much to lose. From λ = 0.19 on, the second map
# adds more noise than it removes.
#
# ## If the noise is not shared
#
# **ρ** measures how much noise is shared. For one query, it is the correlation, over the keys, of the two maps'
# scores before the softmax: 1 means the same scores, 0 unrelated ones. Here is the needle's share at each ρ, a mean
# of 2,000 random draws:

# %%
# Draw scores of each correlation ρ (skip on a first reading)
n1, n2 = np.random.default_rng(0).standard_normal((2, 2000, S))
correlations = np.linspace(0, 1, 11)


def needle_share(told, lambda_, rho):
    """The share of a needle of which A₁ is told; without a ρ, A₂ is flat."""
    one = tiny.softmax(n1 + told * (np.arange(S) == needle))
    two = np.full(S, 1 / S)
    if rho is not None:
        two = tiny.softmax(rho * n1 + np.sqrt(1 - rho**2) * n2)
    row = np.abs(one - lambda_ * two)
    return (row[:, needle] / row.sum(axis=-1)).mean()


panels, rows = {}, [["needle", "λ", "A₁ alone", "A₂ flat", "ρ = 1", "gains"]]
for kind, told in (("weak", 2.5), ("strong", 6.0)):
    alone = needle_share(told, 0.0, 0.0)
    lines = panels[f"{kind} needle"] = {"A₁ alone": np.full(11, alone)}
    for lambda_ in (0.25, 0.5, 0.75):
        found = np.array([needle_share(told, lambda_, rho) for rho in correlations])
        gains = correlations[found > alone]
        numbers = lambda_, alone, needle_share(told, lambda_, None), found[-1]
        helps = f"from ρ = {gains[0]:.1f} on" if len(gains) else "nowhere"
        rows.append([kind, *(f"{number:.2f}" for number in numbers), helps])
        lines[f"A₁ − {lambda_:g} A₂"] = found
sketches.gain_by_correlation(correlations, panels, (0.24, 0.40))

# %%
sketches.table(rows, "The picture in numbers, and a flat second map")

# %% [markdown]
# **Large gains need shared noise**: they lie near ρ = 1. A *flat* second map, with the same weight for every key,
# takes something off each. That helps a weak needle a little, at λ = 0.5 from 0.18 to 0.22, and harms a strong one,
# from 0.80 to 0.67. The gray band shows where layers 1 to 5 of the trained model are, as we will measure below. They
# are far from ρ = 1.
#
# ## How training changed λ
#
# Each layer learns its λ from four vectors of $d$ numbers, $\lambda_{q1}$, $\lambda_{k1}$, $\lambda_{q2}$ and
# $\lambda_{k2}$:
#
# $$\lambda = e^{\lambda_{q1}\cdot\lambda_{k1}} - e^{\lambda_{q2}\cdot\lambda_{k2}} + \lambda_{init} \tag{eq. 2}$$
#
# $$\lambda_{init} = 0.8 - 0.6\,e^{-0.3\,l}\quad\text{in layer } l$$
#
# The vectors start as small random numbers, so both exponentials start near 1, and λ near $\lambda_{init}$. Training
# can move it either way, without a bound:

# %%
lambdas, lambda_init = seen.lambdas, 0.8 - 0.6 * np.exp(-0.3 * np.arange(6))
print("λ_init", lambda_init.round(2))
print("λ     ", lambdas.round(2))
sketches.strengths_by_layer(lambdas)

# %% [markdown]
# **λ above 1 (layer 3) swaps the roles.** $A_1 - \lambda A_2 = -\lambda(A_2 - A_1/\lambda)$. The norm that follows
# removes the factor λ, and $W^O$, the matrix after it, can reverse the sign. So $A_2$ leads, and $A_1$ is subtracted
# with a strength of 1/1.56 = 0.64. We call the map with the larger factor the *leading* map.
#
# **λ below 0 (layers 1 and 5) adds.** Nothing cancels there: the pair is a weighted sum of two softmaxes.
#
# **A norm and a factor follow the difference**:
#
# $$\mathrm{head}_i = (1-\lambda_{init})\,\mathrm{LN}(\mathrm{DiffAttn}_i(X)) \tag{eq. 3}$$
#
# The norm gives the outputs of all pairs the same size. In a new model, it makes the gradient of $W_Q$ larger than a
# plain head's: 18.1 times in layer 0, and 73.7 times in layer 27. With the factor it is 14.5 and 14.7 times. So the
# factor undoes the growth with depth. [The guide on pairs](guide_pairs_of_heads.ipynb) tells why.

# %%
# Compare gradients with a plain head's (skip on a first reading)
for depth in (0, 3, 11, 27):
    sizes = [sketches.gradient_sizes(depth, seed) for seed in range(5)]
    bare, norm, both = np.mean(sizes, axis=0)
    print(f"layer {depth:2}: bare {bare:.2f}, with norm {norm:.1f}, with both {both:.1f}")

# %% [markdown]
# ## Do the two maps share their noise?
#
# We measure ρ on the openings of eight tales that the model has never seen. The logarithm of a softmax is its scores
# up to a constant, which a correlation ignores:

# %%
# Measure ρ on eight tales (skip on a first reading)
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
rows = [["layer", "a pair", "different pairs", "pair − different"]]
for layer, (mean, half) in enumerate(less):
    name = f"{layer}, adds" if lambdas[layer] < 0 else f"{layer}"
    means = own[:, layer].mean(), others[:, layer].mean()
    rows.append([name, *(f"{x:.2f}" for x in means), f"{mean:+.3f} ± {half:.3f}"])
sketches.correlation_dots(in_pairs.mean(axis=0), across.mean(axis=0), lambdas)

# %%
sketches.table(rows, "Mean ρ of the maps of a pair, and of different pairs")

# %% [markdown]
# **The two maps share little noise.** No layer's mean ρ is above 0.40. In the layers that subtract, the two maps of a
# pair are even a little *less* alike than maps of different pairs. (± is a 95 % confidence interval over the tales.)
#
# ## Does the favorite gain?
#
# Is the row of "queen" typical? For each row, take the favorite of the leading map. What share of Σ|weight| does it
# have before and after the other map is subtracted? And what share *would* it have, by the formula above, if the
# noise had the same shape in both maps?


# %%
# Measure the favorite's share of the weights (skip on a first reading)
def share_if_shared(a1, a2, strength):
    token, noise = np.abs(a1 - strength * a2), np.abs((1 - a1) - strength * (1 - a2))
    return token / (token + noise)


table = []
for m in maps:
    leading, other, strength = sketches.leading_maps(m)  # swapped where λ > 1
    top = leading.argmax(axis=-1)[..., None]
    a1, a2 = (np.take_along_axis(a, top, -1) for a in (leading, other))
    after = np.abs(leading - strength * other)
    after = np.take_along_axis(after, top, -1) / after.sum(axis=-1, keepdims=True)
    shared = share_if_shared(a1, a2, strength)
    table.append([x.mean(axis=(1, 2, 3)) for x in (a1, shared, after, after < a1, shared < a1)])
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
# **The favorite's share of Σ|weight| falls in every layer that subtracts, in more than nine rows out of ten.** In
# layers 2, 3 and 4, λ is not too large: if the noise had the same shape in both maps, this λ would *raise* the share.
# In layer 0, λ is too large in 69 % of the rows. (The favorite stands in for the token that matters, which nobody
# knows here.)
#
# And what part of the output does the favorite make up?

# %%
# Measure the favorite's part of the output (skip on a first reading)
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
# **In layers 2, 3 and 4, the part rises from about a half to about two thirds, in more than eight rows out of ten.**
# In layer 0, where λ is 0.19, nothing changes. Layers 1 and 5 add, and there the part falls. How can a subtraction
# work if the maps share so little?
#
# ## What did training find?
#
# Over how many tokens does a row spread its weight? The exponential of its entropy counts them: 1 for a row with all
# weight on one token, $n$ for a row with equal weights on $n$ tokens.

# %%
# Count the tokens that rows spread over (skip on a first reading)
spread_1 = np.mean([sketches.breadth(m.first) for m in maps], axis=0)  # (layer, pair)
spread_2 = np.mean([sketches.breadth(m.second) for m in maps], axis=0)
leading_sharp = (spread_1 < spread_2) == (lambdas < 1)[:, None]
other_spread = np.where(lambdas[:, None] > 1, spread_1, spread_2)
print(f"the leading map is sharper in {leading_sharp.sum()} of {leading_sharp.size} pairs")
print(f"tokens that the other map spreads over: {other_spread.min():.0f} to "
      f"{other_spread.max():.0f} tokens; an even one: {np.arange(33, 257).mean():.0f}")  # fmt: skip
sketches.breadths(np.stack([spread_1, spread_2]), lambdas)

# %% [markdown]
# **The leading map is the sharper one in 17 of 18 pairs.** The other map spreads over some 20 to 90 tokens, so it is
# no copy of the leading map's noise. But the values of a layer may have much in common. Then a sum over many tokens
# points the same way, whichever tokens they are. To see whether they do, we compare three vectors of each row. Each
# has 64 numbers, as a value has:
#
# | symbol | vector |
# |---|---|
# | $n_{lead}$ | the leading map's *noise*: its weighted values of all tokens but the favorite, summed |
# | $n_{other}$ | the other map's noise: the same with its weights |
# | $\bar v$ | the average value of all tokens so far |
#
# A cosine of 1 means that two vectors point the same way. And $(n \cdot \bar v)/(\bar v \cdot \bar v)$ tells how far
# a noise $n$ reaches along the average, in lengths of the average. We take $n_{lead}$ before the subtraction, and
# what is left of it after the subtraction.

# %%
# Draw how far the noise reaches (skip on a first reading)
series = {"leading map alone": subtracting(reach[0]), "after the subtraction": subtracting(reach[1])}
sketches.group_bars(series, "noise along the average value, in its lengths")

# %%
# Write all six layers as a table (skip on a first reading)
names = "cos(n_lead, n_other)", "cos(n_lead, v̄)", "cos(n_other, v̄)", "reach before", "reach after", "length of v̄"
rows = [["layer", *map(str, range(6))]]
for name, numbers in zip(names, (*alike, *reach, common), strict=True):
    rows.append([name, *(f"{number:.2f}".replace("-", "−") for number in numbers)])
sketches.table(rows)

# %% [markdown]
# **The subtraction removes the average.** In layers 2, 3 and 4, the noise reaches 0.56, 0.58 and 0.57 of the
# average's length before the subtraction. After it, 0.02, −0.02 and −0.18 are left; layer 4 overshoots. In these
# layers the noise of both maps points roughly the way of the average, with cosines of 0.83 to 0.91. The average
# itself is more than half as long as a typical value. Unrelated values, 256 of them, would give 1/√256 = 0.06.
#
# So the two maps do share noise: not token by token, but in what they add up to. A broad map takes it away without
# knowing which tokens are noise. Layers 1 and 5 do the opposite and double it.
#
# ## Does the model need it?
#
# We remove one map from layers of the trained model and measure the loss on the eight tales, the mean of −ln of the
# probability that the model gave the next token:


# %%
# Give some layers another λ, and read the tales again (skip on a first reading)
def text_losses(changed):
    """The loss of each tale, where some layers get another λ."""
    with sketches.strengths(model, changed):
        rows = [np.array([tale[:256]]) for tale in tales]
        return np.array([float(model(row, labels=row).loss) for row in rows])


as_it_is, costs = text_losses({}), {}
rows = [["removed", "change of the loss"], ["nothing", f"({as_it_is.mean():.3f} nats per token)"]]
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
    rows.append([name, f"{mean:+.3f} ± {half:.3f}".replace("-", "−")])
sketches.table(rows)

# %% [markdown]
# For a single subtracted map each interval contains 0; a cost of up to 0.02 is not ruled out. All four together cost
# 0.059 ± 0.042, and the two added maps 0.057 ± 0.019. Without the map that leads layer 3, the loss rises by 0.353 ±
# 0.059. But this model was *trained* with all of them. Chapter 05 compares models that were trained without.
#
# ## See for yourself
#
# Here is one pair on another sentence. Below it are all maps of the model, where pages may run scripts: choose a
# layer and a pair, and move over the tokens. `refdiff attention "your text" -o page.html` makes such a page of your
# text.

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
# **4.** `"eq3"`: all $H$ heads, without $W^O$. Heads $i$ and $i + H/2$ are a pair.
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
