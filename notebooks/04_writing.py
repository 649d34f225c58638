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
# **The question: what does not have to be computed again for each new word, and who picks the word?**
#
# In short: a new token changes nothing about the earlier ones, so their keys and values are kept in a *cache*. You will
# measure how much faster that makes the last of 400 tokens. The word is picked by a rule outside the model, and the
# simplest rule soon repeats itself. All of this holds for any Transformer.
#
# Allow 20 minutes. You need chapter 01.

# %%
# %matplotlib inline
import inspect
import textwrap
import time

import numpy as np
import sketches
import tiny

import refdiff
from refdiff import bundled

weights, config = tiny.load(bundled.FOLDER)
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
ids = tokenizer(["Once upon a time"], return_tensors="np")["input_ids"][0]

# %% [markdown]
# ## The loop
#
# After the last layer (eq. 4 and 5 of Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)) the last
# token has a vector $x_T$. It is normed, and its product with the table of embeddings scores every possible next token:
#
# $$z = \mathrm{LN}(x_T)\, E^\top$$
#
# The loop of chapter 01 takes the highest score each time. This is called *greedy decoding*:

# %%
print(inspect.getsource(tiny.generate))
story = tiny.generate(ids, 24, weights, config)
print(textwrap.fill(tokenizer.decode(story, skip_special_tokens=True), 76))

# %% [markdown]
# For each word, the model reads the whole text again. Is that necessary?
#
# ## Keep keys and values
#
# Chapter 02 showed that a change of one token reaches only later tokens. So a token that is *appended* changes nothing
# about the earlier ones. Their keys and values stay what they were. Their queries are not needed again: a query makes
# its row of a map once, when its token is the newest. So each step needs one new query, key and value, and one new row
# of each map (of two maps for each pair of differential heads):

# %%
sketches.cache()

# %% [markdown]
# refdiff's model returns its cache, and takes it back in the next call. Read in two parts, a text gives the same
# logits:

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
# First we count multiplications. Each token that passes through a layer is multiplied by every weight of that layer.
# And each query meets each key: a dot product, then a weight times a value. (Masked pairs are computed too, so T tokens
# that pass together make T² pairs. We leave out the product with the table E, which is needed for the newest token
# only, with a cache or without.)

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
# Without a cache, the weights are applied to 1 + 2 + … + n tokens, which grows with the *square* of the length. (The
# pairs grow with its cube, but are few in short texts.) With a cache, each token passes through the weights once.
#
# Multiplications are not seconds, so we also time the last step of texts of 50 to 400 tokens. (The times differ from
# run to run. Yours will, too.)


# %%
def seconds(run):
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


speedups, saved = {}, {}
for length in (50, 100, 200, 400):
    long_text = np.resize(np.array(story), (1, length))
    times = []
    for _ in range(5):
        cache = model(long_text[:, :-1]).cache
        whole_text, one_token = lambda: model(long_text), lambda: model(long_text[:, -1:], cache=cache)  # noqa: B023
        times.append((seconds(whole_text), seconds(one_token)))
    slow, fast = np.min(times, axis=0)
    speedups[length] = slow / fast
    saved[length] = (length * per_token + length**2 * per_pair) / (per_token + length * per_pair)
    print(f"timed: token {length:3}, without a cache {1000 * slow:4.0f} ms, with a cache {1000 * fast:4.1f} ms")
print(f"multiplications for token 400: {saved[400]:.0f} times fewer with a cache")
print("the last of 400 tokens comes at least 3 times as fast with a cache:", speedups[400] > 3)

# %% [markdown]
# The longer the text, the more the cache gains: here more than ten times at token 400, where it saves a factor of
# 400 in multiplications. A single token leaves other work that a cache cannot save, such as reading every weight
# of the model. In large models, the bandwidth of memory is therefore the limit
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
print("\n".join(textwrap.fill(line, 76) for line in told.splitlines()))

# %% [markdown]
# It is caught in a loop. How sure is the model of the sentence that it repeats?

# %%
phrase = tokenizer(["I will give her a daughter to wife"], add_special_tokens=False, return_tensors="np")
phrase = phrase["input_ids"][0]
p = tiny.softmax(model(long[None]).logits[0])
starts = [i for i in range(1, len(long) - len(phrase)) if np.array_equal(long[i : i + len(phrase)], phrase)]
means = [np.exp(np.mean([np.log(p[i + n - 1, token]) for n, token in enumerate(phrase)])) for i in starts]
print("geometric mean of its tokens' probabilities, each time:", *(f"{mean:.2f}" for mean in means))

# %% [markdown]
# Not sure at all: at a typical token of the sentence, the rest of the vocabulary is twice as likely, taken together.
# But no single token is more likely, so greedy decoding always takes this one.
#
# *Sampling* draws the next token from the probabilities instead:
#
# $$p_v = \frac{\exp(z_v/\tau)}{\sum_u \exp(z_u/\tau)}$$
#
# - The **temperature** τ makes the probabilities sharper if it is below 1, and flatter above (Ackley et al. 1985).
#   Lower it when the text makes no sense, raise it when all texts are alike.
# - **Top-k** keeps the k most likely tokens (Fan et al. 2018). It cuts off all others, which are unlikely one by one,
#   but many.
# - **Top-p** adds tokens, the most likely first, until their probabilities reach p (Holtzman et al. 2020). It keeps
#   many tokens where many words fit, and few where one does.
#
# Dropped scores are set to −∞. The softmax gives them 0, and shares their probability among the rest. In the picture,
# ␣ is the space before a word.


# %%
def top_k(z, k):
    return np.where(z >= np.sort(z)[-k], z, -np.inf)


def top_p(z, p):
    likely = np.sort(tiny.softmax(z))[::-1]
    return top_k(z, 1 + int((np.cumsum(likely) < p).sum()))


z = model(ids[None]).logits[0, -1]
order = np.argsort(-z)[:12]
names = [tokenizer.decode([int(token)]).replace(" ", "␣") for token in order]
for name, scores in (("as it is", z), ("top-k 4", top_k(z, 4)), ("top-p 0.8", top_p(z, 0.8))):
    print(f"{name:9} leaves {int(np.isfinite(scores).sum()):5,} of {z.size:,} tokens")
sketches.cuts(tiny.softmax(z)[order], names, k=4, share=0.8)

# %%
best, words = order[:4], names[:4]
shares = {}
for tau in (0.5, 1, 2):
    p = tiny.softmax(z / tau)
    shares[f"τ = {tau}"] = {**dict(zip(words, map(float, p[best]), strict=True)), "others": float(1 - p[best].sum())}
sketches.group_bars(shares, "probability of the next token")

# %% [markdown]
# To draw a token, take a random number $u$ between 0 and 1 and add up the probabilities, the most likely token first,
# until the sum (orange, above) passes $u$. A token with probability 0.4 is drawn 40 % of the time.
#
# Three beginnings from three seeds, and one at a temperature that is too high:

# %%
for seed, temperature in ((0, 0.8), (1, 0.8), (2, 0.8), (0, 2.0)):
    made = model.generate(ids[None], max_new_tokens=24, do_sample=True, temperature=temperature, top_p=0.95, seed=seed)
    print(f"τ = {temperature}, seed {seed}:")
    print(textwrap.indent(textwrap.fill(tokenizer.decode(made[0], skip_special_tokens=True), 72), "    "))

# %% [markdown]
# ## The answer
#
# **Keys and values of earlier tokens never change, so a cache keeps them and each step computes one new row of each
# map; the word is picked outside the model, greedily or by a draw from its reshaped probabilities.**
#
# <details>
# <summary>What the tests check</summary>
#
# ```python
# from refdiff.generation import sampling
#
# assert np.array_equal(model.generate(ids[None], max_new_tokens=24)[0], story)
# assert np.allclose(whole.logits[:, 10:], rest.logits, rtol=0, atol=1e-10)
# assert without[-1] > 5 * with_cache[-1]
# assert 3 < speedups[400] < 400
# assert all(np.isfinite(top_p(z, 0.8)) == np.isfinite(sampling.top_p(z[None], 0.8)[0]))
# assert all(np.isfinite(top_k(z, 4)) == np.isfinite(sampling.top_k(z[None], 4)[0]))
# assert 0.3 < min(means) <= max(means) < 0.35
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
# **4.** `"draw"`: the token for a number $u$. A token of probability 0 must never be drawn.
#
# **5.** At which τ does the most likely token get 99.9 %?
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
# z1, z2 = np.sort(z)[:-3:-1]
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
# Next: [05 · Does subtracting help a model learn?](05_training_and_results.ipynb)
