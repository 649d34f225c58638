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
# # One source for NumPy, CuPy, and other array libraries
#
# You have a softmax in NumPy, and now your arrays lie in the memory of a GPU. Your tests pass on your own computer, and
# the first run on the GPU may fail. **How do you write it once for both, and how do you test that without a GPU?** We
# begin with such a failure. Then we look at what refdiff does instead, and at every place where numbers are copied from
# one memory to the other.
#
# **The CUDA kernels have never run on a GPU**, nor has this notebook. The GPU is played by
# [array-api-strict](https://data-apis.org/array-api-strict/), a library with a second, pretended device. It refuses
# every function that is not in the array-API standard, and every hidden copy from that device.

# %%
# %matplotlib inline
import inspect
import mmap
import tempfile

import array_api_strict
import numpy as np
import sketches

import refdiff
from refdiff import arrays, layers

second = array_api_strict.Device("device1")

# %% [markdown]
# ## A softmax that runs in one place only
#
# Here is the causal softmax of chapter 01, with NumPy's name in each line. We call it with an array of NumPy, and with
# the same numbers on the second device:


# %%
def names_numpy(scores):
    seen = np.tri(*scores.shape, dtype=bool)
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    return weights / np.sum(weights, axis=-1, keepdims=True)


rng = np.random.default_rng(10)
scores, mask = rng.standard_normal((6, 6)), np.tri(6, dtype=bool)
scores_there, mask_there = (arrays.from_numpy(x, array_api_strict, second) for x in (scores, mask))
print("on NumPy: rows sum to 1:", np.allclose(names_numpy(scores).sum(axis=-1), 1))
refused = {}
try:
    names_numpy(scores_there)
except RuntimeError as error:
    refused["names_numpy"] = type(error)
    print(f"on the second device: {type(error).__name__}: {error}")

# %% [markdown]
# `np.where` wants the numbers in the computer's own memory, and they are not there. (`arrays.from_numpy` copied them
# to the second device, and `arrays.to_numpy` copies them back.) No test with NumPy's arrays finds this mistake.
#
# On CuPy two of the four lines would be wrong (we did not run it). `np.tri` makes an array in the computer's memory,
# and `np.where` would get one array from each memory: CuPy answers with a `TypeError`. The other two lines would run.
# CuPy takes over `np.exp`, `np.max` and `np.sum` when they are called with one of its arrays. The library
# array-api-strict takes over none of them, so it also finds the lines that happen to run on CuPy.
#
# ## Whose array is this?
#
# refdiff's *layers*, here the functions of `refdiff.layers`, one for each equation, name no array library. They ask an
# array for its *namespace*, the module with the functions for it: `numpy`, `cupy` or `array_api_strict`. One
# function asks.

# %%
sketches.namespaces()

# %%
print(inspect.getsource(arrays.namespace))

# %% [markdown]
# ## A layer does not know
#
# The softmax inside differential attention (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258), eq.
# 1),
#
# $$\mathrm{DiffAttn}(X) = \left(\mathrm{softmax}\frac{Q_1K_1^\top}{\sqrt d} - \lambda\,
# \mathrm{softmax}\frac{Q_2K_2^\top}{\sqrt d}\right)V,\tag{eq. 1}$$
#
# is `layers.softmax`. Its first line finds `xp`, the rest is written with it. Here it is without its docstring:

# %%
head, _, body = inspect.getsource(layers.softmax).split('"""')
print(head.rstrip() + body)

# %% [markdown]
# On NumPy arrays it gives what ours gives. On the second device it runs, as does differential attention, which calls
# it. Arrays of two libraries at once are refused:

# %%
host = [rng.standard_normal((1, 2, 6, 4)) for _ in range(4)] + [rng.standard_normal((1, 2, 6, 8)), np.asarray(0.5)]
there = [arrays.from_numpy(x, array_api_strict, second) for x in host]
print("on NumPy equal:", np.allclose(layers.softmax(scores, mask), names_numpy(scores)))
kinds = {}
for name, function, given in (
    ("layers.softmax", layers.softmax, (scores_there, mask_there)),
    ("diff_attention", layers.diff_attention, there),
    ("of two libraries", layers.diff_attention, [host[0], *there[1:]]),
):
    try:
        kinds[name] = arrays.device(function(*given))
        print(f"{name:16} → on {kinds[name]}")
    except TypeError as error:
        refused[name] = type(error)
        print(f"{name:16} refused: {type(error).__name__}")

# %% [markdown]
# That is the test without a GPU: a line that names NumPy, or makes an array on the wrong device, is an error here. In
# refdiff's tests, every layer runs in this way. What they do not show is how another library *rounds*: array-api-strict
# computes with NumPy underneath.
#
# ## The whole model
#
# For NumPy arrays refdiff has fast *kernels*, which compute what layers do. For array-api-strict there are none, so a
# model there computes with the layers alone. (CuPy has CUDA kernels. CI runs their source as C++ on a CPU.)

# %%
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
prompt = tokenizer(["Once upon a time"], return_tensors="np")["input_ids"]
texts, logits = {}, {}
for name, options in {
    "NumPy, layers": {"backend": "numpy", "kernels": "reference"},
    "NumPy, kernels": {"backend": "numpy", "kernels": "fast"},
    "array-api-strict": {"backend": array_api_strict, "device": second},
}.items():
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", **options)
    out = model(prompt).logits
    texts[name], logits[name] = (arrays.to_numpy(x) for x in (model.generate(prompt, max_new_tokens=16), out))
    away = np.abs(logits[name] - logits["NumPy, layers"]).max()
    print(f"{name:17} {type(out).__name__:8} on {arrays.device(out)!s:35} within 1e-10: {away < 1e-10}")
    print(f"{'':17} {tokenizer.decode(texts[name][0], skip_special_tokens=True)!r}")

# %% [markdown]
# In the second row the kernels sum in another order than the layers, so only the last digits may differ. The third row
# says that the model left the standard nowhere, from the tokens to the text.
#
# ## Where copies happen
#
# **1. File → memory.** A float32 checkpoint is *mapped*: the array is a view of the file, and the system reads the
# pages that are used. Nothing is copied. 16-bit weights are widened when they are loaded, which is a copy.

# %%
bundled = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
views = {}
with tempfile.TemporaryDirectory() as folder:
    bundled.save_pretrained(folder, dtype="float32")
    mapped = refdiff.DiffLlamaForCausalLM.from_pretrained(folder)
    for name, model in (("16-bit file", bundled), ("float32 file", mapped)):
        weight = model.base_params["layers"][0]["mlp"]["up_proj"]["weight"]
        owner = weight
        while getattr(owner, "base", None) is not None:
            owner = owner.base
        memory = getattr(owner, "obj", owner)  # what a memoryview is a view of
        views[name] = isinstance(memory, mmap.mmap)
        print(f"{name:13} computed in {weight.dtype}, a view of the file: {views[name]}")
    del mapped, model, weight, owner, memory

# %% [markdown]
# **2. Memory → device, once.** `from_pretrained(..., backend="cupy")` sends the weights to the GPU when the model is
# made.
#
# **3. Each step.** With the default kernels on CuPy, `generate` chooses the next token on the GPU, greedily or by
# sampling, and one id per sequence comes back. The id, its position and the length of the text go there (and to sample,
# one random number per sequence). Keys, values and logits stay there.
#
# Here are the bytes for one sequence of the bundled model on a GPU, worked out from its config and not measured. The
# width of an arrow is the logarithm of its bytes:

# %%
config = bundled.config
weights = 4 * bundled.num_parameters()
number, row = 8, 4 * config.vocab_size
cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
sketches.copies(weights, 3 * number, number, cache, row)

# %% [markdown]
# Logits come back only where the host must see them:
#
# - for options that read scores: logits processors (`repetition_penalty`, for one), `output_scores` and
#   `output_logits`, the cutoffs `typical_p`, `epsilon_cutoff` and `eta_cutoff`;
# - for beams, and for several `num_return_sequences`;
# - with weights in float64, and with `kernels="reference"`.
#
# ## Exercise
#
# You write `1 / np.sqrt(x)` in a layer, where x is an array that came in. What happens on NumPy, and what on the
# second device? Which line would be right?
#
# <details>
# <summary>Answer</summary>
#
# On NumPy it works, so no test on NumPy alone shows the mistake. On the second device it is an error. On CuPy it would
# work by luck, since CuPy takes `np.sqrt` over; but `np.asarray(x)` would be an error there too. Right is:
#
# ```python
# x = there[0] ** 2
# xp = arrays.namespace(x)
# assert arrays.device(1 / xp.sqrt(x)) == second
# try:
#     1 / np.sqrt(x)
# except RuntimeError as error:
#     print(error)
# else:
#     raise AssertionError("np.sqrt was not refused")
# ```
#
# </details>
#
# ## What must hold

# %%
assert set(kinds) == {"layers.softmax", "diff_attention"}
assert set(kinds.values()) == {second}
assert refused == {"names_numpy": RuntimeError, "of two libraries": TypeError}
on_host = layers.diff_attention(*host)
assert np.allclose(on_host, arrays.to_numpy(layers.diff_attention(*there)), rtol=0, atol=1e-12)
for name in texts:
    assert np.allclose(logits[name], logits["NumPy, layers"], rtol=0, atol=1e-10), name
    assert np.array_equal(texts[name], texts["NumPy, layers"]), name
assert views == {"16-bit file": False, "float32 file": True}
