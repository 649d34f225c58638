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
# # 09 · Does it pay less attention to noise?
#
# The paper's title claim: differential attention gives more attention to what matters and less to noise. **Does that
# show at a size that a laptop can train?** Differential and plain models of one size learn to find a value by its key,
# ten of each. Then we measure where they look. The numbers come as they came out, and so does the lesson: *this
# experiment cannot decide the question*, and you can see why.
#
# Allow 20 minutes; you need notebook 03.

# %%
# %matplotlib inline
import json
from pathlib import Path

import numpy as np
import sketches

from refdiff import viz
from refdiff.training import retrieval, retrieval_table

# %% [markdown]
# ## The task
#
# A row of tokens hides needles: a key k with its value v behind it. Between them are fillers f. At the end, keys come
# again, and at each of them the model must name its value.

# %%
sketches.haystack()

# %%
stored = json.loads(Path("data/retrieval.json").read_text(encoding="utf-8"))
experiment = retrieval.Experiment(
    **{name: tuple(x) if isinstance(x, list) else x for name, x in stored["experiment"].items()}
)
N, R, K, V = experiment.needles, experiment.questions, experiment.keys, experiment.values
rows = retrieval.draw_rows(experiment, 1, 24, np.random.default_rng(9))
print(" ".join(f"k{i}" if i < K else f"v{i - K}" if i < K + V else f"f{i - K - V}" for i in rows.ids[0]))
print("answers:", " ".join(f"v{i - K}" for i in rows.labels[0] if i >= 0))
print(
    f"{K} keys, {V} values; {N} needles and {R} questions in each row; a guess among its values is right 1 in {N} times"
)

# %% [markdown]
# The two kinds of model have two layers each, the same data (the rows depend on the seed alone) and the same steps.
# Their parameters differ by the λ vectors only.
#
# ## The measure
#
# Ye et al. 2024 ([arXiv 2410.05258](https://arxiv.org/abs/2410.05258), table 3) compare attention to the answer and to
# the noise. With $P = A_1 - \lambda A_2$ (eq. 1), or $P = A$ in a plain model, we take for the token $t$ that asks
#
# $$\text{share of a group } G = \operatorname*{mean}_{\text{layers, heads}}\;
# \frac{\sum_{s\in G}|P_{ts}|}{\sum_s |P_{ts}|},$$
#
# where $G$ is the needle asked for (its key and its value), or all the rest of the haystack, the noise. Weights count
# by size, since the difference has both signs. The paper does not say how it normalizes, so this is our choice. It is
# not quite fair: a head that subtracts two equal maps has the shares of one of them, with a total near 0. And what a
# head looks at is not all that a model uses. *Accuracy is the harder measure.*
#
# ## The runs
#
# About three minutes of processor time for each pair of models; `python -m refdiff.training.retrieval -o retrieval.json
# --jobs 2 --seeds 10` repeats them.

# %%
runs, kinds = stored["runs"], {"hf": "differential", "none": "plain"}
seeds = sorted({run["seed"] for run in runs})
print({name: stored["experiment"][name] for name in ("width", "layers", "heads", "steps", "tokens", "rate")})
print("parameters:", {kinds[run["wiring"]]: run["parameters"] for run in runs}, "  seeds:", len(seeds))


def against_length(measure, ylabel):
    lines, errors = {}, {}
    for wiring, kind in kinds.items():
        found = [
            [run["measured"][str(n)][measure] for run in runs if run["wiring"] == wiring] for n in experiment.lengths
        ]
        lines[kind], errors[kind] = np.transpose([retrieval_table.mean_and_interval(numbers) for numbers in found])
    ticks = {"xticks": range(len(experiment.lengths)), "xticklabels": experiment.lengths, "ylim": (0, 1.05)}
    return sketches.curves(range(len(experiment.lengths)), lines, "tokens of a row", ylabel, errors=errors, **ticks)


print("trained on rows of", experiment.train_lengths, "tokens; longer rows are new to the models")
against_length("accuracy", "accuracy")

# %% [markdown]
# Means over ten seeds with 95 % confidence intervals. **Look at the ceiling.** On rows as long as those of training,
# both kinds are right nearly always. Where nobody makes mistakes, nobody can make fewer: this task has no room for an
# advantage. Only rows longer than in training leave some, and those ask another question, how well a model extends to
# new lengths.
#
# ## Where do they look?

# %%
against_length("answer", "share of attention: answer")

# %%
against_length("noise", "share of attention: noise")

# %% [markdown]
# The wide bars say that seeds differ more than kinds. Heads do different things: the first layer carries each key on to
# its value, the last looks for the answer. So here is the last layer, in the longest rows of training: the mean over
# its heads, and its strongest head, the one that gives most to the answer.

# %%
length, shares, errors = str(experiment.longest), {}, {}
for wiring, kind in kinds.items():
    heads = [np.array([run["measured"][length]["heads"][what][-1] for what in ("answer", "noise")])
             for run in runs if run["wiring"] == wiring]  # fmt: skip
    groups = {"last layer": [h.mean(axis=1) for h in heads], "strongest head": [h[:, h[0].argmax()] for h in heads]}
    pairs = {f"{what},\n{group}": retrieval_table.mean_and_interval([found[i] for found in numbers])
             for i, what in enumerate(("answer", "noise")) for group, numbers in groups.items()}  # fmt: skip
    shares[kind] = {name: mean for name, (mean, _) in pairs.items()}
    errors[kind] = {name: half for name, (_, half) in pairs.items()}
axes = viz.plot_attention_to(shares, errors=errors)
axes.set(ylabel=f"share, rows of {length} tokens", ylim=(0, 1.15))
axes.figure

# %% [markdown]
# A plain model's strongest head already gives nearly everything to the answer. There is hardly any noise for a
# difference to cancel.
#
# ## All differences
#
# Differential − plain, in percentage points, by seed (both models of a seed saw the same rows). An interval that
# contains 0 may be chance. There are 15 intervals in this list, and one in twenty misses by chance alone.

# %%
signs = {}
for n in (min(experiment.lengths), experiment.longest, max(experiment.lengths)):
    for measure in retrieval_table.MEASURES:
        mean, half = retrieval_table.mean_and_interval(retrieval_table.differences(runs, n, measure))
        signs[n, measure] = (mean > half) - (mean < -half)
        verdict = {1: "more", -1: "less", 0: "may be chance"}[signs[n, measure]]
        print(f"{n:3} tokens, {measure:10}  {100 * mean:+6.1f} ± {100 * half:4.1f}   {verdict}")
lowest = min(run["measured"][str(n)]["accuracy"] for run in runs for n in experiment.train_lengths)
print(f"lowest accuracy of any model on rows of training lengths: {100 * lowest:.1f} %")
print(retrieval_table.depth_table(runs, experiment.longest))

# %% [markdown]
# ## What we learned
#
# - **At this size and in this task, the claim does not show.** In the longest rows of training neither kind is shown to
#   give more to the answer or less to the noise. Where a difference shows (short rows, and rows longer than any of
#   training), it is against the differential model.
# - **That is not evidence against the claim.** Every model is right in more than 99 % of cases on the lengths of
#   training; at such a ceiling an advantage has no place to appear. The paper measures language models of 3 billion
#   parameters on contexts of thousands of tokens, where a head serves many ends and noise is plenty. Two layers with
#   one task are another thing.
# - A good experiment leaves room for both answers: more distractors, fewer heads, longer contexts, so that plain models
#   make mistakes. And it needs several seeds: one seed of this experiment would have "shown" either result.
#
# The checks below do not ask which kind wins. They ask whether both had the same chance.

# %%
counts = {run["wiring"]: run["parameters"] for run in runs}
assert counts["hf"] - counts["none"] == 4 * (experiment.width // experiment.heads) * experiment.layers
assert {(run["wiring"], run["seed"]) for run in runs} == {(wiring, seed) for wiring in kinds for seed in seeds}
assert lowest > 0.99
assert signs[256, "answer"] == signs[256, "noise"] == 0
assert signs[16, "answer"] == signs[512, "accuracy"] == -1 == -signs[16, "noise"]
single = retrieval_table.differences(runs, experiment.longest, "answer")
assert min(single) < 0 < max(single)

# %% [markdown]
# ## Exercises
#
# **1.** `exercises.check("attention_share", …)` (after `from refdiff import exercises`): the share of some keys in one
# row.
#
# **2.** A model looks at all tokens of a row alike. What are its shares of answer and noise in a row of 64 tokens with
# 4 questions, for the last question?
#
# <details>
# <summary>Answers</summary>
#
# 2: The last question stands at position 62, before the filler that closes the row, and sees 63 tokens. The needle has
# 2 of them: 2/63 = 3.2 %. The haystack has 64 − 4 − 1 = 59 tokens, so noise gets 57/63 = 90.5 %.
#
# ```python
# from refdiff import exercises, layers
#
# assert exercises.check("attention_share", lambda w, keys: np.abs(w[keys]).sum() / np.abs(w).sum())
# flat = layers.attention_weights(np.zeros((1, 1, 64, 4)), np.zeros((1, 1, 64, 4)))
# noise = [s for s in range(59) if s not in (10, 11)]
# found = viz.attention_to(flat, {"answer": [10, 11], "noise": noise}, queries=62)
# assert abs(found["answer"] - 2 / 63) + abs(found["noise"] - 57 / 63) < 1e-12
# ```
#
# </details>
#
# ## Questions
#
# <details>
# <summary>How is the share of attention to a group of tokens computed, and why from |weights|?</summary>
#
# The sum of |weight| in the group over the sum of |weight| in the row. The difference of two maps has weights of both
# signs, which would cancel in a plain sum.
#
# </details>
# <details>
# <summary>How do the two kinds of model differ in size, and in the data they are trained on?</summary>
#
# Only by the λ vectors (4 of d numbers a layer); rows depend on the seed alone, so both see the same.
#
# </details>
# <details>
# <summary>Does the claim show here, and what may one conclude?</summary>
#
# No, and little. All models are right in more than 99 % of cases on the lengths of training, so there is no room for an
# advantage. The result neither repeats nor refutes the paper's table.
#
# </details>
