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
# # 01 · The Differential Transformer in 60 lines
#
# **The question: which sums and products turn a sentence into its next word, and where does the Differential
# Transformer differ?**
#
# You will build a plain Transformer first, in NumPy, and see what the authors of the Differential Transformer set out
# to fix (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)): on a real sentence, a plain model finds
# the two words that we look for, and still spends 44 % of its attention on others. Then you change one block, and look
# for the same words in a model of the new kind.
#
# You need to know NumPy, and that a language model predicts the next token. Allow 30 minutes. The code of this chapter
# is also one file, [tiny.py](tiny.py), and the [glossary](reference/guides/glossary.md) explains every term.

# %%
# %matplotlib inline
import json
import textwrap
from pathlib import Path

import numpy as np
import sketches
from tokenizers import Tokenizer

# %% [markdown]
# ## From text to numbers
#
# A tokenizer cuts the text into pieces that it knows, its *tokens*, and gives each piece a number, its *id*. This is
# the only step that we leave to a library. Id 0, `<|endoftext|>`, stands between two texts, so it begins each one.

# %%
tokenizer = Tokenizer.from_file("../refdiff/bundled/tokenizer.json")
text = "There was once a king who had three sons. The eldest son was very proud, and the youngest"
ids = tokenizer.encode(text).ids
tokens = [tokenizer.decode([i], skip_special_tokens=False) for i in ids]
print(len(ids), "tokens:", textwrap.fill("|".join(tokens), 76))

# %% [markdown]
# Everything else that a model knows is in one file of numbers, its *checkpoint*. `load` reads a checkpoint into a
# dictionary of arrays, and `subset` picks those whose names begin with a prefix.


# %% tags=["hide-input"]
def load(folder):
    config = json.loads((Path(folder) / "config.json").read_text())
    raw = (Path(folder) / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")  # 8 bytes of length, a JSON header, then the numbers
    weights = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            numbers = np.frombuffer(raw[start + first : start + last], entry["dtype"].replace("F", "float").lower())
            weights[name] = numbers.reshape(entry["shape"]).astype(np.float64)
    return weights, config


def subset(weights, prefix):
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


# %%
plain_weights, plain_config = load("reference/small_models/plain")
print(f"{sum(w.size for w in plain_weights.values()):,} numbers in {len(plain_weights)} arrays")
print("once:", {name: w.shape for name, w in plain_weights.items() if "layers" not in name})
print(f"in each of {plain_config['num_hidden_layers']} layers:")
for name, w in subset(plain_weights, "model.layers.0.").items():
    print(f"  {name:32} {w.shape}")

# %% [markdown]
# This is a small plain Transformer that was trained on fairy tales. Its table `embed_tokens`, called E, has one row
# for each of the 2,048 tokens that it knows. Our ids pick 23 of those rows. They form the array $x$ on which the whole
# model works: one row for each token.

# %%
x = plain_weights["model.embed_tokens.weight"][ids]
sketches.embedded(tokens, ids, x, plain_config["vocab_size"])

# %% [markdown]
# Blue cells are positive, orange cells negative, and stronger color means a larger number.
#
# ## The plan of the model
#
# A model is a stack of *layers*, counted from 0. Each layer reads $x$ through a norm (LN), computes something, and adds
# the result to $x$. It does this twice, once with attention (MultiHead) and once with a small network called SwiGLU:
#
# $$Y = \mathrm{MultiHead}(\mathrm{LN}(X)) + X \tag{eq. 4}$$
# $$X' = \mathrm{SwiGLU}(\mathrm{LN}(Y)) + Y \tag{eq. 5}$$

# %%
sketches.residual_stream(plain_config["num_hidden_layers"])

# %% [markdown]
# Three small functions work on one row at a time. Softmax turns scores into positive weights that sum to 1. RMSNorm,
# the LN above, scales a row to root mean square 1, then multiplies each number by a learned one. SwiGLU widens a row
# with the matrix `up`, multiplies each of the new numbers by a switch computed with `gate`, and makes the row narrow
# again with `down`. The switch is the function SiLU, $g / (1 + e^{-g})$. It is close to 0 when $g$ is far below 0, and
# close to $g$ when $g$ is far above.


# %%
def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rms_norm(x, eps, weight=1.0):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def swiglu(x, p):
    gate, up = x @ p["gate_proj.weight"].T, x @ p["up_proj.weight"].T
    return (gate / (1 + np.exp(-gate)) * up) @ p["down_proj.weight"].T


# %% [markdown]
# ## Plain attention
#
# Attention is the block in which tokens learn from each other. Each token has three vectors, computed from its row of
# $x$ with learned matrices:
#
# - a **query** $q$: what this token looks for,
# - a **key** $k$: what it offers for comparison,
# - a **value** $v$: what it hands over when it is found.
#
# The dot product of one token's query with another's key is a *score*. A softmax over the scores gives weights, and the
# result is the sum of the values, each times its weight. Here is "he" in "king slept he". It looks for a person; the
# numbers are chosen by hand:

# %%
words = ["king", "slept", "he"]
query = np.array([2.0, 0.0])  # "he" looks for (a person, no action)
keys = np.array([[3.0, 0.0], [0.0, 3.0], [1.0, 0.0]])  # each word offers (how much a person, how much an action)
values = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # each word hands over (royal, asleep)
scores = keys @ query
shares = softmax(scores)
sketches.weighted_sum(words, query, keys, shares, values)

# %% [markdown]
# The sum says that "he" is royal and not asleep. Three details are missing.
#
# *Order.* A dot product does not know where its two tokens stand. RoPE (Su et al. 2021) rotates queries and keys by an
# angle that grows with their position, so a score depends on their distance. Chapter 02 explains how; for now it is a
# function.
#
# *Scale.* The dot product of two vectors of $d$ numbers is a sum of $d$ products. Scores are divided by $\sqrt d$, so
# that their typical size does not grow with $d$.
#
# *Mask.* A token may look only at itself and at earlier tokens, since the model must predict what
# comes later. `np.tri` is true at and below the diagonal. Elsewhere the score becomes −∞, and the weight exactly 0.


# %%
def rope(x, base):
    d = x.shape[-1]
    angle = np.arange(x.shape[-2])[:, None] * base ** (-np.arange(0, d, 2) / d)  # position · frequency: (T, d/2)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def attention_map(q, k):
    T, d = q.shape[-2:]
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(d)
    return softmax(np.where(np.tri(T, dtype=bool), scores, -np.inf))  # a token sees itself and those before it


# %% [markdown]
# An attention *map* has a row for each token that looks and a column for each token that it can look at. The weights of
# a row sum to 1, so what one token gains, others lose. One map is not enough to look for a subject, a verb, and the
# last comma at once. So queries, keys, and values are cut into *heads*, and each head makes a map of its own.


# %%
def heads(x, p, config):  # queries, keys and values of all heads: (heads, T, d)
    base, d = config["rope_parameters"]["rope_theta"], config["head_dim"]
    q, k, v = ((x @ p[f"{name}_proj.weight"].T).reshape(len(x), -1, d).swapaxes(0, 1) for name in "qkv")
    k, v = (np.repeat(z, len(q) // len(z), axis=0) for z in (k, v))  # where several heads share a key and a value
    return rope(q, base), rope(k, base), v


# %%
def plain_model(ids, weights, config):
    eps, seen = config["rms_norm_eps"], []
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        p = subset(weights, f"model.layers.{layer}.")
        normed = rms_norm(x, eps, p["input_layernorm.weight"])
        q, k, v = heads(normed, subset(p, "self_attn."), config)
        seen.append((normed, q, k, v, attention_map(q, k)))  # to look at below
        out = (attention_map(q, k) @ v).swapaxes(0, 1).reshape(len(x), -1)
        x = x + out @ p["self_attn.o_proj.weight"].T  # eq. 4
        x = x + swiglu(rms_norm(x, eps, p["post_attention_layernorm.weight"]), subset(p, "mlp."))  # eq. 5
    x = rms_norm(x, eps, weights["model.norm.weight"])
    return x @ weights["model.embed_tokens.weight"].T, seen


# %% [markdown]
# That is a complete plain Transformer. It has 3 layers of 6 heads, so 18 maps. The youngest is a son of the king, so we
# look for the head in which "youngest", the last token, takes most from "son" and "king". Other heads look elsewhere.

# %%
logits, seen = plain_model(ids, plain_weights, plain_config)
needed = [i for i, token in enumerate(tokens) if token in (" son", " king")]
found = np.array([[one[-1][needed].sum() for one in maps] for *_, maps in seen])  # (layer, head)
layer, head = np.unravel_index(found.argmax(), found.shape)
print(
    f"layer {layer}, head {head}: {found[layer, head]:.0%}; the other 17 maps at most {np.sort(found.ravel())[-2]:.0%}"
)

# %% [markdown]
# Here is what that layer computes, with the real numbers and shapes:

# %%
normed, q, k, v, maps = seen[layer]
sketches.plain_shapes(normed, q, k, v, maps, head)

# %% [markdown]
# ## What plain attention cannot leave out
#
# This is the last row of that map, what "youngest" takes from each token:

# %%
row = maps[head, -1]
rest = [i for i in range(len(row)) if i not in needed]
print(f"'son', 'son', and 'king' get {row[needed].sum():.0%}; the other {len(rest)} tokens share {row[rest].sum():.0%}")
print(f"the smallest weight is {row.min():.3f}, the largest of the other {len(rest)} is {row[rest].max():.2f}")
sketches.token_bars(tokens, {"what “youngest” takes from each token": row}, needed)

# %% [markdown]
# The head finds the words that we chose. But a softmax never gives a visible token exactly nothing: twenty other tokens
# get a little each, and together they get 44 % of the row. The longer the text, the more such crumbs there are. The
# paper calls weight on tokens that do not matter *attention noise*.
#
# ## Subtract a second map
#
# The paper's idea is to let *two* heads make a map each, and to subtract one from the other, times a learned number λ:
#
# $$\mathrm{DiffAttn}(X) = \left(\mathrm{softmax}\frac{Q_1K_1^\top}{\sqrt d} - \lambda\,
# \mathrm{softmax}\frac{Q_2K_2^\top}{\sqrt d}\right)V \tag{eq. 1}$$
#
# Take λ = 0.5. Where both maps give a token 0.1, it keeps 0.1 − 0.05: half. Where only the first does, it keeps 0.1.
# Where only the second does, it gets −0.05: the value of that token is *subtracted*, which no softmax can do. If both
# maps have the same noise, half of it is gone, while all that the first map alone has found stays.


# %%
def diff_attention(q1, k1, q2, k2, v, lambda_):  # eq. 1
    return (attention_map(q1, k1) - lambda_ * attention_map(q2, k2)) @ v


# %% [markdown]
# Where do the two maps come from? A model with H heads makes H/2 pairs: heads $i$ and $i + H/2$ belong together, so of
# six heads 0 and 3, 1 and 4, 2 and 5. The two heads of a pair also put their values side by side, as one value that is
# twice as long. The number λ is learned, one for each layer $l$. The paper computes it from four short learned vectors.
# Training begins near $\lambda_{init}$, which grows with depth:
#
# $$\lambda = e^{\lambda_{q1}\cdot\lambda_{k1}} - e^{\lambda_{q2}\cdot\lambda_{k2}} + \lambda_{init},\qquad
# \lambda_{init} = 0.8 - 0.6\,e^{-0.3\,l} \tag{eq. 2}$$


# %%
def strength(p, layer):  # eq. 2: λ and λ_init
    lambda_init = 0.8 - 0.6 * np.exp(-0.3 * layer)
    return np.exp(p["lambda_q1"] @ p["lambda_k1"]) - np.exp(p["lambda_q2"] @ p["lambda_k2"]) + lambda_init, lambda_init


# %% [markdown]
# The result of each pair is normed by itself and multiplied by a fixed factor; [chapter
# 03](03_differential_attention.ipynb) says what for. Then the matrix $W^O$ mixes all pairs:
#
# $$\mathrm{head}_i = (1 - \lambda_{init})\,\mathrm{LN}(\mathrm{DiffAttn}_i(X)),\qquad
# \mathrm{MultiHead}(X) = [\mathrm{head}_1, \ldots, \mathrm{head}_{H/2}]\,W^O \tag{eq. 3}$$


# %%
def attention(x, p, layer, config):  # eq. 3
    q, k, v = heads(x, p, config)
    (q1, q2), (k1, k2) = np.split(q, 2), np.split(k, 2)  # heads i and i + H/2 are a pair: (H/2, T, d)
    v = np.concatenate(np.split(v, 2), axis=-1)  # and have one value, twice as long: (H/2, T, 2d)
    lambda_, lambda_init = strength(p, layer)
    out = (1 - lambda_init) * rms_norm(diff_attention(q1, k1, q2, k2, v, lambda_), config["rms_norm_eps"])
    return out.swapaxes(0, 1).reshape(len(x), -1) @ p["o_proj.weight"].T  # the pairs side by side: (T, D)


# %% [markdown]
# The rest is the plain model again, with this function in place of plain attention. (Some models do not use E twice:
# the last line takes their output table, `lm_head`, if there is one.)


# %%
def model(ids, weights, config):
    eps = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        p = subset(weights, f"model.layers.{layer}.")
        normed = rms_norm(x, eps, p["input_layernorm.weight"])
        x = x + attention(normed, subset(p, "self_attn."), layer, config)  # eq. 4
        x = x + swiglu(rms_norm(x, eps, p["post_attention_layernorm.weight"]), subset(p, "mlp."))  # eq. 5
    x = rms_norm(x, eps, weights["model.norm.weight"])
    return x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T  # logits: (T, vocabulary)


# %% [markdown]
# A differential model of nearly the same size was trained on the same tales. What does it have that the plain model
# lacks?

# %%
weights, config = load("reference/small_models/differential")
layer_names = [set(subset(w, "model.layers.0.")) for w in (weights, plain_weights)]
for name in sorted(layer_names[0] - layer_names[1]):
    print(f"only in the differential model: {name:20} {weights['model.layers.0.' + name].shape}")
print(f"{sum(w.size for w in weights.values()):,} numbers, plain {sum(w.size for w in plain_weights.values()):,}")

# %% [markdown]
# Four vectors of 16 numbers in each layer: that is all. Again we look for "son" and "king", now in the first maps of
# its 9 pairs. The next cell runs the model, keeps what each call of `attention` is given, and draws the pair that gives
# these words most:

# %% tags=["hide-input"]
kept, original = [], attention


def recording(x, p, layer, config):
    kept.append((x, p))
    return original(x, p, layer, config)


attention = recording
model(ids, weights, config)
attention = original

pairs = config["num_attention_heads"] // 2
rows = []  # A₁, A₂ and the difference of "youngest", of every pair
for layer, (normed, p) in enumerate(kept):
    q, k, v = heads(normed, p, config)
    last, lambda_ = attention_map(q, k)[:, -1], strength(p, layer)[0]
    rows += [(last[i], last[i + pairs], last[i] - lambda_ * last[i + pairs]) for i in range(pairs)]
best = int(np.argmax([first[needed].sum() for first, _, _ in rows]))
layer, pair = divmod(best, pairs)
normed, p = kept[layer]
q, k, v = heads(normed, p, config)
lambda_, lambda_init = strength(p, layer)
print(f"layer {layer}, pair {pair}; λ began near {lambda_init:.2f} and is {lambda_:.2f} after training")
sketches.difference_shapes(normed, q, k, v, lambda_, config["rms_norm_eps"], pair)

# %% [markdown]
# ## What came out
#
# The row of "youngest" in that pair:

# %%
first, second, difference = rows[best]
share = first[needed].sum(), np.abs(difference[needed]).sum() / np.abs(difference).sum()
negative = np.maximum(-difference, 0).sum() / np.abs(difference).sum()
print(
    f"'son', 'son', and 'king': {share[0]:.0%} of A₁, {second[needed].sum():.0%} of A₂, {share[1]:.0%} of |A₁ − λ A₂|"
)
print(f"{negative:.0%} of the difference's total |weight| is negative")
sketches.token_bars(tokens, {"A₁": first, f"{lambda_:.2f} A₂": lambda_ * second, "difference": difference}, needed)

# %% [markdown]
# Subtraction does here what the paper wants, but not much of it: the share of the words that we chose rises from 20 to
# 25 %. No pair of this model finds them as well as one head of the plain model does, with its 56 %. But the two models
# were trained apart, and we chose the best head of each. One row proves nothing either way. Chapter 03 looks at
# thousands of rows.
#
# ## The next word
#
# To continue a text, take the token with the highest score (*logit*), append it, and run the model again. For this we
# load the larger model that comes with refdiff: 6 layers, 192 numbers for each token.


# %%
def generate(ids, count, weights, config):
    for _ in range(count):
        ids = [*ids, int(model(ids, weights, config)[-1].argmax())]
    return ids


# %%
weights, config = load("../refdiff/bundled")
logits = model(ids, weights, config)
probabilities = softmax(logits[-1])
likely = np.argsort(-probabilities)[:3]
print("next:", *(f"{tokenizer.decode([int(i)])!r} {probabilities[i]:.2f}  " for i in likely))
story = generate(tokenizer.encode("The wolf said to the little girl").ids, 40, weights, config)
print("\n".join(textwrap.wrap(tokenizer.decode(story), 76)))

# %% [markdown]
# Are these 60 lines right? refdiff's reference implementation, which is tested against Hugging Face's transformers,
# must agree:

# %%
import refdiff

reference = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", kernels="reference")
again = reference.generate([tokenizer.encode("The wolf said to the little girl").ids], max_new_tokens=40)[0].tolist()
print("logits agree to 1e-12:", bool(np.abs(logits - reference([ids]).logits[0]).max() < 1e-12))
print("the same story:", again == story)

# %% [markdown]
# ## The answer
#
# **A sentence becomes rows of a table, each layer adds to them what attention and SwiGLU compute, and a product with
# the table scores the next word; the Differential Transformer joins heads into pairs, replaces their two maps with the
# difference of both, and adds a norm and a factor.**
#
# <details>
# <summary>What the tests check</summary>
#
# ```python
# assert abs(row[needed].sum() - 0.56) < 0.005
# assert all(weight < row[needed].min() for weight in row[rest])
# assert layer_names[1] < layer_names[0]
# assert np.round(share, 2).tolist() == [0.20, 0.25]
# assert np.abs(logits - reference([ids]).logits[0]).max() < 1e-12
# assert again == story
# ```
#
# </details>
#
# ## Exercises
#
# Write each function in a cell of your own and let refdiff check it. It says where a wrong result is wrong, and often
# names the mistake. `exercises.signature("swiglu")` prints the shapes.

# %%
from refdiff import exercises

exercises.check("softmax", lambda z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True))

# %% [markdown]
# That one is right for small scores only. Mend it.
#
# **1.** `"softmax"`, **2.** `"embedding"`, **3.** `"rms_norm"`, **4.** `"swiglu"`, and **5.**
# `"attention_weights"`: one causal map, whose queries are the last T of S tokens. (`np.tri(T, S, S - T)` is the
# mask.)
#
# **6.** `"plain_heads"`: plain attention in which several queries share a key.
#
# **7.** What does each row of A₁ − λ A₂ sum to?
#
# <details>
# <summary>Answers</summary>
#
# 7: To 1 − λ, because each softmax row sums to 1.
#
# ```python
# assert np.allclose(difference.sum(), 1 - lambda_)
#
#
# def my_swiglu(x, w_gate, w_up, w_down):
#     return swiglu(x, {"gate_proj.weight": w_gate, "up_proj.weight": w_up, "down_proj.weight": w_down})
#
#
# def my_map(q, k):
#     T, S = q.shape[-2], k.shape[-2]
#     scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
#     return softmax(np.where(np.tri(T, S, S - T, dtype=bool), scores, -np.inf))
#
#
# def my_plain_heads(q, k, v):
#     k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
#     out = my_map(q, k) @ v
#     return out.swapaxes(1, 2).reshape(out.shape[0], out.shape[2], -1)
#
#
# assert exercises.check("softmax", softmax)
# assert exercises.check("embedding", lambda ids, table: table[ids])
# assert exercises.check("rms_norm", lambda x, w, eps: rms_norm(x, eps, w))
# assert exercises.check("swiglu", my_swiglu)
# assert exercises.check("attention_weights", my_map)
# assert exercises.check("plain_heads", my_plain_heads)
# ```
#
# </details>
#
# Next: [02 · Where do words meet, and in what order?](02_where_words_meet.ipynb)
