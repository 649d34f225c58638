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
# (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258); eq. 7 has the gradients by the matrices.) With
# $g = \partial L/\partial O$ the chain rule gives
#
# $$\frac{\partial L}{\partial V} = P^\top g,\quad G = \frac{\partial L}{\partial P} = gV^\top,\quad
# \frac{\partial L}{\partial A_1} = G,\quad \frac{\partial L}{\partial A_2} = -\lambda G,\quad
# \frac{\partial L}{\partial \lambda} = -\sum G \odot A_2.$$
#
# Read the middle of it: **what the loss wants more of in one map, it wants less of in the other** (as long as λ > 0).
# And λ grows where $A_2$ looks at tokens that the loss wants less of.


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
# Notebook 03 left it open. Deep layers start with a larger λ_init, so their difference $A_1 - \lambda A_2$ is smaller.
# The norm blows it up to one size again, and with it the gradients of $W_Q$ and $W_K$: the deeper the layer, the more.
# The factor $1 - \lambda_{init}$ makes up for exactly that. Here are those gradients at initialization, relative to
# those of a plain head with the same weights, for a layer at four depths.


# %%
def gradient_sizes(depth, seed, n=64, D=256, d=16):
    """‖∂L/∂W_Q‖ of one head: bare difference, with norm, with norm and factor; relative to a plain head."""
    rng, start = np.random.default_rng(seed), layers.lambda_init(depth)
    x, g = rng.standard_normal((2, n, D))
    q, k, v = (x @ w for w in 0.02 * rng.standard_normal((3, D, 2 * d)))
    g = g @ (0.02 * rng.standard_normal((2 * d, D))).T
    q2, k2 = (z.reshape(1, n, 2, d).swapaxes(1, 2) for z in (q, k))
    lambda_, v = np.asarray(start), v[None, None]
    plain = layers.plain_heads_vjp(g[None], q[None, None], k[None, None], v)[0][0, 0]
    bare = layers.diff_attention_vjp(g[None, None], q2[:, :1], k2[:, :1], q2[:, 1:], k2[:, 1:], v, lambda_)
    bare = np.concatenate([bare[0][0, 0], bare[2][0, 0]], axis=-1)
    norms = [
        np.concatenate([*layers.diff_heads_hf_vjp(g[None], q2, k2, v, lambda_, s, 1e-5)[0][0]], -1) for s in (0, start)
    ]
    return [np.linalg.norm(x.T @ by_q) / np.linalg.norm(x.T @ plain) for by_q in (bare, *norms)]


depths = (0, 3, 11, 27)
sizes = np.array([np.mean([gradient_sizes(depth, seed) for seed in range(5)], axis=0) for depth in depths])
for depth, (bare, norm, both) in zip(depths, sizes, strict=True):
    start = f"layer {depth:2}: λ_init {layers.lambda_init(depth):.2f}"
    print(f"{start}   bare {bare:4.2f}   norm {norm:5.1f}   norm and factor {both:4.1f}")
lines = dict(zip(("A₁ − λA₂ alone", "with norm", "with norm and 1 − λ_init"), sizes.T, strict=True))
sketches.curves(depths, lines, "layer", "gradient of W_Q, plain head = 1", yscale="log")

# %% [markdown]
# With the norm alone, the gradient grows about fourfold from the first layer to layer 27. With the factor it stays the
# same at every depth. So the factor does what the paper wants: one learning rate fits all layers. It is not the
# gradient of a Transformer, though: norming a head of small numbers makes it many times larger everywhere. The paper's
# appendix G calls the two the same *up to constant factors*.
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
for record in (records[0], records[99], records[199], records[-1]):
    print(f"step {record['step']:3}   loss {record['loss']:.2f}   λ {[round(x, 3) for x in record['lambdas']]}")
viz.plot_training(records)

# %% [markdown]
# The training loss falls and falls. The validation loss, on text that the model has not seen, falls less and then
# rises: 11 kB are too few to learn English from, and enough to learn by heart. And λ leaves its start values in each
# layer; it is a parameter like the others. Here the model continues a passage that it was trained on:

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
print("at the end, bits per byte:", {kind: round(twins[kind]["reached"]["bits_per_byte"], 3) for kind in kinds})
losses = {kind: [validation[kind][step] for step in steps] for kind in kinds}
sketches.curves(steps, losses, "step", "validation loss (nats a token)")

# %% [markdown]
# The differential model is ahead in the first 1,200 steps and then the two are level. The paper's gains (its figure 3,
# from 830 million parameters up) do not show at 3 million parameters, and one run cannot exclude them.
#
# (Is our trainer right? The same run repeated in transformers and torch, from the same weights on the same rows, ends
# within two percent of the same validation loss.)

# %%
lines = Path("data/bundled_by_torch.jsonl").read_text(encoding="utf-8").splitlines()
repeated = [json.loads(line) for line in lines]
print("refdiff / torch, validation loss by step:")
print("   ".join(f"{r['step']}: {r['ratio']:.3f}" for r in repeated[:5]))
print("   ".join(f"{r['step']}: {r['ratio']:.3f}" for r in repeated[5:]))

# %% [markdown]
# ## A place to put attention that is not needed
#
# A softmax row must sum to 1. A token that needs nothing must still put its weight somewhere, and plain Transformers
# often put it on the first token: an *attention sink*. Does the differential model have one, and in which map? If
# queries attended evenly, the first of T tokens would get $\frac1T\sum_t \frac1t$ of the weight. We measure how many
# times that it gets, on the eight openings of notebook 03. Two ways to cut the text: from its true beginning, where the
# first token is `<|endoftext|>`, as before each tale in training; and from its middle, where the first token is just a
# word.

# %%
bundled = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
texts = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")
sinks = {}
for where, part in (("from the beginning", slice(0, 192)), ("from the middle", slice(128, 320))):
    found = []
    for text in texts:
        ids = tokenizer([text.strip()], return_tensors="np")["input_ids"][0][part]
        m = viz.attention_maps(bundled, list(map(int, ids)))
        found.append([[(a[..., 0].mean(axis=(1, 2))) for a in (m.first, m.second)]])
    even = np.mean(1 / np.arange(1, 193))
    sinks[where] = np.mean(found, axis=(0, 1)) / even
    for name, shares in zip(("A₁", "A₂"), sinks[where], strict=True):
        print(f"{where:18} {name}   times the even share, by layer:", "  ".join(f"{x:.1f}" for x in shares))

# %% [markdown]
# Cut in the middle, no map gives the first token more than its share: whoever measures so finds no sink. From the true
# beginning the *second* map of layers 0, 1 and 5 gives `<|endoftext|>` more than its share, and more than the first map
# does. It is modest, at most 2.3 times the even share. (The first maps of layers 3 and 5 give it 1.1 and 1.4 times.)
# And the difference does not simply remove it: layer 0 subtracts its second map, but layers 1 and 5 have λ < 0
# (notebook 03) and add theirs, sink included.
#
# ## What we learned
#
# - The two maps get gradients of opposite sign, and λ follows the sum of the loss's wishes weighted by $A_2$.
# - A derivation is checked by differences of the function itself.
# - The factor $1 - \lambda_{init}$ keeps the gradients of $W_Q$ and $W_K$ the same at every depth.
# - A falling training loss with a rising validation loss means: learned by heart.
# - At 3 million parameters, one run of each kind, differential and plain attention end level.
# - The bundled model's second maps use the beginning of a text as a sink. A text cut in its middle hides it.

# %%
assert worst < 1e-6
assert sizes[-1, 1] > 3.5 * sizes[0, 1]
assert np.ptp(sizes[:, 2]) < 0.15 * sizes[0, 2]
assert records[-1]["loss"] < records[0]["loss"] / 2
assert by_heart[0] == by_heart[1]
assert all(0.025 < gap[step] < 0.05 for step in (400, 800, 1200))
assert all(abs(gap[step]) < 0.01 for step in steps if step > 1200)
assert all(abs(r["ratio"] - 1) < 0.02 for r in repeated)
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
# **2.** `exercises.check("softmax_vjp", …)`: $\partial L/\partial z$ for $a = \mathrm{softmax}(z)$, given $g$ and $a$.
#
# **3.** `exercises.check("rms_norm_vjp", …)`: the norm without a weight. Its size depends on $x$, too.
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
