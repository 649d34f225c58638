"""`python -m tests.cuda.decoding_profile`: what each token that is decoded asks of the device, counted by torch.

CUPTI, which torch's profiler listens to, hears the calls of all that is in the process, so those of CuPy too. Counted
is what a long text has more of than a short one, so that the prompt and the recording of the step are not in it.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import refdiff

LAYERS = 24
"""So many that a wait in each of them is not taken for the few of a token."""

SHORT, LONG = 16, 80
"""Tokens of the two texts."""

WAITS = re.compile(r"Synchronize|^cu(da)?Memcpy")
"""Calls in which the host waits for the device, or may: copies of what CUDA has not pinned."""


def counts(trace: dict[str, Any]) -> Counter[str]:
    """Calls of CUDA by their names, copies by their ways, and how many kernels ran, in what the profiler writes."""
    found: Counter[str] = Counter()
    for event in trace["traceEvents"]:
        match event.get("cat"):
            case "cuda_runtime" | "cuda_driver" | "gpu_memcpy" | "gpu_memset":
                found[event["name"]] += 1
            case "kernel":
                found["kernels on the device"] += 1
    return found


def told(short: Counter[str], long: Counter[str], tokens: int) -> tuple[list[str], bool]:
    """Lines of how often each call is made for one of the `tokens` that the long text has more; whether all is well."""
    each = {name: (long[name] - short[name]) / tokens for name in sorted(long) if long[name] != short[name]}
    if not long["kernels on the device"]:
        return ["the profiler heard of no kernel: it may not listen to this device"], False
    waits = sum(number for name, number in each.items() if WAITS.search(name))
    per_layer = "less than one a layer" if waits < LAYERS else "there may be one a layer"
    return [
        *(f"{number:8.2f}  {name}" for name, number in each.items()),
        f"{waits:8.2f}  in which the host may wait, in {LAYERS} layers: {per_layer}",
    ], waits < LAYERS


WEIGHTS = ("float32", "float16")
"""Types of the weights, which are multiplied by different kernels; every CuPy has these."""


def model(backend: str, dtype: str) -> Any:
    """A model of many small layers, whose weights stay of their type."""
    config = refdiff.DiffLlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
    )  # fmt: skip
    if dtype == "float32":
        return refdiff.DiffLlamaForCausalLM.from_config(config, seed=0, backend=backend)
    with tempfile.TemporaryDirectory() as folder:
        refdiff.DiffLlamaForCausalLM.from_config(config, seed=0, dtype=dtype).save_pretrained(folder)
        return refdiff.DiffLlamaForCausalLM.from_pretrained(folder, backend=backend, weights="stored")


def generated(model: Any, tokens: int) -> Any:
    """A text of so many tokens after a prompt of eight."""
    return model.generate(np.arange(3, 11)[None, :], max_new_tokens=tokens, eos_token_id=None)


def main() -> int:
    """Print the calls of one token; 1 where the host may wait once a layer."""
    torch: Any = importlib.import_module("torch")
    torch.zeros(1, device="cuda")

    def profiled(decoder: Any, tokens: int) -> Counter[str]:
        with torch.profiler.profile() as profiler:
            generated(decoder, tokens)
            torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(file))
            return counts(json.loads(file.read_text(encoding="utf-8")))

    all_well = True
    for dtype in WEIGHTS:
        decoder = model("cupy", dtype)
        profiled(decoder, LONG)  # compiles, and wakes what listens
        lines, well = told(profiled(decoder, SHORT), profiled(decoder, LONG), LONG - SHORT)
        print(f"for each token, with weights of {dtype}:", *lines, sep="\n")
        all_well = all_well and well
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
