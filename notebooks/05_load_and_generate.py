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
# # 05 · Load and generate
#
# **What you will see.** From a file on disk to text: what is in a checkpoint, the loop that makes one token after the
# other, what a cache of keys and values saves, and how sampling reshapes the distribution from which the next token
# is drawn.

# %%
# %matplotlib inline
import functools
import inspect
import json

import numpy as np

import refdiff
from refdiff import bundled, layers, viz
from refdiff.backends import overlay
from refdiff.generation import sampling
from refdiff.generation.decode import decode

# %% [markdown]
# ## A checkpoint is a config, a tokenizer and one file of numbers
#
# A safetensors file begins with the length of its header, then has the header as JSON: for each tensor its type,
# shape and place. The numbers follow. refdiff maps the file; what is not used is not read.

# %%
raw = (bundled.FOLDER / "model.safetensors").read_bytes()
length = int.from_bytes(raw[:8], "little")
header = json.loads(raw[8 : 8 + length])
for name in list(header)[:9]:
    if name != "__metadata__":
        print(f"{name:50} {header[name]['dtype']:4} {header[name]['shape']}")
print(f"… {len(header)} entries")

# %% [markdown]
# The bundled model stores 16-bit numbers. We compute in float64, so that this page comes out the same on every
# machine.

# %%
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
ids = tokenizer(["Once upon a time"], return_tensors="np")["input_ids"]
print("ids", ids.tolist())
print(tokenizer.decode(model.generate(ids, max_new_tokens=24)[0], skip_special_tokens=True))

# %% [markdown]
# ## The loop
#
# The model gives scores $z$ for the next token from its last hidden state, $z = x_T E^\top$ (the table of embeddings
# is used twice), with $x = \mathrm{LN}(X^L)$ after the layers of eq. 4 and 5 of the paper (Ye et al. 2024, [arXiv
# 2410.05258](https://arxiv.org/abs/2410.05258)). Generation appends a token, and asks again. This is the function
# behind greedy decoding and sampling:

# %%
print(inspect.getsource(decode))

# %% [markdown]
# Greedy decoding by hand, with no cache: the whole text goes through the model for each new token.

# %%
text = ids
for _ in range(24):
    logits = model(text, use_cache=False).logits[0, -1]
    text = np.concatenate([text, [[logits.argmax()]]], axis=1)
print("by hand, as generate:", np.array_equal(text, model.generate(ids, max_new_tokens=24)))

# %% [markdown]
# ## What the cache saves
#
# A key or value of an earlier token never changes, because no token sees a later one (notebook 01). So they are kept,
# and each step sends only the new token through the layers. We count the multiplications in all `linear` layers, by
# laying a function over `linear` that counts and passes on. (`overlay` is how refdiff traces, times and replaces
# layers.)

# %%
count = {"multiplications": 0}


def count_products(name, function):
    if name != "linear":
        return function

    @functools.wraps(function)
    def counted_linear(x, weight, bias=None):
        count["multiplications"] += x.size * weight.shape[0]
        return function(x, weight, bias)

    return counted_linear


ops, model.ops = model.ops, overlay(model.ops, count_products)
greedy = model.generate(ids, max_new_tokens=24)
with_cache = count["multiplications"]
count["multiplications"] = 0
for end in range(ids.shape[1], text.shape[1]):
    model(text[:, :end], use_cache=False, logits_to_keep=1)
without_cache = count["multiplications"]
model.ops = ops
print(f"with a cache    {with_cache:>13,} multiplications")
print(f"without         {without_cache:>13,} multiplications")
print("the same text:", np.array_equal(greedy, text))

# %% [markdown]
# Counted are the products with weights. Without a cache they grow with the square of the text's length, with it in
# proportion. (Attention's own products, of queries with keys and of weights with values, grow with the square with a
# cache too: each new token looks at all before it. Without one they grow with the cube.) The results are the same
# because the cache is no approximation:

# %%
whole = model(text)
part = model(text[:, :10])
rest = model(text[:, 10:], cache=part.cache)
print("logits in two parts:", np.allclose(whole.logits[:, 10:], rest.logits, rtol=0, atol=1e-10))
print("tokens in the cache:", len(rest.cache))

# %% [markdown]
# ## Sampling
#
# Greedy text repeats itself. Sampling draws the next token $v$ from the probabilities
#
# $$p_v = \mathrm{softmax}(z)_v = \frac{\exp z_v}{\sum_u \exp z_u},$$
#
# after reshaping them:
#
# - **temperature** τ: $z' = z/\tau$. Below 1 it sharpens, above 1 it flattens (Ackley et al. 1985).
# - **top-k**: only the k most likely tokens stay (Fan et al. 2018).
# - **top-p**: the smallest set of most likely tokens whose probabilities reach p (Holtzman et al. 2020, eq. 2).

# %%
print(inspect.getsource(sampling.temperature))
print(inspect.getsource(sampling.top_p))

# %%
z = model(ids).logits[:, -1]
best = sampling.top_indices(z, 4)[0]

shapes = {
    "p": z,
    "τ = 0.5": sampling.temperature(z, 0.5),
    "τ = 2": sampling.temperature(z, 2.0),
    "top-p 0.8": sampling.top_p(z, 0.8),
}
words = [repr(tokenizer.decode([int(token)])) for token in best]
shares = {}
for name, scores in shapes.items():
    p = sampling.softmax(scores)[0]
    shares[name] = {**dict(zip(words, map(float, p[best]), strict=True)), "others": float(1 - p[best].sum())}
axes = viz.plot_attention_to(shares)
axes.set_ylabel("probability of the next token")
axes.figure.set_size_inches(9, 3.6)
axes.figure

# %% [markdown]
# `draw` turns one uniform number into a token, by walking along the cumulative probabilities. Drawn often enough, the
# tokens come as often as their probabilities say.

# %%
p = sampling.softmax(shapes["top-p 0.8"])[0]
drawn = [sampling.draw(p, u) for u in np.random.default_rng(5).random(4000)]
frequencies = np.bincount(drawn, minlength=len(p)) / len(drawn)
for token, word in zip(best, words, strict=True):
    print(f"{word:12} probability {p[token]:.3f}   drawn {frequencies[token]:.3f}")

# %% [markdown]
# A seed makes a draw repeatable. Three texts from three seeds:

# %%
for seed in range(3):
    made = model.generate(ids, max_new_tokens=24, do_sample=True, temperature=0.8, top_p=0.95, seed=seed)
    print(f"seed {seed}:", tokenizer.decode(made[0], skip_special_tokens=True))

# %% [markdown]
# ## Exercise
#
# Which temperature makes sampling the same as greedy decoding? `temperature=0` is refused. How small must τ be so
# that the best token above gets at least 99.9 %?
#
# <details>
# <summary>Answer</summary>
#
# Greedy is the limit τ → 0. At temperature τ the ratio of the two best tokens' probabilities is
# $\exp((z_1 - z_2)/\tau)$. If the others are negligible, the best gets 99.9 % when that ratio is 999:
# $\tau = (z_1 - z_2)/\ln 999$.
#
# ```python
# z1, z2 = np.sort(z[0])[:-3:-1]
# tau = (z1 - z2) / np.log(999)
# sampling.softmax(sampling.temperature(z, tau)).max()  # close to 0.999, a little less if a third token is near
# ```
#
# </details>
#
# ## What must hold

# %%
assert np.array_equal(text, greedy)
assert with_cache < without_cache / 5
assert np.allclose(whole.logits[:, 10:], rest.logits, rtol=0, atol=1e-10)
assert np.allclose(layers.softmax(z), sampling.softmax(z))
assert np.abs(frequencies - p).max() < 0.03
assert set(drawn) <= set(np.flatnonzero(p))

# %% [questions]
# Q: What does the cache hold, and why may it be kept from step to step?
# A: The keys and values of earlier tokens. They never change, because no token sees a later one.
#
# Q: What do τ = 0.5 and τ = 2 do to the distribution?
# A: 0.5 sharpens it (likely tokens become likelier), 2 flattens it.
#
# Q: How is one token drawn from probabilities?
# A: A uniform number is compared with the cumulative probabilities; the token at which they pass it is drawn.
