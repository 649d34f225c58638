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
# # 01 · Where do words meet?
#
# Chapter 00 read "Once upon a time" and wrote the next word. Six layers lie between the two. **In which step does a
# token learn of the other tokens, and in which layer does the answer appear?**
#
# You can look. We change one word of a sentence and watch the change spread through the layers. Then we stop the model
# after each layer and ask what it would say. Allow 20 minutes. You need chapter 00; its functions are in
# [tiny.py](tiny.py).

# %%
# %matplotlib inline
from pathlib import Path

import numpy as np
import sketches
import tiny

import refdiff
from refdiff import bundled, viz

weights, config = tiny.load(bundled.FOLDER)
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
text = "Once upon a time there was a king who had three"
ids = tokenizer([text], return_tensors="np")["input_ids"][0]
tokens = [tokenizer.decode([int(i)]) for i in ids]
print(f"{len(ids)} tokens, {config['hidden_size']} numbers each, {config['num_hidden_layers']} layers")
print(tokens)

# %% [markdown]
# ## The picture and the equations
#
# You know them from chapter 00. Tokens run through the model on the residual stream; two branches leave it in each
# layer, compute something, and *add* it (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)):
#
# $$Y = \mathrm{MultiHead}(\mathrm{LN}(X)) + X \tag{eq. 4}$$
# $$X' = \mathrm{SwiGLU}(\mathrm{LN}(Y)) + Y \tag{eq. 5}$$

# %%
sketches.residual_stream(config["num_hidden_layers"])

# %% [markdown]
# ## Experiment 1: change one word
#
# We need the vectors after each layer, so we write the loop once more and keep them. Then we replace "king" with
# "house" and measure how much each token's vector changes, relative to its size.


# %%
def states(ids):
    eps, kept = config["rms_norm_eps"], [weights["model.embed_tokens.weight"][ids]]
    for layer in range(config["num_hidden_layers"]):
        p, x = tiny.subset(weights, f"model.layers.{layer}."), kept[-1]
        normed = tiny.rms_norm(x, eps, p["input_layernorm.weight"])
        y = x + tiny.attention(normed, tiny.subset(p, "self_attn."), layer, config)  # eq. 4
        normed = tiny.rms_norm(y, eps, p["post_attention_layernorm.weight"])
        kept.append(y + tiny.swiglu(normed, tiny.subset(p, "mlp.")))  # eq. 5
    return np.array(kept)


other = tokenizer([text.replace("king", "house")], return_tensors="np")["input_ids"][0]
before, after = states(ids), states(other)
change = np.linalg.norm(after - before, axis=-1) / np.linalg.norm(before, axis=-1)
king = tokens.index(" king")
print("largest change of an earlier token:", change[:, :king].max())
print("change of the next token, after each layer:", change[:, king + 1].round(2))
print("change of the last token, after each layer:", change[:, -1].round(2))
sketches.changes(change, tokens)

# %% [markdown]
# Read the picture from top to bottom. After the embedding only "king" differs. One layer later *every* token after it
# has changed, and none before it: attention looks back, never ahead. The tokens before "king" change by exactly 0 in
# all layers.
#
# Which block did this? We take the blocks of the first layer one by one. In the input of each we swap one row, the
# vector of "king", and see which rows of the output change.

# %%
p = tiny.subset(weights, "model.layers.0.")
blocks = {
    "RMSNorm": lambda x: tiny.rms_norm(x, config["rms_norm_eps"], p["input_layernorm.weight"]),
    "SwiGLU": lambda x: tiny.swiglu(x, tiny.subset(p, "mlp.")),
    "attention": lambda x: tiny.attention(x, tiny.subset(p, "self_attn."), 0, config),
}
exchanged = before[0].copy()
exchanged[king] = after[0][king]
moved = {name: np.abs(block(exchanged) - block(before[0])).max(axis=-1) > 1e-12 for name, block in blocks.items()}
for name, rows in moved.items():
    print(f"{name:9} changes the rows of {[token for token, row in zip(tokens, rows, strict=True) if row]}")

# %% [markdown]
# The norm and SwiGLU work on one token at a time. Attention alone carries the change to other tokens, and only to later
# ones: there words meet.
#
# ## Experiment 2: stop after each layer
#
# The last step of the model is a norm, then the product with the embedding table. The residual stream has one shape
# everywhere, so this step can read it after *any* layer. What would the model say next if it stopped there? First, how
# the answer of the whole model depends on the word that we swap:


# %%
def read(x):
    x = tiny.rms_norm(x, config["rms_norm_eps"], weights["model.norm.weight"])
    return tiny.softmax(x @ weights["model.embed_tokens.weight"].T)


one_id = {word: int(tokenizer([word], add_special_tokens=False)["input_ids"][0][0]) for word in (" son", " daught")}
of_words = {}
for word in ("king", "man", "wolf", "hen", "house"):
    exchanged_ids = tokenizer([text.replace("king", word)], return_tensors="np")["input_ids"][0]
    p_next = read(states(exchanged_ids)[-1, -1])
    of_words[word] = p_next[one_id[" son"]]
    print(f"there was a {word:5} who had three …  {'   '.join(f'{w!r} {p_next[i]:.2f}' for w, i in one_id.items())}")

# %% [markdown]
# Swapping this one word can change the answer. With "house", as in experiment 1, " son" falls from 0.74 to 0.29 and
# " daught", the beginning of "daughter", comes first. With "man" instead of "king", " son" stays on top (0.78). Now the
# king, after each layer:

# %%
answers, son = [], one_id[" son"]
for depth, x in enumerate(before):
    p_next = read(x[-1])
    best = np.argsort(-p_next)[:2]
    answers.append(tokenizer.decode([int(best[0])]))
    said = "   ".join(f"{tokenizer.decode([int(token)])!r} {p_next[token]:.2f}" for token in best)
    name = f"after layer {depth - 1}" if depth else "embedding"
    rank = int((p_next > p_next[son]).sum()) + 1
    size = np.sqrt((x[-1] ** 2).mean())
    print(f"{name:14} size {size:4.2f}   {said:34} ' son': {p_next[son]:.2f}, number {rank}")

# %% [markdown]
# The embedding itself says the word that it came from: the same table is used for reading and for writing. **Then the
# answer appears in layer 2**: it lifts " son" from number 10 to number 1. Layers 3 and 4 make it surer, 0.53 and 0.84.
# The last layer takes some of that back (0.74) and gives it to " daught". The size (root mean square) of the vector
# grows all the way. Chapter 02 shows what the norm at the start of each branch makes of that.
#
# Is layer 2 *the* layer for answers? One sentence cannot say. Here is a whole tale that the model has not seen. For
# which share of its tokens is the model's final choice already on top after each layer? And what would the loss be?

# %%
tale = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")[0].strip()
tale_ids = tokenizer([tale], return_tensors="np")["input_ids"][0]
choices = [read(x) for x in states(tale_ids)]
settled = [float((p.argmax(axis=-1) == choices[-1].argmax(axis=-1)).mean()) for p in choices]
losses = [float(-np.log(p[np.arange(len(tale_ids) - 1), tale_ids[1:]]).mean()) for p in choices]
for depth, (share, loss) in enumerate(zip(settled, losses, strict=True)):
    name = f"after layer {depth - 1}" if depth else "embedding"
    print(f"{name:14} final choice on top for {share:4.0%} of {len(tale_ids)} tokens, loss {loss:5.2f}")
best = np.array([p.argmax(axis=-1) for p in choices])
never = 1 - (best[:-1] == best[-1]).any(axis=0).mean()
print(f"final choices that were never on top before the last layer: {never:.0%}")

# %% [markdown]
# In this tale each layer lowers the loss, and none decides alone. For 44 % of the tokens another choice is on top
# after layer 4; 35 % of the final choices were never on top before the last layer. This way of reading a model is
# known as the *logit lens* (nostalgebraist 2020). It reads an early stream with a table that was trained for the end,
# so an early layer may know more than it shows.
#
# ## Where did the tokens look?
#
# The next word comes from the last token, "three". Each line of the picture is one pair of heads: the weights with
# which "three" takes the values of all tokens, $A_1 - \lambda A_2$. Blue is above zero, orange below.

# %%
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
out = model(ids[None], output_attentions=True, output_hidden_states=True)
last = np.array([maps[0, :, -1] for maps in out.differential_attentions])  # (layer, pair, key)
strongest = [[tokens[key] for key in np.abs(rows).argmax(axis=-1)] for rows in last]
print("what 'three' weights most, in layer 1:", strongest[1], " in layer 2:", strongest[2])
notes = {1: "λ < 0:\nA₂ is added", 3: "λ > 1: A₂ leads,\nsigns are turned", 5: "λ < 0:\nA₂ is added"}
sketches.last_rows(last, tokens, notes)

# %% [markdown]
# In layer 0 all three pairs of "three" look at "three" itself; it takes hardly anything from other words. From layer 1
# on the pairs differ. In layer 1 they prefer three different tokens, and in layer 2 one prefers "king" and two "had".
# This is what several heads are for. Three heads can take much from three tokens at once; one softmax could not give
# 0.9 to each. (And the first token, `<|endoftext|>`, gets much weight in some pairs of layers 1, 3 and 5. That is the
# next section.)
#
# A softmax has no cells below zero; a difference of two can have orange ones. They mark tokens whose values are
# *subtracted* (layers 0, 2 and 4), in the same row as tokens whose values are added. Two kinds of layers differ
# (chapter 03 explains both):
#
# - Layer 3 has λ above 1, so the second map leads, with a minus sign. Its rows sum to 1 − λ, which is below 0: more
#   than half of their |weight| is orange.
# - Layers 1 and 5 have λ below 0, so they add their second map: no cell is orange.
#
# ## Why the first token? Attention that is not needed
#
# Each row of a softmax must sum to 1. A head that needs no token must still put its weight somewhere. Plain
# Transformers often put it on the first token: an *attention sink* (Xiao et al. 2023, [arXiv
# 2309.17453](https://arxiv.org/abs/2309.17453)). Does our model have one over many tokens, and in which map?
#
# If queries attended evenly, the first of T tokens would get $\frac1T\sum_t \frac1t$ of the weight. We measure how many
# times that each map gives it, in eight tales. The texts are cut in two ways. From the true beginning, the first token
# is `<|endoftext|>`, as before each tale in training. From the middle, it is just a word.

# %%
tales = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")
sinks, even = {}, np.mean(1 / np.arange(1, 193))
for where, part in (("beginning", slice(0, 192)), ("middle", slice(128, 320))):
    found = []
    for one in tales:
        m = viz.attention_maps(model, [int(i) for i in tokenizer([one.strip()])["input_ids"][0][part]])
        found.append([a[..., 0].mean(axis=-1) / even for a in (m.first, m.second)])
    sinks[where] = np.mean(found, axis=0)  # (A₁ and A₂, layers, pairs)
most = sinks["beginning"].max()
strongest_sinks = [np.unravel_index(i, sinks["beginning"].shape) for i in np.argsort(-sinks["beginning"], axis=None)]
print(f"of {sinks['beginning'].size} maps, the six that give <|endoftext|> most, in even shares:")
for which, layer, pair in strongest_sinks[:6]:
    print(f"  A{'₁₂'[which]} of layer {layer}, pair {pair}: {sinks['beginning'][which, layer, pair]:.1f}")
print(f"the largest, {most:.1f} times the even share of {even:.1%}, is {most * even:.0%} of the weight")
print(f"the largest of the first maps is {sinks['beginning'][0].max():.1f} times the even share")
print(f"cut in the middle: the largest of all maps is {sinks['middle'].max():.1f} times the even share")
sketches.sinks(*sinks["beginning"])

# %% [markdown]
# Five of the 36 maps stand out: they give `<|endoftext|>` 2.2 to 3.8 times the even share, and the sixth gives it 1.6
# times. The first four of them are *second* maps; the fifth is a first map, in pair 0 of layer 5. So second maps lean
# more to `<|endoftext|>` here, but not they alone. It is a weak sink, 11 % of the weight at most. The first place alone
# does not make a sink. In texts cut in the middle, no map gives the first token more than 1.1 times the even share. The
# difference does not simply remove the sink. Layer 0 subtracts its second map, but layers 1 and 5 add theirs, sink
# included. Two things were not tried: `<|endoftext|>` in other places, and a plain model beside this one.
#
# ## What we learned
#
# - Tokens meet in attention and nowhere else. A change of one token reaches that token and later ones only.
# - A layer adds to the residual stream. Each correction is read from the stream and written back to it.
# - The stream can be read after any layer. In our sentence the answer is on top from layer 2 on; over one tale, each
#   layer lowers the loss.
# - Heads of one layer can look at different tokens. For "three" they do in layer 1, and not in layer 0.
# - Five maps give `<|endoftext|>` 2.2 to 3.8 times the even share: a weak sink. Four of them are second maps. Whether
#   they need this weight elsewhere was not tested.
#
# A check shows that our loop computes what the model computes.
#
# <details>
# <summary>What is checked of this chapter</summary>
#
# ```python
# assert change[:, :king].max() == 0 < change[1:, king:].min()
# assert np.flatnonzero(moved["RMSNorm"]).tolist() == np.flatnonzero(moved["SwiGLU"]).tolist() == [king]
# assert np.flatnonzero(moved["attention"]).tolist() == list(range(king, len(tokens)))
# assert answers[0] == tokens[-1]
# assert [answer == " son" for answer in answers] == [False] * 3 + [True] * 4
# assert all(a > b for a, b in zip(losses, losses[1:]))
# assert len(set(strongest[1])) == 3
# assert strongest[0] == [" three"] * 3
# assert all(np.minimum(row, 0).sum() < -np.abs(row).sum() / 2 for row in last[3])
# assert strongest[2].count(" had") == 2
# assert [tuple(map(int, at)) for at in strongest_sinks[:5]] == [(1, 1, 0), (1, 0, 2), (1, 5, 0), (1, 5, 1), (0, 5, 0)]
# assert round(sinks["beginning"][strongest_sinks[5]], 1) == 1.6
# assert sinks["middle"].max() < 1.2
# assert of_words["house"] < of_words["hen"] < 0.6 < min(of_words["king"], of_words["man"])
# assert np.allclose(before[:-1], np.concatenate(out.hidden_states[:-1]), rtol=0, atol=1e-10)
# ```
#
# </details>

# %% [markdown]
# ## Exercises
#
# Write the function in a cell of your own and let `check` judge it. It says where a wrong result is wrong, and often
# what the mistake is called. `exercises.signature("swiglu")` prints the shapes. Here is a wrong answer to the third:

# %%
from refdiff import exercises

exercises.check("causal_mask", lambda T, S: np.tri(T, S, dtype=bool))

# %% [markdown]
# **1.** `"embedding"`: the vectors of some ids, from the table E.
#
# **2.** `"swiglu"`: $\mathrm{SwiGLU}(x) = W_{down}\,(\mathrm{silu}(W_{gate}x) \odot W_{up}x)$ with
# $\mathrm{silu}(z) = z/(1+e^{-z})$. Rows are tokens.
#
# **3.** `"causal_mask"`: which of S keys each of the *last* T tokens may see.
#
# <details>
# <summary>Answers</summary>
#
# ```python
# def my_swiglu(x, w_gate, w_up, w_down):
#     gate = x @ w_gate.T
#     return (gate / (1 + np.exp(-gate)) * (x @ w_up.T)) @ w_down.T
#
#
# assert exercises.check("embedding", lambda ids, table: table[ids])
# assert exercises.check("swiglu", my_swiglu)
# assert exercises.check("causal_mask", lambda T, S: np.arange(S) <= np.arange(T)[:, None] + S - T)
# ```
#
# </details>
#
# ## Questions
#
# <details>
# <summary>Which steps let one token know of another, and which work on each token by itself?</summary>
#
# Only attention (eq. 1, inside MultiHead) mixes tokens. Embedding, norms, the matrices and SwiGLU work on each token by
# itself; RoPE rotates it by its own position.
#
# </details>
# <details>
# <summary>What is the shape of the logits, and which part of them decides the next token?</summary>
#
# (B, T, V) for a batch of B sequences: a score for each token of the vocabulary at each position. The last position
# decides.
#
# </details>
# <details>
# <summary>Why are Y and X' sums?</summary>
#
# Eq. 4 and 5 add the result of attention and of the feed-forward network to their input. A layer corrects what came in
# and does not replace it.
#
# </details>
#
# Next: [02 · How does attention know the order of words?](02_norm_and_rope.ipynb)
