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
# # Check your code
#
# You wrote a fast kernel for differential attention, or a whole model. Is it right, and if not, where is the mistake? A
# comparison with `allclose` needs a tolerance; guess it too large, and mistakes pass. refdiff's *oracle* computes how
# much error the roundings of your code can explain, finds any error beyond that, and names the mistake.
#
# This guide runs. Part 1 checks a kernel, part 2 a model. The
# [guide for authors of kernels](reference/guides/kernels.md) is the reference to both.

# %%
# %matplotlib inline
import numpy as np
import sketches

import refdiff
from refdiff import layers, oracle
from refdiff.backends import overlay

# %% [markdown]
# ## 1. A kernel: what it is meant to compute
#
# The paper (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)) gives the equations of a pair of
# heads,
#
# $$\mathrm{DiffAttn} = \left(\mathrm{softmax}\frac{Q_1K_1^\top}{\sqrt d} - \lambda\,
# \mathrm{softmax}\frac{Q_2K_2^\top}{\sqrt d}\right)V \tag{eq. 1}$$
# $$\mathrm{head} = (1-\lambda_{init})\,\mathrm{LN}(\mathrm{DiffAttn}) \tag{eq. 3}$$
#
# and leaves choices open: which heads are a pair, what ε is, and more. A `Spec` fixes every choice. We take
# DiffLlama's, with RoPE already applied and λ given as a number. `oracle.truth` computes it in float64, by the same
# layer that the models use, `layers.diff_heads_hf`.

# %%
spec = oracle.Spec.preset(
    "hf_diffllama", query_heads=6, key_heads=2, head_dim=16, layer=3, rope="none", lambda_form="given"
)
cases = oracle.cases("discriminating", spec=spec)
inputs = cases[1].inputs
for name, x in inputs.items():
    print(f"{name:12} {x.shape!s:15} {x.dtype}")
print("the truth:", oracle.truth(spec, inputs).out.shape)

# %% [markdown]
# The inputs are not `randn`. The oracle has a set of cases that are made so that mistakes show, and this is the second
# of them. What it can show and what it cannot is counted below.
#
# ## Your kernel
#
# This one walks over the keys in blocks and keeps a running maximum and sum, as FlashAttention does. It never holds a
# whole row of scores. It computes in float32. The two outer loops go over pairs and over the two maps of a pair, the
# inner one over blocks of keys. A block may bring a larger maximum; then all that was summed before shrinks to it. The
# last lines are the difference, the norm and the factor. The arguments after the star let us break the kernel on
# purpose later, and choose the type of the sum that it keeps.

# %%


def blocked_kernel(q, k, v, lambda_full, *, block=5, width=16, eps=1e-5, neighbors=False, scaled=True, kept=np.float32):
    B, H, T, d = q.shape
    K, S = k.shape[1:3]
    h, sees = H // 2, np.arange(S) <= np.arange(T)[:, None] + S - T
    wide = np.concatenate([v[:, : K // 2], v[:, K // 2 :]], axis=-1)
    out = np.empty((B, h, T, 2 * d), dtype=np.float32)
    for i in range(h):
        j, both = i // (H // K), []
        for branch in (0, 1):
            one = q[:, 2 * i + branch if neighbors else i + branch * h]
            key = k[:, j + branch * (K // 2)]
            top = np.full((B, T, 1), -1e30, dtype=np.float32)
            total, sum_of_values = np.zeros_like(top), np.zeros((B, T, 2 * d), dtype=kept)
            for s in range(0, S, block):
                at = slice(s, s + block)
                scores = one @ key[:, at].swapaxes(1, 2) / np.sqrt(np.float32(width))
                scores = np.where(sees[:, at], scores, np.float32(-1e30))
                new_top = np.maximum(top, scores.max(axis=-1, keepdims=True))
                weights = np.where(sees[:, at], np.exp(scores - new_top), np.float32(0))
                shrink = np.exp(top - new_top)
                total = total * shrink + weights.sum(axis=-1, keepdims=True)
                sum_of_values = (sum_of_values * shrink + weights @ wide[:, j, at]).astype(kept)
                top = new_top
            both.append(sum_of_values / total)
        head = both[0] - lambda_full * both[1]
        head = head / np.sqrt((head * head).mean(axis=-1, keepdims=True) + np.float32(eps))
        out[:, i] = head * np.float32(1 - layers.lambda_init(spec.layer)) if scaled else head
    return out


mine = blocked_kernel(**inputs)
verdict = oracle.check(mine, spec, inputs, recipe="float32")
print(mine.shape, mine.dtype, "→", verdict.status)

# %% [markdown]
# `recipe="float32"` tells the oracle what your kernel rounds to. It then computes the output with these roundings in
# several orders of summation, all of them valid. The error that these results have in a row is the *budget* of the row.
# So the budget is computed, not guessed. A kernel passes if no row is off by more than 4 budgets. Why 4? Here are
# correct runs to compare it with: this kernel, with six block sizes on eight sets of numbers.

# %%
correct = []
for seed in range(8):
    numbers = oracle.cases("discriminating", seed=seed, spec=spec)[1].inputs
    allowed = oracle.budget(spec, numbers, "float32")
    for block in (1, 2, 3, 5, 8, 11):
        judged = allowed.judge(blocked_kernel(**numbers, block=block))
        (row,) = [s for s in judged.tensors["out"].statistics if s.name == "row"]
        correct.append((judged.status, row.value))
limit = row.limit
print(f"{len(correct)} correct runs: {sum(status == 'pass' for status, _ in correct)} pass")
within = sum(value < 2 for _, value in correct)
print(f"in {within} of them no row is off by 2 budgets or more; the oracle's limit is {limit:g}")

# %% [markdown]
# The oracle's limit comes from many more runs of this kind. In 27,000 correct runs, two of torch and JAX came to 3.1
# and 3.5 budgets, nearer to the limit than ours. `refdiff/oracle/thresholds.py` has the evidence beside each limit.
# (Beside pass and fail there is a third verdict, *inconclusive*: on some inputs correct kernels differ too much among
# themselves. It is no pass.)
#
# ## Break it
#
# Five mistakes that people have made. The first three are plain to see. The last two are small: no number is off by
# more than a ten-thousandth of the largest.

# %%
broken = {
    "scores / √2d": {"width": 32},
    "heads 2i, 2i+1": {"neighbors": True},
    "no 1 − λ_init": {"scaled": False},
    "ε = 0": {"eps": 0.0},
    "ε = 1e-6": {"eps": 1e-6},
}
right = oracle.truth(spec, inputs).out
budget = oracle.budget(spec, inputs, "float32")
outputs = {"correct": mine} | {name: blocked_kernel(**inputs, **change) for name, change in broken.items()}
over, change, close = {}, {}, {}
print(f"{'':15} {'oracle':6} {'worst row':>22}  {'largest error':>13}  allclose to 1e-3  to 1e-5")
for name, out in outputs.items():
    judged = budget.judge(out)
    (row,) = [s for s in judged.tensors["out"].statistics if s.name == "row"]
    over[name], change[name] = row.value / limit, np.abs(out - right).max() / np.abs(right).max()
    close[name] = [np.allclose(out, right, rtol=tolerance, atol=tolerance) for tolerance in (1e-3, 1e-5)]
    print(f"{name:15} {judged.status:6} {over[name]:8.0e} times allowed  {change[name]:13.0e}  "
          f"{close[name][0]!s:16}  {close[name][1]}")  # fmt: skip
print(f"allowed is an error of {limit:g} budgets of the row; the largest error is in parts of the largest number")
half_close = np.allclose(right.astype(np.float16), right, rtol=1e-5, atol=1e-5)
print("the truth itself, rounded to float16: allclose to 1e-5", half_close)

# %% [markdown]
# Each kernel's error, in parts of what the oracle allows and in parts of a tolerance of a thousandth:

# %%
sketches.two_tests(over, {name: error / 1e-3 for name, error in change.items()})

# %% [markdown]
# `allclose` with a tolerance of a thousandth lets both mistakes in ε pass. The oracle does not, because it knows that
# float32 is much better than that. With 1e-5, `allclose` would have been right on all six kernels. That is a lucky
# guess, and nothing tells you so: another kernel may need another tolerance. The truth itself, rounded to float16, is
# not within 1e-5.
#
# Here is what the oracle finds wrong in two of the kernels, in words. (`print` a verdict to see each number with its
# limit, and the worst row.)

# %%
for name in ("scores / √2d", "ε = 1e-6"):
    print(name)
    for reason in budget.judge(outputs[name]).tensors["out"].reasons:
        print("   ", reason.split(",")[0])

# %% [markdown]
# ## What is the mistake called?
#
# `diagnose` computes what each known deviation from the spec would give, alone and in pairs, and compares your output
# with all of them.

# %%
names = {}
for name in broken:
    out = outputs[name]
    ranking = oracle.diagnose(out, spec, inputs, recipe="float32", max_deviations=1)
    names[name] = ranking.name
    best = ranking.findings[0].hypotheses[0]
    print(f"{name:15} {ranking.status}: {ranking.name}\n{'':15} {best.what}")

# %% [markdown]
# ## A test is as good as its inputs
#
# Take only the last query of the text and no more than one key. Softmax over one key is 1, whatever the score is. So
# every mistake in the scores is invisible. `blind_spots` lists what an input cannot show. We compare with the list of
# all mistakes that a kernel with two pairs of key heads can make. (`larger` has two pairs; some of the mistakes cannot
# happen with one.)

# %%
larger = oracle.Spec.preset(
    "hf_diffllama", query_heads=12, key_heads=4, head_dim=16, layer=3, rope="none", lambda_form="given"
)
single = {name: x if name == "lambda_full" else x[:, :, -1:] for name, x in inputs.items()}
hidden, also = ({d.name for d in oracle.blind_spots(spec, x, "float32")} for x in (single, inputs))
total = len(oracle.deviations(larger))
print(f"of {total} deviations one token hides {len(hidden)}, and the inputs above hide {len(also)}:")
for name in sorted(also):
    print("   ", name)
unseen = oracle.check(blocked_kernel(**single, width=32), spec, single, recipe="float32")
print("the kernel with √2d, on one token:", unseen.status)

# %% [markdown]
# No single input shows everything: nothing is padded here, for one, and no row sees nothing. So the set has four cases.
# What all four hide can be shown by none of them:

# %%
by_all = {}
for one in (spec, larger):
    each = [
        {d.name for d in oracle.blind_spots(one, c.inputs, "float32")} for c in oracle.cases("discriminating", spec=one)
    ]
    by_all[one.key_heads] = set.intersection(*each)
    print(f"{one.key_heads} key heads: the cases hide {', '.join(str(len(names)) for names in each)};", end=" ")
    print("all four:", ", ".join(sorted(by_all[one.key_heads])) or "nothing")

# %% [markdown]
# With two key heads there is one pair of them, so every way to pair keys or values is the same. Test with two pairs or
# more.
#
# From the command line, `refdiff check FILE` judges the arrays in a file, inputs and outputs of one case, from
# whatever language they come. `pytest --refdiff-kernel package.module:function` runs a function of yours on all cases.

# %%
assert verdict
assert over.pop("correct") < 1 < min(over.values())
assert list(close.values()) == [[True, True], *[[False, False]] * 3, *[[True, False]] * 2]
assert not half_close
assert names == {
    "scores / √2d": "scores_scaled_by_sqrt_2d",
    "heads 2i, 2i+1": "interleaved_pairs",
    "no 1 − λ_init": "no_output_scale",
    "ε = 0": "no_epsilon",
    "ε = 1e-6": "epsilon_1e-6",
}
assert {status for status, _ in correct} == {"pass"}
assert within == len(correct) == 48
assert limit == 4
assert max(change["ε = 0"], change["ε = 1e-6"]) < 1e-4
assert unseen.status == "pass"
assert len(hidden) > len(also)
assert by_all[2]
assert not by_all[4]


# %%
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
ids = tokenizer(["Once upon a time there was a king"], return_tensors="np")["input_ids"]


def fresh_model():
    return refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", kernels="reference")


# %% [markdown]
# ## 2. A model: a mistake that is easily made
#
# A model has more than a hundred intermediate results, and after the first mistake nearly all of them are different.
# Its text may look fine all the same. We give a model such a mistake and find it.
#
#
# $$\lambda_{init} = 0.8 - 0.6\,\exp(-0.3\,(l-1)),\quad l = 1, 2, \dots \tag{section 2.1}$$
#
# In the paper (Ye et al. 2024, [arXiv 2410.05258](https://arxiv.org/abs/2410.05258)) layers count from 1. In code they
# count from 0, and the exponent is $-0.3\,l$. If you count from 1 and forget the −1, every layer gets the λ_init of
# the next layer. If you count from 0 and keep the −1, it gets that of the layer before (and the first layer gets
# −0.01). We give the first mistake to a model. Its functions are in `model.ops`, by name; with `kernels="reference"`
# they are the equations as written. `overlay` returns them with some wrapped, here only `lambda_init`.


# %%
def one_layer_too_deep(name, function):
    if name != "lambda_init":
        return function
    return lambda layer: function(layer + 1)


model, broken = fresh_model(), fresh_model()
broken.ops = overlay(broken.ops, one_layer_too_deep)
print("λ_init right: ", [round(layers.lambda_init(layer), 2) for layer in range(6)])
print("λ_init broken:", [round(broken.ops.lambda_init(layer), 2) for layer in range(6)])
made = {}
for name, one in (("right", model), ("broken", broken)):
    made[name] = one.generate(ids, max_new_tokens=16)
    print(f"{name:6} {tokenizer.decode(made[name][0], skip_special_tokens=True)!r}")
logits, off = model(ids).logits, broken(ids).logits
print(f"largest change of a logit: {np.abs(off - logits).max() / np.abs(logits).max():.2f} of the largest")

# %% [markdown]
# Here 16 tokens are the same. (Another prompt or a longer text may show the mistake; the logits show it at once.)
#
# ## The picture: two ways to compare
#
# A *trace* keeps every intermediate result of a run. With a trace of a correct run one can compare in two ways:

# %%
sketches.modes()

# %% [markdown]
# In formulas, let $f_n$ be the n-th step, $x_n$ your result after it and $r_n$ the reference's. Each mode compares
# your $x_n$ with something:
#
# $$\text{free:}\quad r_n = f_n(r_{n-1})$$
# $$\text{local:}\quad f_n(x_{n-1})$$
#
# so local mode asks of each step: given what you had *there*, did you compute the right thing? An error then belongs to
# the step that made it and goes no further. Free mode is a few lines of NumPy; `first_divergence` is local mode.

# %%
reference, mine = oracle.trace(model, ids), oracle.trace(broken, ids)
local = oracle.first_divergence(mine, reference)


def free(run):
    """How far each point of a run is from the reference's, relative to it."""
    found = {}
    for path, right in reference.items():
        seen = np.isfinite(right)  # a masked score is −∞
        found[path] = float(np.linalg.norm((run[path] - right)[seen]) / max(np.linalg.norm(right[seen]), 1e-30))
    return found


errors = free(mine)
print(len(reference), "points in a trace; those of the first layer's attention:")
prefix = "model.layers.0.self_attn."
points = [path.removeprefix(prefix) for path in reference if path.startswith(prefix)]
print(" ", ", ".join(points[:9]))
print(" ", ", ".join(points[9:]))

# %% [markdown]
# A 1 or a 2 at the end says which map of the pair. `scores1` is $Q_1K_1^\top/\sqrt d$, and `lse1` is the logarithm
# of what softmax divides by, $\log\sum_s \exp(\mathrm{scores1}_s)$. `attn1` is $A_1V$, and `lambda_full` is λ.
# `diff` is $A_1V - \lambda A_2V$. `groupnorm` is the RMSNorm of each head (its name in transformers), and `scaled`
# is that times $1 - \lambda_{init}$.
#
# Here is what both see in layer 0: the relative error of each point. Errors below 1e-12 are drawn at 1e-12.

# %%
shown = [path for path in reference if path.startswith("model.layers.0.")]
labels = [path.split(".", 3)[3].replace("self_attn.", "").replace("layernorm", "norm") for path in shown]
at = {s.path: s.error / max(s.size, 1e-30) for s in local.stages}
both_modes = {mode: [max(of[path], 1e-12) for path in shown] for mode, of in (("free", errors), ("local", at))}
sketches.two_modes(labels, both_modes, limit=1e-10)

# %% [markdown]
# In free mode everything that λ reaches is wrong. (The scores and maps of layer 0 come after λ in the list but do not
# depend on it.) In local mode only the guilty step stands out, once in each layer. λ itself, `lambda_full`, is
# innocent: *given* the wrong λ_init it was computed correctly.
#
# Layer 1 is not drawn. Its input is wrong already, so in free mode even its scores and maps must be wrong. We count:

# %%
guilty = [s.path for s in local.stages if s.status not in ("equal", "missing")]
wrong = {layer: [e > 1e-10 for path, e in errors.items() if f"layers.{layer}." in path] for layer in (0, 1)}
for layer, marks in wrong.items():
    print(f"free:  {sum(marks)} of {len(marks)} points of layer {layer} are wrong")
print("       the first of all is", next(path for path, error in errors.items() if error > 1e-10))
print(f"local: {len(guilty)} points of the whole model are wrong:")
for path in guilty:
    print("  ", path)
print(local.first.what)

# %% [markdown]
# ## A mistake too small to see
#
# A second model forgets the ε of the norm after attention (eq. 3). Its logits agree in the first digits, and its text
# is the same.


# %%
def without_epsilon(name, function):
    if name != "rms_norm":
        return function
    return lambda x, weight, eps: function(x, weight, eps if weight is not None else 0.0)


subtle = fresh_model()
subtle.ops = overlay(subtle.ops, without_epsilon)
off = subtle(ids).logits
change = np.abs(off - logits).max() / np.abs(logits).max()
same_text = np.array_equal(subtle.generate(ids, max_new_tokens=16), made["right"])
found = oracle.first_divergence(oracle.trace(subtle, ids), reference)
print(f"largest change of a logit: {change:.0e} of the largest; the same text: {same_text}")
print("first divergence, local:", found.path)

# %% [markdown]
# ## Two mistakes at once
#
# Now one model has both. We look at the norm after attention in layer 0, where the second mistake is (an error below
# 1e-12 is again given as 1e-12):

# %%
both = fresh_model()
both.ops = overlay(overlay(both.ops, one_layer_too_deep), without_epsilon)
traces = {"λ_init": mine, "ε": oracle.trace(subtle, ids), "λ_init and ε": oracle.trace(both, ids)}
reports, at_norm = {}, {}
for mode in ("free", "local"):
    print(f"{mode + ':':7} wrong points, the kinds of them, error of groupnorm in layer 0")
    for wrong_in, trace in traces.items():
        off = free(trace)
        paths = [path for path, error in off.items() if error > 1e-10]
        if mode == "local":
            stages = {s.path: s for s in oracle.first_divergence(trace, reference).stages}
            off = {path: s.error / max(s.size, 1e-30) for path, s in stages.items()}
            paths = [path for path, s in stages.items() if s.status == "differs"]
        kinds = sorted({path.rpartition(".")[2] for path in paths})
        reports[mode, wrong_in], at_norm[mode, wrong_in] = kinds, off[prefix + "groupnorm"]
        few = ", ".join(kinds) if len(kinds) < 4 else f"{len(kinds)} kinds"
        print(f"  {wrong_in:13} {len(paths):3}  {few:22} {max(at_norm[mode, wrong_in], 1e-12):.0e}")

# %% [markdown]
# In free mode the first and the third row are the same. The norm differs whether it is right or wrong, since what goes
# into it is wrong already. You would mend λ_init, run again and only then meet the second mistake. Local mode lists
# both at once. (There the norm's error is larger than with ε alone: the wrong λ makes the difference smaller, so ε
# weighs more.)
#
# ## What is the mistake called?
#
# You know the step now. `diagnose` goes further: it knows mistakes that people have made, computes what each would
# give, alone and in pairs, and compares. It needs four things:
#
# - *what came out* of layer 0's attention, `out`;
# - *a spec*: what should have been computed. Here it is DiffLlama's attention with 6 heads of 32 numbers, in layer 0,
#   on queries and keys that are rotated already;
# - *what went in*: queries, keys and values from the trace, and the four λ `vectors`;
# - *a recipe*: how precisely your code computes. "float32" allows the differences that the roundings of float32 can
#   explain.

# %%
model_spec = oracle.Spec.preset("hf_diffllama", query_heads=6, key_heads=6, head_dim=32, layer=0, rope="none")
vectors = {name: x for name, x in model.base_params["layers"][0]["self_attn"].items() if name.startswith("lambda_")}
named = {}
for wrong_in, trace in {"nothing": reference, **traces}.items():
    layer_inputs, out = sketches.attention_case(trace, prefix)
    layer_inputs |= vectors
    answer = oracle.diagnose(out, model_spec, layer_inputs, recipe="float32")
    named[wrong_in] = answer.name
    print(f"{wrong_in:13} {answer.status}{': ' * bool(answer.name)}{answer.name or ''}")
unseen = [deviation.name for deviation in oracle.blind_spots(model_spec, layer_inputs, "float32")]
print(f"{len(unseen)} known mistakes change nothing here:")
print(f"  {', '.join(unseen[:4])}\n  {', '.join(unseen[4:])}")

# %% [markdown]
# Both are named, also where they stand together. What the input does not exercise stays hidden. Of the five mistakes
# that change nothing here, three need padding, one needs a cache, and one needs query heads that share a key head. This
# text and this model have none of them.
#
# Your own code can be in any language. Write its arrays to a safetensors file under these names (those of transformers
# are known too), and compare it by `refdiff trace --compare` ([guide](../refdiff/oracle/guides/traces.md)).
#
# <details>
# <summary>What the tests check</summary>
#
# ```python
# assert not oracle.first_divergence(oracle.trace(model, ids), reference)
# assert np.array_equal(made["broken"], made["right"])
# assert same_text
# assert local.path == "model.layers.0.self_attn.lambda_init"
# assert guilty == [f"model.layers.{layer}.self_attn.lambda_init" for layer in range(6)]
# assert (sum(wrong[0]), all(wrong[1])) == (12, True)
# assert found.path == "model.layers.0.self_attn.groupnorm"
# assert len(unseen) == 5
# assert reports["free", "λ_init"] == reports["free", "λ_init and ε"]
# assert np.isclose(at_norm["free", "λ_init"], at_norm["free", "λ_init and ε"], rtol=1e-4)
# assert reports["local", "λ_init and ε"] == ["groupnorm", "lambda_init"]
# assert at_norm["local", "λ_init"] < 1e-12
# assert named == {
#     "nothing": None,
#     "λ_init": "layer_index_from_one",
#     "ε": "no_epsilon",
#     "λ_init and ε": "layer_index_from_one + no_epsilon",
# }
# assert "no_padding_mask" in unseen
# ```
#
# </details>

# %% [markdown]
# ## Exercises
#
# **0.** Change the block size to 3. The numbers change. Is the kernel still right? Then let it keep its sum of values
# in 16 bits, `kept=np.float16`. What does the oracle say? And what if the kernel declares `recipe="float16"`?
#
# **1.** Give a model a λ without exponentials, $\lambda_{q1}\lambda_{k1} - \lambda_{q2}\lambda_{k2} + \lambda_{init}$;
# the function to wrap is `diff_lambda`. Which point does local mode report first? What does `diagnose` call it? Then
# take a `Spec` with `lambda_form="given"` and give `diagnose` the model's own `lambda_full` in place of the four
# vectors. Why does it say nothing now?
#
# **2.** Write eq. 3 with a mistake of your choice (forget the factor, take 1e-6 for ε, pair neighbors) and let
# `exercises.check("eq3", …)` name it. Then find a mistake that it does not know.
#
# <details>
# <summary>Answers</summary>
#
# 0: With blocks of 3 the sums are taken in another order, so the last bits change, within the budget: pass.
#
# ```python
# assert oracle.check(blocked_kernel(**inputs, block=3), spec, inputs, recipe="float32")
# ```
#
# A float16 is off by up to $2^{-11}$ of its size, thousands of times what a float32 is: fail. `oracle.Recipe` has no
# such sum beside outputs in float32: its field `accumulate` is float32 or the type that the kernel stores. But a
# kernel that gives its output in float16 may be off by as much, and as one of those this one passes.
#
# ```python
# half = blocked_kernel(**inputs, kept=np.float16)
# found = [oracle.check(half, spec, inputs, recipe=recipe).status for recipe in ("float32", "float16")]
# assert found == ["fail", "pass"]
# ```
#
# 1: Local mode reports `lambda_full`, and `diagnose` says `no_exponentials`. Given the model's own λ, everything
# after it is right: like local mode, `diagnose` judges the output from the inputs that it is given.
#
# ```python
# from refdiff import exercises
#
#
# def bare_lambda(name, function):
#     if name != "diff_lambda":
#         return function
#     return lambda q1, k1, q2, k2, start: (q1 * k1).sum() - (q2 * k2).sum() + start
#
#
# bare = fresh_model()
# bare.ops = overlay(bare.ops, bare_lambda)
# trace = oracle.trace(bare, ids)
# assert oracle.first_divergence(trace, reference).path == prefix + "lambda_full"
# q, k, v, out = (trace[prefix + name] for name in ("q_rope", "k_rope", "v_proj", "scaled"))
# layer_inputs = {"q": q, "k": k, "v": v.reshape(1, -1, 6, 32).swapaxes(1, 2)}
# out = out.reshape(1, -1, 3, 64).swapaxes(1, 2)
# assert oracle.diagnose(out, model_spec, {**layer_inputs, **vectors}, recipe="float32").name == "no_exponentials"
# given = oracle.Spec.preset(
#     "hf_diffllama", query_heads=6, key_heads=6, head_dim=32, layer=0, rope="none", lambda_form="given"
# )
# lambda_full = trace[prefix + "lambda_full"]
# answer = oracle.diagnose(out, given, {**layer_inputs, "lambda_full": lambda_full}, recipe="float32")
# assert answer.status == "no deviation"
#
#
# def no_factor(q, k, v, lambda_, start, eps):
#     return layers.diff_heads_hf(q, k, v, np.asarray(lambda_), 0.0, eps)
#
#
# print(exercises.check("eq3", no_factor))
# ```
#
# </details>
