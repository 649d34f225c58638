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
# # 08 · Gradients, and training a small model
#
# **What you will see.** The gradient of differential attention, derived on paper and checked against differences of
# the function itself; then of a whole model; then a small model that learns a text, with its loss and its λ moving. At
# the end the model that comes with the package, trained by two programs and with two kinds of attention.

# %%
# %matplotlib inline
import inspect
import json
import tempfile
from pathlib import Path

import numpy as np

import refdiff
from refdiff import layers, viz
from refdiff.model.weights import flatten
from refdiff.training import Corpus, Settings, Trainer
from refdiff.viz.appearance import MARKERS, SERIES, STYLES, legend, new_axes

# %% [markdown]
# ## A derivative under each function
#
# refdiff has no automatic differentiation. Each layer `f` has `f_vjp` under it: from the gradient of the loss by the
# output of `f`, it computes the gradient by each input. For differential attention,
#
# $$O = PV,\qquad P = A_1 - \lambda A_2 \tag{eq. 1}$$
#
# and with $g = \partial L/\partial O$ the chain rule gives, one line after the other,
#
# $$\frac{\partial L}{\partial V} = P^\top g,\quad G = \frac{\partial L}{\partial P} = gV^\top,\quad
# \frac{\partial L}{\partial A_1} = G,\quad \frac{\partial L}{\partial A_2} = -\lambda G,\quad
# \frac{\partial L}{\partial \lambda} = -\sum G \odot A_2.$$
#
# (In the paper, Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258), the gradients by the matrices
# are eq. 7.) Where λ > 0, the two maps get gradients of opposite sign: what the loss wants more of in one, it wants
# less of in the other.

# %%
print(inspect.getsource(layers.diff_attention_vjp))

# %% [markdown]
# ## By check: a step forward, a step back
#
# A derivative can be measured: move the inputs a little in some direction $u$, once forward and once back. The change
# of the loss must be the gradient times the direction,
#
# $$\frac{L(x + hu) - L(x - hu)}{2h} \approx \nabla L \cdot u.$$
#
# We take $L = \sum g \odot O$, so that $\partial L/\partial O = g$, and move one argument at a time.

# %%
rng = np.random.default_rng(8)
B, H, T, d = 2, 3, 5, 4
names = ("q1", "k1", "q2", "k2", "v", "lambda_")
arguments = [rng.standard_normal((B, H, T, width)) for width in (d, d, d, d, 2 * d)] + [np.asarray(0.7)]
g = rng.standard_normal((B, H, T, 2 * d))
gradients = layers.diff_attention_vjp(g, *arguments)

h = 1e-5
worst = 0.0
for i, (name, gradient) in enumerate(zip(names, gradients, strict=True)):
    u = rng.standard_normal(gradient.shape)
    ahead, behind = (
        (g * layers.diff_attention(*arguments[:i], arguments[i] + step * u, *arguments[i + 1 :])).sum()
        for step in (h, -h)
    )
    measured, derived = (ahead - behind) / (2 * h), (gradient * u).sum()
    worst = max(worst, abs(measured - derived) / abs(derived))
    print(f"{name:8} {gradient.shape!s:13} measured {measured:12.6f}   derived {derived:12.6f}")

# %% [markdown]
# ## The whole model
#
# `loss_and_grad` goes through the model upwards and then through the same lines from bottom to top. Its result has a
# gradient for every weight, under the weight's name. The loss is the mean of $-\log p$ of each next token. We check
# all gradients together, along one random direction through all weights.

# %%
config = refdiff.DiffLlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
model = refdiff.DiffLlamaForCausalLM.from_config(config, seed=0, dtype="float64")
ids = rng.integers(0, config.vocab_size, (2, 16))
loss, grads = model.loss_and_grad(ids, labels=ids)
print(f"loss {float(loss):.4f}; a guess among {config.vocab_size} has log {config.vocab_size} = {np.log(300):.4f}")

weights, by_weight = flatten(model.params), flatten(grads)
direction = {name: rng.standard_normal(w.shape) for name, w in weights.items()}
losses = []
for step in (h, -2 * h):
    for name, w in weights.items():
        w += step * direction[name]
    losses.append(float(model(ids, labels=ids).loss))
slope = (losses[0] - losses[1]) / (2 * h)
along = sum(float((by_weight[name] * direction[name]).sum()) for name in weights)
print(f"{len(weights)} arrays of weights, slope measured {slope:.5f}, from the gradients {along:.5f}")

# %% [markdown]
# ## Training
#
# Now a model learns a text: the licence of this project, 11 kB of English. The trainer is the one behind `refdiff
# train`. It makes a tokenizer from the text, cuts it into rows, and takes a step of its optimizer (here Muon) after
# each batch. Computed in float64, so that the same steps come out on every machine.

# %%
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
(folder / "run").mkdir()
corpus = Corpus.from_text(Path("../LICENSE"), folder / "corpus", vocab_size=config.vocab_size, validation=0.1)
settings = Settings(
    steps=300,
    batch=8,
    context=64,
    optimizer="muon",
    rate=1e-2,
    warmup=20,
    evaluate_every=20,
    save_every=0,
    sample_every=0,
    prompt="You may ",
)
trainer = Trainer.start(folder / "run", config, corpus, settings, dtype="float64")
records = []
trainer.run(records.append)
for record in (records[0], records[99], records[199], records[-1]):
    print(f"step {record['step']:3}   loss {record['loss']:.3f}   λ {[round(x, 3) for x in record['lambdas']]}")

# %%
viz.plot_training(records)

# %% [markdown]
# The training loss falls far below that of a blind guess. The validation loss, on text that the model has not seen,
# falls less and then rises: 11 kB are too few to learn English from, and enough to learn by heart. And each layer's λ
# leaves λ_init (0.2, 0.36, 0.47), because it is a parameter like the others. Here it goes on with two rows that it was
# trained on, from the middle of each. One it has learned by heart, to the last letter; of the other only how the next
# word ends.

# %%
tokenizer = refdiff.Tokenizer.from_pretrained(corpus.folder)
goes_on = {}
for number in (2, 5):
    row, _ = corpus.batch("train", np.array([number]), settings.context)
    made = trainer.model.generate(row[:, :32], max_new_tokens=31)[:, : settings.context]
    goes_on[number] = [tokenizer.decode(part) for part in (made[0, 32:], row[0, 32 : made.shape[1]])]
    print(f"row {number}, begins", repr(tokenizer.decode(row[0, :32])))
    print("goes on      ", repr(goes_on[number][0]))
    print("the text     ", repr(goes_on[number][1]))

# %% [markdown]
# ## The same run by another program
#
# The model that comes with the package learned from 8.6 MB of fairy tales, by `refdiff train` with the command on its
# card. Are its gradients, its optimizer and its schedule right for all 4,000 steps? Here the run was repeated in
# transformers and torch, from the same weights, on the same rows (`python -m tests.parity.train_with_torch`, two hours
# of one core). float32 is rounded in another order in each, and that grows from step to step. What a model has learned
# by then should not depend on it.

# %%
lines = Path("data/bundled_by_torch.jsonl").read_text(encoding="utf-8").splitlines()
repeated = [json.loads(line) for line in lines]
axes = new_axes(None)
for name, colour, style, marker in zip(("refdiff", "torch"), SERIES, STYLES, MARKERS, strict=False):
    steps, losses = np.transpose([(r["step"], r[name]) for r in repeated])
    axes.plot(steps, losses, color=colour, linestyle=style, marker=marker, markersize=4, label=name)
axes.set_xlabel("step")
axes.set_ylabel("validation loss (nats a token)")
legend(axes)
for r in repeated:
    print(f"step {r['step']:4}   refdiff {r['refdiff']:.3f}   torch {r['torch']:.3f}   ratio {r['ratio']:.4f}")
axes.figure

# %% [markdown]
# ## The bundled model beside its twin
#
# Is differential attention better? One run of each kind is little evidence, and here it is. The twin was trained by the
# same command with `--wiring none`: plain attention, 768 weights fewer (the vectors of λ), the same seed, the same rows
# in the same order. `twins.py` beside this notebook measured both, their weights rounded to float16.

# %%
twins = json.loads(Path("data/twins.json").read_text(encoding="utf-8"))
axes = new_axes(None)
for kind, colour, style, marker in zip(("differential", "plain"), SERIES, STYLES, MARKERS, strict=False):
    steps, losses = np.transpose(twins[kind]["validation"])
    axes.plot(steps, losses, color=colour, linestyle=style, marker=marker, markersize=4, label=kind)
axes.set_xlabel("step")
axes.set_ylabel("validation loss (nats a token)")
legend(axes)
for kind in ("differential", "plain"):
    of = twins[kind]
    print(f"{kind:12}   {of['parameters']:,} parameters   {of['reached']['bits_per_byte']:.3f} bits per byte")
axes.figure

# %% [markdown]
# The differential model is ahead in the first 1,200 steps, by 0.03 or 0.04 nats a token, and then the two are level:
# they change places, and nowhere after step 1,200 are they more than 0.01 apart. The paper's gains (its figure 3, from
# 830 million parameters up) are not to be seen at 3 million, and one run cannot exclude them either.
#
# Two of the paper's other observations, on 8 rows of 512 tokens of the validation part. Plain models often give much of
# their attention to the first token. If queries attended evenly to all that they see, it would get $\frac{1}{512}
# \sum_{t=1}^{512} \frac{1}{t} = 1.3\,\%$.

# %%
even = np.mean(1 / np.arange(1, 513))
print(f"{'layer':26}", *(f"{layer:6}" for layer in range(6)))
print(f"{'even':26}", *[f"{even:6.2%}"] * 6)
for kind in ("differential", "plain"):
    for name, shares in twins[kind]["first"].items():
        print(f"{kind:14}{name:12}", *(f"{x:6.2%}" for x in shares))

# %% [markdown]
# Neither model does so: trained for so short a time, models of this size have not formed that habit, and there is
# nothing for the difference to cancel.
#
# And the paper finds smaller outliers among what layers compute (its table 5). Here are the largest magnitudes of the
# scores $QK^\top/\sqrt d$ and of the residual stream (all tokens, all layers), beside the median.

# %%
ranks = ("top 1", "top 10", "top 100", "top 1000", "median")
print(f"{'':26}" + "".join(f"{rank:>10}" for rank in ranks))
for of in ("scores", "states"):
    for kind in ("differential", "plain"):
        print(f"{of:8}{kind:18}" + "".join(f"{twins[kind]['largest'][of][rank]:10.1f}" for rank in ranks))

# %% [markdown]
# Of the scores the largest is smaller in the differential model and the hundredth is not. The plain model's residual
# stream is about twice as large throughout, its median too; so it is not its outliers that differ but its scale.

# %% [markdown]
# ## Exercise
#
# λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + λ_init (eq. 2). Suppose all four vectors start at zero. What is the
# gradient of λ by each of them? What would training do to λ? How do the paper's codes avoid it?
#
# <details>
# <summary>Answer</summary>
#
# $\partial\lambda/\partial\lambda_{q1} = \exp(\lambda_{q1}\cdot\lambda_{k1})\,\lambda_{k1} = 0$ when $\lambda_{k1} =
# 0$, and likewise for the other three. All gradients are zero, and λ stays at λ_init for ever. So the vectors start
# as small random numbers (standard deviation 0.1).
#
# ```python
# zeros = np.zeros(8)
# layers.diff_lambda_vjp(np.asarray(1.0), zeros, zeros, zeros, zeros, 0.2)  # four vectors of zeros
# ```
#
# </details>
#
# ## What must hold

# %%
assert worst < 1e-6
assert abs(slope - along) < 1e-5 * abs(along)
assert records[-1]["loss"] < records[0]["loss"] / 2
assert repeated[-1]["step"] == 4000
assert all(abs(r["ratio"] - 1) < 0.02 for r in repeated)
both = [dict(twins[kind]["validation"]) for kind in ("differential", "plain")]
assert all(0.025 < both[1][step] - both[0][step] < 0.05 for step in (400, 800, 1200))
assert all(abs(both[1][step] - both[0][step]) < 0.01 for step in range(1600, 4001, 400))
assert max(max(shares) for kind in ("differential", "plain") for shares in twins[kind]["first"].values()) < even
assert goes_on[2][0] == goes_on[2][1]
assert goes_on[5][0] != goes_on[5][1]
assert goes_on[5][0][:2] == goes_on[5][1][:2] == "ty"
assert all(abs(a - b) > 1e-3 for a, b in zip(records[0]["lambdas"], records[-1]["lambdas"], strict=True))

# %% [questions]
# Q: How are gradients of the two maps related?
# A: ∂L/∂A₁ = G and ∂L/∂A₂ = −λ G: opposite signs (for λ > 0), scaled by λ.
#
# Q: How can a derivative be checked without trusting the derivation?
# A: Move the input a little forward and back along a direction; the difference of the losses over 2h must be gradient
#    · direction.
#
# Q: The training loss falls and falls, and the validation loss rises again: what has the model done?
# A: Learned its text by heart: 11 kB are too few to learn English from.
