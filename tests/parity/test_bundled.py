"""The bundled model in transformers: it loads, and gives the same logits and the same text."""

from __future__ import annotations

import numpy as np
import torch
import transformers

import refdiff
from refdiff import bundled
from tests.parity.float64_transformers import float64_peer


def prompt() -> np.ndarray:
    tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
    text = "Once upon a time there was a king who had three daughters, and the youngest was the most beautiful."
    ids: np.ndarray = tokenizer(text, return_tensors="np")["input_ids"]
    return ids


def test_its_logits_are_those_of_transformers() -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64")
    theirs = float64_peer(bundled.FOLDER, "DiffLlamaForCausalLM")(prompt())
    np.testing.assert_allclose(model(prompt()).logits, theirs.logits, rtol=1e-10, atol=1e-10)


def test_its_text_is_that_of_transformers() -> None:
    ids = prompt()
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float32")
    peer = transformers.DiffLlamaForCausalLM.from_pretrained(bundled.FOLDER, dtype=torch.float32)
    theirs = peer.generate(torch.from_numpy(ids), max_new_tokens=60, do_sample=False)
    np.testing.assert_array_equal(model.generate(ids, max_new_tokens=60), theirs.numpy())


def test_its_tokenizer_is_that_of_transformers() -> None:
    ours, theirs = (
        load.from_pretrained(path)
        for load, path in ((refdiff.Tokenizer, "bundled"), (transformers.AutoTokenizer, bundled.FOLDER))
    )
    for text in ("Once upon a time", "  'My son,' said the king—\n\n“naïve” 字", "<|endoftext|>"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
