"""What tests/browser/test_pyodide.py computes in Pyodide and in CPython. Prints one line of JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

import refdiff
from refdiff import exercises, layers, oracle

TEXT = "Once upon a time there was a king"
SENTENCES = (TEXT, "むかしむかし、😀 a\tfox didn't\n\n stop  ", "", "<|endoftext|>x")
REPEATED = [" ".join(f"w{(i * i + k) % 40}x" for i in range(400)) for k in range(60)]
"""Texts whose words come again, each with the ids that it had before: references to them once were miscounted."""


def computed() -> dict[str, Any]:
    """What must be the same everywhere, up to rounding error."""
    tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
    encoded = [tokenizer.encodings(text)[0] for text in SENTENCES]
    ids = np.array([tokenizer.encode(TEXT)])
    found: dict[str, Any] = {"tokens": [[list(e.ids), [list(at) for at in e.offsets]] for e in encoded]}
    found["repeated"] = [tokenizer.encode(text) for text in REPEATED]
    for kernels in ("fast", "reference"):
        model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float32", kernels=kernels)
        out = model(ids, output_attentions=True)
        loss, gradients = model.loss_and_grad(ids, labels=ids)
        found[kernels] = {
            "logits": out.logits[0, -1].tolist(),
            "maps": [float(np.abs(a).sum()) for a in out.attentions],
            "loss": float(loss),
            "gradient": np.asarray(gradients["model"]["embed_tokens"]["weight"]).sum(axis=0).tolist(),
            "sampled": model.generate(ids, max_new_tokens=20, do_sample=True, seed=3)[0].tolist(),
        }
    found["story"] = tokenizer.decode(found["fast"]["sampled"], skip_special_tokens=True)
    return found | judged()


def judged() -> dict[str, Any]:
    """What the oracle and an exercise say of a correct kernel and of one without its scale."""
    spec = oracle.Spec.preset(
        "hf_diffllama", query_heads=6, key_heads=2, head_dim=16, layer=3, rope="none", lambda_form="given"
    )
    inputs = oracle.cases("discriminating", spec=spec)[1].inputs
    right = oracle.truth(spec, inputs).out.astype(np.float32)
    wrong = (right / (1 - layers.lambda_init(spec.layer))).astype(np.float32)
    return {
        "verdicts": [oracle.check(out, spec, inputs, recipe="float32").status for out in (right, wrong)],
        "mistake": oracle.diagnose(wrong, spec, inputs, recipe="float32", max_deviations=1).name,
        "exercise": repr(exercises.check("softmax", lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True))),
    }


def missing() -> dict[str, str]:
    """What is said where a browser has not what is needed."""

    def said(call: Any) -> str:
        try:
            call()
        except (ImportError, RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    load = refdiff.DiffLlamaForCausalLM.from_pretrained
    return {
        "hub": said(lambda: load("ai/model")),
        "bfloat16": said(lambda: load("bundled", dtype="bfloat16")),
        "threads": said(lambda: load("bundled", threads=2)),
        "judge": said(lambda: __import__("refdiff.oracle.judge")),
        "pair": said(lambda: refdiff.Tokenizer.from_pretrained("bundled")(["a"], ["b"])),
    }


if __name__ == "__main__":
    result = computed()
    if sys.platform == "emscripten":
        result["missing"] = missing()
    sys.stdout.write(json.dumps(result) + "\n")
