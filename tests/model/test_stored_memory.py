"""What `weights="stored"` is for: a model of 16 bits in the memory of its file."""

from __future__ import annotations

from pathlib import Path

import pytest

import refdiff
from refdiff.bench.processes import Child
from refdiff.bench.side import Settings


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much memory a process has held")
def test_a_process_holds_them_once_and_in_16_bits(tmp_path: Path) -> None:
    """The file and little more: less than one more matrix of a feed-forward network, if that were expanded."""
    config = refdiff.DiffLlamaConfig(
        vocab_size=8000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=3, num_attention_heads=16,
        num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    refdiff.DiffLlamaForCausalLM.from_config(config, dtype="bfloat16").save_pretrained(tmp_path)
    stored = (tmp_path / "model.safetensors").stat().st_size

    def held(side: str) -> float:
        with Child(side, Settings(str(tmp_path), threads=2, steps=4)) as child:
            before = child.request("peak")["bytes"]
            after = child.request("memory", size=48, batch=2)["bytes"]
        return (after - before) / stored

    assert 1.0 < held("stored") < 1.27
    assert held("refdiff") > 1.9
