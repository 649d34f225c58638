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
# # 08 · What does training ask of the two maps?
#
# Two maps, one subtracted from the other: **what does the loss want from each of them, and where does λ go?** Then the
# question that the paper promises an answer to: **does a model with the difference learn better than one without?**
#
# You derive the gradient in five lines and check it, measure what the factor $1 - \lambda_{init}$ is for, train a small
# model in seconds, and look at two larger ones that were trained for hours. Allow 30 minutes; you need notebook 03.

# %%
# %matplotlib inline
import json
import tempfile
from pathlib import Path

import numpy as np
import sketches
import tiny

import refdiff
from refdiff import layers, viz
from refdiff.training import Corpus, Settings, Trainer

# %% [markdown]
# ## The picture
#
# Forward, from left to right, one pair of heads computes $O = PV$. Backward, each step passes on how the loss $L$ would
# change with its inputs.

# %%
sketches.gradient_flow()

# %% [markdown]
# ## The equations
#
# $$O = PV,\qquad P = A_1 - \lambda A_2 \tag{eq. 1}$$
#
# (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258); eq. 7 has the gradients by the matrices.) Let
# $g = \partial L/\partial O$, and ⊙ multiply number by number. Move every input a little. The loss moves by
#
# $$\begin{aligned}
# dL &= \sum g \odot dO = \sum g \odot (dP\,V) + \sum g \odot (P\,dV) \\
# &= \sum (gV^\top) \odot dP + \sum (P^\top g) \odot dV, \qquad dP = dA_1 - \lambda\,dA_2 - A_2\,d\lambda.
# \end{aligned}$$
#
# Put $dP$ in; what stands beside each $d$ is a gradient:
#
# $$\frac{\partial L}{\partial V} = P^\top g,\quad G = \frac{\partial L}{\partial P} = gV^\top,\quad
# \frac{\partial L}{\partial A_1} = G,\quad \frac{\partial L}{\partial A_2} = -\lambda G,\quad
# \frac{\partial L}{\partial \lambda} = -\sum G \odot A_2.$$
#
# Read the middle of it: **what the loss wants more of in one map, it wants less of in the other** (as long as λ > 0).
# A step of training goes against the gradient. So λ grows where the sum of $G \odot A_2$ is positive: where $A_2$ looks
# at tokens that the loss wants less of.


# %%
def loss(a1, a2, v, lambda_):
    return (g * ((a1 - lambda_ * a2) @ v)).sum()  # some loss whose ∂L/∂O is g


def gradients(a1, a2, v, lambda_):
    by_map = g @ v.T
    return by_map, -lambda_ * by_map, (a1 - lambda_ * a2).T @ g, -(by_map * a2).sum()


# %% [markdown]
# You need not trust a derivation. Move an input a little forward and back along some direction $u$; the change of the
# loss must be the gradient times the direction:
#
# $$\frac{L(x + hu) - L(x - hu)}{2h} \approx \nabla L \cdot u$$

# %%
rng = np.random.default_rng(8)
g, v = rng.standard_normal((2, 5, 6))
inputs = [*tiny.softmax(rng.standard_normal((2, 5, 5))), v, 0.7]
names, worst = ("A₁", "A₂", "V", "λ"), 0.0
for i, gradient in enumerate(gradients(*inputs)):
    u = rng.standard_normal(np.shape(gradient))
    ahead, behind = (loss(*inputs[:i], inputs[i] + step * u, *inputs[i + 1 :]) for step in (1e-5, -1e-5))
    measured, derived = (ahead - behind) / 2e-5, (gradient * u).sum()
    worst = max(worst, abs(measured - derived) / abs(derived))
    print(f"{names[i]:3} measured {measured:10.6f}   derived {derived:10.6f}")

# %% [markdown]
# refdiff has such a derivative under each of its functions: `layers.diff_attention` and `layers.diff_attention_vjp`.
#
# ## Experiment: what is $1 - \lambda_{init}$ for?
#
# Notebook 03 left it open. At initialization all scores are small, so both maps are nearly even and nearly alike, and
# $A_1 - \lambda A_2 \approx (1 - \lambda_{init})\,A$. Deep layers start with a larger λ_init, so their difference is
# smaller. The norm blows it up to one size again, and with it the gradients of $W_Q$ and $W_K$, about
# $1/(1 - \lambda_{init})$ times. The factor $1 - \lambda_{init}$ takes exactly that back. Measured: these gradients for
# one layer at four depths, relative to those of a plain head with the same weights.

# %%
depths = (0, 3, 11, 27)
sizes = np.array([np.mean([sketches.gradient_sizes(depth, seed) for seed in range(5)], axis=0) for depth in depths])
for depth, (bare, norm, both) in zip(depths, sizes, strict=True):
    start = f"layer {depth:2}: λ_init {layers.lambda_init(depth):.2f}"
    print(f"{start}   bare {bare:4.2f}   norm {norm:5.1f}   norm and factor {both:4.1f}")
lines = dict(zip(("A₁ − λA₂ alone", "with norm", "with norm and 1 − λ_init"), sizes.T, strict=True))
sketches.curves(depths, lines, "layer", "gradient of W_Q, plain head = 1", yscale="log")

# %% [markdown]
# With the norm alone, the gradient grows about fourfold from the first layer to layer 27. With the factor it stays the
# same at every depth, as the paper wants it. It is not the gradient of a Transformer, though: norming a head of small
# numbers makes it many times larger everywhere. The paper's appendix G calls the two the same *up to constant factors*.
#
# Two limits. This was one layer by itself, with even maps. Here are whole models, one new and one trained, on the eight
# openings of notebook 03:

# %%
bundled = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
texts = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")
rows = np.stack([tokenizer([text.strip()], return_tensors="np")["input_ids"][0][:64] for text in texts])
by_layer = {}
for name, one in (("new", refdiff.DiffLlamaForCausalLM.from_config(bundled.config, 0)), ("trained", bundled)):
    _, grads = one.loss_and_grad(rows, labels=rows)
    by_layer[name] = [np.linalg.norm(layer["self_attn"]["q_proj"]["weight"]) for layer in grads["model"]["layers"]]
    print(f"{name:7}   ‖∂L/∂W_Q‖ by layer:", "  ".join(f"{size:.3f}" for size in by_layer[name]),
          f"  largest / smallest {max(by_layer[name]) / min(by_layer[name]):.1f}")  # fmt: skip

# %% [markdown]
# They do not grow with depth, but they are not the same either: other things than λ_init differ between layers. And the
# size of a gradient matters for plain gradient descent and for clipping. AdamW and Muon, which trained this model,
# rescale each step anyway.
#
# ## Training
#
# Now a model learns a text: the licence of this project, 11 kB of English. Three layers, 300 steps.

# %%
config = refdiff.DiffLlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
(folder / "run").mkdir()
corpus = Corpus.from_text(Path("../LICENSE"), folder / "corpus", vocab_size=config.vocab_size, validation=0.1)
settings = Settings(
    steps=300, batch=8, context=64, optimizer="muon", rate=1e-2, warmup=20, evaluate_every=20,
    save_every=0, sample_every=0, prompt="You may ",
)  # fmt: skip
trainer = Trainer.start(folder / "run", config, corpus, settings, dtype="float64")
records = []
trainer.run(records.append)
print(f"a text of {Path('../LICENSE').stat().st_size / 1000:.0f} kB")
print(f"a guess among {config.vocab_size} tokens has loss ln {config.vocab_size} = {np.log(config.vocab_size):.2f}")
for record in (records[0], records[49], records[99], records[199], records[-1]):
    print(f"step {record['step']:3}   loss {record['loss']:.2f}   λ {[round(x, 3) for x in record['lambdas']]}")
viz.plot_training(records)

# %% [markdown]
# The training loss falls and falls. The validation loss, on text that the model has not seen, falls less and then
# rises: 11 kB are too few to learn English from, and enough to learn by heart.
#
# And where does λ go? Here it grows in all three layers, within the first hundred steps, and then hardly moves. In
# layer 1 it passes 1. In the bundled model (notebook 03) it went below 0 in two of six layers. Nothing in the equations
# forbids that, and we know of no rule that foretells it. Now the model continues a passage that it was trained on:

# %%
small = refdiff.Tokenizer.from_pretrained(corpus.folder)
row, _ = corpus.batch("train", np.array([2]), settings.context)
made = trainer.model.generate(row[:, :32], max_new_tokens=31)[:, : settings.context]
by_heart = [small.decode(part) for part in (made[0, 32:], row[0, 32 : made.shape[1]])]
print("begins   ", repr(small.decode(row[0, :32])))
print("continues", repr(by_heart[0]))
print("the text ", repr(by_heart[1]))

# %% [markdown]
# ## Does the difference learn better?
#
# The bundled model read 16 million tokens of fairy tales in 4,000 steps. Its twin is a plain Transformer: same data in
# the same order, same seed, 768 parameters fewer (the λ vectors). One run of each kind is little evidence; here it is.

# %%
twins = json.loads(Path("data/twins.json").read_text(encoding="utf-8"))
kinds = ("differential", "plain")
validation = {kind: dict(twins[kind]["validation"]) for kind in kinds}
steps = list(validation["plain"])
gap = {step: validation["plain"][step] - validation["differential"][step] for step in steps}
print(f"tokens read in training: {twins['tokens']:,}")
print("parameters:", {kind: f"{twins[kind]['parameters']:,}" for kind in kinds})
print("plain − differential, nats a token:")
print("   ".join(f"{step}: {gap[step]:+.3f}" for step in steps[:5]))
print("   ".join(f"{step}: {gap[step]:+.3f}" for step in steps[5:]))
print(
    "at the end, bits for each byte of text:",
    {kind: round(twins[kind]["reached"]["bits_per_byte"], 3) for kind in kinds},
)
losses = {kind: [validation[kind][step] for step in steps] for kind in kinds}
sketches.curves(steps, losses, "step", "validation loss (nats a token)")

# %% [markdown]
# How large a gap means something? The run of the bundled model was repeated in transformers and torch, from the same
# weights on the same rows. Nothing but rounding should differ, so two runs differ by at least this much:

# %%
lines = Path("data/bundled_by_torch.jsonl").read_text(encoding="utf-8").splitlines()
repeated = [json.loads(line) for line in lines]
apart = {r["step"]: r["refdiff"] - r["torch"] for r in repeated}
print("refdiff − torch, nats a token:")
print("   ".join(f"{step}: {apart[step]:+.3f}" for step in steps[:5]))
print("   ".join(f"{step}: {apart[step]:+.3f}" for step in steps[5:]))
print("loss at steps 3600 and 4000:", {kind: [validation[kind][step] for step in steps[-2:]] for kind in kinds})

# %% [markdown]
# Repeating a run moves the loss by up to 0.01. (Another seed, not tried here, may move it by more.) The differential
# model is ahead by 0.03 to 0.04 in the first 1,200 steps; after that the two are level. The paper's gains (its figure
# 3, from 830 million parameters up) do not show at 3 million parameters, and one run cannot exclude them. The
# validation loss of both kinds rises after step 3600; why was not examined.
#
# ## A place to put attention that is not needed
#
# A softmax row must sum to 1. A token that needs nothing must still put its weight somewhere, and plain Transformers
# often put it on the first token: an *attention sink* (Xiao et al. 2023, [arXiv
# 2309.17453](https://arxiv.org/abs/2309.17453)). Does the differential model have one, and in which map? If
# queries attended evenly, the first of T tokens would get $\frac1T\sum_t \frac1t$ of the weight. We measure how many
# times that it gets, on the eight openings of notebook 03. Two ways to cut the text: from its true beginning, where the
# first token is `<|endoftext|>`, as before each tale in training; and from its middle, where the first token is just a
# word.

# %%
sinks, even = {}, np.mean(1 / np.arange(1, 193))
for where, part in (("from the beginning", slice(0, 192)), ("from the middle", slice(128, 320))):
    found = []
    for text in texts:
        ids = tokenizer([text.strip()], return_tensors="np")["input_ids"][0][part]
        m = viz.attention_maps(bundled, list(map(int, ids)))
        found.append([[(a[..., 0].mean(axis=(1, 2))) for a in (m.first, m.second)]])
    sinks[where] = np.mean(found, axis=(0, 1)) / even
    for name, shares in zip(("A₁", "A₂"), sinks[where], strict=True):
        print(f"{where:18} {name}   times the even share, by layer:", "  ".join(f"{x:.1f}" for x in shares))
most = sinks["from the beginning"].max()
print(f"the largest, {most:.1f} times the even share of {even:.1%}, is {most * even:.0%} of the weight")
twin = np.array(twins["plain"]["first"]["A"]) / np.mean(1 / np.arange(1, 513))
print("plain twin, rows of 512 from the middle:        ", "  ".join(f"{x:.1f}" for x in twin))

# %% [markdown]
# Cut in the middle, no map gives the first token more than its share: whoever measures so finds no sink. That goes for
# the plain twin, too, on rows of the validation text. (Its weights are not in this package, so how it treats a true
# beginning is not measured.) From the true beginning the *second* map of layers 0, 1 and 5 gives `<|endoftext|>` more
# than its share, and more than the first map does. It is modest: at most 2.3 times the even share, 7 % of the weight.
# (The first maps of layers 3 and 5 give it 1.1 and 1.4 times.) And the difference does not simply remove it: layer 0
# subtracts its second map, but layers 1 and 5 have λ < 0 (notebook 03) and add theirs, sink included.
#
# ## What we learned
#
# - The two maps get gradients of opposite sign. λ grows where $A_2$ looks at tokens that the loss wants less of.
# - A derivation is checked by differences of the function itself.
# - At initialization the factor $1 - \lambda_{init}$ takes back what the norm does to the gradients of $W_Q$ and $W_K$,
#   at every depth. In a whole model, layers differ for other reasons, too.
# - A falling training loss with a rising validation loss means: learned by heart.
# - At 3 million parameters, one run of each kind, differential and plain attention end level.
# - In layers 0, 1 and 5 of the bundled model the second map uses the beginning of a text as a modest sink. A text cut
#   in its middle hides it.

# %%
assert worst < 1e-6
assert sizes[-1, 1] > 3.5 * sizes[0, 1]
assert np.ptp(sizes[:, 2]) < 0.15 * sizes[0, 2]
assert all(max(found) / min(found) > 1.5 for found in by_layer.values())
assert all(np.argmax(found) < 5 for found in by_layer.values())
assert np.greater(records[99]["lambdas"], records[0]["lambdas"]).all()
assert np.allclose(records[99]["lambdas"], records[-1]["lambdas"], atol=0.12)
assert records[-1]["loss"] < records[0]["loss"] / 2
assert by_heart[0] == by_heart[1]
assert all(0.025 < gap[step] < 0.05 for step in (400, 800, 1200))
assert all(abs(gap[step]) < 0.01 for step in steps if step > 1200)
assert max(map(abs, apart.values())) < 0.0125
assert twin.max() < 1
first, second = sinks["from the beginning"]
assert (second[[0, 1, 5]] > np.maximum(1, first[[0, 1, 5]])).all()
assert sinks["from the middle"].max() < 1

# %% [markdown]
# ## Exercises
#
# `from refdiff import exercises`, then:
#
# **1.** `exercises.check("eq1_vjp", …)`: the gradients of this page, with $g$ as an argument.
#
# **2.** `exercises.check("softmax_vjp", …)`: $\partial L/\partial z$ for $a = \mathrm{softmax}(z)$, given
# $g = \partial L/\partial a$ and $a$. Moving one score moves all weights, since they sum to 1:
# $\partial a_j/\partial z_i = a_j([i = j] - a_i)$.
#
# **3.** `exercises.check("rms_norm_vjp", …)`: the norm without a weight, $y = x/s$. Its size
# $s = \sqrt{\operatorname{mean}(x^2) + \varepsilon}$ depends on $x$, too: $\partial s/\partial x_i = x_i/(D\,s)$.
#
# **4.** `exercises.check("cross_entropy", …)`: the loss. Some scores are near 1000.
#
# **5.** `exercises.check("eq2_vjp", …)`: the gradients of the four λ vectors. What if all four start at zero?
#
# <details>
# <summary>Answers</summary>
#
# ```python
# from refdiff import exercises
#
#
# def my_eq1_vjp(g, a1, a2, v, lambda_):
#     by_map = g @ v.T
#     return by_map, -lambda_ * by_map, (a1 - lambda_ * a2).T @ g, -(by_map * a2).sum()
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
# assert exercises.check("eq1_vjp", my_eq1_vjp)
# assert exercises.check("softmax_vjp", lambda g, a: a * (g - (g * a).sum(axis=-1, keepdims=True)))
# assert exercises.check("rms_norm_vjp", my_rms_norm_vjp)
# assert exercises.check("cross_entropy", my_cross_entropy)
# assert exercises.check("eq2_vjp", my_eq2_vjp)
# ```
#
# 5: Each gradient has the other vector of its product as a factor. At zero all four gradients are zero, and λ stays at
# λ_init for ever. So the vectors start as small random numbers (standard deviation 0.1).
#
# </details>
#
# ## Questions
#
# <details>
# <summary>How are the gradients of the two maps related?</summary>
#
# ∂L/∂A₁ = G and ∂L/∂A₂ = −λ G: opposite signs (for λ > 0), scaled by λ.
#
# </details>
# <details>
# <summary>How can a derivative be checked without trusting the derivation?</summary>
#
# Move the input a little forward and back along a direction; the difference of the losses over 2h must be gradient ·
# direction.
#
# </details>
# <details>
# <summary>The training loss falls and falls, and the validation loss rises again: what has the model done?</summary>
#
# Learned its text by heart: 11 kB are too few to learn English from.
#
# </details>
