"""Each library as it is measured: refdiff does what calls of a user do; others do the same, or say what is missing."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import refdiff
from refdiff.bench.rows import BenchRow
from refdiff.bench.sides import BenchSettings, TransformersSide, make_side


def test_prompt_lookup_takes_few_passes(tiny_checkpoint: Path) -> None:
    side = make_side("refdiff", BenchSettings(str(tiny_checkpoint), lookup_tokens=50))
    _, answer = islice(side.measure(BenchRow("lookup")), 2)
    assert 0 < answer["passes"] <= 50 / 5


def test_weights_of_sixteen_bits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`stored` keeps them; --dtype bfloat16 does too, and refuses a checkpoint that has another type."""
    refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path, dtype="bfloat16")
    answers = []
    for name, dtype, nbytes in (("refdiff", "float32", 4), ("stored", "float32", 2), ("refdiff", "bfloat16", 2)):
        side: Any = make_side(name, BenchSettings(str(tmp_path), 1, dtype, steps=3))
        answers += islice(side.measure(BenchRow("decode", 9, 2)), 1, 2)
        assert side.itemsize == nbytes
        assert side.model.params["model"]["layers"][0]["mlp"]["gate_proj"]["weight"].dtype.itemsize == nbytes
    assert answers[0]["tokens"] == answers[1]["tokens"]
    said = "--dtype bfloat16: got matrices in float32, expected bfloat16"
    with pytest.raises(ValueError, match=said):
        make_side("refdiff", BenchSettings(str(tiny_checkpoint), 1, "bfloat16")).open(str(tiny_checkpoint))


def test_a_missing_package_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ("torch", "transformers")
    for missing in needed:
        for name in needed:
            monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
        problem = rf"needs the package {missing}, which cannot be imported \(.+\)"
        said = rf"^--against {needed[1]} {problem}: pip install {missing}$"
        with pytest.raises(ImportError, match=said):
            TransformersSide(BenchSettings()).prepare()
