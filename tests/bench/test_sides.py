"""Each library as it is measured: refdiff does what calls of a user do; others do the same, or say what is missing."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.backends.numpy.thread_pool import Workers
from refdiff.backends.numpy.tuning import Tuning
from refdiff.bench import measurements as m
from refdiff.bench.inputs import random_ids
from refdiff.bench.machine import UnavailableError
from refdiff.bench.peers import NumpySide, OnnxRuntimeSide, TransformersSide
from refdiff.bench.refdiff_side import RefdiffSide, StoredSide
from refdiff.bench.rows import Row
from refdiff.bench.side import Settings


def test_tokens_are_those_of_generate(tiny_checkpoint: Path) -> None:
    settings = Settings(str(tiny_checkpoint), steps=3)
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint)
    made = model.generate(random_ids(2, 9, 259), max_new_tokens=4, do_sample=False, eos_token_id=None)
    expected = made[:, 9:].tolist()
    for name in ("decode", "memory"):
        answer = RefdiffSide(settings).measuring(Row(name, 9, 2))()
        assert answer["tokens"] == expected
        assert answer.get("bytes", 2e7) > 10_000_000
    read = RefdiffSide(settings).measuring(Row("prefill", 9, 2))()
    assert read["tokens"] == [row[:1] for row in expected]
    assert read["work"] < m.prefill_operations(model.config, 9, sparing=False) * 2


def test_prompt_lookup_takes_few_passes(tiny_checkpoint: Path) -> None:
    for name, most in (("lookup", 50 / 5), ("edit", 50 / 2)):
        answer = RefdiffSide(Settings(str(tiny_checkpoint), looked_up=50)).measuring(Row(name))()
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
        RefdiffSide(Settings(None, Tuning.python_threads + 1)).hold(weights, x)()
    assert seen == [False, True]


def test_weights_of_sixteen_bits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`stored` keeps them; --dtype bfloat16 does too, and refuses a checkpoint that has another type."""
    refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path, dtype="bfloat16")
    answers = []
    for kind, dtype, nbytes in ((RefdiffSide, "float32", 4), (StoredSide, "float32", 2), (RefdiffSide, "bfloat16", 2)):
        side = kind(Settings(str(tmp_path), 1, dtype, steps=3))
        answers.append(side.measuring(Row("decode", 9, 2))())
        assert side.itemsize == nbytes
        assert side.model.params["model"]["layers"][0]["mlp"]["gate_proj"]["weight"].dtype.itemsize == nbytes
    assert answers[0]["tokens"] == answers[1]["tokens"]
    said = "--dtype bfloat16 measures matrices as they are stored, but here they are float32"
    with pytest.raises(ValueError, match=said):
        RefdiffSide(Settings(str(tiny_checkpoint), 1, "bfloat16")).open(str(tiny_checkpoint))


@pytest.mark.parametrize("size", [1, 16])
@pytest.mark.parametrize("side", [NumpySide, RefdiffSide])
def test_products(side: Any, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "CACHES", 0)
    monkeypatch.setattr(m, "WEIGHT", (24, 31))
    answer = side(Settings(threads=2, least=0)).measuring(Row("product", size))()
    weight = np.random.default_rng(0).standard_normal((24, 31), np.float32)
    x = np.random.default_rng(1).standard_normal((size, 31), np.float32)
    np.testing.assert_allclose(answer["sample"], (x.astype(np.float64) @ weight.T)[-1, ::3], rtol=1e-4, atol=1e-5)
    assert answer["seconds"] > 0


@pytest.mark.parametrize(
    ("side", "needed"),
    [(OnnxRuntimeSide, ("onnx", "onnxruntime")), (TransformersSide, ("torch", "transformers"))],
)
def test_what_is_missing_is_said_in_one_sentence(
    side: Any, needed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in needed:
        for name in needed:
            monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
        with pytest.raises(UnavailableError, match=rf"^--against (\w+) needs \1 and {needed[0]} \(pip install"):
            side(Settings()).prepare()


def test_torch_must_see_the_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: False)
    modules = {"torch": SimpleNamespace(cuda=cuda), "transformers": SimpleNamespace()}
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    with pytest.raises(UnavailableError, match="needs a torch that sees the CUDA device"):
        TransformersSide(Settings(backend="cupy")).prepare()


def test_the_commands_are_what_a_user_would_run() -> None:
    command = RefdiffSide(Settings("here")).command("Once")
    assert " ".join(command).startswith("-m refdiff generate -q --offline -m here -p Once -n 1 --temp 0 --threads 1 ")
    assert ("expanded" in command, "stored" in command) == (True, False)
    peer = TransformersSide(Settings("here"))
    peer._device = "cpu"
    assert peer.command("Once")[2:] == ["here", "Once", "float32", "cpu"]
    assert "AutoModelForCausalLM" in peer.command("Once")[1]
    assert "DiffLlama" not in peer.command("Once")[1]
