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
# Two maps, one subtracted from the other: **what does the loss want from each of them, and what moves λ?**
#
# Three questions, one after the other:
#
# 1. What does the loss want from the two maps? (A derivation of five lines, checked, then one sentence.)
# 2. What moves λ? (A training of 300 steps.)
# 3. What does the factor $1 - \lambda_{init}$ do to the gradients?
#
# Allow 20 minutes; you need chapter 03. (Whether a model with the difference learns better than one without is chapter
# 09.)

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import numpy as np
import sketches
import tiny

import refdiff
from refdiff import layers
from refdiff.backends import overlay
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
# Substitute $dP$; the factor on each differential is that variable's gradient:
#
# $$\frac{\partial L}{\partial V} = P^\top g,\quad G = \frac{\partial L}{\partial P} = gV^\top,\quad
# \frac{\partial L}{\partial A_1} = G,\quad \frac{\partial L}{\partial A_2} = -\lambda G,\quad
# \frac{\partial L}{\partial \lambda} = -\sum G \odot A_2.$$
#
# Read the middle of it: **what the loss wants more of in one map, it wants less of in the other** (as long as λ > 0).
# Training goes against the gradient, so the loss pulls λ up where $\sum G \odot A_2 > 0$: where $A_2$ looks at tokens
# that the loss wants less of.
#
# In a model, a norm follows (eq. 3). It undoes whatever makes $O$ longer, so the loss does not depend on the length of
# $O$: in each row $g \cdot O = \sum G \odot P = 0$. Suppose $P$ were one softmax, whose weights are all above 0. Then
# $G$ would need both signs: the loss could want more of one key only if it wanted less of another. But $P$ itself has
# both signs. So "more" of a key with $P > 0$ can be balanced by "more" of a key with $P < 0$, which means: less taken
# away. The pictures of question 1 show such a row.


# %%
def loss(a1, a2, v, lambda_):
    return (g * ((a1 - lambda_ * a2) @ v)).sum()  # some loss whose ∂L/∂O is g


def gradients(a1, a2, v, lambda_):
    G = g @ v.T
    return G, -lambda_ * G, (a1 - lambda_ * a2).T @ g, -(G * a2).sum()


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
# (*vjp* is short for vector–Jacobian product, the backward step of one function: from the gradient of its result it
# computes the gradients of its inputs.)
#
# ## 1. What does the loss want on a sentence?
#
# The bundled model reads a sentence and predicts its last word from those before it. Here is $-G$ of one pair of layer
# 4, at the token that predicts. Where a bar is above 0, the loss wants more of that key in $P$, or less of it taken
# away. Below it are $P$ and the two maps as they are, on one scale. (`sketches.wanted` keeps what `diff_attention_vjp`
# is given on the backward pass, and computes $G = gV^\top$.)

# %%
bundled = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
ids = tokenizer(["The wolf came to the house of the goat, and the wolf"], return_tensors="np")["input_ids"]
words, query = [tokenizer.decode([i]) for i in ids[0]], ids.shape[1] - 2
by_layer = sketches.wanted(bundled, ids)
chosen, pair, seen = by_layer[4], 1, query + 1
G, a1, a2 = (x[pair, query, :seen] for x in (chosen.gradient, chosen.first, chosen.second))
P = a1 - chosen.lambda_ * a2
print(f"token that predicts: {words[query]!r}; to predict: {words[-1]!r}; λ of layer 4 is {chosen.lambda_:.2f}")
for key in (2, 5, 10):
    weights = f"A₁ {a1[key]:.3f}   A₂ {a2[key]:.3f}   λA₂ {a1[key] - P[key]:.3f}   P {P[key]:6.3f}"
    print(f"{words[key]!r:7} −G {-G[key]:5.2f}   {weights}")
row_sums = [np.abs((x.gradient * (x.first - x.lambda_ * x.second)).sum(axis=-1)[:, query]).max() for x in by_layer]
print(f"largest |G| here {np.abs(G).max():.2f}; largest |ΣG⊙P| of this row in any layer and pair {max(row_sums):.0e}")
below = [words[key] for key in np.flatnonzero((G < 0) & (P < 0))]
print(f"the loss wants more of {(G < 0).sum()} of {seen} keys; of these P is below 0 at {below}")
parts = {"P above 0": (-G * P)[(G < 0) & (P > 0)].sum(), "P below 0": (-G * P)[(G < 0) & (P < 0)].sum(),
         "the keys that it wants less of": (-G * P)[G >= 0].sum()}  # fmt: skip
print("parts of −ΣG⊙P:", "   ".join(f"{name} {part:+.2f}" for name, part in parts.items()))
rows = {"−G: above 0 the loss wants more, or less taken away": -G, "P = A₁ − λ A₂": P, "A₁": a1, "A₂": a2}
sketches.bars(rows, int(np.argmin(G)), words[:seen], apart=1)

# %% [markdown]
# In this pair the loss wants "wolf" most of all keys, the word to predict. But "wolf" has a *negative* weight: $A_1$
# gives it 0.04, and $\lambda A_2$ takes away 0.06. There are two ways to mend that, and the gradients ask for both:
# more of "wolf" in $A_1$, and less of it in $A_2$. (In layers 1 and 5, λ is below 0. There the loss wants the same of
# both maps.)
#
# The loss wants more of 9 of 14 keys. Even so, $\sum G \odot P$ is 0 in this row, up to the ε of the norm. At four of
# the nine keys $P$ is below 0, and they balance most of the others (−0.14 against +0.18).
#
# We chose this pair. Here are all 18, each row divided by its largest |number|: above $-G$, below $P$.

# %%
wanted, given = (
    np.array([pick(x)[:, query, :seen] for x in by_layer])
    for pick in (lambda x: -x.gradient, lambda x: x.first - x.lambda_ * x.second)
)  # each (layer, pair, key)
first_choice = wanted.argmax(axis=-1)
for layer, choices in enumerate(first_choice):
    strength = "   ".join(f"{words[key]!r:8} {wanted[layer, i, key]:.2f}" for i, key in enumerate(choices))
    print(f"layer {layer}, λ {by_layer[layer].lambda_:5.2f}: the loss wants most   {strength}")
print(f"'wolf' is wanted most in {(first_choice == 2).sum()} of {first_choice.size} pairs,"
      f" and wanted at all in {(wanted[..., 2] > 0).sum()}")  # fmt: skip
print(f"'wolf' is wanted, and P is below 0 there, in {((wanted[..., 2] > 0) & (given[..., 2] < 0)).sum()} pairs")
sketches.all_pairs({"−G: blue, the loss wants more": wanted, "P = A₁ − λ A₂": given}, words[:seen])

# %% [markdown]
# So the pair above is a clear case and not the rule. The loss wants "wolf" most in 3 of the 18 pairs, and more of it in
# 9; in the other 9 it wants less. Wanted, and yet below 0 in $P$, is "wolf" in 3 pairs.
#
# ## 2. Experiment: what moves λ?
#
# One small model, one seed, learns one text by heart: the license of this project, 11 kB of English. Three layers, 300
# steps. Every ten steps we ask how hard the loss pulls on each λ: $-\partial L/\partial\lambda$, on eight sequences
# of the text. The model has the gradients of the four vectors of eq. 2. There
# $\partial\lambda/\partial\lambda_{q1} = \exp(\lambda_{q1}\cdot\lambda_{k1})\,\lambda_{k1}$, which gives back the
# gradient of λ:


# %%
def pull(model, sequences):
    """−∂L/∂λ by layer: above 0, the loss wants a larger λ."""
    _, grads = model.loss_and_grad(sequences, labels=sequences)
    found = []
    for p, d in zip(model.params["model"]["layers"], grads["model"]["layers"], strict=True):
        q, k, dq = p["self_attn"]["lambda_q1"], p["self_attn"]["lambda_k1"], d["self_attn"]["lambda_q1"]
        found.append(-float(dq @ k / (k @ k) / np.exp(q @ k)))
    return found


config = refdiff.DiffLlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
for name in ("run", "weak"):
    (folder / name).mkdir()
corpus = Corpus(Path("data/licence"))  # by Corpus.from_text(Path("../LICENSE"), …, vocab_size=300, validation=0.1)
settings = Settings(
    max_steps=300, batch_size=8, context=64, optimizer="muon", learning_rate=1e-2, warmup_steps=20, evaluate_every=20,
    save_every=0, sample_every=0, prompt="You may ",
)  # fmt: skip
trainer = Trainer.start(folder / "run", config, corpus, settings, dtype="float64")
weak = Trainer.start(folder / "weak", config, corpus, settings, dtype="float64")  # for the question after this one
sequences, _ = corpus.batch("train", np.arange(8), settings.context)
records, moments, pulls = [], [], []


def after_step(record):
    records.append(record)
    if record["step"] % 10 == 0:
        moments.append(record["step"])
        pulls.append(pull(trainer.model, sequences))


trainer.run(after_step)
lambdas, pulls = np.array([records[step - 1]["lambdas"] for step in moments]), np.array(pulls)
print(f"a guess among {config.vocab_size} tokens has loss ln {config.vocab_size} = {np.log(config.vocab_size):.2f}")
for step in (10, 30, 40, 50, 60, 70, 100, 120, 200, 300):
    row = moments.index(step)
    shown = ["  ".join(f"{x:6.3f}" for x in table[row]) for table in (lambdas, pulls)]
    print(f"step {step:3}   loss {records[step - 1]['loss']:.2f}   λ {shown[0]}   pull {shown[1]}")
late = np.array(moments) >= 50
upward = (pulls[late] > 0).sum(axis=0)
along = (np.diff(lambdas, axis=0) * pulls[:-1] > 0).sum(axis=0)
for layer in range(3):
    print(f"layer {layer}: λ at most {lambdas[:, layer].max():.2f}, at the end {lambdas[-1, layer]:.2f};"
          f" from step 50 on the loss pulls up at {upward[layer]} of {late.sum()} moments;"
          f" λ moves as pulled in {along[layer]} of {len(pulls) - 1} intervals")  # fmt: skip
sketches.pull_and_path(moments, lambdas, pulls, counted_from=50)

# %% [markdown]
# At step 30 the loss pulls every λ up, hardest in layer 1, and all three grow. Compare the two rows, layer by layer.
# (An *interval* is ten steps: does λ move in the direction in which the loss pulls at its beginning?)
#
# - *Layer 1:* the sign of the pull mostly fits: λ moves as pulled in 23 of 29 intervals. It rises with the pull until
#   step 40, and falls with it from step 70 (1.45) to 120 (1.21). Once in between it does not fit: from step 50 to 60 λ
#   still rises, against a tiny pull down. After step 200 λ hardly moves, with pulls to both sides.
# - *Layer 0:* from step 50 on the loss pulls up at 23 of 26 moments, and λ falls a little. The sign does not fit.
# - *Layer 2:* λ grows to 0.80 by step 50 while the pull is almost 0. The size of the pull does not fit.
#
# The gradient is not all: between it and a step stands the optimizer, here Muon (Jordan 2024). It changes each matrix
# of the layers by a step whose singular values are all about equal. All other parameters, the λ vectors too, it leaves
# to AdamW (Loshchilov and Hutter 2019). AdamW keeps running means of each gradient and of its square, and divides the
# first by the root of the second, the gradient's usual size. Then the size of the pull should hardly matter, only how
# steadily it points one way. We test that: the same training once more, with all gradients of λ made a hundred times
# smaller. Only `diff_lambda_vjp` changes. (`overlay` returns the model's layer functions, each as `a_hundredth` returns
# it. The model then calls these.)


# %%
def a_hundredth(name, function):
    if name != "diff_lambda_vjp":
        return function
    return lambda g, *vectors: function(g / 100, *vectors)


weak.model.ops = overlay(weak.model.ops, a_hundredth)
weak_lambdas = []
weak.run(lambda record: weak_lambdas.append(record["lambdas"]))
clipped = sum(record["gradient"] > settings.grad_clip for record in records)
print(f"first run: all gradients scaled down together in {clipped} of {len(records)} steps")
for step in (50, 100, 300):
    shown = ["  ".join(f"{x:.2f}" for x in of) for of in (records[step - 1]["lambdas"], weak_lambdas[step - 1])]
    print(f"step {step:3}   λ {shown[0]}   with a hundredth of the pull {shown[1]}")
weak_lambdas = np.array(weak_lambdas)
peak = int(weak_lambdas[:, 1].argmax())
print(f"layer 1 with a hundredth of the pull: λ at most {weak_lambdas[peak, 1]:.2f}, at step {peak + 1}")
sketches.paths(np.arange(1, 301), {"as before": np.array([r["lambdas"] for r in records]),
                                   "a hundredth of the pull": weak_lambdas}, "step", "λ")  # fmt: skip

# %% [markdown]
# With a hundredth of the pull, λ of layers 0 and 2 ends near where it did before. It ends at 0.86 and 0.92 instead of
# 0.81 and 0.92. That of layer 1 rises to 1.01 instead of 1.45 and ends at 0.90 instead of 1.18. In plain gradient
# descent each step would be a hundredth as long. **So AdamW sets the pace of λ more than the size of the pull does.**
# The sign of the pull agrees with most of what λ does in layer 1. It does not agree with the slow fall in layer 0.
#
# Why are the two runs not equal, if AdamW ignores a constant factor? It ignores it but for its ε (10⁻⁸). Also, where
# the common norm of all gradients is above 1, they are scaled down together before AdamW (*clipping*): in 279 of the
# 300 steps. That norm contains the gradients of λ. After a few steps the two runs have different weights, and then
# everything differs. Which of these keeps λ of layer 1 lower was not examined.
#
# This was one run with one seed. Not examined either: why λ of layer 0 falls a little against a steady pull. Weight
# decay is not the cause, since it acts on matrices and not on these vectors. (The pull was measured on eight sequences;
# a training step takes others.)
#
# ## 3. Experiment: what is $1 - \lambda_{init}$ for?
#
# Chapter 03 left it open. At initialization all scores are small, so both maps are nearly even and nearly alike, and
# $A_1 - \lambda A_2 \approx (1 - \lambda_{init})\,A$. Deep layers start with a larger λ_init, so their difference is
# smaller. The norm blows it up to one size again, and with it the gradients of $W_Q$ and $W_K$, in proportion to
# $1/(1 - \lambda_{init})$. The factor $1 - \lambda_{init}$ takes just this growth with depth back. We measure the
# gradient of $W_Q$ for one layer at four depths, relative to that of a plain head with the same weights.

# %%
depths = (0, 3, 11, 27)
sizes = np.array([np.mean([sketches.gradient_sizes(depth, seed) for seed in range(5)], axis=0) for depth in depths])
for depth, (bare, norm, both) in zip(depths, sizes, strict=True):
    start = f"layer {depth:2}: λ_init {layers.lambda_init(depth):.2f}"
    print(f"{start}   bare {bare:4.2f}   norm {norm:5.1f}   norm and factor {both:4.1f}")
lines = dict(zip(("A₁ − λA₂ alone", "with norm", "with norm and 1 − λ_init"), sizes.T, strict=True))
sketches.curves(depths, lines, "layer", "gradient of W_Q, plain head = 1", yscale="log", xticks=depths,
                yticks=(1, 2, 5, 10, 20, 50), yticklabels=(1, 2, 5, 10, 20, 50))  # fmt: skip

# %% [markdown]
# With the norm alone, the gradient is 18 times that of a plain head in the first layer and 74 times in layer 27. It
# grows about fourfold. With the factor it stays nearly the same at every depth (14.5 to 15.9 times), as the paper wants
# it. It is not the gradient of a Transformer, though: norming a head of small numbers makes it many times larger
# everywhere. The paper's appendix G calls the two the same *up to constant factors*.
#
# This was one layer by itself, with even maps. Here are whole models, one new and one trained, on the eight openings of
# chapter 03:

# %%
texts = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")
rows = np.stack([tokenizer([text.strip()], return_tensors="np")["input_ids"][0][:64] for text in texts])
by_model = {}
for name, one in (("new", refdiff.DiffLlamaForCausalLM.from_config(bundled.config, 0)), ("trained", bundled)):
    _, grads = one.loss_and_grad(rows, labels=rows)
    by_model[name] = [np.linalg.norm(layer["self_attn"]["q_proj"]["weight"]) for layer in grads["model"]["layers"]]
    print(f"{name:7}   ‖∂L/∂W_Q‖ by layer:", "  ".join(f"{size:.3f}" for size in by_model[name]),
          f"  largest / smallest {max(by_model[name]) / min(by_model[name]):.1f}")  # fmt: skip

# %% [markdown]
# They do not grow with depth, but they are not the same either: other things than λ_init differ between layers. And the
# size of a gradient matters for plain gradient descent and for clipping. AdamW and Muon, which trained this model,
# rescale each step anyway.
#
# ## What we learned
#
# - Both maps get the same signal $G$, with opposite signs as long as λ > 0: $G$ and $-\lambda G$. What it asks for
#   differs by pair: on our sentence, the word to predict is wanted most in 3 of 18.
# - The loss pulls λ up where $A_2$ looks at tokens that the loss wants less of.
# - A derivation is checked by differences of the function itself.
# - In this one training the loss pulls every λ up at step 30, and every λ rises. In one layer of three it pulls down
#   more often than up from step 50 on, and λ turns near step 70. In another, λ falls a little against the pull.
# - With a hundredth of the pull, λ of two layers in three ends near where it did: AdamW divides by the gradient's size.
# - At initialization the norm makes the gradient of $W_Q$ 18 times that of a plain head in the first layer. In layer 27
#   it is 74 times. The factor $1 - \lambda_{init}$ takes back the growth with depth, and not the rest: about 15 times
#   is left at every depth. In a whole model, layers differ for other reasons, too.
#
# <details>
# <summary>What is checked of this chapter</summary>
#
# ```python
# assert worst < 1e-6
# assert sizes[-1, 1] > 3.5 * sizes[0, 1]
# assert (sizes[:, 2] > 14).all()
# assert np.ptp(sizes[:, 2]) < 0.15 * sizes[0, 2]
# assert all(max(found) / min(found) > 1.5 for found in by_model.values())
# assert all(np.argmax(found) < 5 for found in by_model.values())
# assert np.greater(records[99]["lambdas"], records[0]["lambdas"]).all()
# assert records[-1]["loss"] < records[0]["loss"] / 2
# assert np.argmin(G) == 2
# assert (first_choice == 2).sum() == 3
# assert (wanted[..., 2] > 0).sum() == 9
# assert ((wanted[..., 2] > 0) & (given[..., 2] < 0)).sum() == 3
# assert np.argsort(-a1)[:2].tolist() == [5, 8]
# assert P[2] < 0 < chosen.lambda_
# assert -parts["P below 0"] > parts["P above 0"] / 2
# assert max(row_sums) < 1e-4 * np.abs(G).max()
# assert (pulls[moments.index(30)] > 0).all()
# assert lambdas[:, 1].max() > lambdas[-1, 1] + 0.2
# assert upward[1] < late.sum() / 2 < upward[0]
# assert along[1] > 20
# assert clipped > 0
# assert lambdas[-1, 0] < lambdas[:, 0].max()
# assert min(weak_lambdas[-1]) > 0.8
# assert (np.abs(weak_lambdas[-1] - lambdas[-1]) < 0.06).tolist() == [True, False, True]
# ```
#
# </details>

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
# **4.** `exercises.check("cross_entropy", …)`: the loss. Some scores are near 1000, some 1000 apart.
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
# <summary>The loss pulls λ of a layer up: what does that say of its second map?</summary>
#
# $A_2$ gives weight to tokens that the loss wants less of, compared with those that $P$ looks at now.
#
# </details>
#
# Next: [09 · Is it better than plain attention?](09_attention_noise.ipynb)
