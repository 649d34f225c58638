"""What tests/browser/test_pyodide.py computes in Pyodide and in CPython. Prints one line of JSON."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import refdiff
from refdiff import exercises, layers, oracle
from refdiff.training import Corpus, Settings, Trainer

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
    return found | judged() | {"losses": trained()}


def trained() -> list[float]:
    """The losses of three steps of chapter 05's training."""
    project = Path("/project" if sys.platform == "emscripten" else ".")
    config = refdiff.DiffLlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    settings = Settings(
        max_steps=3, batch_size=8, context=64, optimizer="muon", learning_rate=1e-2, warmup_steps=1, sample_every=0
    )
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Corpus(shutil.copytree(project / "notebooks" / "data" / "licence", Path(scratch) / "corpus"))
        trainer = Trainer.start(Path(scratch), config, corpus, settings, dtype="float64")
        trainer.run(lambda record: losses.append(record["loss"]))
    return losses


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
        "judge": said(lambda: __import__("refdiff.oracle.submission")),
        "pair": said(lambda: refdiff.Tokenizer.from_pretrained("bundled")(["a"], ["b"])),
    }


if __name__ == "__main__":
    result = computed()
    if sys.platform == "emscripten":
        result["missing"] = missing()
    sys.stdout.write(json.dumps(result) + "\n")
