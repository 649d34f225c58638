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
# # 02 · Where words meet, and in what order
#
# **The question: in which step does a token learn about the other tokens, and how does it know their order?**
#
# In short: in one block only, attention, and only from tokens before it. In the sentence that we follow, the model's
# answer is on top after the third of six layers. The order of words comes from rotating queries and keys by
# their positions, and in part from the mask. The bundled model was trained with this rotation. Without it, its loss
# rises from 3.05 to 4.83.
#
# You can see each of these for yourself: you change one word and watch the change spread, you stop the model after each
# layer, and you switch the rotation off. Allow 25 minutes. You need chapter 01, whose functions are in
# [tiny.py](tiny.py).

# %%
# %matplotlib inline
import textwrap
from pathlib import Path

import numpy as np
import sketches
import tiny

import refdiff
from refdiff import bundled

weights, config = tiny.load(bundled.FOLDER)
eps, base, d = config["rms_norm_eps"], config["rope_parameters"]["rope_theta"], config["head_dim"]
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")


def words_to_ids(text):
    return tokenizer([text], return_tensors="np")["input_ids"][0]


text = "Once upon a time there was a king who had three"
ids = words_to_ids(text)
tokens = [tokenizer.decode([int(i)]) for i in ids]
print(f"{len(ids)} tokens, {config['hidden_size']} numbers each, {config['num_hidden_layers']} layers")

# %% [markdown]
# ## Change one word
#
# Each layer adds to the rows of $x$ what attention and SwiGLU compute (Ye et al. 2024,
# [arXiv 2410.05258](https://arxiv.org/abs/2410.05258), eq. 4 and 5). We write this loop once more and keep $x$ after
# each layer. Then we swap "king" for "house" and measure how far each token's vector moves, relative to its length.


# %%
def states(ids):
    kept = [weights["model.embed_tokens.weight"][ids]]
    for layer in range(config["num_hidden_layers"]):
        p, x = tiny.subset(weights, f"model.layers.{layer}."), kept[-1]
        normed = tiny.rms_norm(x, eps, p["input_layernorm.weight"])
        y = x + tiny.attention(normed, tiny.subset(p, "self_attn."), layer, config)  # eq. 4
        normed = tiny.rms_norm(y, eps, p["post_attention_layernorm.weight"])
        kept.append(y + tiny.swiglu(normed, tiny.subset(p, "mlp.")))  # eq. 5
    return np.array(kept)


before, after = states(ids), states(words_to_ids(text.replace("king", "house")))
change = np.linalg.norm(after - before, axis=-1) / np.linalg.norm(before, axis=-1)
king = tokens.index(" king")
print("largest change of a token before 'king':", change[:, :king].max())
sketches.changes(change, tokens, "king → house")

# %% [markdown]
# Read the picture from top to bottom. At first only "king" differs. One layer later every token after it has changed,
# and no token before it: attention looks back, never ahead. The zeros are exact.
#
# Which block carried the change? We feed each block of the first layer the same input twice, the second time with the
# vector of "house" in place of "king", and look at which rows of its output change.

# %%
p = tiny.subset(weights, "model.layers.0.")
blocks = {
    "RMSNorm": lambda x: tiny.rms_norm(x, eps, p["input_layernorm.weight"]),
    "SwiGLU": lambda x: tiny.swiglu(x, tiny.subset(p, "mlp.")),
    "attention": lambda x: tiny.attention(x, tiny.subset(p, "self_attn."), 0, config),
}
swapped = before[0].copy()
swapped[king] = after[0][king]
moved = {name: np.abs(block(swapped) - block(before[0])).max(axis=-1) > 1e-12 for name, block in blocks.items()}
for name, rows in moved.items():
    print(f"{name:9} changes the rows of {[token for token, row in zip(tokens, rows, strict=True) if row]}")

# %% [markdown]
# The norm and SwiGLU handle each token by itself. Words meet in attention and nowhere else.
#
# ## Stop after each layer
#
# The last step of the model turns a row of $x$ into scores for the next token: a norm, then a product with the table
# E. Because $x$ keeps its shape, this step can read it after *any* layer. This is called the **logit lens**
# ([nostalgebraist 2020](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens)). Each cell
# below shows what the model would say next if it stopped there, and with what probability.


# %%
def read(x):
    x = tiny.rms_norm(x, eps, weights["model.norm.weight"])
    return tiny.softmax(x @ weights["model.embed_tokens.weight"].T)


p_next = read(before)  # (depth, token, vocabulary)
best = p_next.argmax(axis=-1)
said = [[tokenizer.decode([int(i)]) for i in row] for row in best]
son = int(tokenizer([" son"], add_special_tokens=False)["input_ids"][0][0])
for depth, row in enumerate(p_next[:, -1]):
    rank = int((row > row[son]).sum()) + 1
    print(
        f"{f'after layer {depth - 1}' if depth else 'embedding':14} ' son' after 'three': {row[son]:.2f}, rank {rank}"
    )
sketches.readout(said, p_next.max(axis=-1), tokens)

# %% [markdown]
# Look at the last column, below "three". The embedding repeats the word that it came from, since the same table reads
# and writes. After layer 2, " son" has moved from rank 10 to rank 1. Layers 3 and 4 make it surer, and layer 5 takes a
# little back.
#
# Is layer 2 *the* layer for answers? One sentence cannot tell. Here is a whole tale that the model has never seen:

# %%
tales = [t.strip() for t in Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")]
tale_ids = words_to_ids(tales[0])
choices = [read(x) for x in states(tale_ids)]
settled = [float((p.argmax(axis=-1) == choices[-1].argmax(axis=-1)).mean()) for p in choices]
losses = [float(-np.log(p[np.arange(len(tale_ids) - 1), tale_ids[1:]]).mean()) for p in choices]
for depth, (share, loss) in enumerate(zip(settled, losses, strict=True)):
    name = f"after layer {depth - 1}" if depth else "embedding"
    print(f"{name:14} final choice on top for {share:4.0%} of {len(tale_ids)} tokens, loss {loss:5.2f}")

# %% [markdown]
# No layer decides alone. Each lowers the loss (the mean of −log of the probability that the model gave to the token
# that really came next). After layer 4, a different word is still on top for 44 % of the tokens. The lens uses a table
# that was trained for the end of the model, so early layers may know more than it shows.
#
# ## Where a token looks
#
# The next word comes from the row of "three". What does it take from each token? Each line of the picture is one pair
# of heads, in three of the layers: the weights $A_1 - \lambda A_2$ (eq. 1).

# %%
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
out = model(ids[None], output_attentions=True)
last = np.array([maps[0, :, -1] for maps in out.differential_attentions])  # (layer, pair, key)
strongest = [[tokens[key] for key in np.abs(rows).argmax(axis=-1)] for rows in last]
for layer in (0, 1, 3):
    print(f"layer {layer}, λ = {out.lambdas[layer]:.2f}: most weight, by pair,", *map(repr, strongest[layer]))
notes = {i: f"λ = {out.lambdas[layer]:.2f}".replace("-", "−") for i, layer in enumerate((0, 1, 3))}
sketches.last_rows(last[[0, 1, 3]], tokens, notes, names=(0, 1, 3))

# %% [markdown]
# In layer 0 all three pairs look at "three" itself. In layer 1 they prefer three different tokens. That is what several
# heads are for: one softmax cannot give each of three words most of its weight. Orange cells are tokens whose values
# are *subtracted*; only a model with a difference can produce them.
#
# Training can move λ anywhere, and in two of these layers it went far. In layer 1 λ is negative, so $A_1 - \lambda A_2$
# *adds* the second map, and nothing is orange. In layer 3 λ is above 1, so the second map is the stronger one and most
# of the weight is negative. Chapter 03 asks what such a model does with its second maps.
#
# ## A bag of words
#
# Now to the order of words. We let the model read "the wolf saw the girl and" and "the girl saw the wolf and". How far
# apart are its vectors for "and"? First as it is, then without RoPE, then also without the mask that hides later
# tokens.


# %%
def without_mask(q, k):
    return tiny.softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))


rope, masked = tiny.rope, tiny.attention_map
differences = {}
for name, rotate, attention_map in (
    ("with RoPE", rope, masked),
    ("without RoPE", lambda x, base: x, masked),
    ("without RoPE and mask", lambda x, base: x, without_mask),
):
    tiny.rope, tiny.attention_map = rotate, attention_map
    one, two = (
        states(words_to_ids(f"the {a} saw the {b} and"))[1:, -1] for a, b in (("wolf", "girl"), ("girl", "wolf"))
    )
    differences[name] = np.linalg.norm(one - two, axis=-1) / np.linalg.norm(one, axis=-1)
    print(f"{name:22} after layers 0 to 5:", " ".join(f"{difference:.2f}" for difference in differences[name]))
tiny.rope, tiny.attention_map = rope, masked

# %% [markdown]
# Without RoPE, "and" has the same vector after layer 0: to *one* attention layer, the words before the last are a bag.
# Deeper layers do notice the order, because of the mask: "wolf" has seen "girl" in one sentence and not in the other.
# After layer 1 the difference is a quarter of what it is with RoPE, after layer 5 more than half. Without RoPE *and*
# without the mask, the words are a bag to the end.
#
# ## RoPE: dials that turn with the position
#
# RoPE (Su et al. 2021) takes the numbers of a query or key two at a time. Here a head has 32 numbers, and number $i$
# goes with number $i+16$, as in Llama. (Su et al. take neighbors, eq. 34.) The two are the hand of a dial, so there are
# 16 dials. Each hand is rotated by an angle that grows with the position of its token: fast on dial 0, hardly at all on
# dial 15. In the picture, the second line moves query and key by 50 positions. The third moves only the query.

# %%
rng = np.random.default_rng(2)
query, key = rng.standard_normal((2, d))
at = tiny.rope(np.tile([[query], [key]], (1, 64, 1)), base)  # the same query and key at each of 64 positions
places = [(3, 1), (53, 51), (13, 1)]
for q_at, k_at in places:
    print(f"query at {q_at:2}, key at {k_at:2}: score {at[0, q_at] @ at[1, k_at]:6.3f}")
sketches.dials(at, places, dials=(0, 3, 6, 15))

# %% [markdown]
# Compare the first two lines. On each dial both hands have moved by the same angle, so the angle *between* them is the
# same, and so is the score. In the third line only the query has moved, and the score is another.
#
# Now the formula. The coordinates of a hand are $(a, b)$. At position $t$, the hand of dial $i$ is rotated by
# $t\,\theta_i$:
#
# $$(a, b) \mapsto (a\cos t\theta_i - b\sin t\theta_i,\;\; b\cos t\theta_i + a\sin t\theta_i),\qquad
# \theta_i = \mathrm{base}^{-2i/d}$$
#
# The dot product of two hands is the product of their lengths times the cosine of the angle between them, and the score
# is the sum over all dials. So it depends on how far the key is behind the query, and not on where the two stand.

# %% [markdown]
# The whole model inherits this property. How fast do the dials turn?

# %%
positions = np.arange(len(ids))[None]
here = model(ids[None], position_ids=positions).logits
moved_on = model(ids[None], position_ids=positions + 100).logits
spread = model(ids[None], position_ids=2 * positions).logits
wavelengths = 2 * np.pi * base ** (np.arange(0, d, 2) / d)
print("positions + 100 gives the same logits:", np.allclose(here, moved_on, rtol=0, atol=1e-9))
print("positions × 2 gives the same logits:  ", np.allclose(here, spread, rtol=0, atol=1e-9))
print(f"base {base:,.0f}, d {d}: a full turn takes {wavelengths[0]:.1f} tokens on dial 0,", end=" ")
print(f"{wavelengths[-1]:,.0f} on dial {d // 2 - 1}")
print(f"{(wavelengths > 512).sum()} of {d // 2} dials make no full turn within the 512 tokens of training")

# %% [markdown]
# In a text longer than the training texts, the slow dials reach angles that the model never met in training. The guide
# on [long texts](guide_long_texts.ipynb) shows what that costs, and two remedies.
#
# ## Break it
#
# This model was trained with RoPE. How much does it rely on its dials? We switch them off, let the model write 16
# tokens, and measure the loss on the first 256 tokens of the tale. (A model that is trained without them may learn to
# make do with the mask.)

# %%
losses_of, stories = {}, {}
for name, rotate in (("with RoPE", rope), ("without RoPE", lambda x, base: x)):
    tiny.rope = rotate
    written = tiny.generate(words_to_ids("Once upon a time"), 16, weights, config)
    p = tiny.softmax(tiny.model(tale_ids[:256], weights, config)[:-1])
    losses_of[name] = -np.log(p[np.arange(255), tale_ids[1:256]]).mean()
    stories[name] = tokenizer.decode(written, skip_special_tokens=True)
    print(f"{name}: loss {losses_of[name]:.2f}")
    print(textwrap.indent(textwrap.fill(stories[name], 72), "    "))
tiny.rope = rope

# %% [markdown]
# ## The answer
#
# **A token learns about others only in attention, layer by layer, and only from those before it; it knows their order
# because RoPE rotates queries and keys by position, so that every score depends on how far back a token stands, and in
# part because of the mask.**
#
# <details>
# <summary>What the tests check</summary>
#
# ```python
# assert change[:, :king].max() == 0 < change[1:, king:].min()
# assert np.flatnonzero(moved["RMSNorm"]).tolist() == np.flatnonzero(moved["SwiGLU"]).tolist() == [king]
# assert np.flatnonzero(moved["attention"]).tolist() == list(range(king, len(tokens)))
# assert [row[-1] == " son" for row in said] == [False] * 3 + [True] * 4
# assert said[0][-1] == tokens[-1]
# assert all(a > b for a, b in zip(losses, losses[1:]))
# assert strongest[0] == [" three"] * 3
# assert len(set(strongest[1])) == 3
# assert last[[1, 5]].min() > 0
# assert all(np.minimum(row, 0).sum() < -np.abs(row).sum() / 2 for row in last[3])
# assert differences["without RoPE"][0] < 1e-12 < 0.01 < min(differences["with RoPE"])
# assert differences["with RoPE"][-1] > differences["without RoPE"][-1] > differences["with RoPE"][-1] / 2
# assert max(differences["without RoPE and mask"]) < 1e-12
# assert np.allclose(here, moved_on, rtol=0, atol=1e-9)
# assert not np.allclose(here, spread, rtol=0, atol=1e-9)
# assert losses_of["without RoPE"] > losses_of["with RoPE"] + 1
# assert np.allclose(before[:-1], np.concatenate(model(ids[None], output_hidden_states=True).hidden_states[:-1]))
# ```
#
# </details>

# %% [markdown]
# ## Exercises
#
# **1.** `"causal_mask"`: which of S keys each of the *last* T tokens may see. Here is a wrong answer, and what refdiff
# says about it:

# %%
from refdiff import exercises

exercises.check("causal_mask", lambda T, S: np.tri(T, S, dtype=bool))

# %% [markdown]
# **2.** `"rope_frequencies"`: the speeds $\theta_i$ of a head of $d$ numbers.
#
# **3.** `"rope"`: rotate number $i$ with number $i + d/2$, at given positions. Multiplying the complex number $a + ib$
# by $e^{it\theta_i}$ rotates it, which makes this three lines.
#
# **4.** What does position 6 look like on dial 0?
#
# <details>
# <summary>Answers</summary>
#
# ```python
# def my_rope(x, positions, speeds):
#     half = x.shape[-1] // 2
#     z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None] * speeds)
#     return np.concatenate([z.real, z.imag], axis=-1)
#
#
# assert exercises.check("causal_mask", lambda T, S: np.arange(S) <= np.arange(T)[:, None] + S - T)
# assert exercises.check("rope_frequencies", lambda d, base: base ** (-np.arange(0, d, 2) / d))
# assert exercises.check("rope", my_rope)
# ```
#
# 4: Almost like position 0, since it turns once in 6.28 tokens. Only slower dials tell the two apart.
#
# </details>
#
# Next: [03 · Why subtract two maps?](03_differential_attention.ipynb)
