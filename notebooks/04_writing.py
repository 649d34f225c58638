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
# # 04 · How a model writes, and why it can be fast
#
# **The question: what need not be computed again for each new word, and who picks the word?**
#
# In short: a new token changes nothing about the earlier ones, so their keys and values are kept in a *cache*. For the
# last of 400 tokens, that makes the bundled model several times as fast; you will measure it. The word is picked by a
# rule outside the model, and the simplest rule soon repeats itself.
#
# Allow 20 minutes. You need chapter 01.

# %%
# %matplotlib inline
import inspect
import time

import numpy as np
import sketches
import tiny

import refdiff
from refdiff import bundled
from refdiff.generation import sampling

weights, config = tiny.load(bundled.FOLDER)
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
ids = tokenizer(["Once upon a time"], return_tensors="np")["input_ids"][0]

# %% [markdown]
# ## The loop
#
# After the last layer (eq. 4 and 5 of Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)) the last
# token has a vector $x_T$. Its product with the table of embeddings scores every possible next token:
#
# $$z = x_T E^\top$$
#
# The loop of chapter 01 takes the highest score each time. This is called *greedy decoding*:

# %%
print(inspect.getsource(tiny.generate))
story = tiny.generate(ids, 24, weights, config)
print(tokenizer.decode(story, skip_special_tokens=True))

# %% [markdown]
# For each word, the model reads the whole text again. Is that necessary?
#
# ## Keep keys and values
#
# Chapter 02 showed that a change of one token reaches only later tokens. So a token that is *appended* changes nothing
# about the earlier ones. Their keys and values stay what they were, and each step needs just one new row of each map:

# %%
sketches.cache()

# %% [markdown]
# refdiff's model returns its cache, and takes it back in the next call. A text in two parts gives the same logits as in
# one:

# %%
text = np.array(story)[None]
whole = model(text)
part = model(text[:, :10])
rest = model(text[:, 10:], cache=part.cache)
print("logits in two parts are equal:", np.allclose(whole.logits[:, 10:], rest.logits, rtol=0, atol=1e-10))
print("tokens in the cache:", len(rest.cache))

# %% [markdown]
# ## What it saves
#
# First we count multiplications: one for each weight of the layers and each token that passes through, and those of
# each pair of a query and a key.

# %%
heads, d, layer_count = (config[name] for name in ("num_attention_heads", "head_dim", "num_hidden_layers"))
per_token = sum(w.size for name, w in weights.items() if w.ndim == 2 and "embed" not in name)
per_pair = 2 * layer_count * heads * d  # q·k, and the weight times the value
start, end = len(ids), len(story)
lengths = np.arange(start, end)
first = lengths == start  # the prompt goes through at once
with_cache = np.cumsum(np.where(first, start, 1) * per_token + np.where(first, start**2, lengths) * per_pair)
without = np.cumsum(lengths * per_token + lengths**2 * per_pair)
print(f"{end - start} tokens with a cache: {with_cache[-1]:,} multiplications, without: {without[-1]:,}")
print(f"the cache saves a factor of {without[-1] / with_cache[-1]:.1f}; it holds "
      f"{2 * layer_count * heads * d:,} numbers for each token")  # fmt: skip
sketches.curves(lengths - start + 1, {"without a cache": without / 1e6, "with a cache": with_cache / 1e6},
                "tokens written", "million multiplications")  # fmt: skip

# %% [markdown]
# Without a cache, the work grows with the *square* of the length, because the weights are applied to 1 + 2 + … + n
# tokens. With one, each token passes through the weights once.
#
# Multiplications are not seconds, so we also time the last step of a text of 400 tokens. (The times differ from run to
# run. Yours will, too.)

# %%
long_text = np.resize(np.array(story), (1, 400))


def seconds(run):
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


without_cache, with_a_cache = [], []
for _ in range(5):
    cache = model(long_text[:, :-1]).cache
    without_cache.append(seconds(lambda: model(long_text)))
    with_a_cache.append(seconds(lambda: model(long_text[:, -1:], cache=cache)))  # noqa: B023
speedup = min(without_cache) / min(with_a_cache)
print(f"timed: without a cache {1000 * min(without_cache):.0f} ms, with a cache {1000 * min(with_a_cache):.1f} ms")
print("the last of 400 tokens comes at least 3 times as fast with a cache:", speedup > 3)

# %% [markdown]
# Several times as fast, but far from 400 times. With a cache, a step still reads every weight of the model, for a
# single token. In large models the speed of memory therefore sets the pace
# ([measured](reference/guides/performance.md)).
#
# The price of the cache is memory. A pair of differential heads keeps two keys and one value of double length, as much
# as two plain heads. Many larger models let several query heads share a key and a value (*grouped queries*) to make it
# smaller.
#
# ## Who picks the word?
#
# Let greedy decoding run on for a while:

# %%
long = model.generate(ids[None], max_new_tokens=220)[0]
told = tokenizer.decode(long, skip_special_tokens=True)
print("\n".join(told.split("\n")[2:]).strip())

# %% [markdown]
# It is caught in a loop. Once a sentence has been repeated, its next words tend to be the most likely ones again.
#
# *Sampling* draws the next token from the probabilities instead:
#
# $$p_v = \frac{\exp(z_v/\tau)}{\sum_u \exp(z_u/\tau)}$$
#
# - The **temperature** τ sharpens them below 1 and flattens them above 1 (Ackley et al. 1985).
# - **Top-k** keeps the k most likely tokens (Fan et al. 2018).
# - **Top-p** keeps the smallest set of most likely tokens whose probabilities add up to p (Holtzman et al. 2020).
#
# What is kept is divided by its sum. (␣ is the space before a word.)

# %%
z = model(ids[None]).logits[:, -1]
order = np.argsort(-z[0])[:12]
names = [tokenizer.decode([int(token)]).replace(" ", "␣") for token in order]
for name, scores in (("as it is", z), ("top-k 4", sampling.top_k(z, 4)), ("top-p 0.8", sampling.top_p(z, 0.8))):
    print(f"{name:9} leaves {int(np.isfinite(scores).sum()):5,} of {z.size:,} tokens")
sketches.cuts(tiny.softmax(z)[0, order], names, k=4, share=0.8)

# %%
best, words = order[:4], names[:4]
shares = {}
for tau in (1, 0.5, 2):
    p = tiny.softmax(z / tau)[0]
    shares[f"τ = {tau}"] = {**dict(zip(words, map(float, p[best]), strict=True)), "others": float(1 - p[best].sum())}
sketches.group_bars(shares, "probability of the next token")

# %% [markdown]
# Drawing takes one random number $u$ between 0 and 1. Walk along the cumulative probabilities until they pass it. Over
# many draws, each token comes as often as its probability says:

# %%
p = tiny.softmax(sampling.top_p(z, 0.8))[0]
drawn = np.searchsorted(np.cumsum(p), np.random.default_rng(5).random(100_000), side="right")
frequencies = np.bincount(drawn, minlength=len(p)) / len(drawn)
for token, word in zip(best, words, strict=True):
    error = np.sqrt(p[token] * (1 - p[token]) / len(drawn))
    print(f"{word:12} probability {p[token]:.4f}   drawn {frequencies[token]:.4f} ± {error:.4f} (standard error)")

# %% [markdown]
# Three stories from three seeds, and one that is too hot:

# %%
for seed, temperature in ((0, 0.8), (1, 0.8), (2, 0.8), (0, 2.0)):
    made = model.generate(ids[None], max_new_tokens=24, do_sample=True, temperature=temperature, top_p=0.95, seed=seed)
    print(f"τ = {temperature}, seed {seed}:", tokenizer.decode(made[0], skip_special_tokens=True))

# %% [markdown]
# ## The answer
#
# **Keys and values of earlier tokens never change, so a cache keeps them and each step computes one new row of each
# map; the word is picked outside the model, greedily or by a draw from its reshaped probabilities.**
#
# <details>
# <summary>What is checked of this chapter</summary>
#
# ```python
# assert np.array_equal(model.generate(ids[None], max_new_tokens=24)[0], story)
# assert np.allclose(whole.logits[:, 10:], rest.logits, rtol=0, atol=1e-10)
# assert without[-1] > 5 * with_cache[-1]
# assert 3 < speedup < 400
# assert (np.abs(frequencies - p) <= 4 * np.sqrt(p * (1 - p) / len(drawn))).all()
# assert told.count("a daughter to") >= 3
# ```
#
# </details>
#
# ## Exercises
#
# `from refdiff import exercises`, then `exercises.check("top_k", my_top_k)`, and so on.
#
# **1.** `"temperature"`: the probabilities at temperature τ.
#
# **2.** `"top_k"` and **3.** `"top_p"`: scores, with −∞ for the tokens that are dropped.
#
# **4.** `"draw"`: the token for a number $u$. A token of probability 0 must never come.
#
# **5.** How small must τ be to give the best token above 99.9 %?
#
# <details>
# <summary>Answers</summary>
#
# ```python
# from refdiff import exercises
#
#
# def my_top_k(z, k):
#     return np.where(z >= np.sort(z, axis=-1)[:, -k, None], z, -np.inf)
#
#
# def my_top_p(z, p):
#     order = np.argsort(-z, axis=-1)
#     likely = np.take_along_axis(tiny.softmax(z), order, axis=-1)
#     before = np.cumsum(likely, axis=-1) - likely  # what the more likely ones have together
#     kept = np.zeros(z.shape, dtype=bool)
#     np.put_along_axis(kept, order, before < p, axis=-1)
#     return np.where(kept, z, -np.inf)
#
#
# assert exercises.check("temperature", lambda z, tau: tiny.softmax(z / tau))
# assert exercises.check("top_k", my_top_k)
# assert exercises.check("top_p", my_top_p)
# assert exercises.check("draw", lambda p, u: np.searchsorted(np.cumsum(p), u, side="right"))
# z1, z2 = np.sort(z[0])[:-3:-1]
# tau = (z1 - z2) / np.log(999)
# print(tau, tiny.softmax(z / tau).max())
# assert round(tau, 2) == 0.09
# ```
#
# 5: If the other tokens are negligible, the ratio of the two best probabilities, $\exp((z_1 - z_2)/\tau)$, must be
# 999: $\tau = (z_1 - z_2)/\ln 999 = 0.09$. In the limit τ → 0, sampling is greedy.
#
# </details>
#
# Next: [05 · What training wants, and is it better?](05_training_and_results.ipynb)
