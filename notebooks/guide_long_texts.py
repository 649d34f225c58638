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
# # Texts longer than in training
#
# RoPE rotates each plane of a query and key at its own speed ([chapter 02](02_where_words_meet.ipynb)). A text longer
# than any in training shows the slow planes angles that they never met. Recipes for long texts change the speeds;
# `rope_type` in a `config.json` names one. This guide compares two of them with the default, on the bundled model,
# without training. refdiff has four more, which `refdiff.layers.rope_frequencies` describes.

# %%
# %matplotlib inline
from itertools import pairwise
from pathlib import Path

import numpy as np
import sketches
import tiny

import refdiff
from refdiff import layers

model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
d, base = model.config.head_dim, model.config.rope_parameters["rope_theta"]
wavelengths = 2 * np.pi * base ** (np.arange(0, d, 2) / d)
slow = int((wavelengths > 512).sum())
print(f"{slow} of {d // 2} planes make no full turn within the 512 tokens of training")

# %% [markdown]
# ## What the recipes change
#
# Here they are for a text four times as long as in training:

# %%
recipes = {
    "default": {"rope_type": "default", "rope_theta": base},
    "linear": {"rope_type": "linear", "rope_theta": base, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": base, "factor": 4.0, "original_max_position_embeddings": 512},
}
stretch = {}
for name, recipe in recipes.items():
    frequencies, scale = layers.rope_frequencies(recipe, d, 512, 2048)  # scale: of queries and of keys
    stretch[name] = 2 * np.pi / np.array(frequencies) / wavelengths
    print(f"{name:8} wavelengths × {stretch[name][0]:.2f} (fastest plane) … × {stretch[name][-1]:.2f} (slowest), "
          f"scores × {scale**2:.2f}")  # fmt: skip
sketches.curves(np.arange(d // 2), stretch, "plane i, from the fastest to the slowest", "wavelength ÷ default",
                band=(d // 2 - slow - 0.5, d // 2 - 0.5, "no full turn within 512"), ylim=(0, 4.5),
                xticks=range(0, d // 2, 3), legend_at=(0.02, 0.5))  # fmt: skip

# %% [markdown]
# *linear* slows all planes alike, so adjacent tokens move closer together in angle. *yarn* keeps the two fastest
# planes, slows the eight slowest fourfold and those between by degrees, and multiplies all scores by 1.30.
#
# ## What it costs
#
# We join the tales and read 1,024 tokens at once, twice what the model was trained on. So both recipes get factor 2.
# The loss by position is the mean of three texts that do not overlap.

# %%
tales = Path("data/tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")
joined = np.concatenate([tokenizer([tale.strip()], return_tensors="np")["input_ids"][0] for tale in tales])
starts = np.linspace(0, len(joined) - 1024, 3).astype(int)
edges = np.arange(0, 1025, 128)
by_position = {}
for name, recipe in recipes.items():
    changed = refdiff.DiffLlamaConfig.from_pretrained("bundled")
    changed.rope_parameters = recipe | ({"factor": 2.0} if "factor" in recipe else {})
    changed.max_position_embeddings = 1024
    longer = refdiff.DiffLlamaForCausalLM(changed, model.params)
    surprise = []
    for start in starts:
        row = joined[start : start + 1024]
        p_next = tiny.softmax(longer(row[None]).logits[0, :-1])
        surprise.append(-np.log(p_next[np.arange(1023), row[1:]]))
    mean = np.mean(surprise, axis=0)
    by_position[name] = [float(mean[a : b - 1].mean()) for a, b in pairwise(edges)]
    print(f"{name:8}", " ".join(f"{loss:.2f}" for loss in by_position[name]))
above = np.array(by_position["default"]) - by_position["yarn"]
print("default − yarn after 512:", " ".join(f"{nats:.2f}" for nats in above[4:]))
sketches.curves(edges[:-1] + 64, by_position, "position in the text", "loss (nats per token)",
                band=(512, 1024, "longer than in training"), xticks=edges)  # fmt: skip

# %% [markdown]
# After position 512, the default falls ever further behind *yarn*, by 0.13 nats at first and 1.04 at the end. *linear*
# repairs the far end and pays for it everywhere before. *yarn* costs some 0.05 nats before 512 and repairs much of what
# comes after. The bumps that all curves share come from the texts.
#
# ## Exercise
#
# Which recipe would you use for texts of at most 512 tokens?
#
# <details>
# <summary>Answer</summary>
#
# The default: within the length of training it has the lowest loss.
#
# ```python
# assert all(by_position["default"][i] < min(by_position["yarn"][i], by_position["linear"][i]) for i in range(4))
# assert (np.diff(starts) >= 1024).all()
# assert all(b > a for a, b in pairwise(above[4:]))
# assert all(0 < -nats < 0.065 for nats in above[:4])
# assert by_position["default"][-1] > by_position["default"][3] + 0.5
# assert all(linear > yarn for linear, yarn in zip(by_position["linear"], by_position["yarn"], strict=True))
# ```
#
# </details>
