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
# # 02 · Norm and RoPE
#
# **What you will see.** Two small parts that every layer uses, each computed by hand and then by its layer: the norm,
# which brings every token to one size, and RoPE, which tells attention how far apart two tokens are. At the end, all
# the kinds of RoPE that a checkpoint may ask for, on one plot.

# %%
# %matplotlib inline
import inspect

import numpy as np

from refdiff import layers, viz
from refdiff.viz.rope import EXAMPLES

# %% [markdown]
# ## The norm
#
# What the Differential Transformer's paper writes as LN(·) is RMSNorm (Ye et al. 2024,
# [arXiv 2410.05258](https://arxiv.org/abs/2410.05258), section 2.2). It divides a token by its root mean square
# (Zhang and Sennrich 2019, eq. 4), and multiplies each dimension by a learned weight:
#
# $$\mathrm{LN}(x) = \frac{x}{\sqrt{\mathrm{mean}(x^2) + \varepsilon}} \odot w$$

# %%
print(inspect.getsource(layers.rms_norm))

# %%
rng = np.random.default_rng(2)
x = rng.standard_normal((4, 8)) * np.array([[1e-4], [0.01], [1.0], [100.0]])  # four tokens of very different sizes
weight = np.ones(8)
eps = 1e-5

by_hand = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight
by_layer = layers.rms_norm(x, weight, eps)
for token, normed in zip(x, by_layer, strict=True):
    print(f"size before {np.sqrt((token**2).mean()):9.5f}   after {np.sqrt((normed**2).mean()):.5f}")

# %% [markdown]
# The large token and the ordinary one come out at size 1. The smallest does not: its mean square, about $10^{-8}$, is
# far below $\varepsilon = 10^{-5}$, and ε decides. That is what ε is for: without it a token of zeros would be 0/0.
# It is also where careless kernels go wrong unseen, because on ordinary tokens a forgotten ε changes almost nothing.
#
# ## RoPE
#
# Attention compares tokens by $Q K^\top$, and nothing in that product knows where a token stands. RoPE (Su et al.
# 2021, eq. 34) turns queries and keys by an angle that grows with their position. Two dimensions $(a, b)$ form a
# pair; pair $i$ at position $p$ is turned by $p\,\theta_i$:
#
# $$(a, b) \mapsto (a\cos p\theta_i - b\sin p\theta_i,\;\; b\cos p\theta_i + a\sin p\theta_i),\qquad
# \theta_i = \mathrm{base}^{-2i/d}$$

# %%
print(inspect.getsource(layers.rope))

# %% [markdown]
# By hand: a pair is a complex number $a + ib$, and to turn it is to multiply it by $e^{ip\theta}$. In this model the
# pairs are the two halves of a head, $(x_i, x_{i+d/2})$.

# %%
T, d = 10, 8
positions = np.arange(T)[None]
frequencies, scale = layers.rope_frequencies({"rope_type": "default", "rope_theta": 100.0}, d, T)
cos, sin = layers.rope_cos_sin(positions, frequencies, scale, np.float64)
q, k = rng.standard_normal((2, 1, 1, T, d))

pairs = q[..., : d // 2] + 1j * q[..., d // 2 :]
turned = pairs * np.exp(1j * positions[:, None, :, None] * np.array(frequencies))
q_by_hand = np.concatenate([turned.real, turned.imag], axis=-1)
q_by_layer = layers.rope(q, cos, sin)
print("θ", np.round(frequencies, 4))
print("cos, sin", cos.shape, sin.shape)
print("by hand and by layer agree:", np.allclose(q_by_hand, q_by_layer, atol=1e-12))

# %% [markdown]
# **Only the distance counts.** Turn a query by $p$ and a key by $s$: their product depends on $p - s$ alone. We move
# both by 1000 positions, and the scores stay what they were.

# %%
far = layers.rope_cos_sin(positions + 1000, frequencies, scale, np.float64)
near_scores = layers.rope(q, cos, sin) @ layers.rope(k, cos, sin).swapaxes(-1, -2)
far_scores = layers.rope(q, *far) @ layers.rope(k, *far).swapaxes(-1, -2)
plain_scores = q @ k.swapaxes(-1, -2)
print("largest change when both move by 1000 is below 1e-10:", np.abs(near_scores - far_scores).max() < 1e-10)
print(f"largest change against no RoPE: {np.abs(near_scores - plain_scores).max():.2f}")

# %% [markdown]
# **Halves or neighbours.** The RoPE paper, and unilm's Differential Transformer, pair neighbours $(x_{2i},
# x_{2i+1})$: `interleaved=True`. Hugging Face pairs halves. Both are the same rotation of differently ordered
# dimensions; a checkpoint made for one gives nonsense under the other, with no error to tell you: the wrong dimensions
# are turned together. What makes it right is to reorder the rows of $W_Q$ and $W_K$, from which the dimensions come.

# %%
order = np.concatenate([np.arange(0, d, 2), np.arange(1, d, 2)])  # neighbours → halves
interleaved = layers.rope(q, cos, sin, interleaved=True)
halves = layers.rope(q[..., order], cos, sin)
print("the same numbers in another order:", np.array_equal(interleaved[..., order], halves))
print(f"and without the reordering they differ by up to {np.abs(interleaved - layers.rope(q, cos, sin)).max():.2f}")

# %% [markdown]
# ## How fast each pair turns
#
# A pair turns once around in $2\pi/\theta_i$ tokens, its wavelength. The first pairs are fast and tell neighbours
# apart; the last are slow and tell far from near. A model is trained up to some length. To use it on longer texts,
# several recipes change the frequencies; `rope_type` in a `config.json` names one. Some also multiply cos and sin by
# a scale.

# %%
for name, parameters in EXAMPLES.items():
    theta, factor = layers.rope_frequencies(parameters, 64, 2048, 8192)
    print(f"{name:13} slowest {theta[-1]:.2e} rad a token, scale {factor:.3f}")

viz.plot_rope_wavelengths().figure

# %% [markdown]
# All start from the same fast pairs but *linear*, which slows every pair alike, so that neighbours come closer
# together. *yarn* and *llama3* keep the fast pairs, slow the slow ones, and pass from one to the other near those
# that turn around a few times within the trained length (the dotted line). *dynamic* raises the base as the text
# grows. *longrope* has a factor of its own for each pair. *proportional* lets the last pairs stand still.
#
# ## Exercise
#
# How far can a text go before the *fastest* pair has turned around once? And what does that mean for telling position
# 0 from position 6 with that pair alone?
#
# <details>
# <summary>Answer</summary>
#
# $\theta_0 = \mathrm{base}^0 = 1$, so it turns around in $2\pi \approx 6.28$ tokens, for every base. Positions 0 and
# 6 are $6$ rad apart, which is almost a whole turn: to that pair they look like neighbours. Only the slower pairs
# tell them apart, as the hour hand does for a clock's minute hand.
#
# ```python
# theta, _ = layers.rope_frequencies({"rope_type": "default", "rope_theta": 10_000.0}, 64, 2048)
# 2 * np.pi / theta[0]  # 6.283…
# ```
#
# </details>
#
# ## What must hold

# %%
assert np.allclose(by_hand, by_layer, rtol=1e-12)
assert np.allclose(q_by_hand, q_by_layer, rtol=0, atol=1e-12)
assert np.abs(near_scores - far_scores).max() < 1e-10 < np.abs(near_scores - plain_scores).max()
assert np.array_equal(interleaved[..., order], halves)

# %% [questions]
# Q: When does ε in the norm matter?
# A: When a token's mean square is not much larger than ε: then it does not come out at size 1.
#
# Q: Two tokens at positions 5 and 9, and the same two at 1005 and 1009: how do their scores under RoPE compare?
# A: They are equal, because scores depend on the difference of positions only.
#
# Q: What goes wrong when a checkpoint made for interleaved pairs is run with halves?
# A: Other dimensions are turned together, so scores are wrong, with no error; reordering the dimensions (of the rows
#    of W_Q and W_K) makes it right.
