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
# # 09 · Attention noise
#
# **What you will see.** The claim of the paper, at a size that a laptop trains: does differential attention put more
# of its attention on what matters, and less on noise? Differential and plain models of one size learn to find a value
# by its key. Then we measure where they look. The experiment decides, not this page: the numbers are printed as they
# came out.

# %%
# %matplotlib inline
import inspect
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from refdiff import layers, viz
from refdiff.training import retrieval

# %% [markdown]
# ## The task
#
# A row of tokens hides needles: a key with its value behind it. Between them are fillers. At the end, keys are asked
# again, and the model must say their values. Here is a short row. k, v and f are keys, values and fillers.

# %%
file = Path("data/retrieval.json")
stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
if stored:
    about = {name: tuple(x) if isinstance(x, list) else x for name, x in stored["experiment"].items()}
    experiment = retrieval.Experiment(**about)
else:
    experiment = retrieval.Experiment(
        keys=8, values=8, fillers=8, needles=2, questions=2, train_lengths=(16,), lengths=(16, 32),
        width=32, layers=2, heads=4, steps=60, batch=16, rows=64,
    )  # fmt: skip
N, R, K, V = experiment.needles, experiment.questions, experiment.keys, experiment.values
rows = retrieval.draw_rows(experiment, 2, 2 * N + 2 * R + 8, np.random.default_rng(9))
for ids in rows.ids:
    print(" ".join(f"k{i}" if i < K else f"v{i - K}" if i < K + V else f"f{i - K - V}" for i in ids))
print(f"the first {rows.haystack} tokens are the haystack; the rest are {R} questions, each with its answer")
print(f"{K} keys, {V} values, {N} needles in a row: a guess is right in 1 of {V} cases")

# %% [markdown]
# ## What is measured
#
# In the paper (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258), table 3) attention to the answer
# and to the noise are compared. Both kinds of model have
#
# $$\mathrm{out} = PV,\qquad P = A_1 - \lambda A_2 \;\text{(eq. 1)}\quad\text{or}\quad P = A.$$
#
# A row of $A$ sums to 1. A row of $A_1 - \lambda A_2$ has both signs. So the share of a group $G$ of tokens is taken
# by size, $\sum_{s\in G}|P_{ts}| / \sum_s |P_{ts}|$, for the token $t$ that asks, as a mean over heads and layers.

# %%
print(inspect.getsource(retrieval.measure))
print(inspect.getsource(retrieval._shares))

# %% [markdown]
# One caution before any numbers. Shares by size are not quite fair to either side. A head that subtracts two *equal*
# maps gives every token the same share as one map does, with a total near 0; the norm after the subtraction makes it
# large again. And what a head looks at is not all that a model uses. The accuracy is the harder measure.
#
# ## The runs
#
# Both kinds of model are trained on the same rows, which depend on the seed alone, with the same steps; they differ in the
# λ vectors only, four of d numbers in each layer.
#
# If the folder `data` holds the results of the real experiment (made by `python -m refdiff.training.retrieval -o
# notebooks/data/retrieval.json`, which trains several models of each kind and takes long), they are shown. If not, a
# very small one is run here. It shows how it goes, and proves nothing.

# %%
if stored:
    runs = stored["runs"]
    print("results read from data/retrieval.json")
else:
    runs = []
    for seed in range(2):
        for wiring in retrieval.WIRINGS:
            losses = []
            model = retrieval.train(experiment, wiring, seed, report=lambda step, loss, to=losses: to.append(loss))
            measured = {
                str(length): retrieval.measure(experiment, model, length, seed) for length in experiment.lengths
            }
            runs.append({"wiring": wiring, "seed": seed, "parameters": model.num_parameters(), "losses": losses,
                         "measured": measured})  # fmt: skip
    print("a very small experiment was run here")
print({name: x for name, x in asdict(experiment).items() if name in ("width", "layers", "heads", "steps", "batch")})
print("parameters:", {run["wiring"]: run["parameters"] for run in runs}, "  hf is differential, none is plain")

# %% [markdown]
# How long each took to learn. The last line has the loss of a blind guess among the values.

# %%
names = {"hf": "differential", "none": "plain"}
for wiring, name in names.items():
    curves = np.array([run["losses"] for run in runs if run["wiring"] == wiring])
    at = np.linspace(0, curves.shape[1] - 1, 6).astype(int)
    print(
        f"{name:13} mean loss over {len(curves)} seeds, from first step to last:", np.round(curves.mean(axis=0)[at], 2)
    )
print(f"a blind guess: {np.log(V):.2f}")

# %% [markdown]
# The table: accuracy, and the two shares, at each length, with 95 % confidence intervals over the seeds. Lengths
# above those of training are lengths that the models never saw.

# %%
print("trained on rows of", experiment.train_lengths, "tokens")
print(retrieval.table(runs))

# %% [markdown]
# And as a picture, at the longest length of training. Compare with the paper's figure 1: attention to the answer
# against attention to noise.

# %%
length = str(max(set(experiment.train_lengths) & set(experiment.lengths)))
shares, errors = {}, {}
for wiring, name in names.items():
    found = [run["measured"][length] for run in runs if run["wiring"] == wiring]
    pairs = {what: retrieval.mean_and_interval([f[what] for f in found]) for what in ("accuracy", "answer", "noise")}
    shares[name] = {what: mean for what, (mean, _) in pairs.items()}
    errors[name] = {what: half for what, (_, half) in pairs.items()}
axes = viz.plot_attention_to(shares, errors=errors)
axes.set_ylabel(f"share, rows of {length} tokens")
axes.figure

# %% [markdown]
# How to read it: *answer* is attention to the needle that is asked for, *noise* to the rest of the haystack. What is
# left to 1 goes to the questions themselves. Where the intervals of two bars overlap, their
# difference may be chance; with few seeds the intervals are wide.
#
# ## Exercise
#
# Suppose a model looks at all tokens of a row alike. What are its shares of answer and noise, in a row of 64 tokens
# with 4 needles and 4 questions, for the last question? Check it with `viz.attention_to` on the weights
# `layers.attention_weights` of keys that are all zero.
#
# <details>
# <summary>Answer</summary>
#
# The last question's key stands at position 62, and sees 63 tokens. The needle has 2 of them, so the answer gets
# 2/63 = 3.2 %. The haystack has 64 − 8 = 56 tokens, so noise gets 54/63 = 85.7 %.
#
# ```python
# flat = layers.attention_weights(np.zeros((1, 1, 64, 4)), np.zeros((1, 1, 64, 4)))
# viz.attention_to(flat, {"answer": [10, 11], "noise": [s for s in range(56) if s not in (10, 11)]}, queries=62)
# ```
#
# </details>
#
# ## What must hold
#
# Not which kind wins: that is for the experiment to say. But the two kinds must have been given the same chances.

# %%
flat = layers.attention_weights(np.zeros((1, 1, 64, 4)), np.zeros((1, 1, 64, 4)))
assert abs(viz.attention_to(flat, {"answer": [10, 11]}, queries=62)["answer"] - 2 / 63) < 1e-12
counts = {run["wiring"]: run["parameters"] for run in runs}
assert counts["hf"] - counts["none"] == 4 * (experiment.width // experiment.heads) * experiment.layers
assert sorted((run["wiring"], run["seed"]) for run in runs) == sorted(
    (wiring, seed) for wiring in retrieval.WIRINGS for seed in range(len(runs) // 2)
)
assert all(m["answer"] + m["noise"] <= 1 + 1e-6 for run in runs for m in run["measured"].values())

# %% [questions]
# Q: What is a needle, and what must the model do with it?
# A: A key followed by its value, hidden among fillers. When the key comes again at the end, the model must say the
#    value.
#
# Q: How is a share of attention taken when weights are negative?
# A: By size: the sum of |weight| in the group over the sum of |weight| in the row.
#
# Q: How do the two kinds of model differ in size, and in the data they are trained on?
# A: Only by the λ vectors (4 of d numbers a layer); rows depend on the seed alone, so both see the same.
