"""Checkpoints of random weights in the dimensions of published models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import refdiff
from refdiff.bench import sizes
from refdiff.model.weights.names import count_parameters, parameter_shapes


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("kajuma/DiffLlama-0.3B-handcut", 1_235_818_496),
        ("kajuma/DiffLlama-1B", 1_388_412_416),
        ("tiny", 512 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128 + 4 * 8 + 2 * 64) + 64),
    ],
)
def test_dimensions(name: str, count: int) -> None:
    config = refdiff.DiffLlamaConfig(**sizes.LIKE[name])
    assert count_parameters(parameter_shapes(config, "DiffLlamaForCausalLM").values()) == count


def test_a_checkpoint_has_a_model_and_a_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    sizes.write_like("tiny", folder)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    assert model.dtype == "float32"
    tokenizer = refdiff.Tokenizer.from_pretrained(folder)
    ids = tokenizer.encode("Once あ")
    assert ids[0] == 1
    assert len(ids) == 1 + 5 + 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Once あ"
    assert len(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]) == 512
