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
# # 07 · Find the mistake
#
# **What you will see.** A whole model gives wrong logits. Where does it go wrong? We record every intermediate of a
# run (a trace) and let the oracle look for the first point that its own inputs do not explain. And we see why "the
# first point that differs" is not always the same thing.

# %%
# %matplotlib inline
import functools
import inspect

import numpy as np

import refdiff
from refdiff import layers, oracle, viz
from refdiff.backends import overlay

tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", kernels="reference")
ids = tokenizer(["Once upon a time there was a king"], return_tensors="np")["input_ids"]

# %% [markdown]
# ## A trace
#
# `oracle.trace` runs the model once and keeps what every layer function returned, under a path that says where it
# was.

# %%
reference = oracle.trace(model, ids)
print(len(reference), "points; those of the first layer's attention:")
for path in reference:
    if path.startswith("model.layers.0.self_attn."):
        print(f"  {path.removeprefix('model.layers.0.'):24} {reference[path].shape}")

# %% [markdown]
# The names follow the paper (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)): `lambda_full` is
# λ of eq. 2, `attn1` and `attn2` are the two maps times V, `diff` is eq. 1, `groupnorm` and `scaled` are the LN and
# the factor $1-\lambda_{init}$ of eq. 3.
#
# ## A model with a mistake
#
# $$\lambda_{init} = 0.8 - 0.6\,\exp(-0.3\,(l-1)) \tag{section 2.1}$$
#
# In the paper layers count from 1. In code they count from 0, and then the exponent is $-0.3\,l$. Whoever counts from
# 1 *and* leaves out the $-1$ has every λ_init one layer too deep. We make that model, by laying a wrong function over
# one layer function, `lambda_init`; all decoder layers of the model call it:

# %%
print(inspect.getsource(layers.lambda_init))


# %%
def one_layer_too_deep(name, function):
    if name != "lambda_init":
        return function

    @functools.wraps(function)
    def wrong(layer):
        return function(layer + 1)

    return wrong


broken = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", kernels="reference")
broken.ops = overlay(broken.ops, one_layer_too_deep)
made = {}
for name, one in (("right", model), ("broken", broken)):
    made[name] = one.generate(ids, max_new_tokens=16)
    print(f"{name:6} {tokenizer.decode(made[name][0], skip_special_tokens=True)!r}")

# %% [markdown]
# Both write the same. A look at the text does not tell which one is wrong.
#
# ## The first difference, carried on
#
# The simple way is to compare the two runs point by point (`mode="free"`). Each point is then off by its own error
# and by all that came before. Here are the relative errors of the first two layers. What is below 1e-12 is drawn at
# 1e-12.

# %%
mine = oracle.trace(broken, ids)
free = oracle.first_divergence(mine, reference, mode="free")
local = oracle.first_divergence(mine, reference, mode="local")
print("first divergence, free: ", free.path)
print("first divergence, local:", local.path)

shown = [s for s in free.stages if s.status != "missing" and s.path.startswith(("model.layers.0.", "model.layers.1."))]
labels = [s.path.removeprefix("model.layers.").replace("self_attn.", "").replace("layernorm", "norm") for s in shown]


def off(path: str) -> float:
    """How far a point is off, as a share of its size, where both runs have a number (a masked score is −∞)."""
    a, b = mine[path], reference[path]
    seen = np.isfinite(b)
    return float(np.linalg.norm((a - b)[seen]) / np.linalg.norm(b[seen]))


viz.plot_trace_error(labels, [max(off(s.path), 1e-12) for s in shown], limits=1e-10).figure

# %% [markdown]
# Everything that λ reaches is wrong: `diff` of layer 0, and all after it. The two maps of layer 0 (`scores1` to
# `attn2`) stand behind λ in the list, but λ does not go into them, and they are right. If the model had a second
# mistake in layer 1, this picture would not show it.
#
# ## Each point from its own inputs
#
# With `mode="local"` the oracle takes each point's inputs *from your run* and computes what they should have given.
# An error then belongs to the point that made it, and does not go on to the next.

# %%
at = {s.path: s for s in local.stages}
errors = [max(at[s.path].error / max(at[s.path].size, 1e-30), 1e-12) for s in shown]
viz.plot_trace_error(labels, errors, limits=1e-10).figure

# %% [markdown]
# Only the guilty point stands out, once in each layer. λ itself is right, *given* the wrong λ_init that went into it.

# %%
guilty = [s.path for s in local.stages if s.status not in ("equal", "missing")]
print("points that their own inputs do not explain:")
for path in guilty:
    print(" ", path)
print(local.first.what)

# %% [markdown]
# ## A mistake that is too small to see
#
# Another model forgets the ε of the norm after attention. The text is the same, and the logits agree in the first
# four digits. In local mode it is found all the same, at the right place:

# %%


def without_epsilon(name, function):
    if name != "rms_norm":
        return function

    @functools.wraps(function)
    def wrong(x, weight, eps):
        return function(x, weight, eps if weight is not None else 0.0)

    return wrong


subtle = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", kernels="reference")
subtle.ops = overlay(subtle.ops, without_epsilon)
same_text = np.array_equal(subtle.generate(ids, max_new_tokens=16), made["right"])
off = np.abs(subtle(ids).logits - model(ids).logits).max() / np.abs(model(ids).logits).max()
found = oracle.first_divergence(oracle.trace(subtle, ids), reference)
print(f"the same text: {same_text}; logits are off by less than 1e-3 of the largest: {off < 1e-3}")
print("first divergence:", found.path)

# %% [markdown]
# A run of your own code, in any language, goes the same way: write its arrays to a safetensors file under such names
# (those of transformers and others are known too), and compare the file with `refdiff trace`.
#
# ## Exercise
#
# Give a model both mistakes. What do the two modes report first, and which of them reports both mistakes?
#
# <details>
# <summary>Answer</summary>
#
# Both report `lambda_init` of layer 0 first, since it comes before the norm. But only local mode lists both: in free
# mode every point that the first mistake reaches is off, the norm after attention too, and whether one of them has a
# mistake of its own cannot be seen.
#
# ```python
# both = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", kernels="reference")
# both.ops = overlay(overlay(both.ops, one_layer_too_deep), without_epsilon)
# result = oracle.first_divergence(oracle.trace(both, ids), reference)
# [s.path for s in result.stages if s.status not in ("equal", "missing")]
# ```
#
# </details>
#
# ## What must hold

# %%
assert not oracle.first_divergence(oracle.trace(model, ids), reference)
assert free.path == local.path == "model.layers.0.self_attn.lambda_init"
assert guilty == [f"model.layers.{layer}.self_attn.lambda_init" for layer in range(model.config.num_hidden_layers)]
assert found.path == "model.layers.0.self_attn.groupnorm"
assert same_text
assert np.array_equal(made["broken"], made["right"])
off_by = {s.path: s.error / max(s.size, 1e-30) for s in free.stages if s.status != "missing"}
order, attention = list(off_by), "model.layers.0.self_attn."
assert all(off_by[attention + name] < 1e-10 for name in ("scores1", "attn1", "scores2", "attn2"))
assert all(off_by[path] > 1e-10 for path in order[order.index(attention + "diff") :])

# %% [questions]
# Q: What is the difference between the modes free and local?
# A: Free compares with a run from the same inputs, so errors are carried on; local computes each point from the
#    inputs that your own run had there, so an error belongs to the point that made it.
#
# Q: Why does local mode not report lambda_full, though λ is wrong there?
# A: Given the wrong λ_init that went into it, λ was computed rightly.
#
# Q: Can generated text tell that a model has a mistake?
# A: Often not: both broken models write the very same text as the right one.
