"""The sixty-line model of chapter 01 computes what refdiff does, and the notebook defines the same functions."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import refdiff
from refdiff import bundled
from tests.test_notebooks import FOLDER, script

SOURCE = FOLDER / "tiny.py"
PROMPTS = ("Once upon a time there was a king", "The wolf said", "'Where is my crown?' asked the")


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    return script("tiny")


@pytest.fixture(scope="module")
def reference() -> refdiff.DiffLlamaForCausalLM:
    return refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float64", kernels="reference")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_and_greedy_tokens_are_those_of_the_reference(
    tiny: ModuleType, reference: refdiff.DiffLlamaForCausalLM, prompt: str
) -> None:
    weights, config = tiny.load(bundled.FOLDER)
    ids = refdiff.Tokenizer.from_pretrained("bundled").encode(prompt)
    expected = reference([ids]).logits[0]
    assert np.abs(tiny.model(ids, weights, config) - expected).max() <= 1e-12
    assert np.ptp(expected) > 1
    assert tiny.generate(ids, 24, weights, config) == reference.generate([ids], max_new_tokens=24)[0].tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_it_reads_shared_key_heads_and_weights_of_16_and_32_bits(tiny: ModuleType, tmp_path: Path, dtype: str) -> None:
    config = refdiff.DiffLlamaConfig(
        vocab_size=53, hidden_size=24, intermediate_size=29, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=6, rms_norm_eps=1e-3, tie_word_embeddings=False,
    )  # fmt: skip
    refdiff.DiffLlamaForCausalLM.from_config(config, seed=5).save_pretrained(tmp_path, dtype=dtype)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path, dtype="float64", kernels="reference")
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    expected = model([ids]).logits[0]
    error = np.abs(tiny.model(ids, *tiny.load(tmp_path)) - expected).max()
    assert error <= 1e-12 * np.abs(expected).max()


def test_it_imports_numpy_and_the_standard_library_alone_and_is_short() -> None:
    text = SOURCE.read_text(encoding="utf-8")
    tree = ast.parse(text)
    imports = {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
    imports |= {n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.module}
    assert imports == {"json", "pathlib", "numpy"}
    noise = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in noise}
    docstring = tree.body[0]
    assert len([line for line in lines if line > (docstring.end_lineno or 0)]) <= 64


def test_the_notebook_defines_the_same_functions_in_the_same_order() -> None:
    shown = (FOLDER / "01_sixty_lines.py").read_text(encoding="utf-8")
    ours = [
        ast.unparse(n) for n in ast.parse(SOURCE.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)
    ]
    names = {ast.parse(text).body[0].name for text in ours}  # type: ignore[attr-defined]
    nodes = [n for n in ast.parse(shown).body if isinstance(n, ast.FunctionDef) and n.name in names]
    assert [ast.unparse(n) for n in nodes] == ours
