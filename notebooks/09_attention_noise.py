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
# by its key. Then we measure where they look. The experiment decides, not this page: the numbers are shown as they
# came out.

# %%
# %matplotlib inline
import inspect
import json
from pathlib import Path

import numpy as np

from refdiff import layers, viz
from refdiff.training import retrieval, retrieval_table
from refdiff.viz.appearance import MARKERS, SERIES, STYLES, legend, new_axes

# %% [markdown]
# ## The task
#
# A row of tokens hides needles: a key with its value behind it. Between them are fillers. At the end, keys come again,
# and at each the model must say its value. Here are two short rows. k, v and f are keys, values and fillers.

# %%
stored = json.loads(Path("data/retrieval.json").read_text(encoding="utf-8"))
experiment = retrieval.Experiment(
    **{name: tuple(x) if isinstance(x, list) else x for name, x in stored["experiment"].items()}
)
N, R, K, V = experiment.needles, experiment.questions, experiment.keys, experiment.values
rows = retrieval.draw_rows(experiment, 2, 2 * N + R + 7, np.random.default_rng(9))
for ids, labels in zip(rows.ids, rows.labels, strict=True):
    print(" ".join(f"k{i}" if i < K else f"v{i - K}" if i < K + V else f"f{i - K - V}" for i in ids))
    print("    answers:", " ".join(f"v{i - K}" for i in labels if i >= 0))
print(f"the first {rows.haystack} tokens are the haystack; then come {R} questions, and a filler that closes the row")
print(f"{K} keys, {V} values, {N} needles: naming any value of the row is right in about 1 of {N} cases")

# %% [markdown]
# After a question its answer is not written: the next question follows at once. Where the answers are written there, a
# model learns to leave out values that were said before, gets half of the questions right, and never looks for the key.
#
# To find a value, one layer must carry each key on to the value behind it, and a later layer must look there. Each of
# the two is of no use without the other, and small models of both kinds stayed at naming any value of the row for as
# long as we watched. So training begins with short rows in which the models must also say, at each value, the key
# before it. Then it goes on without that, on rows of all lengths of training in turn.
#
# Both kinds of model are trained on the same rows, which depend on the seed alone, with the same steps; their
# parameters differ in the λ vectors only, four of d numbers in each layer.
#
# ## What is measured
#
# In the paper (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258), table 3) attention to the answer
# and to the noise are compared, normalised, for answers at five depths of the context. Both kinds of model have
#
# $$\mathrm{out} = PV,\qquad P = A_1 - \lambda A_2 \;\text{(eq. 1)}\quad\text{or}\quad P = A.$$
#
# A row of $A$ sums to 1. A row of $A_1 - \lambda A_2$ sums to $1-\lambda$ and has both signs. The paper does not say
# how it is normalised, nor how heads and layers are joined. So here are two measures, for the token $t$ that asks and
# a group $G$ of tokens: the needle asked for (its key and its value), or the rest of the haystack, the noise.
#
# $$\text{share} = \operatorname*{mean}_{\text{layers, heads}}\; \frac{\sum_{s\in G}|P_{ts}|}{\sum_s |P_{ts}|}, \qquad
# \text{net share} = \frac{\sum_{\text{layers, heads}} \sum_{s\in G} P_{ts}}
# {\sum_{\text{layers, heads}} \sum_s P_{ts}}.$$
#
# The first takes weights by size. In the second, noise that one head adds and another takes away counts as none.

# %%
print(inspect.getsource(retrieval._attention))

# %% [markdown]
# One caution before any numbers. Neither measure is quite fair to either side. A head that subtracts two *equal* maps
# gives every token the same share as one map does, with a total near 0; the norm after the subtraction makes it large
# again. And what a head looks at is not all that a model uses. The accuracy is the harder measure.
#
# ## The runs
#
# The results are those of this command, which took about three minutes of processor time for each pair of models:
#
# ```
# python -m refdiff.training.retrieval -o retrieval.json --jobs 2 --seeds 10
# ```
#
# With `--quick` it took half a minute of it, on short rows and one seed. That shows how it goes, and decides nothing.

# %%
runs = stored["runs"]
kinds = {"hf": "differential", "none": "plain"}
seeds = sorted({run["seed"] for run in runs})
print({name: stored["experiment"][name] for name in ("width", "layers", "heads", "steps", "begin", "tokens", "rate")})
print("parameters:", {kinds[run["wiring"]]: run["parameters"] for run in runs}, "  seeds:", seeds)

# %% [markdown]
# How they learned. Each line is a seed. The step up is where the longer rows begin, and nothing but values is asked.
# One differential model (seed 7) lost the task at about step 800 and had it again by step 1300: that is the line that
# goes up once more. A loss below 1e-5 is drawn at 1e-5.

# %%
axes = new_axes(None)
for (wiring, kind), colour, style in zip(kinds.items(), SERIES, STYLES, strict=False):
    for run in runs:
        if run["wiring"] == wiring:
            at = np.arange(len(run["losses"])) * max(experiment.steps // 100, 1)
            label = kind if run["seed"] == seeds[0] else None
            axes.semilogy(at, np.maximum(run["losses"], 1e-5), color=colour, linestyle=style, linewidth=1, label=label)
axes.set_xlabel("step")
axes.set_ylabel("loss")
legend(axes)
axes.figure

# %% [markdown]
# ## Accuracy against context length
#
# Means over the seeds, with 95 % confidence intervals (Student's t). Lengths above those of training are lengths that
# the models never saw.


# %%
def against_length(measure: str):
    """Draw a measure of both kinds of model against the length of the row."""
    axes = new_axes(None)
    for i, (wiring, kind) in enumerate(kinds.items()):
        found = [[run["measured"][str(n)][measure] for run in runs if run["wiring"] == wiring]
                 for n in experiment.lengths]  # fmt: skip
        mean, half = np.transpose([retrieval_table.mean_and_interval(numbers) for numbers in found])
        axes.errorbar(experiment.lengths, mean, half, color=SERIES[i], linestyle=STYLES[i], marker=MARKERS[i],
                      capsize=3, label=kind)  # fmt: skip
    axes.axvline(max(experiment.train_lengths), color="#777777", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(experiment.lengths, labels=experiment.lengths)
    axes.set_xlabel("tokens of a row (dotted: the longest of training)")
    axes.set_ylabel(measure if measure == "accuracy" else f"share of attention to the {measure}")
    axes.set_ylim(0, 1.02)
    legend(axes)
    return axes.figure


against_length("accuracy")

# %% [markdown]
# ## Where the attention goes
#
# The shares against length, and a table of everything in percent. `hf` is the differential model, in Hugging Face's
# wiring, and `none` the plain one. The third line at each length is the mean over the seeds of differential − plain;
# both models of a seed had the same rows. Where that interval has 0 in it, the difference may be chance.

# %%
against_length("answer")

# %%
against_length("noise")

# %%
print("trained on rows of", experiment.train_lengths, "tokens; percent, mean ± half of the 95 % interval")
print(retrieval_table.table(runs))

# %% [markdown]
# And as the paper's table 3 has it, by the depth at which the needle stands, in the longest rows of training.

# %%
print(retrieval_table.depth_table(runs, experiment.longest))

# %% [markdown]
# Heads do different things. The first layer carries keys to their values, the last looks for the answer; some heads do
# neither. So here are the shares of the last layer, as a mean over its heads and for its strongest head, the one that
# gives most to the answer. A differential model has half as many (pairs of) heads as a plain one.

# %%
length = str(experiment.longest)
shares, errors = {}, {}
for wiring, kind in kinds.items():
    last = [
        np.array([run["measured"][length]["heads"][what][-1] for what in ("answer", "noise")])
        for run in runs
        if run["wiring"] == wiring
    ]
    strongest = [found[:, found[0].argmax()] for found in last]
    groups = {"last layer": [found.mean(axis=1) for found in last], "its strongest head": strongest}
    pairs = {
        f"{what}, {group}": retrieval_table.mean_and_interval([found[i] for found in numbers])
        for i, what in enumerate(("answer", "noise"))
        for group, numbers in groups.items()
    }
    shares[kind] = {name.replace(", ", ",\n"): mean for name, (mean, _) in pairs.items()}
    errors[kind] = {name.replace(", ", ",\n"): half for name, (_, half) in pairs.items()}
axes = viz.plot_attention_to(shares, errors=errors)
axes.set_ylabel(f"share, rows of {length} tokens")
axes.set_ylim(0, 1.15)
axes.figure

# %% [markdown]
# ## What came out
#
# The claim says: more attention to the answer, less to noise. For the shortest rows, the longest of training and the
# longest of all, differential − plain, and whether the seeds show that there is more or less of it:

# %%
for length in (min(experiment.lengths), experiment.longest, max(experiment.lengths)):
    for measure in retrieval_table.MEASURES:
        mean, half = retrieval_table.mean_and_interval(retrieval_table.differences(runs, length, measure))
        verdict = "more" if mean > half else "less" if mean < -half else "may be chance"
        print(f"{length:3} tokens, {measure:10}  {100 * mean:+6.1f} ± {100 * half:4.1f} %  {verdict}")

# %% [markdown]
# **The claim does not show here.** All twenty models learned the task: on rows as long as those of training each is
# right in more than 99 % of cases. Where they look differs as much from seed to seed as from kind to kind. In the
# longest rows of training neither kind is shown to give more to the answer or to the noise. Where a difference shows,
# it is the other way round: in rows of 16 tokens differential models give 12 ± 10 points less to the answer and
# 12 ± 10 more to noise; in rows of 256 they are right a little less often (by 0.1 ± 0.1 points); and in rows of 512,
# twice as long as any of training, they are right in 91.0 ± 4.0 % of cases, plain ones in 96.6 ± 1.2 % (difference
# −5.6 ± 4.6). Mind that one in twenty such intervals misses by chance, and that there are many in the table.
#
# Why it may be so. In a task of this size there is little noise to cancel: the strongest head of a plain model gives
# 99.6 % of its attention to the answer by itself, and that of a differential one 83 ± 12 %. What is left goes less to
# noise (4 %) than to the questions.
#
# What this says, and what not. The paper measures language models of 3 billion parameters on contexts of thousands of
# tokens of text, with heads that serve many ends. Two layers trained for one end are another thing: this neither
# repeats nor refutes the paper's table. It does say that the form of differential attention alone does not bring about
# less attention to noise.
#
# ## Exercise
#
# Suppose a model looks at all tokens of a row alike. What are its shares of answer and noise, in a row of 64 tokens
# with 4 questions, for the last question? Check it with `viz.attention_to` on the weights `layers.attention_weights`
# of keys that are all zero.
#
# <details>
# <summary>Answer</summary>
#
# The last question stands at position 62, before the filler that closes the row, and sees 63 tokens. The needle has 2
# of them, so the answer gets 2/63 = 3.2 %. The haystack has 64 − 4 − 1 = 59 tokens, so noise gets 57/63 = 90.5 %.
#
# ```python
# flat = layers.attention_weights(np.zeros((1, 1, 64, 4)), np.zeros((1, 1, 64, 4)))
# viz.attention_to(flat, {"answer": [10, 11], "noise": [s for s in range(59) if s not in (10, 11)]}, queries=62)
# ```
#
# </details>
#
# ## What must hold
#
# Not which kind wins: that is for the experiment to say. But the two kinds must have been given the same chances, and
# must have learned the task, or where they look means nothing.

# %%
flat = layers.attention_weights(np.zeros((1, 1, 64, 4)), np.zeros((1, 1, 64, 4)))
assert abs(viz.attention_to(flat, {"answer": [10, 11]}, queries=62)["answer"] - 2 / 63) < 1e-12
counts = {run["wiring"]: run["parameters"] for run in runs}
assert counts["hf"] - counts["none"] == 4 * (experiment.width // experiment.heads) * experiment.layers
assert {(run["wiring"], run["seed"]) for run in runs} == {(wiring, seed) for wiring in kinds for seed in seeds}
assert len(seeds) >= 5
assert all(m["answer"] + m["noise"] <= 1 + 1e-6 for run in runs for m in run["measured"].values())
assert all(run["measured"][str(n)]["accuracy"] > 0.99 for run in runs for n in experiment.train_lengths)
strongest = {kind: [of[f"{what},\nits strongest head"] for what in ("answer", "noise")] for kind, of in shares.items()}
assert strongest["plain"][0] > 0.99 > strongest["differential"][0]
assert strongest["differential"][1] < 1 - sum(strongest["differential"])
signs = {(16, "answer"): -1, (16, "noise"): 1, (256, "answer"): 0, (256, "noise"): 0, (256, "accuracy"): -1,
         (512, "accuracy"): -1}  # fmt: skip
for (n, measure), sign in signs.items():
    mean, half = retrieval_table.mean_and_interval(retrieval_table.differences(runs, n, measure))
    assert sign == (mean > half) - (mean < -half), (n, measure)

# %% [questions]
# Q: How is a share of attention taken when weights are negative?
# A: By size: the sum of |weight| in the group over the sum of |weight| in the row. The net share keeps the signs.
#
# Q: How do the two kinds of model differ in size, and in the data they are trained on?
# A: Only by the λ vectors (4 of d numbers a layer); rows depend on the seed alone, so both see the same.
#
# Q: Does the claim show here, and what may one conclude?
# A: No. On rows as long as those of training both kinds are right in more than 99 % of cases, and in the longest of
#    them neither is shown to give more to the answer or the noise; where a difference shows, it is against the claim.
#    It follows that the form of differential attention alone does not bring about less attention to noise. It neither
#    repeats nor refutes the paper's table: the models here are tiny, trained for one task, with little noise to cancel.
