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
# # 05 · How does a model write, and why so fast?
#
# A language model gives scores for *one* next token. To write a sentence, someone must pick a token, append it and ask
# again. Done naively, the model reads the whole text once more for each word. **What need not be computed again? And
# who picks the token?**
#
# You count the multiplications with and without a cache, then reshape the distribution from which the next token is
# drawn. You also time both on your machine. Allow 20 minutes; you need chapter 00.

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
# After the layers (eq. 4 and 5 of the paper, Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)) and
# a last norm, the last token has the vector $x_T$. The scores of the next token are
#
# $$z = x_T E^\top .$$
#
# The table of embeddings $E$ is used a second time: the score of a token is how well the vector matches the token's own
# row. The loop of chapter 00 takes the best token each time, which is called greedy decoding:

# %%
print(inspect.getsource(tiny.generate))
story = tiny.generate(ids, 24, weights, config)
print(tokenizer.decode(story, skip_special_tokens=True))

# %% [markdown]
# ## What need not be computed again
#
# In chapter 01 a change of one token reached later tokens only. So appending a token changes *nothing* about the
# earlier ones: their vectors, keys and values stay exactly what they were. Keep the keys and values, and each step
# needs one new row of each attention map. (Keys are kept after their rotation: a token's position does not change when
# others are appended.)

# %%
sketches.cache()

# %% [markdown]
# The new token's query looks at all kept keys, and its own key and value join them. The cache is a result of refdiff's
# model, and an argument of the next call. A text in two parts gives the same logits as in one:

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
# We count multiplications. The layers have one for each weight and each token that goes through. Attention adds those
# of each pair of a query and a key. (tiny.py computes a whole square for a map, so we count squares and not the
# staircases of the drawing. The product with $E$ is left out: a step needs it for the last token only.)

# %%
heads, d, layer_count = (config[name] for name in ("num_attention_heads", "head_dim", "num_hidden_layers"))
per_token = sum(w.size for name, w in weights.items() if w.ndim == 2 and "embed" not in name)
per_pair = 2 * layer_count * heads * d  # q·k, and the weight times the value
start, end = len(ids), len(story)
lengths = np.arange(start, end)
first = lengths == start  # the prompt goes through at once
with_cache = np.cumsum(np.where(first, start, 1) * per_token + np.where(first, start**2, lengths) * per_pair)
without = np.cumsum(lengths * per_token + lengths**2 * per_pair)
pairs = (lengths**2 * per_pair).sum() / without[-1]
print(f"{end - start} tokens with a cache: {with_cache[-1]:,} multiplications, without: {without[-1]:,}")
print(f"the cache saves a factor of {without[-1] / with_cache[-1]:.1f}; it holds "
      f"{2 * layer_count * heads * d:,} numbers for each token")  # fmt: skip
print(f"of the multiplications without a cache, {pairs:.1%} are for pairs of tokens, the rest multiply weights")
sketches.curves(lengths - start + 1, {"without a cache": without / 1e6, "with a cache": with_cache / 1e6},
                "tokens written", "million multiplications")  # fmt: skip

# %% [markdown]
# Write n tokens without a cache, and the weights are multiplied 1 + 2 + … + n times: this part grows with the
# *square* of the length. The comparison of pairs, small here, grows even with its *cube* (1 + 4 + … + n²). With a
# cache the weights' part grows with n and that of the pairs with n².
#
# Multiplications are not seconds. So we measure seconds, too: the last step of a text of 400 tokens, with the other 399
# in a cache and without a cache, the fastest of five times each. (The line of times is that of a busy machine; yours
# will differ.)

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
# One step is several times as fast, and far from 400 times; exercise 6 measures whole texts. A step with a cache reads
# every weight of the model for one single token. In a large model, the bandwidth of memory therefore limits it
# ([measured](reference/guides/performance.md)). In one as small as ours we expect the fixed cost of a step to matter
# more.
#
# The price is memory: a key and a value of every token, in every layer and head. Differential attention needs no more
# of it than plain attention with as many heads. A pair keeps two keys and one value of twice the size, as much as two
# plain heads keep. Many larger models let several query heads share one key/value head (*grouped queries*), which makes
# the cache as many times smaller.
#
# ## Who picks the token?
#
# Greedy decoding always takes the best token. Let it run on for a while:

# %%
long = model.generate(ids[None], max_new_tokens=220)[0]
told = tokenizer.decode(long, skip_special_tokens=True)
print("\n".join(told.split("\n")[2:]).strip())

# %% [markdown]
# It has fallen into a loop: the same sentence comes again word for word. Once the last words repeat, the most likely
# next ones often do, too.
#
# Sampling draws the next token from the probabilities instead,
#
# $$p_v = \frac{\exp(z_v/\tau)}{\sum_u \exp(z_u/\tau)} ,$$
#
# after reshaping them:
#
# - **temperature** τ: below 1 it sharpens, above 1 it flattens (Ackley et al. 1985).
# - **top-k** keeps the k most likely tokens (Fan et al. 2018).
# - **top-p** keeps the smallest set of most likely tokens whose probabilities reach p (Holtzman et al. 2020).

# %%
z = model(ids[None]).logits[:, -1]
order = np.argsort(-z[0])[:12]
names = [tokenizer.decode([int(token)]).replace(" ", "␣") for token in order]  # ␣ is the blank before a word
sketches.cuts(tiny.softmax(z)[0, order], names, k=4, share=0.8)

# %% [markdown]
# (␣ is the blank before a word.) What is kept is divided by its sum. Here is what each way of reshaping gives to the
# four best tokens:

# %%
best, words = order[:4], names[:4]
shares = {}
for name, scores in (("as it is", z), ("τ = 0.5", z / 0.5), ("τ = 2", z / 2), ("top-k 4", sampling.top_k(z, 4)),
                     ("top-p 0.8", sampling.top_p(z, 0.8))):  # fmt: skip
    p = tiny.softmax(scores)[0]
    shares[name] = {**dict(zip(words, map(float, p[best]), strict=True)), "others": float(1 - p[best].sum())}
    print(f"{name:9} leaves {int((p > 0).sum()):5,} of {len(p):,} tokens")
sketches.groups(shares, "probability of the next token")

# %% [markdown]
# A draw needs one uniform random number $u$: walk along the cumulative probabilities until they pass it. Drawn often
# enough, tokens come as often as their probabilities say. For a token of probability $p$, the share among $n$ draws is
# off by about $\sqrt{p(1-p)/n}$, the standard error.

# %%
p = tiny.softmax(sampling.top_p(z, 0.8))[0]
drawn = np.searchsorted(np.cumsum(p), np.random.default_rng(5).random(100_000), side="right")
frequencies = np.bincount(drawn, minlength=len(p)) / len(drawn)
for token, word in zip(best, words, strict=True):
    error = np.sqrt(p[token] * (1 - p[token]) / len(drawn))
    print(f"{word:12} probability {p[token]:.4f}   drawn {frequencies[token]:.4f} ± {error:.4f}")

# %% [markdown]
# Three texts from three seeds, and one that is too hot:

# %%
for seed, temperature in ((0, 0.8), (1, 0.8), (2, 0.8), (0, 2.0)):
    made = model.generate(ids[None], max_new_tokens=24, do_sample=True, temperature=temperature, top_p=0.95, seed=seed)
    print(f"τ = {temperature}, seed {seed}:", tokenizer.decode(made[0], skip_special_tokens=True))

# %% [markdown]
# ## What we learned
#
# - Writing is a loop: scores, pick, append.
# - Keys and values of earlier tokens never change, so they are kept. The cache is exact; it trades memory for time.
# - Temperature, top-k and top-p reshape the distribution. A draw is one look-up in the cumulative probabilities.
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

# %% [markdown]
# ## Exercises
#
# `from refdiff import exercises`, then:
#
# **1.** `exercises.check("temperature", …)`: the probabilities at temperature τ.
#
# **2.** `exercises.check("top_k", …)` and **3.** `exercises.check("top_p", …)`: scores, −∞ for the tokens that are
# dropped.
#
# **4.** `exercises.check("draw", …)`: the token for a number $u$. A token of probability 0 must never come.
#
# **5.** Which temperature makes sampling greedy? How small must τ be so that the best token above gets 99.9 %?
#
# **6.** Measure seconds: `tiny.generate` against `model.generate`, 60 and then 120 tokens. By which factor does each
# grow?
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
#
# from time import perf_counter
#
# no_cache = lambda n: tiny.generate(ids, n, weights, config)
# cached = lambda n: model.generate(ids[None], max_new_tokens=n)
# for write in (no_cache, cached):
#     seconds = []
#     for n in (60, 120):
#         began = perf_counter()
#         write(n)
#         seconds.append(perf_counter() - began)
#     print(f"{seconds[0]:.2f} s, {seconds[1]:.2f} s: {seconds[1] / seconds[0]:.1f} times")
# ```
#
# 5: Greedy is the limit τ → 0. The ratio of the two best probabilities is $\exp((z_1 - z_2)/\tau)$. If the others are
# negligible, the best gets 99.9 % when the ratio is 999: $\tau = (z_1 - z_2)/\ln 999 = 0.09$ here.
#
# 6: On a quiet machine the second grows by about 2, and the first by more: towards 4 as texts get longer. In short
# texts the fixed cost of a step may hide the difference.
#
# </details>
#
# ## Questions
#
# <details>
# <summary>What does the cache hold, and why may it be kept from step to step?</summary>
#
# The keys and values of earlier tokens. They never change, because no token sees a later one.
#
# </details>
# <details>
# <summary>What do τ = 0.5 and τ = 2 do to the distribution?</summary>
#
# 0.5 sharpens it (likely tokens become likelier), 2 flattens it.
#
# </details>
# <details>
# <summary>How is one token drawn from probabilities?</summary>
#
# A uniform number is compared with the cumulative probabilities; the token at which they pass it is drawn.
#
# </details>
#
# Next: [07 · The output is wrong: where is the mistake?](07_find_the_mistake.ipynb)
