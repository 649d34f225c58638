"""The package's own model: it is what its card says, and the first command of the README works with no network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refdiff
from refdiff import bundled
from refdiff.training.bundle import LIMIT

CARD = (bundled.FOLDER / "README.md").read_text(encoding="utf-8")
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}


def test_it_is_as_small_as_a_package_may_carry() -> None:
    files = [path for path in bundled.FOLDER.iterdir() if path.suffix in (".json", ".safetensors")]
    assert {path.name for path in files} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert sum(path.stat().st_size for path in files) <= LIMIT


def test_the_card_says_what_is_so() -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
    assert f"{model.num_parameters():,} parameters" in CARD
    assert model.config.wiring == "hf"
    assert 1e6 <= model.num_parameters() <= 3e6
    found = re.search(r"\*\*(\d\.\d{3}) bits per byte\*\*", CARD)
    assert found is not None
    assert float(found[1]) <= 1.5
    for heading in ("How it was made", "What it was trained on", "Licence"):
        assert f"## {heading}" in CARD


def test_it_says_what_fairy_tales_say() -> None:
    """Most words that it makes are words that the tales have: those of the card's sample and some of the commonest."""
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
    tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
    ids = tokenizer("Once upon a time", return_tensors="np")["input_ids"]
    made = model.generate(ids, max_new_tokens=100, do_sample=True, temperature=0.7, seed=5, eos_token_id=None)
    words = re.findall(r"[a-z]+", tokenizer.decode(made[0]).lower())
    common = {"the", "and", "a", "to", "of", "he", "was", "in", "that", "his", "it", "had", "her", "she", "they", "you"}
    assert len(words) > 50
    assert sum(word in common for word in words) / len(words) > 0.25


def test_the_weights_are_numbers() -> None:
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
    assert not refdiff.model.weights.nonfinite(model.params)
    out = model(np.arange(20)[None], output_attentions=True)
    assert (
        len({round(float(x), 3) for x in out.lambdas or ()}) == model.config.num_hidden_layers
    )  # learnt, not as drawn


def test_the_first_command_needs_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "refdiff", "generate", "Once upon a time", "-n", "8", "--seed", "1"],
        cwd=tmp_path,
        env={**OFFLINE, "PYTHONPATH": str(Path(refdiff.__file__).parents[1]), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip()


def test_a_folder_of_that_name_comes_first(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundled").symlink_to(tiny_checkpoint)
    monkeypatch.chdir(tmp_path)
    tiny = json.loads((tiny_checkpoint / "config.json").read_text())
    assert refdiff.DiffLlamaConfig.from_pretrained("bundled").hidden_size == tiny["hidden_size"]
