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
# A softmax gives no token that it sees a weight of exactly zero. A token that needs one word of a long text still takes
# a little from all the others, and these crumbs add up to noise. The Differential Transformer computes *two* maps and
# subtracts one from the other, as noise-cancelling headphones subtract the sound of the room. **When does that remove
# noise, and is it what a trained model does?**
#
# First on made-up scores, where we know what matters; then on real text, where the answer is a surprise. Allow 40
# minutes; you need chapter 00.

# %%
# %matplotlib inline
import inspect
from pathlib import Path

import numpy as np
import sketches
import tiny
from experiments import retrieval_table

import refdiff
from refdiff import layers, oracle, viz

# %% [markdown]
# ## The picture and the equation
#
# Two heads form a pair. Each computes a map of its own; both share one value.

# %%
sketches.head_pair()

# %% [markdown]
# With $A_i = \mathrm{softmax}(Q_i K_i^\top/\sqrt d)$ (Ye et al. 2024, [arXiv
# 2410.05258](https://arxiv.org/abs/2410.05258)):
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
# One query, 48 keys. It should find key 30, the *needle*. We *build* the two maps so that the idea must work. Both get
# nearly the same random keys, with a correlation of 0.99. Only the first knows the needle. (The random numbers are
# those of figure 1 in the [article](reference/live/index.html).)

# %%
S, d, needle = 48, 16, 30
query, noise, other_noise = sketches.article_draw(S, d)
keys_1, keys_2 = noise.copy(), 0.99 * noise + np.sqrt(1 - 0.99**2) * other_noise
keys_1[needle] += 0.6 * query  # the first map is told where to look
first, second = (tiny.softmax(keys @ query / np.sqrt(d)) for keys in (keys_1, keys_2))

rows = {}
for name, row in (("A₁", first), ("A₂", second), ("A₁ − 0.75 A₂", first - 0.75 * second)):
    share = abs(row[needle]) / np.abs(row).sum()
    rows[f"{name}: the needle's weight is {row[needle]:.2f}, {share:.0%} of Σ|weight|"] = row
    print(list(rows)[-1])
sketches.bars(rows, needle)

# %% [markdown]
# Look at both numbers. The needle's own weight *falls*: subtraction gives nothing to anyone. What grows is its share,
# because all other weights shrink more. The share is what counts, since a norm follows that makes up for the smaller
# sum.
#
# How far should one go? Beyond some λ the noise comes back with a minus sign. There is a rule. Say $A_1$ gives the
# needle $p$ and the noise $1-p$, and $A_2$ gives them $q$ and $1-q$. If the noise has the same shape in both, it
# cancels at
#
# $$\lambda^* = \frac{1-p}{1-q} \approx 1 - p, \qquad\text{and the share is above } p \text{ as long as}\quad
# \lambda < \frac{2p(1-p)}{p+q-2pq} \approx 2(1-p)$$
#
# where ≈ holds if $A_2$ gives the needle much less than $A_1$ does ($q \ll p$). **Subtract as much as $A_1$ has noise;
# at twice as much the gain is gone.** We try it on two needles: ours, and one that $A_1$ is told about more firmly.

# %%
lambdas_tried = np.linspace(0, 2, 2001)
shares, rules = {}, {}
for name, told in (("found among noise", 0.0), ("found already", 0.9)):
    scores = np.array([keys_1 @ query, keys_2 @ query]) / np.sqrt(d)
    scores[0, needle] += told * query @ query / np.sqrt(d)
    one, two = tiny.softmax(scores)
    difference = np.abs(one - lambdas_tried[:, None] * two)
    shares[name] = difference[:, needle] / difference.sum(axis=-1)
    p, q = one[needle], two[needle]
    rules[name] = (1 - p) / (1 - q), 2 * p * (1 - p) / (p + q - 2 * p * q)
    best, last = lambdas_tried[shares[name].argmax()], lambdas_tried[shares[name] > p].max()
    print(f"{name:17} p = {p:.2f}: best λ {best:.3f} (rule {rules[name][0]:.3f}), gain up to λ = {last:.3f} "
          f"(rule {rules[name][1]:.3f}), share {p:.2f} → {shares[name].max():.2f}")  # fmt: skip
sketches.share_by_strength(lambdas_tried, shares, rules)

# %% [markdown]
# The vertical lines are at λ*; the ring is where a curve is back at its height for λ = 0. A needle among noise gains
# much, over a wide range of λ. One that $A_1$ has found already gains a little (0.91 → 0.98) from a small λ. Beyond λ =
# 0.19 it loses: there $-\lambda A_2$ does not cancel noise, it *is* the noise.
#
# ## When is noise shared?
#
# We gave both maps nearly the same scores. That was the whole trick. Let us turn it into a knob: the correlation ρ of
# the scores of the two maps, which was near 1 above. Move the sliders: how far can ρ fall before the subtraction stops
# helping the needle? (Where scripts do not run, as on GitHub, this place is empty. The picture that follows needs
# none.)

# %%
sketches.Slider()

# %% [markdown]
# One drawing proves little, so here is the mean of 2,000. One needle is weak: $A_1$ finds it among noise. The other is
# strong: $A_1$ has found it already.

# %%
n1, n2 = np.random.default_rng(0).standard_normal((2, 2000, S))
correlations = np.linspace(0, 1, 11)


def needle_share(told, lambda_, rho):
    one = tiny.softmax(n1 + told * (np.arange(S) == needle))
    two = tiny.softmax(rho * n1 + np.sqrt(1 - rho**2) * n2)  # the same scores to the part ρ
    row = np.abs(one - lambda_ * two)
    return (row[:, needle] / row.sum(axis=-1)).mean()


panels = {}
for kind, told in (("weak", 2.5), ("strong", 6.0)):
    alone = needle_share(told, 0.0, 0.0)
    lines = panels[f"{kind} needle"] = {"A₁ alone": np.full(11, alone)}
    for lambda_ in (0.25, 0.5, 0.75):
        found = np.array([needle_share(told, lambda_, rho) for rho in correlations])
        helps = f"gains from ρ = {correlations[found > alone][0]:.1f} on" if found.max() > alone else "loses at every ρ"
        print(f"{kind:6} needle, λ = {lambda_:.2f}: {helps}; {alone:.2f} alone, {found[-1]:.2f} at ρ = 1")
        lines[f"A₁ − {lambda_:g} A₂"] = found
sketches.gain_by_correlation(correlations, panels, (0.24, 0.40))

# %% [markdown]
# So the idea needs two things: **noise that both maps share, and a first map that has much of it.**
#
# - *Weak needle, noise shared:* it gains much.
# - *Weak needle, noise not shared:* it gains little with λ up to 0.5, and loses with λ = 0.75 and ρ below 0.3. (At
#   ρ = 0 a small gain is left: all softmaxes share a positive weight on every key.)
# - *Strong needle:* it gains only with a small λ and a large ρ (λ = 0.25 and ρ of 0.7 or more). Otherwise it loses.
#
# The grey band is where ρ will turn out to be in layers 1 to 5 of the trained model. (In layer 0 it is below 0.) Before
# we ask that model, we need to know its λ.
#
# ## What λ is
#
# λ is learned, one number for each layer:
#
# $$\lambda = \exp(\lambda_{q1}\cdot\lambda_{k1}) - \exp(\lambda_{q2}\cdot\lambda_{k2}) + \lambda_{init} \tag{eq. 2}$$
# $$\lambda_{init} = 0.8 - 0.6\,\exp(-0.3\,l),\quad l = 0, 1, \dots \tag{section 2.1}$$
#
# (As in chapter 00, layers count from 0. The paper counts from 1 and writes $l - 1$.)
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
# The figure also names the *leading map* of each layer, the one with the larger factor in $A_1 - \lambda A_2$. That is
# $A_2$ where λ > 1, and $A_1$ in all other layers here.

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
# ## λ below 0 and above 1
#
# Nothing keeps λ between 0 and 1. Two layers have a negative λ, and layer 3 has λ = 1.56. What do such layers compute?
#
# **λ > 1 is the same as swapping the maps.** The norm of eq. 3 (last section) removes the positive factor in
# $-\lambda\,(A_2 - \frac{1}{\lambda}A_1)$, and the matrix $W^O$ can absorb the sign. So layer 3 with λ = 1.56 is an
# ordinary layer in which $A_2$ leads and $A_1$ is subtracted, with a λ of 1/1.56 = 0.64.
#
# **λ < 0 is one map that is a mixture.** $A_1 + |\lambda| A_2$ has positive weights only; after the norm it acts like a
# weighted mean of two softmaxes.

# %%
rng = np.random.default_rng(3)
q, k = rng.standard_normal((2, 1, 2, 7, 4))
v = rng.standard_normal((1, 1, 7, 8))
strong = layers.diff_heads_hf(q, k, v, np.asarray(1.56), 0.2, 0.0)
exchanged = layers.diff_heads_hf(q[:, ::-1], k[:, ::-1], v, np.asarray(1 / 1.56), 0.2, 0.0)
print(f"1/1.56 = {1 / 1.56:.2f}; λ = 1.56 equals the swapped pair at 1/1.56 with the sign turned:",
      np.allclose(strong, -exchanged))  # fmt: skip

# %% [markdown]
# ## Is the noise shared? A measurement on real text
#
# We take the openings of eight tales, which were written for this notebook and which the model has not seen. We
# correlate the scores of the two maps of each pair, query by query. (From here on, the first 32 queries of each text
# are left out: they see few keys.) For comparison, we also correlate maps that do *not* belong together: $A_1$ of one
# pair and $A_2$ of another pair of the same layer. The ± gives a 95 % confidence interval over the tales.

# %%
same = np.eye(3, dtype=bool)
by_pairs = np.array([[[sketches.score_correlation(m.first[:, i], m.second[:, j]) for j in range(3)] for i in range(3)]
                     for m in maps])  # fmt: skip
own, others = (by_pairs[:, chosen].mean(axis=1) for chosen in (same, ~same))  # (tale, layer)
less = [retrieval_table.mean_and_interval(own[:, layer] - others[:, layer]) for layer in range(6)]
for layer, (mean, half) in enumerate(less):
    print(f"layer {layer}: λ {lambdas[layer]:5.2f}   ρ in a pair {own[:, layer].mean():5.2f}   "
          f"across pairs {others[:, layer].mean():5.2f}   difference {mean:+.3f} ± {half:.3f}")  # fmt: skip
single = by_pairs[:, same].mean(axis=0).T  # (layer, pair)
largest = np.unravel_index(single.argmax(), single.shape)
leads_second = lambdas[:, None, None, None] > 1
no_needle = np.mean([sketches.score_correlation(m.first, m.second, needles=np.where(leads_second, m.second, m.first))
                     for m in maps], axis=(0, 2))  # fmt: skip
change = np.abs(no_needle - own.mean(axis=0)).max()
print("ρ without the top key of each row:", "  ".join(f"{x:.2f}" for x in no_needle), f"  largest change {change:.2f}")
print(f"the largest ρ of a single pair is {single.max():.2f}: layer {largest[0]}, pair {largest[1]}")

# %% [markdown]
# The two maps of a pair share little: no layer's mean ρ is above 0.40, and no single pair's is above 0.52. In layers 0,
# 2, 3 and 4, where λ > 0, they are even *less* alike than maps that do not belong together. Our made-up needle gained
# much only at a ρ near 1.
#
# (The knob above correlated the *noise*, and here we correlate all scores. It makes little difference: without the top
# key of each row of the leading map, no layer's mean changes by more than 0.02.)
#
# ## Does the strongest token gain?
#
# For each query we take the token to which the leading map gives most ($A_1$, or $A_2$ in layer 3). What is its share
# of Σ|weight| before and after the other map is subtracted? For comparison we compute a third share, as if the noise
# were shared. We keep the weights $p$ and $q$ that the two maps give to this token. The rest of the other map we
# replace by a copy of the leading map's noise, scaled to sum to $1 - q$.
#
# This token is the leading map's own first choice. It need not be the token that matters: chapter 08 shows a row in
# which the loss wants another one.

# %%
table = []
for m in maps:
    leading, other, lambda_ = sketches.leading_maps(m)  # with the maps exchanged where λ > 1
    after = leading - lambda_ * other
    alone, measured = sketches.shares_of_top(leading, after)
    if_shared = sketches.share_if_shared(leading, other, lambda_)
    on_top = np.abs(after).argmax(axis=-1) == leading.argmax(axis=-1)
    minus = np.maximum(-after, 0).sum(axis=-1) / np.abs(after).sum(axis=-1)
    kinds = (alone, if_shared, measured, measured < alone, on_top, minus, if_shared < alone)
    table.append([x.mean(axis=(1, 2)) for x in kinds])
alone, if_shared, measured, falls, on_top, minus, too_much = np.mean(table, axis=0)
for layer in range(6):
    print(f"layer {layer}, λ {lambdas[layer]:5.2f}: the share falls in {falls[layer]:4.0%} of rows; still the largest "
          f"|weight| in {on_top[layer]:4.0%}; {minus[layer]:3.0%} of Σ|weight| is negative")  # fmt: skip
print(f"layer 0: its λ is above the rule's limit in {too_much[0]:.0%} of rows")
series = {"leading map alone": alone, "if the noise were shared": if_shared, "with the second map, measured": measured}
shown = (0, 2, 3, 4)
sketches.groups({name: {f"layer {layer}": float(x[layer]) for layer in shown} for name, x in series.items()},
                "share of the top token", "the layers that subtract")  # fmt: skip

# %% [markdown]
# **The share falls, in every layer and in more than nine rows of ten.** In layers 3 to 5, another token takes first
# place in a fifth to a quarter of the rows. Subtraction does not sharpen the leading map's favorite; it dilutes it.
# (Layers 1 and 5 add. There the share must fall wherever $A_2$ gives the token less than $A_1$ does, so only
# the other four are evidence.)
#
# The middle bars say why. In layers 2, 3 and 4 the same λ would *raise* the share, if only the noise were shared. So λ
# is not too large there. What is missing is the shape: the rest of the other map is not like the leading map's noise.
# In layer 0 the middle bar falls, too. In 69 % of its rows there is so little noise that even λ = 0.19 is too much.
#
# (ρ sees one part of that shape: which keys have much of a row's noise. It does not see how sharp a map is. Double all
# scores of a map: the map becomes sharper, and ρ stays. The next section measures sharpness.)
#
# ## What has training found instead?
#
# Over how many tokens does a row $a$ spread its weight? The exponential of its entropy $-\sum_s a_s \ln a_s$ counts
# them: 1 for a row that sees one token, $n$ for an even row over $n$ tokens. Here for each of the three pairs of a
# layer, first for scale an even map:

# %%
first_breadth, second_breadth = (
    np.mean([sketches.breadth(getattr(m, name)) for m in maps], axis=0) for name in ("first", "second")
)
print(f"an even map would spread over {np.arange(33, 257).mean():.1f} tokens on average")
for layer in range(6):
    one, two = ("  ".join(f"{x:4.1f}" for x in b[layer]) for b in (first_breadth, second_breadth))
    print(f"layer {layer}: λ = {lambdas[layer]:5.2f}   A₁ spreads over {one} tokens   A₂ over {two}")
leading_sharp = (first_breadth < second_breadth) == (lambdas < 1)[:, None]
print(f"the leading map is the sharper one in {leading_sharp.sum()} of {leading_sharp.size} pairs")
sketches.breadths(np.stack([first_breadth, second_breadth]), lambdas)

# %% [markdown]
# **The leading map is the sharper one**, in all pairs but one (pair 2 of layer 3). Not each of them is sharp: five of
# the leading maps spread over 30 tokens or more. The other map of a pair spreads over some 20 to 90 tokens. It is not a
# copy of the noise in the first, but more like an average over many tokens.
#
# What is it good for? Take it out and see. We set λ to 0, layer by layer. (Layer 3 gets λ = 10⁶ instead, which leaves
# $A_2$ alone, since the norm removes the size.) The change of the loss is in nats per token, with a 95 % confidence
# interval over the eight tales.


# %%
def text_losses(changed):
    """The loss of each tale, where some layers get another λ."""
    with sketches.strengths(model, changed):
        return np.array([float(model(row[None], labels=row[None]).loss) for row in ids])


as_it_is, removed = text_losses({}), {}
print(f"as it is: loss {as_it_is.mean():.3f}")
leading_alone = {layer: 1e6 if lambdas[layer] > 1 else 0 for layer in range(6)}
for changed in ((0,), (2,), (3,), (4,), (0, 2, 3, 4), (1,), (5,), (1, 5)):
    differences = text_losses({layer: leading_alone[layer] for layer in changed}) - as_it_is
    mean, half = removed[changed] = retrieval_table.mean_and_interval(differences)
    what = "subtract" if lambdas[changed[0]] > 0 else "add"
    print(f"layers that {what:8}: {changed!s:14} {mean:+.3f} ± {half:.3f}")
four_and_two = (text_losses({layer: leading_alone[layer] for layer in chosen}) for chosen in ((0, 2, 3, 4), (1, 5)))
apart = retrieval_table.mean_and_interval(np.subtract(*four_and_two))
print(f"four subtractions − two additions:    {apart[0]:+.3f} ± {apart[1]:.3f}")
wrong_map, no_second = (
    retrieval_table.mean_and_interval(text_losses(dict.fromkeys(chosen, 0)) - as_it_is) for chosen in ((3,), range(6))
)
print(f"layer 3 with λ = 0, A₁ alone:         {wrong_map[0]:+.3f} ± {wrong_map[1]:.3f}")
print(f"λ = 0 in every layer, as in chapter 00: {no_second[0]:+.3f} ± {no_second[1]:.3f}")

# %% [markdown]
# A second map that is *subtracted* can be taken out of any one layer, and no change of the loss shows: each interval
# contains 0, though a change of 0.02 could hide. Out of all four layers at once it costs 0.059 ± 0.042. A second map
# that is *added* is missed, in layer 1 as in layer 5; both together cost 0.057 ± 0.019. Which of the two matters more,
# eight tales cannot say: the difference is 0.003 ± 0.056. So the second maps do carry something, but one subtraction
# more or less hardly matters to this model. (It was trained with them. Chapter 09 has a plain Transformer of its size,
# trained without, on the same data.)
#
# Then why did the model get so much worse when chapter 00 set every λ to 0? The last two lines have most of the answer:
# of 0.46, 0.35 comes with layer 3 alone, where that takes away the map that leads.
#
# Chapter 00 asked what a broad map is subtracted for. So far we can say what it does. It takes a little off every
# token, so the tokens that the leading map passes over count below zero. Without all four subtractions the loss rises
# by some 0.02 to 0.10 nats, and none of them alone is missed. What this model gains by the minus sign, we have not
# found. (Chapter 09 has small models that learn to look up a value by its key. Five of six that were trained without
# the second map did not learn it in the same time.)

# %% [markdown]
# ## See it
#
# Layer 4 subtracts, and its λ is the one nearest to 1. We take its pair whose two maps overlap most.

# %%
text = "There was once a king who had three sons. The eldest son was very proud, and the youngest"
seen = viz.attention_maps(model, text)
layer, pair = seen.most_cancelling()
difference = seen.difference[layer, pair]
negative = np.maximum(-difference, 0).sum() / np.abs(difference).sum()
print(f"layer {layer}, pair {pair}: {negative:.0%} of Σ|weight| is negative")
words = [token.replace("·", " ") for token in seen.tokens]
n = words.index(".") + 1
first_sentence = (one[layer, pair, :n, :n] for one in (seen.first, seen.second))  # what follows changes nothing here
sketches.three_maps(words[:n], *first_sentence, float(seen.lambdas[layer]))

# %% [markdown]
# The first of the two sentences is drawn. Blue is above zero, orange below; queries go down, keys across. The third map
# is the first minus the second. $A_1$ is sharp and $\lambda A_2$ broad. Where both have weight, the third has less.
# Where only the second has some, the third is orange: the value of that token is taken away from the sum.
#
# The same maps to explore, for all layers and pairs: choose one and move over the tokens. (This is a page in a frame.
# Where scripts do not run, as on GitHub, this place is empty. `refdiff attention "your text" -o page.html` writes it as
# a file.)

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
#
# The first can be measured. The size of a head's result is its root mean square. How much does it differ (standard
# deviation ÷ mean) between the three heads of a layer, and how much from token to token? We compare one map alone,
# which is a softmax head, with the difference, on eight tales. (One map is $A_1$, or $A_2$ in layer 3, where it
# leads.)

# %%
prefixes = [f"model.layers.{layer}.self_attn." for layer in range(6)]
spreads = np.zeros((6, 2, 2, len(ids)))  # layer; one map, both; between heads, over tokens; tale
for number, row in enumerate(ids):
    trace = oracle.trace(model, row[None])  # every intermediate result of a run (chapter 07)
    for layer, at in enumerate(prefixes):
        names = ("attn2" if lambdas[layer] > 1 else "attn1", "diff")
        spreads[layer, ..., number] = [sketches.size_spreads(trace[at + name][0]) for name in names]
grows = (spreads[:, 1] > spreads[:, 0]).sum(axis=-1)
print("tales in which both maps differ more between heads than one map does, by layer:", grows[:, 0])
by_token = [spreads[2:5, i, 1].mean() for i in (0, 1)]
print(f"from token to token, layers 2 to 4: {by_token[0]:.2f} with one map, {by_token[1]:.2f} with both")
sketches.groups(
    {name: {f"layer {layer}": spreads[layer, i, 0].mean() for layer in range(6)}
     for i, name in enumerate(("one map, a softmax head", "both maps"))},
    "spread of sizes between heads", ylim=(0, 0.35),
)  # fmt: skip

# %% [markdown]
# With both maps, the sizes differ more between heads in layers 0, 2, 4 and 5. They differ as much in layer 3, and less
# in layer 1. The paper's reason shows in four layers of six. Where most is subtracted (layers 2, 3 and 4) sizes also
# vary about twice as much from token to token. The norm works on each token by itself, so it levels that, too.
#
# Now the factor. Take a model as it is before training, with small random weights: how large is the difference,
# measured by one map's result?

# %%
untrained = refdiff.DiffLlamaForCausalLM.from_config(model.config, seed=0, dtype="float64")
trace = oracle.trace(untrained, ids[0][None])
relative, start_lambdas = [], [float(trace[at + "lambda_full"]) for at in prefixes]
for layer, at in enumerate(prefixes):
    one, both = (np.sqrt((trace[at + name] ** 2).mean(axis=-1)).mean() for name in ("attn1", "diff"))
    relative.append(both / one)
    print(f"layer {layer}: size of the difference / size of one map {relative[-1]:.3f}   "
          f"1 − λ {1 - start_lambdas[layer]:.3f}   1 − λ_init {1 - layers.lambda_init(layer):.3f}")  # fmt: skip

# %% [markdown]
# **At the start both maps are nearly even, so $A_1V \approx A_2V$, and the difference is $1-\lambda$ times one map's
# result.** The norm throws this size away, and the factor $1-\lambda_{init}$ puts it back. A softmax head with a norm
# would have size 1. This head gets size $1-\lambda_{init}$: what the difference of two even maps would have at
# λ = $\lambda_{init}$. Chapter 08 measures what that does to the gradients.

# %% [markdown]
# ## What we learned
#
# - Subtracting a second map removes what both maps share. The needle's weight falls. Its share grows if the noise is
#   shared and λ is below about twice the noise of the first map, $2(1-p)$.
# - In this small model the scores of a pair share little (mean ρ of a layer at most 0.40). The share of the leading
#   map's top token *falls* in every layer. In layers 2, 3 and 4, λ is not the reason. If the rest of the other map had
#   the shape of the leading map's noise, the share would rise there.
# - Training has made the leading map the sharper one in 17 of 18 pairs: four layers subtract the broad map, two add it.
#   What for stays open. Any one of the four subtractions can be taken out without a visible loss, but not all four;
#   neither addition can.
# - λ > 1 means that the second map leads; λ < 0 means that a layer adds.
# - Heads differ more in size with both maps in four layers of six. The norm gives all of them one size.
# - At the start the difference has $1-\lambda$ times the size of one map. The factor of eq. 3 has this size, with
#   λ_init in place of λ.
#
# All this is one model of 2.9 million parameters; large ones may do otherwise. Chapter 09 asks whether differential
# attention *looks* at less noise than plain attention when both are trained for one task.
#
# <details>
# <summary>What is checked of this chapter</summary>
#
# ```python
# noisy, found = shares.values()
# assert noisy.max() > 2 * noisy[0]
# assert found.max() < found[0] + 0.1
# for (best, last), share in zip(rules.values(), shares.values(), strict=True):
#     assert abs(best - lambdas_tried[share.argmax()]) < 0.03
#     assert abs(last - lambdas_tried[share > share[0]].max()) < 0.01
# assert first[needle] > (first - 0.75 * second)[needle]
# assert np.allclose(strong, -exchanged)
# assert (grows[[0, 2, 4, 5], 0] >= 7).all()
# assert grows[1, 0] == 0
# assert np.allclose(relative, 1 - np.array(start_lambdas), rtol=0, atol=0.002)
# assert own.mean(axis=0).max() < 0.405
# assert own.mean(axis=0)[1:].min() > 0.235
# assert own.mean(axis=0)[0] < 0
# assert single.max() < 0.525
# assert change < 0.0205
# assert all(less[layer][0] < -less[layer][1] for layer in (0, 2, 3, 4))
# assert (measured < alone).all()
# assert falls.min() > 0.9
# assert (np.where(lambdas[:, None] > 1, second_breadth, first_breadth) > 30).sum() == 5
# assert (if_shared[2:5] > alone[2:5] + 0.1).all()
# assert if_shared[0] < alone[0]
# assert np.argwhere(~leading_sharp).tolist() == [[3, 2]]
# assert all(abs(removed[layer,][0]) < removed[layer,][1] for layer in (0, 2, 3, 4))
# assert all(abs(removed[layer,][0]) + removed[layer,][1] < 0.025 for layer in (0, 2, 3, 4))
# assert abs(apart[0]) < 0.01 < 0.03 < apart[1]
# assert 0.7 < wrong_map[0] / no_second[0] < 0.8
# assert all(removed[changed][0] > removed[changed][1] for changed in ((0, 2, 3, 4), (1,), (5,)))
# assert np.allclose(seen.difference.sum(axis=-1), 1 - seen.lambdas[:, None, None], rtol=0, atol=1e-10)
# ```
#
# </details>

# %% [markdown]
# ## Exercises
#
# `from refdiff import exercises`, then for each: `exercises.check("softmax", my_softmax)`.
#
# **1.** `"softmax"`: over the last axis. Some scores are near 1000.
#
# **2.** `"attention_weights"`: one causal map. The queries are the last T of S tokens.
#
# **3.** `"eq1"`: differential attention. Queries may be the last T of S tokens: `np.tri(T, S, S - T)`;
# tiny.py has T = S.
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
# common. It becomes smaller if $A_1$ had found it already and λ is above about $2(1-p)$.
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
#
# Next: [04 · Which two heads are a pair?](04_three_wirings.ipynb), or
# [08 · What does training ask of the two maps?](08_gradients_and_training.ipynb)
