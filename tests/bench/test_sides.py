"""Each library as it is measured: refdiff does what calls of a user do; others do the same, or say what is missing."""

from __future__ import annotations

import importlib
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

import refdiff
from refdiff.backends.numpy.thread_pool import Workers
from refdiff.backends.numpy.tuning import Tuning
from refdiff.bench.rows import BenchRow
from refdiff.bench.sides import BenchSettings, OnnxRuntimeSide, RefdiffSide, TransformersSide, make_side


def test_prompt_lookup_takes_few_passes(tiny_checkpoint: Path) -> None:
    for name, most in (("lookup", 50 / 5), ("edit", 50 / 2)):
        _, answer = islice(
            make_side("refdiff", BenchSettings(str(tiny_checkpoint), lookup_tokens=50)).measure(BenchRow(name)), 2
        )
        assert 0 < answer["passes"] <= most


def test_a_product_of_one_token_is_multiplied_as_in_a_pass_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS has all its threads then, where these are many, and those of Python have the cores otherwise."""
    seen: list[bool] = []
    running = Workers.running

    def noted(self: Workers, *, owns_cores: bool = True) -> Any:
        seen.append(owns_cores)
        return running(self, owns_cores=owns_cores)

    monkeypatch.setattr(Workers, "running", noted)
    for size in (1, 4):
        weights, x = [np.ones((2048, 2048), np.float32)], np.ones((size, 2048), np.float32)
        RefdiffSide(BenchSettings(None, Tuning.python_threads + 1)).bind_weights(weights, x)()
    assert seen == [False, True]


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


@pytest.mark.parametrize(
    ("side", "needed"),
    [(OnnxRuntimeSide, ("onnx", "onnxruntime")), (TransformersSide, ("torch", "transformers"))],
)
def test_a_missing_package_is_named_in_one_sentence(
    side: Any, needed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in needed:
        for name in needed:
            monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
        problem = rf"needs the package {missing}, which cannot be imported \(.+\)"
        said = rf"^--against {needed[1]} {problem}: pip install {missing}$"
        with pytest.raises(ImportError, match=said):
            side(BenchSettings()).prepare()


def test_a_model_is_imported_before_loading_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers imports what its classes need when they are first named."""
    imported: list[str] = []

    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            imported.append(name)
            return MagicMock()

    modules = {"torch": MagicMock(), "transformers": Lazy("transformers")}
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    side = TransformersSide(BenchSettings())
    side.prepare()
    assert "DiffLlamaForCausalLM" in imported
    imported.clear()
    side.open("somewhere")
    assert imported == []


def test_torch_must_see_the_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: False)
    modules = {"torch": SimpleNamespace(cuda=cuda), "transformers": SimpleNamespace()}
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    with pytest.raises(ImportError, match="needs a torch that sees the CUDA device"):
        TransformersSide(BenchSettings(backend="cupy")).prepare()
