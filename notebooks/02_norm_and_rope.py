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
# # 02 · How does attention know the order of words?
#
# "The wolf saw the girl" and "the girl saw the wolf" have the same words. Attention compares words by dot products, and
# a dot product does not know where its words stand. **What tells the model the order?** Then a second question, since
# vectors grow from layer to layer: **what keeps the numbers in range?**
#
# You take the answers apart with the bundled model: RoPE for the order, RMSNorm for the size. Then you break each on
# purpose, and read what the model writes and how much worse it predicts. Allow 25 minutes; you need chapter 00.

# %%
# %matplotlib inline
import inspect
from itertools import pairwise
from pathlib import Path

import numpy as np
import sketches
import tiny

import refdiff
from refdiff import bundled, layers

weights, config = tiny.load(bundled.FOLDER)
eps, base = config["rms_norm_eps"], config["rope_parameters"]["rope_theta"]
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")


def words_to_ids(text):
    return tokenizer([text], return_tensors="np")["input_ids"][0]


ids = words_to_ids("Once upon a time there was a king who had three")


# %% [markdown]
# ## Without positions: a bag of words, almost
#
# We switch RoPE off (queries and keys stay as they are) and let the model read two sentences with
# swapped words. How much does the vector of the last token, "and", differ between them after each layer?


# %%
def last_token(text):
    x, after_each_layer = weights["model.embed_tokens.weight"][words_to_ids(text)], []
    for layer in range(config["num_hidden_layers"]):
        p = tiny.subset(weights, f"model.layers.{layer}.")
        normed = tiny.rms_norm(x, eps, p["input_layernorm.weight"])
        x = x + tiny.attention(normed, tiny.subset(p, "self_attn."), layer, config)
        x = x + tiny.swiglu(tiny.rms_norm(x, eps, p["post_attention_layernorm.weight"]), tiny.subset(p, "mlp."))
        after_each_layer.append(x[-1])
    return np.array(after_each_layer)


def without_mask(q, k):  # attention_map, but each token sees the later ones, too
    return tiny.softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))


rope, masked = tiny.rope, tiny.attention_map
differences = {}
print("difference of 'and' between the sentences, after layers 0 to 5:")
for name, rotate, attention_map in (
    ("with RoPE", rope, masked),
    ("without RoPE", lambda x, base: x, masked),
    ("without RoPE and mask", lambda x, base: x, without_mask),
):
    tiny.rope, tiny.attention_map = rotate, attention_map
    one, two = last_token("the wolf saw the girl and"), last_token("the girl saw the wolf and")
    differences[name] = np.linalg.norm(one - two, axis=-1) / np.linalg.norm(one, axis=-1)
    print(f"  {name:22}", " ".join(f"{difference:.2f}" for difference in differences[name]))
tiny.rope, tiny.attention_map = rope, masked

# %% [markdown]
# Without RoPE, "and" has exactly the same vector after layer 0: to *one* attention layer the words before the last are
# a bag. From layer 1 on the sentences differ even so. The mask gives the order away, because a token sees only what
# stands before it. So "wolf" knows of "girl" in one sentence and not in the other. Layer 0 writes this into the
# vectors, and layer 1 can read it. Without RoPE *and* without the mask, a bag of words is all that any layer sees (last
# line).
#
# The mask alone is not enough for this model, which was trained with RoPE, as we shall see.
#
# ## RoPE: rotate by position
#
# RoPE (Su et al. 2021, eq. 34) rotates queries and keys. Two of a head's numbers $(a, b)$ are a point in a plane; at
# position $t$ the point is rotated by the angle $t\,\theta_i$.

# %%
sketches.rotation()

# %% [markdown]
# $$(a, b) \mapsto (a\cos t\theta_i - b\sin t\theta_i,\;\; b\cos t\theta_i + a\sin t\theta_i),\qquad
# \theta_i = \mathrm{base}^{-2i/d}$$
#
# Each pair $i$ has its own speed $\theta_i$, as a clock has hands. In Hugging Face's layout, the pairs of a head are
# $(x_i, x_{i+d/2})$: number $i$ of the first half with number $i$ of the second.

# %%
print(inspect.getsource(tiny.rope))

# %% [markdown]
# The right half of the drawing is the point of it all. A dot product of two arrows depends on the angle *between* them.
# So a score depends on the distance of query and key, not on where the two stand. We test it on the whole model: all
# positions are moved by 100.

# %%
positions = np.arange(len(ids))[None]
here = model(ids[None], position_ids=positions).logits
moved = model(ids[None], position_ids=positions + 100).logits
spread = model(ids[None], position_ids=2 * positions).logits
print("positions + 100 gives the same logits:", np.allclose(here, moved, rtol=0, atol=1e-9))
print("positions × 2 gives the same logits:  ", np.allclose(here, spread, rtol=0, atol=1e-9))

# %% [markdown]
# ## How far can it see?
#
# A pair is back where it began after $2\pi/\theta_i$ tokens, its wavelength. Fast pairs tell neighbors apart, slow
# pairs tell near from far.

# %%
d = config["head_dim"]
wavelengths = 2 * np.pi * base ** (np.arange(0, d, 2) / d)
print("wavelengths in tokens:", " ".join(f"{w:.0f}" for w in wavelengths))
slow = int((wavelengths > 512).sum())
print(f"{slow} of {d // 2} pairs never come around within the 512 tokens of training")

# %% [markdown]
# A text longer than those of training shows the slow pairs angles that they never had. Recipes for long texts change
# the frequencies; `rope_type` in a `config.json` names one. Here are two of them for a text four times as long.

# %%
recipes = {
    "default": {"rope_type": "default", "rope_theta": base},
    "linear": {"rope_type": "linear", "rope_theta": base, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": base, "factor": 4.0, "original_max_position_embeddings": 512},
}
stretch = {}
for name, recipe in recipes.items():
    frequencies, scale = layers.rope_frequencies(recipe, d, 512, 2048)  # scale: of queries and of keys
    stretch[name] = 2 * np.pi / np.array(frequencies) / wavelengths
    print(f"{name:8} wavelengths × {stretch[name][0]:.2f} (fastest pair) … × {stretch[name][-1]:.2f} (slowest), "
          f"scores × {scale**2:.2f}")  # fmt: skip
sketches.curves(np.arange(d // 2), stretch, "pair i, from the fastest to the slowest", "wavelength ÷ default",
                band=(d // 2 - slow - 0.5, d // 2 - 0.5, "no full turn within 512"), ylim=(0, 4.5),
                xticks=range(0, d // 2, 3), legend_at=(0.02, 0.5))  # fmt: skip

# %% [markdown]
# *linear* slows all pairs alike, so adjacent tokens move closer together in angle. *yarn* keeps the two fastest pairs,
# slows the eight slowest fourfold and those between by degrees, and multiplies all scores by 1.30.
#
# Does it matter? We join the tales and read 1,024 tokens at once. That is twice what the model was trained on, so both
# recipes get factor 2 here and not 4. The loss by position is the mean of three such texts that do not overlap, without
# an interval. Nothing is trained.

# %%
tales = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")
joined = np.concatenate([words_to_ids(tale.strip()) for tale in tales])
starts = np.linspace(0, len(joined) - 1024, 3).astype(int)
edges = np.arange(0, 1025, 128)
by_position = {}
for name, recipe in recipes.items():
    changed = refdiff.DiffLlamaConfig.from_pretrained("bundled")
    changed.rope_parameters = recipe | ({"factor": 2.0} if "factor" in recipe else {})
    changed.max_position_embeddings = 1024
    longer = refdiff.DiffLlamaForCausalLM(changed, model.params)
    surprise = []
    for start in starts:
        row = joined[start : start + 1024]
        p_next = tiny.softmax(longer(row[None]).logits[0, :-1])
        surprise.append(-np.log(p_next[np.arange(1023), row[1:]]))
    mean = np.mean(surprise, axis=0)
    by_position[name] = [float(mean[a : b - 1].mean()) for a, b in pairwise(edges)]
    print(f"{name:8}", " ".join(f"{loss:.2f}" for loss in by_position[name]))
above = np.array(by_position["default"]) - by_position["yarn"]
print("default − yarn after 512:", " ".join(f"{nats:.2f}" for nats in above[4:]))
sketches.curves(edges[:-1] + 64, by_position, "position in the text", "loss (nats per token)",
                band=(512, 1024, "longer than in training"), xticks=edges)  # fmt: skip

# %% [markdown]
# (The bumps that all curves share come from the texts.) After position 512 the default falls ever further behind
# *yarn*, by 0.13 nats at first and 1.04 at the end. *linear* repairs the far end and pays for it everywhere before;
# adjacent tokens have moved closer. *yarn* costs some 0.05 or less before 512 and repairs much of what comes after.
# refdiff has four more kinds; `refdiff.layers.rope_frequencies` describes them.
#
# ## The norm: one size for every token
#
# Now the second question. Here is the size (root mean square) of the last token's vector on its way into each layer.
# Beside it is its size after the norm at the start of that layer.

# %%
states = model(ids[None], output_hidden_states=True).hidden_states
sizes = [float(np.sqrt((x[0, -1] ** 2).mean())) for x in states[: config["num_hidden_layers"]]]
for layer, size in enumerate(sizes):
    x = states[layer][0, -1]
    w = weights[f"model.layers.{layer}.input_layernorm.weight"]
    normed, weighted = (np.sqrt((tiny.rms_norm(x, eps, weight) ** 2).mean()) for weight in (1, w))
    print(f"into layer {layer}: size {size:6.3f}, after the norm {normed:.2f}, times its weight w {weighted:.2f}")
print(f"growth from the first to the last: {sizes[-1] / sizes[0]:.0f} times")

# %% [markdown]
# The vector grows 53-fold. The norm brings it back to size 1 before each layer. A learned weight $w$ then sets a
# size of the layer's own, 0.56 to 0.75 here. The paper (Ye et al. 2024, [arXiv
# 2410.05258](https://arxiv.org/abs/2410.05258), section 2.2) writes LN and means RMSNorm (Zhang and Sennrich 2019):
#
# $$\mathrm{LN}(x) = \frac{x}{\sqrt{\mathrm{mean}(x^2) + \varepsilon}} \odot w$$
#
# It divides a token by its size and then multiplies each dimension by a learned weight $w$. The weight lets the model
# use some dimensions more than others. It is one line:

# %%
print(inspect.getsource(tiny.rms_norm))

# %% [markdown]
# Two consequences. The norm forgets how long a vector was: ten times the vector gives the same result. And ε, so small
# that it looks like decoration, decides for vectors near zero: without it, zero would be 0/0.

# %%
x = states[3][0, -1]
print("LN(10 x) = LN(x):", np.allclose(tiny.rms_norm(10 * x, eps), tiny.rms_norm(x, eps), rtol=1e-4))
for size in (100.0, 1.0, 0.01, 0.0001):
    token = size * x / np.sqrt((x**2).mean())
    with_eps, without = (np.sqrt((tiny.rms_norm(token, e) ** 2).mean()) for e in (eps, 0.0))
    print(f"size before {size:8.4f}   after, ε = 1e-5: {with_eps:.6f}   ε = 0: {without:.6f}")

# %% [markdown]
# At size 1, ε changes a number by 5 millionths. A test that allows errors of a thousandth then passes a program that
# forgets it. Vectors near zero show the mistake at once; exercise 1 has some.
#
# ## Break it
#
# Three ways to break the model. The first divides nothing in the norms. The second never rotates. The third is
# subtle. The RoPE paper, and the code of the Differential Transformer's authors, pair *neighbors* $(x_{2i},
# x_{2i+1})$; Hugging Face pairs *halves*. We run the bundled model, made for halves, with neighbors. For each we
# read 16 tokens and measure the loss on a tale (how surprised the model is by each next token, chapter 00).


# %%
def rotate_neighbors(x, base):
    order = np.concatenate([np.arange(0, x.shape[-1], 2), np.arange(1, x.shape[-1], 2)])  # neighbors → halves
    return rope(x[..., order], base)[..., np.argsort(order)]


tale_ids, norm = words_to_ids(tales[0].strip())[:256], tiny.rms_norm


def loss_of(weights):
    logits = tiny.model(tale_ids, weights, config)[:-1]
    z = logits - logits.max(axis=-1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=-1)) - z[np.arange(len(z)), tale_ids[1:]]).mean())


stories, losses = {}, {}
for name, rotate, scale in (
    ("right", rope, norm),
    ("no norm", rope, lambda x, eps, weight=1.0: x * weight),
    ("no RoPE", lambda x, base: x, norm),
    ("neighbors", rotate_neighbors, norm),
):
    tiny.rope, tiny.rms_norm = rotate, scale
    written = tiny.generate(words_to_ids("Once upon a time"), 16, weights, config)
    stories[name], losses[name] = tokenizer.decode(written, skip_special_tokens=True), loss_of(weights)
    print(f"{name:11} loss {losses[name]:8.2f}   {stories[name]!r}")
tiny.rope, tiny.rms_norm = rope, norm

# %% [markdown]
# Without norms nothing is left of the language. Without RoPE it is lost after a few words. With the wrong pairs there
# is no error and no warning, only a worse text and a larger loss.
#
# What exactly is wrong with neighbors? Not the distances: they, too, are rotated by position, so a score depends on
# the distance alone. But each number of a head has learned one speed. Number 5 was trained with $\theta_5$; among
# neighbors it belongs to pair 2 and rotates at $\theta_2$. The cure is to reorder the rows of $W_Q$ and $W_K$, from
# which these numbers come; `refdiff.convert` does it. Both are shown here:

# %%
rng = np.random.default_rng(0)
q, k = rng.standard_normal((2, d))
at = rotate_neighbors(np.tile([[q], [k]], (1, 12, 1)), base)
print("neighbors, query and key 2 apart:", *(f"{at[0, t] @ at[1, t - 2]:.4f}" for t in (3, 7, 11)))
to_neighbors = np.arange(d).reshape(2, d // 2).T.ravel()  # 0, 16, 1, 17, …: the halves, interleaved
reordered = dict(weights)
for name, w in weights.items():
    if "q_proj" in name or "k_proj" in name:
        reordered[name] = w.reshape(-1, d, w.shape[-1])[:, to_neighbors].reshape(w.shape)
tiny.rope = rotate_neighbors
cured = loss_of(reordered)
tiny.rope = rope
print(f"neighbors with reordered rows: loss {cured:.2f}, equal: {np.isclose(cured, losses['right'], rtol=1e-10)}")

# %% [markdown]
# ## What we learned
#
# - RMSNorm gives every token the size 1, and then each dimension a learned weight. ε decides only for vectors near
#   zero.
# - One attention layer without positions sees a bag of words. Deeper layers learn some of the order from the mask.
# - RoPE rotates queries and keys by their positions. Scores then depend on distances alone.
# - Beyond the length of training the slow pairs meet new angles, and here the loss grows. Slowing mostly the slow pairs
#   (yarn, which also scales the scores) repairs much of it without training.
# - A checkpoint fits one pairing of dimensions. With the other it runs, and predicts worse.
#
# <details>
# <summary>What is checked of this chapter</summary>
#
# ```python
# assert differences["without RoPE"][0] < 1e-12 < 0.01 < min(differences["with RoPE"])
# assert min(differences["without RoPE"][1:]) > 0.01
# assert max(differences["without RoPE and mask"]) < 1e-12
# assert np.allclose(here, moved, rtol=0, atol=1e-9)
# assert not np.allclose(here, spread, rtol=0, atol=1e-9)
# assert (np.diff(starts) >= 1024).all()
# assert all(b > a for a, b in pairwise(above[4:]))
# assert all(0 < -nats < 0.065 for nats in above[:4])
# assert by_position["default"][-1] > by_position["default"][3] + 0.5
# assert all(linear > yarn for linear, yarn in zip(by_position["linear"], by_position["yarn"], strict=True))
# assert losses["right"] + 1 < losses["neighbors"] < losses["no RoPE"] < losses["no norm"]
# assert np.isclose(cured, losses["right"], rtol=1e-10)
# ```
#
# </details>

# %% [markdown]
# ## Exercises
#
# **1.** `exercises.check("rms_norm", …)`: the norm. Some of the inputs are near zero.
#
# **2.** `exercises.check("rope_frequencies", …)`: the speeds $\theta_i$ of a head of d numbers.
#
# **3.** `exercises.check("rope", …)`: rotate halves, with positions given. A complex number $a + ib$ is rotated by
# multiplying it by $e^{it\theta_i}$, which makes it three lines.
#
# **4.** How many tokens does the fastest pair need for one turn? What does position 6 look like to it?
#
# <details>
# <summary>Answers</summary>
#
# ```python
# from refdiff import exercises
#
#
# def my_rope(x, positions, speeds):
#     half = x.shape[-1] // 2
#     z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None] * speeds)
#     return np.concatenate([z.real, z.imag], axis=-1)
#
#
# assert exercises.check("rms_norm", lambda x, w, eps: x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w)
# assert exercises.check("rope_frequencies", lambda d, base: base ** (-np.arange(0, d, 2) / d))
# assert exercises.check("rope", my_rope)
# ```
#
# 4: $\theta_0 = \mathrm{base}^0 = 1$ for every base, so it turns once in $2\pi \approx 6.28$ tokens. Position 6 is
# almost a whole turn from position 0; to this pair the two look nearly the same. Only slower pairs tell them apart.
#
# </details>
#
# ## Questions
#
# <details>
# <summary>When does ε in the norm matter?</summary>
#
# When a token's mean square is not much larger than ε: then it does not come out at size 1.
#
# </details>
# <details>
# <summary>Two tokens stand at 5 and 9, the same two at 1005 and 1009: how do their scores compare?</summary>
#
# They are equal, because scores depend on the difference of positions only.
#
# </details>
# <details>
# <summary>What goes wrong when a checkpoint made for neighbors is run with halves?</summary>
#
# Each learned number rotates at another speed than in training, so scores are wrong, with no error. Reordering the
# dimensions (the rows of W_Q and W_K) makes it right.
#
# </details>
#
# Next: [03 · Why subtract two attention maps?](03_differential_attention.ipynb)
