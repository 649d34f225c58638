"""The programs of DiffLlama's page in transformers' documentation run here with another import and `"np"`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import refdiff
from tests.generation.trained_tokenizers import byte_level, save

REPO = "google/diffllama-7b"
AUTO = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{REPO}")
model = AutoModelForCausalLM.from_pretrained("{REPO}", dtype="auto")
inputs = tokenizer("東京は日本の首都です。", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=20)
text = tokenizer.decode(output[0], skip_special_tokens=True)
"""


def program(docstring: str | None) -> str:
    """The lines after the prompts of a docstring; the value of the last one is named `text`."""
    lines = [line.strip()[4:] for line in (docstring or "").splitlines() if line.strip().startswith(">>>")]
    last = next(i for i in reversed(range(len(lines))) if lines[i].strip() and not lines[i].startswith("#"))
    lines[last] = lines[last] if " = " in lines[last] else f"text = {lines[last]}"
    return textwrap.dedent("\n".join(lines))


def ported(text: str) -> str:
    return text.replace("from transformers import", "from refdiff import").replace('"pt"', '"np"')


def run(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(text, "documentation", "exec"), names)
    return names


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with a Japanese tokenizer, where the page's programs look for theirs."""
    folder = tmp_path / REPO
    config = transformers.DiffLlamaConfig(
        vocab_size=420, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.DiffLlamaForCausalLM(config).double().save_pretrained(folder)
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    save(folder, byte_level(), tokenizer_config=options)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    "text", [program(transformers.DiffLlamaForCausalLM.forward.__doc__), AUTO], ids=["page", "auto"]
)
def test_programs_that_generate(checkpoint: Path, text: str) -> None:
    assert "generate(" in text
    got, want = run(ported(text)), run(text)
    assert got["text"] == want["text"] != ""
    for name, value in want.items():
        if isinstance(value, torch.Tensor):
            assert type(got[name]) is np.ndarray
            np.testing.assert_array_equal(got[name], value.numpy())


def test_torch_tensors_handed_in(checkpoint: Path) -> None:
    """The tokenizer of transformers gives tensors, the model takes them, and the tokenizer of refdiff decodes them."""
    both = AUTO.replace("AutoModelForCausalLM, ", "").replace(
        "import AutoTokenizer", "import AutoTokenizer\nfrom refdiff import AutoModelForCausalLM"
    )
    got, want = run(both), run(AUTO)
    assert type(got["output"]) is np.ndarray
    assert got["text"] == want["text"]
    assert refdiff.AutoTokenizer.from_pretrained(checkpoint).decode(want["output"][0]) == got["tokenizer"].decode(
        want["output"][0]
    )
    embeds = torch.zeros(1, 2, 48, dtype=torch.bfloat16)
    np.testing.assert_array_equal(
        got["model"](inputs_embeds=embeds)[0], got["model"](inputs_embeds=embeds.float().numpy())[0]
    )


def test_program_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """With smaller defaults, since a model of the true ones takes 4.5 GB."""
    for name, size in {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 8, "vocab_size": 99}.items():
        monkeypatch.setattr(refdiff.DiffLlamaConfig, name, size)
    names = run(ported(program(transformers.DiffLlamaConfig.__doc__)))
    assert names["configuration"] is names["model"].config
    assert names["model"]([[1, 2]]).last_hidden_state.shape == (1, 2, 64)
