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
# # 05 · What training wants, and is it better?
#
# **The question: what does training ask of the two maps, and do models with a difference learn better than plain ones
# at a size that a laptop can train?**
#
# The verdict first. Three kinds of small models compete: plain attention, differential attention as in the paper (v1),
# and its second version (v2). **v2 is ahead of plain attention in each of the five strips that include it. v1 learns a
# look-up sooner, but on text it falls behind with AdamW, the usual optimizer.** Each dot is one training run, a bar is
# their mean, and an arrow points to the better side.
#
# Allow 30 minutes. You need chapter 03.

# %%
# %matplotlib inline
import json
import tempfile
from pathlib import Path

import numpy as np
import sketches
import tiny
from experiments import results, retrieval, retrieval_table

import refdiff
from refdiff.backends import overlay
from refdiff.training import Corpus, Settings, Trainer

# %%
stored, text = results.load()
runs, of = results.retrieval_runs(stored), results.text_runs(text)
summary = results.summary(runs, of)
for name, by_kind in summary.items():
    print(f"{name:32}", "   ".join(f"{kind} {np.mean(values):.3g}" for kind, values in by_kind.items()))
sketches.summary(summary)

# %% [markdown]
# ## What the loss wants from the two maps
#
# Training follows gradients. Let $L$ be the loss and $O = PV$ with $P = A_1 - \lambda A_2$ (eq. 1 of Ye et al. 2024,
# [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)), and let $g = \partial L/\partial O$. If every input moves a
# little, the loss moves by
#
# $$dL = \sum g \odot (dP\,V) + \sum g \odot (P\,dV),\qquad dP = dA_1 - \lambda\,dA_2 - A_2\,d\lambda.$$
#
# Substitute $dP$; the factor on each differential is that variable's gradient. With $G = gV^\top$,
#
# $$\frac{\partial L}{\partial A_1} = G,\quad \frac{\partial L}{\partial A_2} = -\lambda G,\quad
# \frac{\partial L}{\partial \lambda} = -\sum G \odot A_2,\quad \frac{\partial L}{\partial V} = P^\top g.$$
#
# **Both maps get the same signal, with opposite signs** (for λ > 0): what the loss wants more of in one, it wants less
# of in the other. You need not trust a derivation. Move each input a little along a random direction and compare:

# %%
rng = np.random.default_rng(8)
g, v = rng.standard_normal((2, 5, 6))
inputs = [*tiny.softmax(rng.standard_normal((2, 5, 5))), v, 0.7]


def small_loss(a1, a2, v, lambda_):
    return (g * ((a1 - lambda_ * a2) @ v)).sum()  # a loss whose ∂L/∂O is g


def gradients(a1, a2, v, lambda_):
    G = g @ v.T
    return G, -lambda_ * G, (a1 - lambda_ * a2).T @ g, -(G * a2).sum()


worst = 0.0
for i, gradient in enumerate(gradients(*inputs)):
    u = rng.standard_normal(np.shape(gradient))
    ahead, behind = (small_loss(*inputs[:i], inputs[i] + h * u, *inputs[i + 1 :]) for h in (1e-5, -1e-5))
    measured, derived = (ahead - behind) / 2e-5, (gradient * u).sum()
    worst = max(worst, abs(measured - derived) / abs(derived))
    print(f"{('A₁', 'A₂', 'V', 'λ')[i]:3} measured {measured:10.6f}   derived {derived:10.6f}")

# %% [markdown]
# What does that look like on a sentence? The bundled model reads "The wolf came to the house of the goat, and the" and
# must predict "wolf". In each of its 18 pairs, which tokens should get more weight in $P$? The first panel shows
# $-G$, each row divided by its largest |number|: blue means that the loss wants more. The second shows the $P$ that
# the model has.

# %%
bundled = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
ids = tokenizer(["The wolf came to the house of the goat, and the wolf"], return_tensors="np")["input_ids"]
words, query = [tokenizer.decode([i]) for i in ids[0]], ids.shape[1] - 2
by_layer = sketches.wanted(bundled, ids)
wanted, given = (
    np.array([pick(x)[:, query, : query + 1] for x in by_layer])
    for pick in (lambda x: -x.gradient, lambda x: x.first - x.lambda_ * x.second)
)  # each (layer, pair, key)
wolf = words.index(" wolf")
first_choice = wanted.argmax(axis=-1)
print(f"'wolf' is wanted most in {(first_choice == wolf).sum()} of {first_choice.size} pairs,"
      f" wanted at all in {(wanted[..., wolf] > 0).sum()},"
      f" wanted and below 0 in P in {((wanted[..., wolf] > 0) & (given[..., wolf] < 0)).sum()}")  # fmt: skip
sketches.all_pairs({"−G: blue, the loss wants more": wanted, "P = A₁ − λ A₂": given}, words[: query + 1])

# %% [markdown]
# The pairs disagree. One might expect all of them to be pushed toward "wolf". The loss wants it most in only 3 of 18.
# Heads are pulled in different directions, and no single pair tells the story. (Only differences within a row count:
# each map's rows sum to 1, so it cannot give every token more.)
#
# ## What moves λ
#
# The loss pulls λ up where $A_2$ looks at tokens that it wants less of. Does λ follow? A small model learns one text
# by heart, the license of this project, in 300 steps. We train it twice; the second time, all gradients of λ are made a
# hundred times smaller.

# %%
config = refdiff.DiffLlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
settings = Settings(
    max_steps=300, batch_size=8, context=64, optimizer="muon", learning_rate=1e-2, warmup_steps=20, evaluate_every=20,
    save_every=0, sample_every=0, prompt="You may ",
)  # fmt: skip


def a_hundredth(name, function):
    if name != "diff_lambda_vjp":
        return function
    return lambda g, *vectors: function(g / 100, *vectors)


scratch = tempfile.TemporaryDirectory()
paths = {}
for name in ("as usual", "a hundredth of the gradient"):
    folder = Path(scratch.name) / name
    folder.mkdir()
    trainer = Trainer.start(folder, config, Corpus(Path("data/licence")), settings, dtype="float64")
    if name != "as usual":
        trainer.model.ops = overlay(trainer.model.ops, a_hundredth)
    records = []
    trainer.run(records.append)
    paths[name] = np.array([record["lambdas"] for record in records])
    print(f"{name:28} λ at the start", paths[name][0].round(2), " at the end", paths[name][-1].round(2))
sketches.paths(np.arange(1, 301), paths, "step", "λ")

# %% [markdown]
# In two layers of three, λ ends within 0.06 of where it ended before. The optimizer is the reason. Muon trains the
# matrices here, and AdamW everything else, also the vectors of λ. AdamW divides each gradient by its usual size. So it
# hardly matters how hard the loss pulls, only how steadily. The runs are not equal: gradients are also clipped
# together, and one weight that differs makes all differ. This is one text and one seed.
#
# ## The second version
#
# v2 ([Ye et al. 2026](https://huggingface.co/blog/microsoft/diff-attn-v2)) changes three things. Both queries of a
# pair read the same key and value. Each token and pair has a λ of its own, between 0 and 1:
#
# $$\lambda = \sigma(x W_\lambda),\qquad \sigma(z) = \frac{1}{1 + e^{-z}}$$
#
# And no norm follows the difference. So v2 is plain attention with twice the query heads, subtracted in pairs.
#
# ## Experiment 1: find a value by its key
#
# A sequence hides *needles*, a key k with its value v after it, among fillers f. Later a key comes again, and the model
# must name its value. To that question, all other needles are noise.

# %%
sketches.haystack()

# %% [markdown]
# Five seeds of each kind are trained with Muon for 2,000 steps. Within a seed, all kinds see the same sequences and
# have the same number of parameters to 0.3 %. Size, learning rate, and schedule were chosen with a plain model.
# (`python notebooks/experiments/retrieval.py -o retrieval.json --controls` repeats the runs, an hour on one core.)
# Training starts with short sequences:

# %%
every = max(stored["experiment"]["steps"] // 100, 1)  # of the losses that are kept
limit = stored["experiment"]["begin"]
for kind, mine in runs.items():
    learned = [run["learned_at"] for run in mine]
    print(f"{kind:10} parameters {mine[0]['parameters']:,}   look-up learned at step {learned}")
controls = {
    kind: [run["learned_at"] for run in mine]
    for kind, mine in results.retrieval_runs(stored, "controls").items()
    if mine
}
for kind, learned in controls.items():
    print(f"{kind}, λ = 0   look-up learned at step {learned} (None: not within {limit:,})")
begin = limit // every
start = {kind: [run["losses"][:begin] for run in mine] for kind, mine in runs.items()}
sketches.runs(np.arange(begin) * every, start, "step", "loss on sequences of 8 tokens", ylim=(0, 0.6))

# %% [markdown]
# **Both differential kinds learn the look-up sooner**: at step 120 to 140, and plain attention at 360 to 620. Is it the
# difference, or the norm and the other changes that come with it? With λ fixed at 0, five of six do not find it, and
# the sixth only at step 480. (With λ = 0 a model has half as many maps as a plain one. As many maps without a
# subtraction were not tried.)
#
# After all 2,000 steps, how many values does each kind find, and where does it look?

# %%
experiment = retrieval.Experiment(
    **{name: tuple(x) if isinstance(x, list) else x for name, x in stored["experiment"].items()}
)
lengths = [str(n) for n in experiment.lengths]
guess = [1 / experiment.counts(int(n))[0] for n in lengths]


def minus_plain(what, kind):
    """kind − plain by seed, in percentage points: a mean and its 95 % interval for each length."""
    found = {}
    for n in lengths:
        ours, plain = ([run["measured"][n][what] for run in runs[k]] for k in (kind, "plain"))
        found[n] = retrieval_table.mean_and_interval(np.subtract(ours, plain))
    shown = (f"{100 * mean:+.0f} ± {100 * half:.0f}{'*' if abs(mean) > half else ''}" for mean, half in found.values())
    print(f"{what:8} {kind} − plain ", *(f"{x:>11}" for x in shown))
    return found


print(f"{'tokens':18}", *(f"{n:>11}" for n in lengths))
compared = {(what, kind): minus_plain(what, kind) for what in ("accuracy", "answer", "noise") for kind in ("v1", "v2")}
accuracies = {kind: [[run["measured"][n]["accuracy"] for n in lengths] for run in mine] for kind, mine in runs.items()}
sketches.runs(range(len(lengths)), accuracies, "tokens in a sequence", "values found", guess=guess,
              xticks=range(len(lengths)), xticklabels=lengths, ylim=(0, 1.02))  # fmt: skip

# %% [markdown]
# A star marks an interval that excludes 0. (With no real difference, about one interval in twenty still gets a star.)
# **v2 finds more values than plain attention, in all but the shortest sequences. v1 finds more than plain attention in
# sequences of 16 to 64 tokens**; in longer ones no difference can be measured. Both give more of their attention to the
# *answer* (a needle's key, its value, and the token after it) in sequences of 16 tokens and more. Less attention to
# *noise*, the paper's claim, shows only in v2, and only in sequences of 8 to 64 tokens. Why v2 does so much better than
# v1 was not tested.
#
# The last layer, in the longest sequences of training, shows how much models of one kind differ. There v2 gives *more*
# to noise than plain attention, and still finds more:

# %%
longest = str(experiment.longest)


def last_layer(run, what):
    return float(np.mean(run["measured"][longest]["heads"][what][-1]))


groups = ("answer", "noise")
dots = {what: {kind: [last_layer(run, what) for run in mine] for kind, mine in runs.items()} for what in groups}
for what, by_kind in dots.items():
    print(f"{what:7}", "   ".join(f"{kind} {100 * np.mean(shares):.1f} %" for kind, shares in by_kind.items()))
sketches.dots(dots, f"share of attention, last layer, {longest} tokens")

# %% [markdown]
# ## Experiment 2: predict text
#
# The same three kinds learn fairy tales with AdamW, five seeds each, at the learning rate that is the best of three for
# the plain model. (`python notebooks/experiments/variants.py fairy_en.txt runs` repeats the runs.)

# %%
mean_and_interval = retrieval_table.mean_and_interval
steps = [step for step, _ in of["plain"][0]["validation"]]
loss = {name: np.array([[x for _, x in r["validation"]] for r in of[name]]) for name in of}  # (seeds, steps)
for name in of:
    mean, half = mean_and_interval(list(loss[name][:, -1]))
    print(f"{name:11} rate {of[name][0]['rate']}   {len(of[name])} seeds   loss {mean:.2f} ± {half:.2f} nats per token")
ahead = {}
for name, other in (("v1", "plain"), ("v2", "plain"), ("v1, slow", "plain"), ("v1, no norm", "plain"),
                    ("v1, Muon", "plain, Muon")):  # fmt: skip
    differences = [x - y for x, y in zip(loss[name][:, -1], loss[other][:, -1], strict=False)]  # by seed
    mean, half = ahead[name, other] = mean_and_interval(differences)
    print(f"{name:11} − {other:11} {mean:+.2f} ± {half:.2f}   {'better' if mean < 0 else 'worse'}")
drawn = ("plain", "v1", "v2", "v1, no norm")
lines, errors = {}, {}
for name in drawn:
    lines[name], errors[name] = np.transpose([mean_and_interval(list(at)) for at in loss[name].T])
level = text["unigram_loss"], "token frequencies alone"
sketches.curves(steps, lines, "step", "validation loss (nats per token)", errors=errors, level=level, xticks=steps)

# %% [markdown]
# **At the end v1 is behind plain attention by 0.77, and v2 is ahead of it by 0.10.** At step 100, v1 is still no better
# than token frequencies: with AdamW at these two rates, it failed to train well. A third of the learning rate does
# not help v1. But without the norm after the difference, or with the optimizer Muon, v1 keeps up with plain attention.
# So the difference alone is not to blame: here it took the norm *and* AdamW. Why these two do not go together was not
# examined, nor other settings of AdamW.
#
# Only v1 with AdamW and its norm has *spikes* in training, steps whose gradient is more than twice the median of the 50
# steps before:

# %%
first_step = text["settings"]["warmup_steps"] + 50


def spikes(run):
    norm = np.array(run["gradient"])
    return int(sum(norm[i] > 2 * np.median(norm[i - 50 : i]) for i in range(first_step, len(norm))))


counted = {name: [spikes(run) for run in of[name]] for name in of}
for name, by_seed in counted.items():
    print(f"{name:11} spikes after step {first_step}, by seed: {by_seed}")

# %% [markdown]
# ## Do the two maps learn to share noise?
#
# Chapter 03 said that subtraction cancels noise only if both maps share it. So follow ρ, the correlation of their
# scores, through training. In the plain model, heads are paired the same way, and nothing is subtracted. (Lines are
# means, bands 95 % intervals. Moments stand side by side, whatever their distance.)

# %%
moments = text["moments"]
means, halves = {}, {}
for name in results.KINDS:
    table = np.array([r["own"] for r in of[name]])  # (seeds, moments, layers)
    by_moment = [[mean_and_interval(list(values)) for values in at.T] for at in table.swapaxes(0, 1)]
    means[name], halves[name] = np.moveaxis(np.array(by_moment), -1, 0)
for step in (0, 100, moments[-1]):
    at = moments.index(step)
    print(f"step {step:3}: mean ρ by layer", "   ".join(f"{name} {means[name][at].round(2)}" for name in results.KINDS))
print("lowest mean ρ:", "   ".join(f"{name} {means[name].min():.2f}" for name in results.KINDS))
at = [moments.index(step) for step in (0, 40, 100, 400)]
sketches.by_layer(range(len(moments)), means, halves, "step", "ρ", list(results.KINDS), xticks=at,
                  xticklabels=[moments[i] for i in at], ylim=(-1, 1))  # fmt: skip

# %% [markdown]
# At initialization the maps share nothing. Then **the maps of a differential pair become opposites**, as their
# gradients of opposite sign predict, while the heads of the plain model become alike. Later ρ returns toward 0. At the
# end it is clearly below 0 in layers 0 and 3 of v1 and in layer 0 of v2, and above 0 only in the last layer of v2. So
# pairs do not begin by sharing noise: what one map scores higher, the other scores lower.
#
# ## One longer run
#
# The bundled model of v1 and a plain twin read 16 million tokens, with Muon, one run each:

# %%
long_runs = json.loads(Path("data/baseline.json").read_text(encoding="utf-8"))
validation = {kind: dict(long_runs[kind]["validation"]) for kind in ("plain", "differential")}
gap = {step: validation["plain"][step] - validation["differential"][step] for step in validation["plain"]}
repeated = [json.loads(line) for line in Path("data/bundled_by_torch.jsonl").read_text(encoding="utf-8").splitlines()]
noise = max(abs(r["refdiff"] - r["torch"]) for r in repeated)
print("plain − differential, nats per token:", "   ".join(f"{step}: {gap[step]:+.3f}" for step in gap))
print(f"the same run repeated in torch differs by up to {noise:.3f}")
print(f"tokens read: {long_runs['tokens']:,}; loss at the end:", {kind: validation[kind][4000] for kind in validation})
print("bits per byte at the end:",
      {kind: round(long_runs[kind]["reached"]["bits_per_byte"], 3) for kind in validation})  # fmt: skip

# %% [markdown]
# The differential model is ahead by 0.03 to 0.04 in the first 1,200 steps. After that, the two are level within what a
# repetition changes.
#
# ## The numbers
#
# All is tiny: at most 3 million parameters and settings chosen for the plain model. The paper's comparisons begin at
# 830 million parameters. It claims more than is tested here, such as fewer hallucinations. Where nothing else is said,
# a number is the mean of five seeds:
#
# | | plain | v1 | v2 |
# |---|---|---|---|
# | step at which a seed learns the look-up | 360 to 620 | 120 to 140 | 120 to 140 |
# | the same with λ = 0, three seeds | – | none in 1,000 | 480, two not in 1,000 |
# | values found in sequences of 64 tokens | 27 % | 60 % | 89 % |
# | values found in sequences of 256 tokens | 14 % | 11 % | 83 % |
# | attention to noise at 64 tokens, against plain, in points | – | +1 ± 11 | −16 ± 11 |
# | loss on text, nats per token | 3.56 | 4.33 | 3.47 |
# | the same without the norm of v1 | – | 3.50 | – |
# | the same with Muon in place of AdamW | 3.58 | 3.52 | – |
# | loss of one longer run each | 3.097 | 3.090 | – |
#
# ## The answer
#
# **Training asks opposite things of the two maps, and at this size v2 learns better than plain attention, while v1
# learns a look-up sooner but falls behind on text when AdamW trains it with its norm.**
#
# <details>
# <summary>What is checked of this chapter</summary>
#
# ```python
# assert worst < 1e-6
# assert (first_choice == wolf).sum() == 3
# assert (wanted[..., wolf] > 0).sum() == 9
# usual, weak = paths.values()
# assert (np.abs(weak[-1] - usual[-1]) < 0.06).tolist() == [True, False, True]
# sizes_of = {r["parameters"] for r in text["runs"]}
# assert max(sizes_of) < 1.003 * min(sizes_of)
# assert all(len(mine) == 5 for mine in runs.values())
# look_up = summary["look-up learned at step ←"]
# assert max(look_up["v1"] + look_up["v2"]) <= 140
# assert min(look_up["v1"] + look_up["v2"]) == 120
# assert (min(look_up["plain"]), max(look_up["plain"])) == (360, 620)
# assert controls == {"v1": [None, None, None], "v2": [None, None, 480]}
# found = {key: [n for n in lengths if x[n][0] > x[n][1]] for key, x in compared.items()}
# less = {key: [n for n in lengths if x[n][0] < -x[n][1]] for key, x in compared.items()}
# assert found["accuracy", "v1"] == ["16", "32", "64"]
# assert found["accuracy", "v2"] == lengths[1:]
# assert found["answer", "v1"] == found["answer", "v2"] == lengths[1:]
# assert (less["noise", "v1"], less["noise", "v2"]) == ([], lengths[:4])
# assert ahead["v1", "plain"][0] > ahead["v1", "plain"][1]
# assert all(ahead[key][0] < -ahead[key][1] for key in ahead if key[0] in ("v2", "v1, no norm", "v1, Muon"))
# assert min(counted["v1"]) > 0 == max(counted["plain"] + counted["v2"] + counted["v1, no norm"] + counted["v1, Muon"])
# for name, strip in summary.items():
#     if "v2" in strip:
#         assert (np.mean(strip["v2"]) < np.mean(strip["plain"])) == name.endswith("←")
# assert all(means[name].min() < -0.6 for name in ("v1", "v2"))
# below = {name: np.flatnonzero(means[name][-1] < -halves[name][-1]).tolist() for name in ("v1", "v2")}
# assert below == {"v1": [0, 3], "v2": [0]}
# assert [np.flatnonzero(means[n][-1] > halves[n][-1]).tolist() for n in ("v1", "v2")] == [[], [3]]
# assert all(0.025 < gap[step] < 0.05 for step in (400, 800, 1200))
# assert all(abs(gap[step]) < 0.01 for step in gap if step > 1200)
# ```
#
# </details>
#
# ## Exercises
#
# `from refdiff import exercises`, then `exercises.check("eq1_vjp", my_eq1_vjp)`, and so on. A *vjp* takes the
# gradient $g$ of a result and returns the gradients of the inputs.
#
# **1.** `"eq1_vjp"`: the gradients of this chapter. **2.** `"softmax_vjp"`, where
# $\partial a_j/\partial z_i = a_j([i = j] - a_i)$. **3.** `"rms_norm_vjp"`, without a weight. **4.**
# `"cross_entropy"`: the loss; some scores are near 1000. **5.** `"eq2_vjp"`: the four vectors of λ. **6.**
# `"lambda_v2"` and **7.** `"v2"`. **8.** `"attention_share"`: the share of some keys in one row.
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
# def my_rms_norm_vjp(g, x, eps):
#     size = np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
#     return (g - x * (g * x).mean(axis=-1, keepdims=True) / size**2) / size
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
# assert exercises.check("rms_norm_vjp", my_rms_norm_vjp)
# assert exercises.check("cross_entropy", my_cross_entropy)
# assert exercises.check("eq2_vjp", my_eq2_vjp)
# assert exercises.check("lambda_v2", lambda x, w: 1 / (1 + np.exp(-(x @ w.T))).swapaxes(1, 2)[..., None])
# assert exercises.check("v2", my_v2)
# assert exercises.check("attention_share", lambda w, keys: np.abs(w[keys]).sum() / np.abs(w).sum())
# ```
#
# </details>
