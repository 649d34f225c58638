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
# The finding first. Subtraction works like noise-canceling headphones if both maps share the noise and the first map
# has much of it. In our small trained model, the two maps of a pair share little of their *weights*: the token that the
# leading map prefers even loses share of all |weight|, in more than nine rows of ten. But what counts is what the
# weights add up to, and there the idea works. The other map is broad. What it takes from the text is nearly the average
# of all values, and the noise of the leading map adds up to nearly the same average. In the three layers that subtract
# strongly, the preferred token makes up about half of the output before the subtraction, and two thirds after it. It is
# one model with 2.9 million parameters; large ones may differ.
#
# Allow 30 minutes. You need chapter 01.

# %%
# %matplotlib inline
from pathlib import Path

import numpy as np
import sketches
import tiny
from experiments import retrieval_table

import refdiff
from refdiff import layers, oracle, viz

# %% [markdown]
# ## Where the idea works
#
# Recall the equation (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)). With
# $A_i = \mathrm{softmax}(Q_i K_i^\top/\sqrt d)$,
#
# $$\mathrm{DiffAttn}(X) = (A_1 - \lambda A_2)\,V \tag{eq. 1}$$
#
# We build a case in which it must work: one query, 48 keys, and one key that matters, the *needle* at 30. Both maps get
# nearly the same random keys (correlation 0.99), but only the first knows the needle.

# %%
S, key_size, needle = 48, 16, 30
query, noise, other_noise = sketches.article_draw(S, key_size)
keys_1, keys_2 = noise.copy(), 0.99 * noise + np.sqrt(1 - 0.99**2) * other_noise
keys_1[needle] += 0.6 * query  # the first map is told where to look
first, second = (tiny.softmax(keys @ query / np.sqrt(key_size)) for keys in (keys_1, keys_2))

rows = {}
for name, row in (("A₁", first), ("A₂", second), ("A₁ − 0.75 A₂", first - 0.75 * second)):
    share = abs(row[needle]) / np.abs(row).sum()
    rows[f"{name}: weight {row[needle]:.2f}, {share:.0%} of Σ|weight|"] = row
    print(f"{name}: the needle's weight is {row[needle]:.2f}, {share:.0%} of Σ|weight|")
sketches.bars(rows, needle)

# %% [markdown]
# The needle's weight does not grow; it falls a little. Everything else shrinks more, so its *share* of all |weight|
# grows. A norm follows and rescales the result, so only shares count. (The norm sees the sum of the values, not the
# weights. Where the values are known, we will look at that sum as well.)
#
# How large should λ be? Say $A_1$ gives the needle $p$ and the noise $1 - p$, and $A_2$ gives them $q$ and $1 - q$. If
# the noise has the same shape in both, it vanishes where $1 - p = \lambda (1 - q)$. The needle has its old share again
# where $(p - \lambda q) / (\lambda (1 - q) - (1 - p)) = p / (1 - p)$. So the best λ, and the one at which the gain is
# gone, are
#
# $$\lambda^* = \frac{1-p}{1-q} \approx 1-p, \qquad \frac{2p(1-p)}{p+q-2pq} \approx 2(1-p)$$
#
# **Set λ to the first map's share of noise; at twice that, the gain is gone.** We call this the rule. The ring marks
# where a curve is back at the height at which it began:

# %%
lambdas_tried = np.linspace(0, 2, 2001)
shares, rules = {}, {}
for name, told in (("needle in much noise", 0.0), ("needle found already", 0.9)):
    scores = np.array([keys_1 @ query, keys_2 @ query]) / np.sqrt(key_size)
    scores[0, needle] += told * query @ query / np.sqrt(key_size)
    one, two = tiny.softmax(scores)
    difference = np.abs(one - lambdas_tried[:, None] * two)
    shares[name] = difference[:, needle] / difference.sum(axis=-1)
    p, q = one[needle], two[needle]
    rules[name] = (1 - p) / (1 - q), 2 * p * (1 - p) / (p + q - 2 * p * q)
    best, last = lambdas_tried[shares[name].argmax()], lambdas_tried[shares[name] > p].max()
    print(f"{name:20} p = {p:.2f}: best λ {best:.2f} (rule {rules[name][0]:.2f}), gain up to λ = {last:.2f} "
          f"(rule {rules[name][1]:.2f}), share {p:.2f} → {shares[name].max():.2f}")  # fmt: skip
sketches.share_by_strength(lambdas_tried, shares, rules)

# %% [markdown]
# A needle that the first map has found already has little to gain and much to lose. Beyond λ = 0.19, the second map
# does not cancel noise: it *is* the noise.
#
# And if the noise is not shared? Let ρ be the correlation between the scores that the two maps give the keys, before
# the softmax. Here are the means of 2,000 random draws. For comparison, a third kind of second map is flat: it gives
# every key the same.

# %%
n1, n2 = np.random.default_rng(0).standard_normal((2, 2000, S))
correlations = np.linspace(0, 1, 11)


def needle_share(told, lambda_, rho):
    one = tiny.softmax(n1 + told * (np.arange(S) == needle))
    two = tiny.softmax(rho * n1 + np.sqrt(1 - rho**2) * n2) if rho is not None else np.full(S, 1 / S)
    row = np.abs(one - lambda_ * two)
    return (row[:, needle] / row.sum(axis=-1)).mean()


panels = {}
for kind, told in (("weak", 2.5), ("strong", 6.0)):
    alone = needle_share(told, 0.0, 0.0)
    lines = panels[f"{kind} needle"] = {"A₁ alone": np.full(11, alone)}
    for strength in (0.25, 0.5, 0.75):
        found = np.array([needle_share(told, strength, rho) for rho in correlations])
        helps = f"gains from ρ = {correlations[found > alone][0]:.1f} on" if found.max() > alone else "loses at every ρ"
        flat = needle_share(told, strength, None)
        print(f"{kind:6} needle, λ = {strength:.2f}: {helps}; "
              f"{alone:.2f} alone, {flat:.2f} flat, {found[-1]:.2f} at ρ = 1")  # fmt: skip
        lines[f"A₁ − {strength:g} A₂"] = found
sketches.gain_by_correlation(correlations, panels, (0.24, 0.40))

# %% [markdown]
# Large gains need shared noise: they lie near ρ = 1. A weak needle also gains a little from a flat map, or from one
# that shares nothing: both take something off every key. A strong needle loses. The gray band shows where layers 1 to 5
# of the trained model are, as we will measure below. They are far from ρ = 1.
#
# ## How training changed λ
#
# Each layer learns its λ from four vectors:
#
# $$\lambda = e^{\lambda_{q1}\cdot\lambda_{k1}} - e^{\lambda_{q2}\cdot\lambda_{k2}} + \lambda_{init},\qquad
# \lambda_{init} = 0.8 - 0.6\,e^{-0.3\,l} \tag{eq. 2}$$
#
# The vectors start as small random numbers. Both exponentials are then close to 1, and λ starts close to
# $\lambda_{init}$. Training can move it either way, without a bound:

# %%
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", kernels="reference")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
texts = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")
ids = [tokenizer([text.strip()], return_tensors="np")["input_ids"][0][:256] for text in texts]
maps = [viz.attention_maps(model, list(map(int, row))) for row in ids]
lambdas = maps[0].lambdas
print("λ_init", [round(layers.lambda_init(layer), 2) for layer in range(6)])
print("λ     ", [round(float(x), 2) for x in lambdas])
sketches.strengths_by_layer(lambdas)

# %% [markdown]
# **λ above 1 (layer 3) swaps the roles.** $A_1 - \lambda A_2 = -\lambda(A_2 - A_1/\lambda)$. The norm that follows
# removes the factor λ, and $W^O$ can reverse the sign. So $A_2$ leads, and $A_1$ is subtracted with a strength of
# 1/1.56 = 0.64. We call the map with the larger factor the *leading* map.
#
# **λ below 0 (layers 1 and 5) adds.** Nothing cancels there; the pair acts like one softmax that mixes two.
#
# ## Do the two maps share their noise?
#
# We measure on the openings of eight tales that the model has never seen: for each query, the correlation over the keys
# of the scores of $A_1$ and $A_2$, and the mean over queries. Each dot is one pair. For comparison, diamonds show maps
# that do *not* belong together: $A_1$ of one pair and $A_2$ of another.

# %%
same = np.eye(3, dtype=bool)
by_pairs = np.array([[[sketches.score_correlation(m.first[:, i], m.second[:, j]) for j in range(3)] for i in range(3)]
                     for m in maps])  # fmt: skip
own, others = (by_pairs[:, chosen].mean(axis=1) for chosen in (same, ~same))  # (tale, layer)
less = [retrieval_table.mean_and_interval(own[:, layer] - others[:, layer]) for layer in range(6)]
for layer, (mean, half) in enumerate(less):
    print(f"layer {layer}: mean ρ in a pair {own[:, layer].mean():5.2f}   "
          f"across pairs {others[:, layer].mean():5.2f}   difference {mean:+.3f} ± {half:.3f}")  # fmt: skip
single, crossed = (by_pairs[:, chosen].mean(axis=0).T for chosen in (same, ~same))  # (layer, pair)
print(f"the largest mean ρ of a layer is {own.mean(axis=0).max():.2f}, of a single pair {single.max():.2f}")
sketches.correlation_dots(single, crossed)

# %% [markdown]
# No layer's mean is above 0.40. In layers 0, 2, 3 and 4, the ones that subtract, partners are even *less* alike than
# maps that do not belong together. (± is a 95 % confidence interval over the tales.)
#
# What does that mean for the weights? In the next picture each point is one query and one key: its weight in $A_1$ to
# the right, in $A_2$ upward. On the left are our built maps. On the right is a pair of layer 4.

# %%
one, two = (getattr(maps[0], name)[4, 0, 32:] for name in ("first", "second"))
visible = one > 0
built = (first, second)
trained = (one[visible][::23], two[visible][::23])
print(f"{len(trained[0]):,} of {visible.sum():,} weights of the trained pair are drawn")
sketches.scatter_maps({"built: shared noise": built, "trained: layer 4, pair 0": trained}, needle)

# %% [markdown]
# Shared noise would lie along the diagonal, as it does on the left. On the right, a weight in one map says much
# less about the weight in the other.
#
# ## Does the preferred token gain?
#
# For each query, take the token to which the leading map gives most. What share of Σ|weight| does it have before and
# after the other map is subtracted? For comparison, we also compute what the same λ *would* do if the noise were
# shared: if, without that token, both maps had the same proportions.

# %%
table = []
for m in maps:
    leading, other, strength = sketches.leading_maps(m)  # swapped where λ > 1
    after = leading - strength * other
    alone, measured = sketches.shares_of_top(leading, after)
    if_shared = sketches.share_if_shared(leading, other, strength)
    kinds = (alone, if_shared, measured, measured < alone, if_shared < alone)
    table.append([x.mean(axis=(1, 2)) for x in kinds])
alone, if_shared, measured, falls, too_much = np.mean(table, axis=0)
print("the share falls in", "   ".join(f"{x:.0%} (layer {i})" for i, x in enumerate(falls)), "of rows")
print(f"layer 0: its λ is above the rule's limit in {100 * too_much[0]:.0f} % of rows")
series = {"leading map alone": alone, "if noise were shared": if_shared, "measured": measured}
shown = (0, 2, 3, 4)
sketches.group_bars({name: {f"layer {i}": float(x[i]) for i in shown} for name, x in series.items()},
                    "share of the preferred token, layers that subtract")  # fmt: skip

# %% [markdown]
# **The share of Σ|weight| falls in every layer that subtracts, in more than nine rows of ten.** (It falls in layers 1
# and 5 as well, but they add a map.) In layers 2, 3 and 4, λ is not to blame: with shared noise, the same λ would
# *raise* the share. In layer 0, it is too large in 69 % of the rows. (The favorite need not be the token that matters,
# which nobody knows here.)
#
# Is the favorite diluted, then? The norm does not see weights. It sees their sum with the values, $o = \sum_j w_j v_j$.
# Token $j$ makes up the part $(w_j v_j \cdot o) / (o \cdot o)$ of it; the parts of all tokens sum to 1.

# %%
traces = [oracle.trace(model, row[None]) for row in ids]  # every intermediate result of a run
parts, rises, likeness = [], [], []


def split(row, top, values):
    """What the top token and all others add to the output: each (layer, pair, query, 2d)."""
    favorite = np.take_along_axis(row, top, -1) * np.take_along_axis(values, top, -2)
    return favorite, row @ values - favorite


def cosine(a, b):
    return (a * b).sum(axis=-1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))


for m, trace in zip(maps, traces, strict=True):
    values = np.array([trace[f"model.layers.{layer}.self_attn.values"][0] for layer in range(6)])
    leading, other, strength = sketches.leading_maps(m)
    top = leading.argmax(axis=-1)[..., None]
    shares_in_output = []
    for row in (leading, leading - strength * other):
        favorite, rest = split(row, top, values)
        out = favorite + rest
        shares_in_output.append((favorite * out).sum(axis=-1) / (out * out).sum(axis=-1))
    parts.append([x.mean(axis=(1, 2)) for x in shares_in_output])
    rises.append((shares_in_output[1] > shares_in_output[0]).mean(axis=(1, 2)))
    average = np.tri(values.shape[2])[-leading.shape[2] :]
    average = average / average.sum(axis=-1, keepdims=True) @ values  # of the values of all tokens so far
    noises = [split(row, top, values)[1] for row in (leading, other)]
    likeness.append([cosine(a, b).mean(axis=(1, 2)) for a, b in
                     ((noises[0], noises[1]), (noises[0], average), (noises[1], average))])  # fmt: skip
part_alone, part_after = np.mean(parts, axis=0)
print("part of the output, alone:", part_alone.round(2), " after:", part_after.round(2))
print("it rises in", "   ".join(f"{x:.0%} (layer {i})" for i, x in enumerate(np.mean(rises, axis=0))), "of rows")
series = {"leading map alone": part_alone, "after the subtraction": part_after}
sketches.group_bars({name: {f"layer {i}": float(x[i]) for i in shown} for name, x in series.items()},
                    "the preferred token's part of the output")  # fmt: skip

# %% [markdown]
# **In layers 2, 3 and 4, the favorite's part of the output rises from about a half to about two thirds, in more than
# eight rows of ten.** So subtraction does in this model what the paper wants, and Σ|weight| does not show it. (In layer
# 0, where λ is 0.19, nothing changes.) How can that be, if the maps share so little?
#
# ## What did training find?
#
# Over how many tokens does a row spread its weight? The exponential of its entropy counts them: 1 for a row that sees
# one token, $n$ for an even row over $n$ tokens.

# %%
first_breadth, second_breadth = (
    np.mean([sketches.breadth(getattr(m, name)) for m in maps], axis=0) for name in ("first", "second")
)
leading_sharp = (first_breadth < second_breadth) == (lambdas < 1)[:, None]
other_breadth = np.where(lambdas[:, None] > 1, first_breadth, second_breadth)
print(f"the leading map is the sharper one in {leading_sharp.sum()} of {leading_sharp.size} pairs")
print(f"the other map spreads over {other_breadth.min():.0f} to {other_breadth.max():.0f} tokens, "
      f"an even one over {np.arange(33, 257).mean():.0f}")  # fmt: skip
sketches.breadths(np.stack([first_breadth, second_breadth]), lambdas)

# %% [markdown]
# **The leading map is the sharper one in 17 of 18 pairs.** The other spreads over some 20 to 90 tokens. It is no copy
# of the leading map's noise. But a sum over many tokens is nearly the same whichever tokens they are: the average of
# their values. We compare the directions of three vectors: what the leading map adds up to without its favorite, what
# the other map does, and the average of the values of all tokens so far.

# %%
alike = np.mean(likeness, axis=0)
for name, cosines in zip(("noise of both maps", "noise of the leading map, average", "noise of the other, average"),
                         alike, strict=True):  # fmt: skip
    print(f"cosine, by layer: {name:34}", cosines.round(2))

# %% [markdown]
# **In layers 1 to 4, the noise of both maps points in nearly the same direction as the average.** That is the
# noise that the two maps share: not token by token, but in what they hand over. Subtraction removes it, and the
# favorite stands out.
#
# Does this help the model? We remove second maps and measure the loss on the eight tales.


# %%
def text_losses(changed):
    """The loss of each tale, where some layers get another λ."""
    with sketches.strengths(model, changed):
        return np.array([float(model(row[None], labels=row[None]).loss) for row in ids])


as_it_is, removed = text_losses({}), {}
leading_alone = {layer: 1e6 if lambdas[layer] > 1 else 0 for layer in range(6)}  # 10⁶ leaves A₂ alone
print(f"as it is: loss {as_it_is.mean():.3f} nats per token; without the second map of")
for layers_without in ((0,), (2,), (3,), (4,), (0, 2, 3, 4), (1,), (5,), (1, 5)):
    extra = text_losses({layer: leading_alone[layer] for layer in layers_without}) - as_it_is
    mean, half = removed[layers_without] = retrieval_table.mean_and_interval(extra)
    what = "subtracts" if lambdas[layers_without[0]] > 0 else "adds"
    print(f"  layers {layers_without!s:13} which {what:9}: {mean:+.3f} ± {half:.3f}")
wrong_map, no_second = (
    retrieval_table.mean_and_interval(text_losses(dict.fromkeys(chosen, 0)) - as_it_is) for chosen in ((3,), range(6))
)
print(f"λ = 0 in layer 3, which removes the leading map: {wrong_map[0]:+.3f} ± {wrong_map[1]:.3f}")
print(f"λ = 0 in every layer: {no_second[0]:+.3f} ± {no_second[1]:.3f}")

# %% [markdown]
# For a single subtraction each interval contains 0, so a change of 0.02 could hide in it. All four together cost 0.059
# ± 0.042, and the two additions cost 0.057 ± 0.019. So second maps carry something, but little. Setting every λ to 0
# does far more harm, and most of it, 0.353 ± 0.059, comes from layer 3, where it removes the map that leads. Keep in
# mind that this model was *trained* with its second maps; chapter 05 compares it with one trained without.
#
# ## The norm and the factor
#
# Each pair ends with
#
# $$\mathrm{head}_i = (1-\lambda_{init})\,\mathrm{LN}(\mathrm{DiffAttn}_i(X)) \tag{eq. 3}$$
#
# *Why the norm?* The paper says that differential heads differ more in size than softmax heads. In our model they do in
# four layers of six (counted below). *Why the factor?* In a new model the weights of both maps are nearly even, so the
# difference is about $1-\lambda$ times one map. The norm enlarges it to size 1, and its gradients by as much: more in
# deep layers, where $\lambda_{init}$ is larger. The factor $1-\lambda_{init}$ undoes this growth with depth:

# %%
spreads = np.zeros((6, 2, len(ids)))  # layer; one map or both; tale
for number, trace in enumerate(traces):
    for layer in range(6):
        names = ("attn2" if lambdas[layer] > 1 else "attn1", "diff")
        prefix = f"model.layers.{layer}.self_attn."
        spreads[layer, :, number] = [sketches.size_spreads(trace[prefix + name][0])[0] for name in names]
grows = (spreads[:, 1] > spreads[:, 0]).sum(axis=-1)
print("tales (of 8) in which heads differ more in size with both maps, by layer:", grows)
depths = (0, 3, 11, 27)
sizes = np.array([np.mean([sketches.gradient_sizes(depth, seed) for seed in range(5)], axis=0) for depth in depths])
for depth, (bare, norm, both) in zip(depths, sizes, strict=True):
    print(
        f"gradient of W_Q in layer {depth:2}: bare {bare:4.2f}, with norm {norm:5.1f}, with norm and factor {both:4.1f}"
    )
lines = dict(zip(("A₁ − λA₂ alone", "with norm", "with norm and factor"), sizes.T, strict=True))
sketches.curves(depths, lines, "layer", "gradient of W_Q, plain head = 1", yscale="log", xticks=depths,
                yticks=(1, 2, 5, 10, 20, 50), yticklabels=(1, 2, 5, 10, 20, 50))  # fmt: skip

# %% [markdown]
# With the norm alone, the gradient grows about fourfold from layer 0 to layer 27. With the factor it is nearly level,
# but still about 15 times a plain head's, because one map's own output, an average of many values, is small, and the
# factor does not undo that. (The paper's appendix G says that the gradients are the same "up to constant factors".)
#
# ## See for yourself
#
# All maps of the bundled model on two sentences: choose a layer and a pair, and move over the tokens. (GitHub does not
# run scripts and shows nothing here. `refdiff attention "your text" -o page.html` writes the page as a file.)

# %%
sentence = "There was once a king who had three sons. The eldest son was very proud, and the youngest"
seen = viz.attention_maps(model, sentence)
layer, pair = seen.most_cancelling()
viz.explore(model, sentence, layer=layer, pair=pair)

# %% [markdown]
# ## The answer
#
# **Subtraction removes noise if both maps share it and the first map has much of it; our trained model shares it not in
# the weights but in their sum, the average value, which a broad second map takes away from a sharp first one, at a
# small gain for the loss.**
#
# <details>
# <summary>What the tests check</summary>
#
# ```python
# noisy, found = shares.values()
# assert noisy.max() > 2 * noisy[0]
# assert found.max() < found[0] + 0.1
# for (best, last), share in zip(rules.values(), shares.values(), strict=True):
#     assert abs(best - lambdas_tried[share.argmax()]) < 0.03
#     assert abs(last - lambdas_tried[share > share[0]].max()) < 0.01
# assert first[needle] > (first - 0.75 * second)[needle]
# assert (grows >= 7).tolist() == [True, False, True, False, True, True]
# assert own.mean(axis=0).max() < 0.405
# assert own.mean(axis=0)[1:].min() > 0.235
# assert all(less[layer][0] < -less[layer][1] for layer in (0, 2, 3, 4))
# assert falls.min() > 0.9
# assert (if_shared[2:5] > alone[2:5] + 0.1).all()
# assert (0.45 < part_alone[2:5]).all() and (part_alone[2:5] < 0.55).all()
# assert (0.6 < part_after[2:5]).all() and (part_after[2:5] < 0.75).all()
# assert np.mean(rises, axis=0)[2:5].min() > 0.8
# assert alike[:, 1:5].min() > 0.7
# assert if_shared[0] < alone[0]
# assert np.argwhere(~leading_sharp).tolist() == [[3, 2]]
# assert all(abs(removed[layer,][0]) < removed[layer,][1] for layer in (0, 2, 3, 4))
# assert 0.7 < wrong_map[0] / no_second[0] < 0.8
# assert all(removed[changed][0] > removed[changed][1] for changed in ((0, 2, 3, 4), (1,), (5,)))
# assert sizes[-1, 1] > 3.5 * sizes[0, 1]
# assert (sizes[:, 2] > 14).all()
# assert np.ptp(sizes[:, 2]) < 0.15 * sizes[0, 2]
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
