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
# # 06 · Check your kernel
#
# *For engineers.* You write a fast kernel for differential attention. Is it right? A comparison with `allclose` needs a
# tolerance. Guess it too large, and mistakes pass. Here the oracle of refdiff says how much error the roundings of your
# kernel can explain. It finds any error beyond that, and names the mistake.

# %%
# %matplotlib inline
import numpy as np
import sketches

from refdiff import layers, oracle

# %% [markdown]
# ## What the kernel is meant to compute
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
# With two key heads there is one pair of them, so every way to pair keys or values is the same. Test with two
# pairs or more.
#
# From the command line, `refdiff check FILE` judges the arrays in a file, inputs and outputs of one case, from whatever
# language they come. `REFDIFF_KERNEL=package.module:function pytest --pyargs refdiff.oracle.conformance` runs a
# function of yours on all cases.
#
# ## Exercise
#
# Change the block size to 3. The numbers change. Is the kernel still right? Then let it keep its sum of values in 16
# bits, `kept=np.float16`. What does the oracle say? And what if the kernel declares `recipe="float16"`?
#
# <details>
# <summary>Answer</summary>
#
# With blocks of 3 the sums are taken in another order, so the last bits change, within the budget: pass.
#
# ```python
# assert oracle.check(blocked_kernel(**inputs, block=3), spec, inputs, recipe="float32")
# ```
#
# A float16 is off by up to $2^{-11}$ of its size, thousands of times what a float32 is: fail. `oracle.Recipe` has no
# such sum beside outputs in float32: its field `accumulate` is float32 or the type that the kernel stores. But a kernel
# that gives its output in float16 may be off by as much, and as one of those this one passes.
#
# ```python
# half = blocked_kernel(**inputs, kept=np.float16)
# found = [oracle.check(half, spec, inputs, recipe=recipe).status for recipe in ("float32", "float16")]
# assert found == ["fail", "pass"]
# ```
#
# </details>
#
# ## What must hold

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

# %% [markdown]
# ## Questions
#
# <details>
# <summary>Where does the oracle's tolerance come from?</summary>
#
# From the roundings that the recipe declares: it computes several valid summation orders, and their errors are the
# budget of each row. How many budgets pass is one fixed choice of the oracle, made with many correct runs.
#
# </details>
# <details>
# <summary>Why does allclose with 1e-3 miss a wrong ε?</summary>
#
# It changes ordinary numbers by less than 1e-3; float32 is far more precise, so it is far beyond the budget.
#
# </details>
# <details>
# <summary>Why is a test on one token blind to a wrong scale of the scores?</summary>
#
# Softmax over a single key is 1, whatever the score.
#
# </details>
