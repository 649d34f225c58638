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
# # 05 · Does subtracting help a model learn?
#
# **The question: at a size that a laptop can train, do models that subtract learn better than plain ones?**
#
# Three kinds of small models compete: plain attention, differential attention as in the paper (v1), and its second
# version (v2). **v2 learned better in both tasks, looking up a number by its name and predicting text. v1 did so in
# part: on text its training failed with AdamW, the usual optimizer, and kept up with Muon, another one.** Each dot is
# one training run, each tick a mean, and arrows point to the better side.
#
# Allow 30 minutes. You need chapter 03.

# %%
# %matplotlib inline
import numpy as np
import sketches
import tiny
from experiments import results

# %%
stored, text = results.load()  # what each run came to
runs, of = results.retrieval_runs(stored), results.text_runs(text)

# %%
print(*results.summary_lines(runs, of), sep="\n")
sketches.summary(results.summary(runs, of))

# %% [markdown]
# ## The three kinds
#
# Plain attention and v1 are built in chapters 01 and 03; v1 computes $(A_1 - \lambda A_2)\,V$, eq. 1 of Ye et al. 2024,
# [arXiv 2410.05258](https://arxiv.org/abs/2410.05258). v2,
# [Ye et al. 2026](https://huggingface.co/blog/microsoft/diff-attn-v2), changes three things. Both queries of a pair
# read the same key and value. No norm follows. And each token $x$ has a λ of its own for each pair:
#
# $$\lambda = \sigma(x W_\lambda),\qquad \sigma(z) = \frac{1}{1 + e^{-z}},\quad\text{so } 0 < \lambda < 1$$
#
# v2 has twice the query heads. Its SwiGLU is narrower, so that it has about as many parameters. In each layer of the
# first experiment's models:
#
# | | plain | v1 | v2 |
# |---|---|---|---|
# | query heads, each with a map | 2 | 2 | 4 |
# | outputs: sums of values, each by a map or a difference | 2 | 1 | 2 |
# | λ | – | one per layer | one per token and pair |
# | after the difference | – | norm and factor | nothing |
# | width of SwiGLU | 128 | 128 | 106 |
# | parameters, all layers | 120,128 | 120,384 | 120,128 |

# %%
print(*results.size_lines(stored), sep="\n")

# %% [markdown]
# ## Experiment 1: look up a number by its name
#
# A sequence hides *needles*, a name with its number after it, among fillers. At the end some names come again, and
# after each the model must give its number. For that question, all other needles are noise.

# %%
sketches.haystack()

# %% [markdown]
# The words of this experiment:
#
# - **Answer**: the name and number that the question asks for, and the token after them, from which a layer can see
#   both. **Noise**: all other needles and all fillers. **The rest**: the questions at the end.
# - **Attention to** one of these: its share of Σ|weight| in the question's row. A negative weight counts by its size.
# - **Learned**: the first step, of every 20th, at which the training loss is below 0.2.
# - **Numbers found**: the share of questions whose number the model ranks first.
# - **Seed**: a number that fixes the random start and the sequences. Within a seed, all kinds see the same sequences.
# - **±**: a 95 % confidence interval over five seeds. A star marks a difference whose interval excludes 0.
# - **AdamW** is the usual optimizer. It divides the step of each weight by the usual size of that weight's gradient.
#   **Muon** scales the step of a whole matrix, so that it is equally large in all directions. It leaves vectors and
#   embeddings to AdamW.
#
# Five seeds of each kind are trained with Muon for 2,000 steps. We chose size, learning rate, and schedule with a plain
# model. `python notebooks/experiments/retrieval.py -o retrieval.json --controls` repeats the runs in about an hour.
#
# **How soon is the look-up learned?** Training begins with sequences of 8 tokens:

# %%
print(*results.learned_lines(stored), sep="\n")
sketches.first_losses(*results.first_losses(stored))

# %% [markdown]
# **Both differential kinds learn it sooner**: at step 120 to 140, and plain attention at 360 to 620. Is it the
# subtraction? With λ fixed at 0, five of six do not find it, and the sixth only at step 480. So both kinds need their
# second maps. But they do worse without them than plain attention does. For v1 that is no surprise: one map is left
# where the plain model has two. For v2, plain attention with a narrower SwiGLU is left, and we do not know why it
# learns so late. Whether the second maps must be *subtracted* was not tested.
#
# **How many numbers are found after all 2,000 steps?**

# %%
print(*results.difference_lines(runs), sep="\n")
sketches.found_by_length(results.accuracies(runs), results.guesses(stored))

# %% [markdown]
# **v2 finds more numbers than plain attention in sequences of 16 tokens and more. v1 finds more than plain attention in
# sequences of 16 to 64 tokens**; in longer ones we measure no difference. The columns are the same five models, so a
# row of stars is one finding, not seven.
#
# **Is it less attention to noise, as the paper says?** Averaged over both layers, v2 gives less to noise in sequences
# of 8 to 64 tokens. For v1 the difference is too small to measure. In longer sequences no kind gives measurably less,
# and v2 still finds more. Here is the last layer, in sequences of 256 tokens, as a mean of five seeds:

# %%
print(*results.share_lines(runs, "256"), sep="\n")
sketches.shares(results.last_layer(runs, "256"), "share of attention, last layer, 256 tokens")

# %% [markdown]
# How much goes to noise there differs so much from seed to seed that nothing can be said: the intervals are ±50 points.
# Both differential kinds give more to the answer, v1 by 14 ± 5 points and v2 by 24 ± 8. But v1 finds no more numbers
# than plain attention does, so this does not explain the result either. Why v2 does so much better was not tested.
#
# ## Experiment 2: predict text
#
# Somewhat larger models of the same three kinds read fairy tales with AdamW for 400 steps, five seeds each. The
# learning rate is the best of three for the plain model. `python notebooks/experiments/variants.py fairy_en.txt runs`
# repeats the runs.

# %%
print(*results.loss_lines(of), sep="\n")
sketches.losses_by_step(results.losses_by_step(of), text["unigram_loss"])

# %% [markdown]
# **At the end v1 is behind plain attention by 0.77, and v2 is ahead of it by 0.10. Under the settings tried, the
# training of v1 failed.** At step 100 v1 predicts no better than by how often each token occurs, and it never catches
# up. A third of the learning rate does not help v1. But leave out the norm after the difference, or train with Muon,
# and v1 keeps up with plain attention: it ends 0.06 ± 0.05 and 0.05 ± 0.05 ahead. So v1 fails only with both, the norm
# *and* AdamW. The reason was not examined, nor other settings of AdamW.
#
# ## Do the two maps learn to share noise?
#
# Chapter 03 found that large gains need noise that both maps share: ρ, the correlation of their scores, near 1. Does
# training bring it about? The loss knows the maps only by $P = A_1 - \lambda A_2$, so
#
# $$\frac{\partial L}{\partial A_1} = \frac{\partial L}{\partial P},\qquad
# \frac{\partial L}{\partial A_2} = -\lambda\,\frac{\partial L}{\partial P}.$$
#
# **Both maps get the same signal, with opposite signs**, as long as λ is positive. You need not trust a
# derivation. Move each map a little in one random direction, and compare the slopes of the loss:

# %%
rng = np.random.default_rng(8)
g, v = rng.standard_normal((2, 5, 6))
a1, a2 = tiny.softmax(rng.standard_normal((2, 5, 5)))
step, lambda_ = 1e-5 * rng.standard_normal((5, 5)), 0.7


def small_loss(first, second):
    return (g * ((first - lambda_ * second) @ v)).sum()


slope_1 = (small_loss(a1 + step, a2) - small_loss(a1 - step, a2)) / 2e-5
slope_2 = (small_loss(a1, a2 + step) - small_loss(a1, a2 - step)) / 2e-5
print(f"λ = {lambda_}; slope in A₁ {slope_1:.4f}, in A₂ {slope_2:.4f}")
print(f"slope in A₂ ÷ slope in A₁: {slope_2 / slope_1:.4f}")

# %% [markdown]
# This should push the maps apart. Here is ρ through the training on text with AdamW, in which v1 failed. The plain
# model's heads are paired the same way, and nothing is subtracted. Lines are means, bands 95 % intervals.

# %%
print(*results.correlation_lines(text), sep="\n")
sketches.correlations_by_step(text["moments"], results.correlations(of))

# %% [markdown]
# At initialization the maps' scores are unrelated. By step 100 **the maps of a differential pair are opposed**, while
# the heads of the plain model are somewhat alike. Later ρ returns toward 0. At the end it is clearly below 0 in layers
# 0 and 3 of v1 and in layer 0 of v2, and above 0 only in the last layer of v2. So these maps do not learn to share
# noise.
#
# In chapter 03 ρ was between 0.24 and 0.40 in five layers, and here it is between −0.35 and −0.09 in v1. Chapter 03's
# model has 15 times the parameters, read 40 times the text, and was trained with Muon. So ρ depends on the model. In
# no model is it near 1.
#
# ## One longer run
#
# That larger model has a plain twin. Both read 16 million tokens with Muon, one run each:

# %%
print(*results.long_run_lines(), sep="\n")

# %% [markdown]
# The two end within what a repetition changes, and another seed may change more. One run of each cannot tell them
# apart.
#
# ## The verdict
#
# Five seeds show that v2's lead is not the luck of one seed. They cannot show that it holds at other sizes: all models
# here have at most 3 million parameters, and the paper's comparisons begin at 830 million parameters. All settings were
# chosen for the plain model, so v1 and v2 may do better with settings of their own.
#
# | five seeds, where nothing else is said | plain | v1 | v2 |
# |---|---|---|---|
# | step at which the look-up is learned, first to last seed | 360 to 620 | 120 to 140 | 120 to 140 |
# | the same with λ = 0, three seeds | – | none in 1,000 | 480, two not in 1,000 |
# | numbers found, 64 tokens | 27 % | 60 % | 89 % |
# | numbers found, 256 tokens | 14 % | 11 % | 83 % |
# | attention to noise, 64 tokens, minus plain | – | +1 ± 11 points | −16 ± 11 points |
# | loss on text, AdamW | 3.56 | 4.33: failed | 3.47 |
# | the same without v1's norm | – | 3.50 | – |
# | loss on text, Muon | 3.58 | 3.52 | not run |
# | longer run, one of each | 3.097 | 3.090 | not run |
#
# ## The answer
#
# **At this size v2 learns better than plain attention in both tasks, while v1 learns a look-up sooner, fails on text
# when AdamW trains it with its norm, and keeps up with plain attention otherwise.**
#
# Why v2 does better, and whether any of this holds for large models, these experiments cannot tell.
#
# <details>
# <summary>What the tests check</summary>
#
# ```python
# ahead = {kind: (mean, half) for kind, _, mean, half in results.text_differences(of)}
# assert ahead["v1"][0] > ahead["v1"][1]
# assert all(ahead[kind][0] < -ahead[kind][1] for kind in ("v2", "v1, no norm", "v1, Muon"))
# assert results.controls(stored) == {"v1": [None, None, None], "v2": [None, None, 480]}
# shares = results.last_layer(runs, "256")
# assert shares["plain"]["answer"] < shares["v1"]["answer"] < shares["v2"]["answer"]
# assert abs(slope_2 / slope_1 + lambda_) < 1e-6
# ```
#
# </details>
#
# ## Exercises
#
# `from refdiff import exercises`, then `exercises.check("eq1_vjp", my_eq1_vjp)`, and so on. A *vjp* takes the
# gradient $g$ of a result and returns the gradients of the inputs.
#
# **1.** `"eq1_vjp"`: the gradients of this chapter, and the gradients of V and λ. **2.** `"softmax_vjp"`, where
# $\partial a_j/\partial z_i = a_j([i = j] - a_i)$. **3.** `"cross_entropy"`: the loss; some scores
# are near 1000. **4.** `"eq2_vjp"`: the four vectors of λ. **5.** `"lambda_v2"` and **6.** `"v2"`. **7.**
# `"attention_share"`: the share of some keys in one row.
#
# <details>
# <summary>Answers</summary>
#
# ```python
# from refdiff import exercises
#
#
# def my_eq1_vjp(g, a1, a2, v, lambda_):
#     G = g @ v.T
#     return G, -lambda_ * G, (a1 - lambda_ * a2).T @ g, -(G * a2).sum()
#
#
# def my_cross_entropy(z, targets):
#     z = z - z.max(axis=-1, keepdims=True)
#     log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
#     return -np.take_along_axis(log_p, targets[..., None], axis=-1).mean()
#
#
# def my_eq2_vjp(g, q1, k1, q2, k2):
#     one, two = np.exp(q1 @ k1), np.exp(q2 @ k2)
#     return g * one * k1, g * one * q1, -g * two * k2, -g * two * q2
#
#
# def causal(q, k):
#     T, S = q.shape[-2], k.shape[-2]
#     scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
#     return tiny.softmax(np.where(np.tri(T, S, S - T, dtype=bool), scores, -np.inf))
#
#
# def my_v2(q, k, v, lambda_):
#     k, v = (np.repeat(x, q.shape[1] // 2 // x.shape[1], axis=1) for x in (k, v))
#     out = (causal(q[:, 0::2], k) - lambda_ * causal(q[:, 1::2], k)) @ v
#     return out.swapaxes(1, 2).reshape(out.shape[0], out.shape[2], -1)
#
#
# assert exercises.check("eq1_vjp", my_eq1_vjp)
# assert exercises.check("softmax_vjp", lambda g, a: a * (g - (g * a).sum(axis=-1, keepdims=True)))
# assert exercises.check("cross_entropy", my_cross_entropy)
# assert exercises.check("eq2_vjp", my_eq2_vjp)
# assert exercises.check("lambda_v2", lambda x, w: 1 / (1 + np.exp(-(x @ w.T))).swapaxes(1, 2)[..., None])
# assert exercises.check("v2", my_v2)
# assert exercises.check("attention_share", lambda w, keys: np.abs(w[keys]).sum() / np.abs(w).sum())
# ```
#
# </details>
