"""How fast the bundled model writes in Node: `node tests/browser/in_node.mjs FOLDER tests/browser/speed_on_wasm32.py`.

Tokens per second of processor time, compiler threads included, which other work on the machine changes little.
"""

from __future__ import annotations

import sys

import js
import numpy as np

import refdiff

model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float32")
prompt = np.array([refdiff.Tokenizer.from_pretrained("bundled").encode("Once upon a time there was a king")])
speeds = []
for _ in range(8):
    start = js.process.cpuUsage()
    made = model.generate(prompt, max_new_tokens=40, do_sample=True, seed=1)
    used = js.process.cpuUsage(start)
    speeds.append((made.shape[1] - prompt.shape[1]) / (used.user + used.system) * 1e6)
first, *others = speeds
sys.stdout.write(f"{np.median(others):.0f} tokens/s, {min(others):.0f} to {max(others):.0f}; at first {first:.0f}\n")
