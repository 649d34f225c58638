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
# # 10 · NumPy and CuPy: the same lines
#
# *For engineers.* One source for two machines. refdiff's layers name no array library: they ask an array which
# library it came from, and use that. So the same lines run on NumPy arrays in a computer's memory and on CuPy arrays
# in a GPU's. We look at how that works, and at every place where numbers are copied from one to the other.
#
# This notebook needs no GPU. Where there is none, it computes the second time with NumPy again, and says
# so.

# %%
# %matplotlib inline
import inspect
import mmap
import tempfile

import numpy as np

import refdiff
from refdiff import arrays, layers, viz

try:
    xp = arrays.backend("cupy")
    print("CuPy answers: the second backend is the GPU")
except RuntimeError:
    xp = np
    print("no GPU answers here: the second backend is NumPy again")

# %% [markdown]
# `backend` counts CuPy as present when a small computation on it works, not when it can be imported: a library
# without a GPU to run on imports well.
#
# ## Whose array is this?
#
# Only one file asks. A *namespace* is the module that has the functions for an array: `numpy`, or `cupy`.

# %%
print(inspect.getsource(arrays.namespace))
print(inspect.getsource(arrays.from_numpy))
print(inspect.getsource(arrays.to_numpy))

# %% [markdown]
# ## A layer does not know
#
# The softmax inside differential attention (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258), eq.
# 1),
#
# $$\mathrm{DiffAttn}(X) = \left(\mathrm{softmax}\frac{Q_1K_1^\top}{\sqrt d} - \lambda\,
# \mathrm{softmax}\frac{Q_2K_2^\top}{\sqrt d}\right)V,\tag{eq. 1}$$
#
# is `layers.softmax`. Its first line finds `xp`, the rest is written with it:

# %%
print(inspect.getsource(layers.softmax))

# %%
rng = np.random.default_rng(10)
host = [rng.standard_normal((1, 2, 6, 4)) for _ in range(4)] + [rng.standard_normal((1, 2, 6, 8)), np.asarray(0.5)]
there = [arrays.from_numpy(x, xp) for x in host]

on_host = layers.diff_attention(*host)
on_device = layers.diff_attention(*there)
back = arrays.to_numpy(on_device)
print("result", back.shape, "equal to rounding:", np.allclose(on_host, back, rtol=0, atol=1e-12))

# %% [markdown]
# Libraries are not mixed in silence. Arrays of two libraries in one call are an error that says so, and no hidden
# copy.
#
# ## Where copies happen
#
# **1. File → memory.** A float32 checkpoint is *mapped*: the array is a view of the file, and the system reads the
# pages that are used. Nothing is copied. 16-bit weights are widened when they are loaded, which is a copy.

# %%
bundled = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
with tempfile.TemporaryDirectory() as folder:
    bundled.save_pretrained(folder, dtype="float32")
    mapped = refdiff.DiffLlamaForCausalLM.from_pretrained(folder)
    for name, model in (("16-bit file", bundled), ("float32 file", mapped)):
        weight = model.base_params["layers"][0]["mlp"]["up_proj"]["weight"]
        owner = weight
        while getattr(owner, "base", None) is not None:
            owner = owner.base
        memory = getattr(owner, "obj", owner)  # what a memoryview is a view of
        print(f"{name:13} computed in {weight.dtype}, a view of the file: {isinstance(memory, mmap.mmap)}")
    del mapped, model, weight, owner, memory

# %% [markdown]
# **2. Memory → device, once.** `from_pretrained(..., backend="cupy")` sends the weights to the GPU when the model is
# made.
#
# **3. Each step.** With the default kernels on CuPy, `generate` chooses the next token on the GPU, greedily or by
# sampling, and one id a row comes back. The id, its position and the length of the text go there (and to sample, one
# random number a row). Keys, values and everything between stay there, the logits too.
#
# Logits come back only where the host must see them: for logits processors (`repetition_penalty`, for one),
# `output_scores` and `output_logits`, the cutoffs `typical_p`, `epsilon_cutoff` and `eta_cutoff`, several
# `num_return_sequences`, beams, with weights in float64, and with `kernels="reference"`.
#
# Here are the bytes for one row of the bundled model on a GPU. They are worked out from the config, not measured:

# %%
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", backend=xp)
config = model.config
weights = 4 * model.num_parameters()
number, logits = 8, 4 * config.vocab_size
cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
print(f"once       weights           {weights:>12,} bytes →")
print(f"each step  id, place, length {3 * number:>12,} bytes →")
print(f"each step  the id chosen     {number:>12,} bytes ←")
print(f"never      keys and values   {cache:>12,} bytes a token, they stay where they were made")
print(f"at need    a row of logits   {logits:>12,} bytes ←  only where the host chooses")

# %% [markdown]
# ## The same text
#
# The whole model, with the same lines. NumPy's fast kernels serve NumPy arrays, CUDA kernels serve CuPy's, and
# `kernels="reference"` uses the layers as they are written on any of them.

# %%
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
prompt = tokenizer(["Once upon a time"], return_tensors="np")["input_ids"]
texts, outputs = {}, {}
for name, backend, kernels in (
    ("NumPy, fast", np, "fast"), ("NumPy, reference", np, "reference"),
    ("second, fast", xp, "fast"), ("second, reference", xp, "reference"),
):  # fmt: skip
    one = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", backend=backend, kernels=kernels)
    outputs[name] = one(prompt, output_attentions=True)
    texts[name] = one.generate(prompt, max_new_tokens=16)
    print(f"{name:18} {tokenizer.decode(texts[name][0], skip_special_tokens=True)!r}")

# %% [markdown]
# Pictures take the arrays of either library and bring them to the host themselves. Here is λ by layer, out of the
# second backend's output:

# %%
viz.plot_lambdas(outputs["second, reference"]).figure

# %% [markdown]
# ## Exercise
#
# You write `1 / np.sqrt(x)` in a layer, where x is an array that came in. What happens on NumPy, and what on CuPy?
# Which line would be right?
#
# <details>
# <summary>Answer</summary>
#
# On NumPy it works, so no test on NumPy alone shows the mistake. On CuPy, `np.sqrt` hands the call on to CuPy and
# works as well; but `np.asarray(x)` or `np.zeros(n) + x` is an error, since it would be a hidden copy. On other
# libraries `np.sqrt` fails or copies to the host. Right is:
#
# ```python
# x = there[0] ** 2
# xp = arrays.namespace(x)
# 1 / xp.sqrt(x)
# ```
#
# That is why refdiff's tests also run every layer on a strict library that refuses all that is not in the array-API
# standard, with its arrays on a second, pretended device.
#
# </details>
#
# ## What must hold

# %%
reference = outputs["NumPy, reference"].logits
for name, out in outputs.items():
    assert np.allclose(arrays.to_numpy(out.logits), reference, rtol=0, atol=1e-8), name
    assert np.array_equal(texts[name], texts["NumPy, reference"]), name
assert np.allclose(on_host, back, rtol=0, atol=1e-12)

# %% [markdown]
# ## Questions
#
# <details>
# <summary>How does a layer know whether to use NumPy or CuPy?</summary>
#
# It asks its arguments for their namespace (arrays.namespace) and calls that namespace's functions.
#
# </details>
# <details>
# <summary>Which numbers cross between host and GPU when text is generated, and how often?</summary>
#
# The weights once; at each step the last token's id (with its position and the length) to the GPU, and the id that was
# chosen there back. Keys, values and logits stay; logits come back only where the host must see them (logits
# processors, output_scores, output_logits, rare cutoffs, beams, float64, kernels="reference").
#
# </details>
# <details>
# <summary>Is a float32 checkpoint copied into memory when it is loaded on NumPy?</summary>
#
# No, it is mapped: the arrays are views of the file. 16-bit ones are copied, because they are widened.
#
# </details>
