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
# # 00 · The Differential Transformer in 60 lines
#
# You have a file with 2.9 million numbers and the words "Once upon a time". Which sums and products turn one into the
# next word, and where in them is the *difference* that gives this Transformer its name?
#
# **What you will see.** The whole model (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)) in about
# 60 lines of NumPy. You write no framework code and import none. Each cell below defines one block and tries it on a
# real checkpoint, a small model of fairy tales. At the end the model tells a story, and you switch its subtraction off.
# A check shows that your 60 lines compute what the reference implementation computes.
#
# You need to know NumPy, and that a language model predicts the next token. Allow 25 minutes. The cells together are
# the file [tiny.py](tiny.py). The [glossary](reference/guides/glossary.md) explains the words.

# %%
# %matplotlib inline
import json
from pathlib import Path

import numpy as np
import sketches
from tokenizers import Tokenizer

# %% [markdown]
# ## Text becomes ids
#
# A model computes with numbers. So a tokenizer first cuts the text into pieces that it knows, and replaces each piece
# by its row number in a vocabulary. This is the only step that we leave to a library. The first id, 0, marks the
# beginning of a text. (Its token is called `<|endoftext|>` because it stands between two texts: at the end of one, at
# the beginning of the next.)

# %%
folder = Path("../refdiff/bundled")
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
text = "Once upon a time there was a king who had three sons"
ids = tokenizer.encode(text).ids
tokens = [tokenizer.decode([i], skip_special_tokens=False) for i in ids]
print(list(zip(ids, tokens, strict=True)))

# %% [markdown]
# ## A checkpoint is a dictionary of arrays
#
# What the model has learned is stored in one file. The safetensors format needs no library. 8 bytes give the length of
# a JSON header, and the header gives each array's name, dtype, shape and place. The rest of the file is the numbers.
# (The header writes "F16" for what NumPy calls "float16".)

# %%
sketches.checkpoint()


# %%
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
weights, config = load(folder)
print(f"{sum(w.size for w in weights.values()):,} numbers in {len(weights)} arrays")
print("once:         ", {name: w.shape for name, w in weights.items() if "layers" not in name})
print("in each layer:")
for name, w in subset(weights, "model.layers.0.").items():
    print(f"  {name:32} {w.shape}")

# %% [markdown]
# Read the list once; you now know every kind of parameter of the model. (Parameters are also called weights, as in the
# code here. In the text, a *weight* is what a token gets in attention.) A model is a stack of *layers*: blocks of one
# kind that run one after the other, each with parameters of its own.
#
# Four lines deserve a second look: `lambda_q1`, `lambda_k1`, `lambda_q2` and `lambda_k2`. A plain Transformer of the
# same family, a Llama, has all the others and not these. In this version, Hugging Face's, four vectors of 32 numbers
# are all that the Differential Transformer adds to a layer. (The paper's code has parameters in one more norm, too:
# chapter 04.)
#
# `embed_tokens` has one row for each token of the vocabulary. Looking up our ids gives the array that all layers work
# on: T tokens, each with D numbers.

# %%
x = weights["model.embed_tokens.weight"][ids]
print("x (T, D) =", x.shape)

# %% [markdown]
# ## The model, seen from above
#
# Every layer *reads* the array $x$ through a norm, computes something, and *adds* the result to $x$. Nothing is ever
# overwritten, so $x$ is called the residual stream. Attention is the only block that mixes tokens; all others treat
# each token by itself.

# %%
sketches.residual_stream(config["num_hidden_layers"])

# %% [markdown]
# The paper writes a layer in two lines,
#
# $$Y = \mathrm{MultiHead}(\mathrm{LN}(X)) + X \tag{eq. 4}$$
# $$X' = \mathrm{SwiGLU}(\mathrm{LN}(Y)) + Y \tag{eq. 5}$$
#
# We build the blocks from the smallest to the largest.
#
# ## Two small tools: softmax and RMSNorm
#
# Softmax turns any scores into positive weights that sum to 1. (Subtracting the largest score changes nothing but keeps
# `exp` from overflowing.) RMSNorm, the LN of the equations, scales each token to unit root mean square, and then each
# of its numbers by a learned parameter:
#
# $$\mathrm{softmax}(z)_j = \frac{e^{z_j}}{\sum_s e^{z_s}}$$
# $$\mathrm{LN}(x) = \frac{x}{\sqrt{\frac1D\sum_i x_i^2 + \varepsilon}} \odot w$$


# %%
def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rms_norm(x, eps, weight=1.0):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


# %%
normed = rms_norm(x, config["rms_norm_eps"])
print("root mean square of the first three tokens:")
print("  before", np.sqrt((x * x).mean(axis=-1))[:3].round(3))
print("  after ", np.sqrt((normed * normed).mean(axis=-1))[:3].round(3))

# %% [markdown]
# ## Attention, with three words
#
# "The king slept. He …": to continue, "he" must fetch something from "king". Attention does this in four steps. Each
# token has three vectors, which the model computes from $x$ with learned matrices:
#
# - a **query** $q$: what this token looks for;
# - a **key** $k$: what it offers for comparison;
# - a **value** $v$: what it hands over when it is found.
#
# (1) The dot product $q \cdot k$ of one token's query with each token's key is a *score*: large where the two point
# the same way. (2) Scores are divided by $\sqrt d$, where $d$ is the number of entries of $q$. (3) A softmax turns
# them into weights that sum to 1. (4) The result is the sum of all values, each times its weight. Here is an example
# with $d = 2$ and numbers chosen by hand:

# %%
words = ["king", "slept", "he"]
query = np.array([2.0, 0.0])  # "he" looks for (a person, no action)
keys = np.array([[3.0, 0.0], [0.0, 3.0], [1.0, 0.0]])  # each word offers (how much a person, how much an action)
values = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])  # each word hands over (royal, asleep)
scores = keys @ query / np.sqrt(2)
shares = softmax(scores)
print("scores ", scores.round(2))
print("weights", shares.round(2), "with sum", shares.sum().round(2))
print("result ", (shares @ values).round(2), "= (royal, asleep)")
sketches.weighted_sum(words, query, keys, values, scores, shares)

# %% [markdown]
# "He" is now mostly "royal", because its query matches the key of "king". Note what it did *not* need: the place of
# "king" in the sentence, or a rule for pronouns. Queries and keys are learned.
#
# **Why $\sqrt d$?** A dot product is a sum of $d$ terms. Its spread grows with $\sqrt d$, and large scores make a
# softmax put everything on one token. The division keeps the spread at 1 for every $d$. Here are random queries, each
# with 14 random keys:

# %%
rng = np.random.default_rng(0)
print("      spread of        largest of 14 weights, by a softmax of")
print("  d   q·k   q·k/√d     q·k   q·k/√d")
for d in (4, 32, 256):
    dots = np.einsum("nd,nkd->nk", rng.standard_normal((2000, d)), rng.standard_normal((2000, 14, d)))
    plain, scaled = (softmax(z).max(axis=-1).mean() for z in (dots, dots / np.sqrt(d)))
    print(f"{d:3} {dots.std():5.1f} {(dots / np.sqrt(d)).std():8.2f} {plain:7.2f} {scaled:8.2f}")

# %% [markdown]
# **Why several heads?** One softmax is one choice: its weights sum to 1, so what "king" gets, "slept" cannot get. A
# token may want both. So $q$, $k$ and $v$ are cut into H *heads*, and each head attends by itself. Chapter 01 shows
# heads of one layer that look at different words.
#
# ## Positions: rotate, do not add
#
# A dot product does not know who stands where: in the example the order of the words played no part. RoPE (Su et al.
# 2021) rotates pairs of numbers in $q$ and $k$ by an angle that is proportional to the position $t$. Between two
# rotated vectors only the *difference* of their angles is left, so a score depends on how far apart two tokens are:
#
# $$\theta_i = \mathrm{base}^{-2i/d}, \qquad
# \begin{pmatrix} a_i' \\ b_i' \end{pmatrix} =
# \begin{pmatrix} \cos t\theta_i & -\sin t\theta_i \\ \sin t\theta_i & \cos t\theta_i \end{pmatrix}
# \begin{pmatrix} a_i \\ b_i \end{pmatrix}$$
#
# where $a$ and $b$ are the two halves of a head, and the base is 10,000 in this checkpoint.


# %%
def rope(x, base):
    d = x.shape[-1]
    angle = np.arange(x.shape[-2])[:, None] * base ** (-np.arange(0, d, 2) / d)  # position · frequency: (T, d/2)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


# %%
q, k = rng.standard_normal((2, 32))
at = rope(np.tile([[q], [k]], (1, 12, 1)), 10000.0)  # the same query and key at each of 12 positions
for query, key in [(3, 1), (7, 5), (11, 9), (11, 1)]:
    print(f"query at {query:2}, key at {key}: score {at[0, query] @ at[1, key]:8.4f}")

# %% [markdown]
# Three pairs that are 2 positions apart have one score; the pair that is 10 apart has another. Chapter 02 takes this
# further.
#
# ## One attention map, and the difference of two
#
# An attention map says how much each token (query, a row) takes from each token before it (key, a column). Its rows
# are softmaxes, which has a price: a softmax of scores is never 0. A token that needs one word still gives a little
# weight to all others that it sees, and over a long text these crumbs add up to noise.
#
# The idea of the paper: let each pair of heads compute *two* maps and subtract one, times λ, from the other. Weight
# that both maps give to a token cancels in part (all of it where $A_1 = \lambda A_2$). What the first map sees and the
# second does not stays; what the second sees and the first does not becomes *negative*:
#
# $$\mathrm{DiffAttn}(X) = \left(\mathrm{softmax}\frac{Q_1K_1^\top}{\sqrt d} - \lambda\,
# \mathrm{softmax}\frac{Q_2K_2^\top}{\sqrt d}\right)V \tag{eq. 1}$$


# %%
def attention_map(q, k):
    T, d = q.shape[-2:]
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(d)
    return softmax(np.where(np.tri(T, dtype=bool), scores, -np.inf))  # a token sees itself and those before it


def diff_attention(q1, k1, q2, k2, v, lambda_):  # eq. 1
    return (attention_map(q1, k1) - lambda_ * attention_map(q2, k2)) @ v


# %% [markdown]
# **Why only those before?** In training each token must predict the next one. If it could see that one, there would be
# nothing to predict. `np.tri` is true at and below the diagonal. Everywhere else the score becomes −∞. That is the one
# score of which a softmax makes exactly 0.
#
# ## A pair of heads
#
# Where do $Q_1$, $K_1$, $Q_2$, $K_2$ come from? Three matrices turn each token into queries, keys and values, which
# are cut into H heads. Heads $i$ and $i + H/2$ are a pair: they give the two maps, and share one value of twice the
# size. ($Q$ has a query in each row, $K$ a key and $V$ a value.)

# %%
sketches.head_pair()

# %% [markdown]
# The strength λ of the subtraction is learned, one number per layer:
#
# $$\lambda = e^{\lambda_{q1}\cdot\lambda_{k1}} - e^{\lambda_{q2}\cdot\lambda_{k2}} + \lambda_{init} \tag{eq. 2}$$
# $$\lambda_{init} = 0.8 - 0.6\,e^{-0.3\,l}$$
#
# Before training the two exponentials are nearly equal, so λ starts near $\lambda_{init}$. Training can raise λ by
# the first exponential and lower it by the second, even below 0. The layer number $l$ counts from 0 here, as code
# does. (The paper counts from 1 and writes $-0.3\,(l - 1)$, which is the same.)
#
# Each pair's result is normed by itself and scaled by $1 - \lambda_{init}$; then the matrix $W^O$ mixes all pairs:
#
# $$\mathrm{head}_i = (1 - \lambda_{init})\,\mathrm{LN}(\mathrm{DiffAttn}_i(X)) \tag{eq. 3}$$
# $$\mathrm{MultiHead}(X) = [\mathrm{head}_1, \ldots, \mathrm{head}_{H/2}]\,W^O$$
#
# (What the paper calls a head makes both maps; here that is a *pair* of heads.) Chapter 03 asks why the norm and the
# factor are there. This model has H = 6 heads of d = 32 numbers, so three pairs, and 6 · 32 = 192 = D. In code, line by
# line:
#
# 1. `heads` multiplies the tokens by a matrix and cuts the result into heads; queries and keys are rotated.
# 2. The values of heads $i$ and $i + H/2$ are joined: `np.split` cuts six heads into the first three and the last
#    three, `concatenate` lays them side by side. Each pair has one value of size $2d$.
# 3. `np.repeat` is for models with fewer key/value heads than query heads, which share them to save memory (chapter
#    05). This model has as many, so nothing is repeated.
# 4. `np.split` once more, now for queries and keys: the first three heads make the first maps, the last three make the
#    second maps.
# 5. λ is eq. 2, and the rest is eq. 3: difference, norm, factor, $W^O$.


# %%
def attention(x, p, layer, config):  # eq. 2 and 3
    def heads(name):  # (T, D) -> (heads, T, d)
        return (x @ p[name].T).reshape(len(x), -1, config["head_dim"]).swapaxes(0, 1)

    base = config["rope_parameters"]["rope_theta"]
    q, k, v = rope(heads("q_proj.weight"), base), rope(heads("k_proj.weight"), base), heads("v_proj.weight")
    v = np.concatenate(np.split(v, 2), axis=-1)  # a pair of heads shares one value of size 2d
    k, v = (np.repeat(kv, len(q) // len(k), axis=0) for kv in (k, v))  # H / K query heads share a key/value head
    (q1, q2), (k1, k2) = np.split(q, 2), np.split(k, 2)  # heads i and i + H/2 are a pair
    lambda_init = 0.8 - 0.6 * np.exp(-0.3 * layer)
    lambda_ = np.exp(p["lambda_q1"] @ p["lambda_k1"]) - np.exp(p["lambda_q2"] @ p["lambda_k2"]) + lambda_init
    out = (1 - lambda_init) * rms_norm(diff_attention(q1, k1, q2, k2, v, lambda_), config["rms_norm_eps"])
    return out.swapaxes(0, 1).reshape(len(x), -1) @ p["o_proj.weight"].T


# %% [markdown]
# ## The feed-forward network
#
# SwiGLU works on what attention has collected, token by token. One matrix computes candidates (`up`). One decides how
# much of each to let through (`gate`, by the smooth switch $\mathrm{silu}(z) = z/(1+e^{-z})$). One brings the result
# back to size D (`down`).
#
# $$\mathrm{SwiGLU}(x) = W_{down}\left(\mathrm{silu}(W_{gate}\,x) \odot W_{up}\,x\right)$$


# %%
def swiglu(x, p):
    gate, up = x @ p["gate_proj.weight"].T, x @ p["up_proj.weight"].T
    return (gate / (1 + np.exp(-gate)) * up) @ p["down_proj.weight"].T


# %% [markdown]
# ## The model
#
# All blocks are there. The loop below is the drawing from above, line for line. After the last layer, the product with
# the embedding table gives each token of the vocabulary a score (logit). The score says how well the token fits as the
# next one.


# %%
def model(ids, weights, config):
    eps = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        p = subset(weights, f"model.layers.{layer}.")
        normed = rms_norm(x, eps, p["input_layernorm.weight"])
        x = x + attention(normed, subset(p, "self_attn."), layer, config)  # eq. 4
        normed = rms_norm(x, eps, p["post_attention_layernorm.weight"])
        x = x + swiglu(normed, subset(p, "mlp."))  # eq. 5
    x = rms_norm(x, eps, weights["model.norm.weight"])
    return x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T  # logits: (T, vocabulary)


# %%
logits = model(ids, weights, config)
print("logits (T, vocabulary) =", logits.shape)
probabilities = softmax(logits[-1])
print(f"after {text!r}:")
for token in np.argsort(-probabilities)[:5]:
    print(f"  {probabilities[token]:.3f} {tokenizer.decode([token])!r}")

# %% [markdown]
# ## A story
#
# To continue a text, take the token with the largest score, append it, and run the model again. (In practice, keys
# and values are kept in a cache and not computed again, which changes the cost and not the result: chapter 05.)


# %%
def generate(ids, count, weights, config):
    for _ in range(count):
        ids = [*ids, int(model(ids, weights, config)[-1].argmax())]
    return ids


# %%
story = generate(tokenizer.encode("The wolf said to the little girl").ids, 40, weights, config)
print(tokenizer.decode(story))

# %% [markdown]
# ## Experiment: look at the two maps
#
# You own every line, so you can look inside. We wrap `attention_map` with a function that keeps what it returns, and
# run the model once. Then we draw the two maps of one pair of heads, and their difference.

# %%
kept, original = [], attention_map


def recording(q, k):
    kept.append(original(q, k))
    return kept[-1]


attention_map = recording
model(ids, weights, config)
attention_map = original

# %%
lambda_inits = [0.8 - 0.6 * np.exp(-0.3 * layer) for layer in range(6)]
lambdas = []
for layer in range(6):  # eq. 2
    p = subset(weights, f"model.layers.{layer}.self_attn.")
    dots = p["lambda_q1"] @ p["lambda_k1"], p["lambda_q2"] @ p["lambda_k2"]
    lambdas.append(np.exp(dots[0]) - np.exp(dots[1]) + lambda_inits[layer])
print("λ_init by layer:", *(f"{lambda_init:5.2f}" for lambda_init in lambda_inits))
print("λ by layer:     ", *(f"{lambda_:5.2f}" for lambda_ in lambdas))

# %%
layer, pair = 4, 0
firsts, seconds = kept[2 * layer : 2 * layer + 2]  # three pairs each
differences = firsts - lambdas[layer] * seconds
shown = (" who", " son")  # tokens of the text: if you change it, change these
framed = [tokens.index(word) for word in shown]
sketches.three_maps(tokens, firsts[pair], seconds[pair], lambdas[layer], framed)

# %% [markdown]
# Read the row "son", the lower frame, from left to right. The first map finds "three" and little else. The second gives
# weight to everything before. In the difference "three" still stands out, but the rest of the row is now negative
# (orange). Where λA₂ is larger than A₁, a token's value is *subtracted*, which no softmax can do.
#
# Is that what the idea promised? Take the token that A₁ prefers. Which share of all |weight| in its row does it have,
# in A₁ and in the difference?

# %%
before, after = sketches.shares_of_top(firsts, differences)
for word in shown:
    i = tokens.index(word)
    top = firsts[pair, i].argmax()
    print(f"row {word!r}: weight of {tokens[top]!r} {firsts[pair, i, top]:.2f} → {differences[pair, i, top]:.2f}, all "
          f"|weight| 1.00 → {np.abs(differences[pair, i]).sum():.2f}: its share is {before[pair, i]:.0%} → "
          f"{after[pair, i]:.0%}")  # fmt: skip
rises = int((after > before)[:, 1:].sum())  # without the first token, which sees itself alone
falls = before[:, 1:].size - rises
print(f"layer {layer}, all pairs: the share rises in {rises} rows and falls in {falls}")

# %% [markdown]
# No: the share of "three" *falls*, since A₁ was sharp already and the second map adds more negative weight than it
# cancels. The row "who" with its "king", the upper frame, is the same, and so are most rows of this layer. Subtraction
# can clean a map; this model does something else with it. Keep the question: **what is a broad map subtracted for?**
# Chapter 03 takes it up.
#
# Look at the two lists of λ, too: training has moved some far from their start values. Two layers have a λ below 0;
# they *add* their second map. Chapter 03 asks what they do with it.
#
# ## Experiment: switch the subtraction off
#
# Is the second map used at all? We multiply λ in every layer by a number, and measure the loss on the openings of eight
# tales. They were written for these notebooks, and the model has never seen them. The loss is how surprised the model
# is by each next token, $-\log p$, on average. With the natural logarithm its unit is the *nat*; $e^{loss}$ is called
# *perplexity* and is the number of equally likely tokens among which one would be as uncertain.

# %%
tales = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")
openings = [tokenizer.encode(tale.strip()).ids[:256] for tale in tales if tale.strip()]


def loss_of(ids):
    probabilities = softmax(model(ids, weights, config)[:-1])
    return -np.log(probabilities[np.arange(len(ids) - 1), ids[1:]]).mean()


def loss_with(factor):
    global diff_attention
    trained = diff_attention
    diff_attention = lambda q1, k1, q2, k2, v, lambda_: trained(q1, k1, q2, k2, v, factor * lambda_)  # noqa: E731
    losses = [loss_of(ids) for ids in openings]
    diff_attention = trained
    return float(np.mean(losses))


factors = [-0.5, 0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
losses = [loss_with(factor) for factor in factors]
for factor, loss in zip(factors, losses, strict=True):
    print(f"λ × {factor:5.2f}: {loss:.3f} nats per token")
print(f"perplexity: {np.exp(losses[4]):.1f}; with λ = 0 in every layer {np.exp(losses[1]):.1f}")
sketches.loss_by_strength(factors, losses)

# %% [markdown]
# Of the factors tried, 1.00 (λ as trained) has the lowest loss, and the loss rises on both sides. So no common
# factor that we tried improves these λ. (A single layer's λ matters less: chapter 03.) Be careful with two
# conclusions:
#
# - *The second map is what it needs.* λ = 0 takes away the second map, and that is not always the smaller part. Layer 3
#   has λ = 1.56, so there λ = 0 removes the larger one. Chapter 03 finds that most of the harm is done in that layer.
# - *The subtraction makes a better model.* This model was *trained* with it. That does not show that a model trained
#   without it would be worse. Chapter 09 trains both and compares them.
#
# ## What we learned
#
# - Attention compares one token's query with the keys of others, and fetches their values by the weights that come out.
# - A language model is a look-up, a loop of "read through a norm, compute, add", and a product with the embedding
#   table.
# - The Differential Transformer changes one block: heads work in pairs, and each pair uses $A_1 - \lambda A_2$ in place
#   of one attention map. A norm for each pair and a fixed factor follow. In this version all this costs four small
#   vectors per layer.
# - The difference can cancel weight that both maps give, and it can be negative; a softmax can do neither. In the layer
#   that we looked at, the second map rarely cleans the first; it makes many weights negative.
# - λ is learned for each layer, and can end far from its start value.
#
# ## Exercise
#
# 1. Sum each row of $A_1 - \lambda A_2$. What should the sums be, and are they? Why does the norm in eq. 3 make their
#    size nearly irrelevant?
# 2. Exchange $Q_1, K_1$ and $Q_2, K_2$ in `diff_attention`, so that the second map is used first. Which loss do you
#    expect on the tales: a little higher, or worse than guessing? (Guessing among 2,048 tokens costs $\ln 2048$ nats.)
#
# <details>
# <summary>Answer</summary>
#
# 1. Rows of a softmax sum to 1, so rows of the difference sum to $1 - \lambda$. RMSNorm divides each head by its own
#    size, so it removes a factor that all weights of a row share. Two traces of it stay: its sign, and through ε
#    a little of its size.
# 2. Far worse than guessing: 8.92 nats, and guessing costs 7.62. The maps are not interchangeable.
#
# ```python
# sums = differences.sum(axis=-1)
# assert np.allclose(sums, 1 - lambdas[layer])
#
# kept_diff = diff_attention
# diff_attention = lambda q1, k1, q2, k2, v, lambda_: kept_diff(q2, k2, q1, k1, v, lambda_)
# swapped = np.mean([loss_of(ids) for ids in openings])
# diff_attention = kept_diff
# print(swapped, np.log(2048))
# assert round(swapped, 2) == 8.92
# ```
#
# </details>
#
# ## What must hold
#
# These 60 lines compute what refdiff's reference implementation computes. The logits are equal up to rounding error in
# float64, and the story is the same token for token. refdiff in turn is tested against transformers. Its files have the
# same blocks, each with its derivative and its checks; the following chapters open them one by one.

# %%
import refdiff

reference = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", kernels="reference")
error = np.abs(logits - reference([ids]).logits[0]).max()
again = reference.generate([tokenizer.encode("The wolf said to the little girl").ids], max_new_tokens=40)[0].tolist()
print("logits agree to 1e-12:", bool(error < 1e-12))
print("the same story:", again == story)
# asserts what this chapter says; may fail after changes of your own
assert losses[4] == min(losses)
assert falls > rises
assert error < 1e-12
assert again == story

# %% [markdown]
# ## Questions
#
# <details>
# <summary>Which part of a layer has no counterpart in a Llama, and how many parameters is it?</summary>
#
# λ (eq. 2) with its four vectors of head size, 4 × 32 = 128 numbers per layer. Pairing heads, the norm of each pair
# (which has no weight here) and the factor 1 − λ_init (eq. 3) are new, too, and add none.
#
# </details>
# <details>
# <summary>How can a token's value enter the result with a negative weight?</summary>
#
# A₁ − λ A₂ is below 0 wherever λ A₂ is larger than A₁. A single softmax has only positive weights.
#
# </details>
# <details>
# <summary>The loss rises when λ is 0. Why does that not show that the subtraction makes a better model?</summary>
#
# In layer 3, λ is above 1, so λ = 0 takes away the larger map. And the model was trained with the subtraction, so its
# parameters rely on it. Only a model trained without it is a fair comparison.
#
# </details>
#
# Next: [01 · Where do words meet?](01_one_token.ipynb)
